//! Who may read, over TLS and without, and what a server says that may not be asked.

use projectionist::{api::Reason, sources::rabbitmq::RabbitMqProbe};
use serde_json::{Value, json};

use crate::certificates::{Authority, authority, signed};
use crate::harness::{ask, ask_within, declare, probe, question, server, settings, until_pending, with_tls};

/// Makes a user with this tag; with permissions in the virtual host `/` that are these for everything.
fn user(name: &str, tag: &str, permissions: Option<&str>) -> String {
    server().run("PUT", &format!("users/{name}"), &json!({"password": "hunter2", "tags": tag})).unwrap();
    if let Some(pattern) = permissions {
        let all = json!({"configure": pattern, "write": pattern, "read": pattern});
        server().run("PUT", &format!("permissions/%2F/{name}"), &all).unwrap();
    }
    server().url_as(name, "hunter2")
}

#[tokio::test]
async fn the_rights_in_the_documentation_suffice_and_each_of_them_is_needed() {
    let page = include_str!("../../docs/sources/rabbitmq.md");
    assert!(page.contains("set_user_tags projectionist management"), "the page lists the tag");
    assert!(page.contains("set_permissions -p / projectionist '^$' '^$' '^$'"), "the page lists the permissions");
    declare(server(), "rights", "classic");
    until_pending(&mut probe(&user("enough", "management", Some("^$"))), &["rights"], 0).await;
    for (name, tag, permissions, advice) in
        [("untagged", "", Some("^$"), "set_user_tags"), ("stranger", "management", None, "set_permissions")]
    {
        let refused = ask(&mut probe(&user(name, tag, permissions)), &["rights"]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::PermissionDenied, "{name}: {}", refused.message);
        assert!(refused.message.contains(advice), "{name}: {}", refused.message);
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_in_words_and_a_new_one_is_another_connection() {
    let right = user("rotated", "management", Some("^$"));
    for url in [server().url_as("rotated", "wrong"), server().url_as("nobody", "hunter2")] {
        let refused = ask(&mut probe(&url), &["rights"]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AuthenticationFailed, "{}", refused.message);
        let message = &refused.message;
        assert!(message.contains("in the Secret") && !message.contains("hunter2"), "{message}");
        assert!(!message.contains("wrong"), "{message}");
    }
    assert_ne!(settings(&right).identity(), settings(&server().url_as("rotated", "wrong")).identity());
    let mut kept = probe(&right);
    declare(server(), "rotated", "classic");
    until_pending(&mut kept, &["rotated"], 0).await;
    server().run("DELETE", "users/rotated", &Value::Null).unwrap();
    let removed = ask(&mut kept, &["rotated"]).await.unwrap_err();
    assert_eq!(
        removed.reason,
        Reason::AuthenticationFailed,
        "also over a connection that is open: {}",
        removed.message
    );
}

#[tokio::test]
async fn tls_is_verified_and_a_client_certificate_is_shown() {
    let ((ours, port), other) = (with_tls(), authority());
    let (named, by_address) =
        (format!("https://guest:guest@localhost:{port}"), format!("https://guest:guest@127.0.0.1:{port}"));
    let (mine, mine_key) = signed(ours, "projectionist");
    let client = |url: &str, ca: &Authority| {
        settings(url).with_ca(ca.pem().as_bytes()).with_client_certificate(mine.as_bytes(), mine_key.as_bytes())
    };
    let asked = async |settings| {
        let mut probe = RabbitMqProbe::new(settings, crate::sampler::loopback(), std::time::Instant::now());
        ask(&mut probe, &["none"]).await.unwrap_err()
    };
    let answered = asked(client(&named, ours)).await;
    assert_eq!(answered.reason, Reason::QueueNotFound, "TLS in both directions: {}", answered.message);
    for (what, settings) in [
        ("an authority that signed nothing here", client(&named, &other)),
        ("another name", client(&by_address, ours)),
        ("the public authorities", settings(&named)),
        ("no client certificate", settings(&named).with_ca(ours.pem().as_bytes())),
        ("an authority that is none", settings(&named).with_ca(b"hello")),
    ] {
        let refused = asked(settings).await;
        assert_eq!(refused.reason, Reason::TlsFailed, "{what}: {}", refused.message);
    }
    let plain = asked(settings(&format!("http://guest:guest@localhost:{port}"))).await;
    assert!(plain.message.contains("https://") || plain.reason == Reason::SourceFailed, "{}", plain.message);
    let encrypted = server().url().replace("http://", "https://");
    let second = std::time::Duration::from_secs(10);
    let refused = ask_within(&mut probe(&encrypted), &question(&["none"]), second).await.unwrap_err();
    assert!(matches!(refused.reason, Reason::TlsFailed | Reason::TimedOut), "{}", refused.message);
}
