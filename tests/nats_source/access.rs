//! Who may read, over TLS and without, and what a server says that may not be asked.

use std::time::Duration;

use projectionist::{
    api::Reason,
    sources::{
        BatchProbe as _,
        nats::{NatsProbe, Question},
    },
};
use test_cluster::Nats;

use crate::certificates::{Authority, Files, authority, signed};
use crate::harness::{
    DEADLINE, ask, ask_within, durable, exactly, jetstream, probe, publish, question, server, settings, stream,
};
use crate::sampler::loopback;

/// The rights that docs/sources/nats.md lists.
const PUBLISH: [&str; 2] = ["$JS.API.CONSUMER.INFO.orders.list", "$JS.API.STREAM.MSG.GET.orders"];
const SUBSCRIBE: &str = "_INBOX.projectionist.>";

/// A user's entry in the configuration.
fn user(name: &str, publish: &[&str], subscribe: &str) -> String {
    let publish: Vec<String> = publish.iter().map(|subject| format!("{subject:?}")).collect();
    format!(
        "{{user: {name}, password: hunter2, permissions: {{publish: [{}], subscribe: [{subscribe:?}]}}}}",
        publish.join(", ")
    )
}

#[tokio::test]
async fn the_rights_in_the_documentation_suffice_and_each_of_them_is_needed() {
    let page = include_str!("../../docs/sources/nats.md");
    for right in PUBLISH.into_iter().chain([SUBSCRIBE]) {
        assert!(page.contains(&format!("{right:?}")), "the page lists {right}");
    }
    let users = [
        "{user: admin, password: hunter2}".to_owned(),
        user("enough", &PUBLISH, SUBSCRIBE),
        user("no-info", &PUBLISH[1..], SUBSCRIBE),
        user("no-message", &PUBLISH[..1], SUBSCRIBE),
        user("no-answers", &PUBLISH, "other.>"),
    ];
    let own = Nats::with(&format!(
        "jetstream: {{store_dir: {{root}}/jetstream}}\nauthorization: {{users: [{}]}}",
        users.join(",\n")
    ))
    .unwrap();
    let context = jetstream(&own.url_as("admin", "hunter2")).await;
    stream(&context, "orders").await.create_consumer(durable("list")).await.unwrap();
    publish(&context, "orders.made", 2).await;
    let found = ask(&mut probe(&own.url_as("enough", "hunter2")), &["orders/list"]).await.unwrap();
    assert!(found.pending == exactly(2) && found.staleness.is_some());
    for lacking in ["no-info", "no-message", "no-answers"] {
        let refused = ask(&mut probe(&own.url_as(lacking, "hunter2")), &["orders/list"]).await.expect_err(lacking);
        assert_eq!(refused.reason, Reason::PermissionDenied, "{lacking}: {}", refused.message);
        assert!(refused.message.contains("docs/sources/nats.md"), "{}", refused.message);
    }
    // What one Projection may not ask leaves the others measured.
    let questions = [question(&["orders/list"]), question(&["others/list"])];
    let questions: Vec<_> = questions.iter().collect();
    let mut enough = probe(&own.url_as("enough", "hunter2"));
    let answers = enough.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
    let [mine, others] = answers.try_into().unwrap();
    assert_eq!(mine.unwrap().pending, exactly(2));
    assert_eq!(others.unwrap_err().reason, Reason::PermissionDenied);
}

#[tokio::test]
async fn a_wrong_password_or_token_is_refused_in_words_and_a_rotated_one_is_another_connection() {
    let jetstream = "jetstream: {store_dir: {root}/jetstream}";
    let by_password = Nats::with(&format!("{jetstream}\nauthorization: {{user: shop, password: hunter2}}")).unwrap();
    let by_token = Nats::with(&format!("{jetstream}\nauthorization: {{token: hunter2-token}}")).unwrap();
    let token = |token: &str| format!("nats://{token}@{}", by_token.address());
    for url in [
        by_password.url(),
        by_password.url_as("shop", "hunter3"),
        by_password.url_as("other", "hunter2"),
        by_token.url(),
        token("hunter3"),
    ] {
        let refused = ask(&mut probe(&url), &["s/c"]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AuthenticationFailed, "{}", refused.message);
        assert!(refused.message.contains("in the Secret"), "{}", refused.message);
        assert!(!refused.message.contains("hunter"), "{}", refused.message);
    }
    for url in [by_password.url_as("shop", "hunter2"), token("hunter2-token")] {
        let missing = ask(&mut probe(&url), &["s/c"]).await.unwrap_err();
        assert_eq!(missing.reason, Reason::StreamNotFound, "{}", missing.message);
    }
    assert_ne!(settings(&token("hunter2")).identity(), settings(&token("hunter3")).identity());
}

#[tokio::test]
async fn a_server_or_account_without_jetstream_and_another_domain_are_said() {
    let without = Nats::with("").unwrap();
    let none = ask(&mut probe(&without.url()), &["s/c"]).await.unwrap_err();
    assert_eq!(none.reason, Reason::SourceFailed, "{}", none.message);
    assert!(none.message.contains("no JetStream answers"), "{}", none.message);

    let accounts = Nats::with(
        "jetstream: {store_dir: {root}/jetstream, domain: hub}\naccounts: {A: {jetstream: enabled, users: [{user: a, password: hunter2}]}, B: {users: [{user: b, password: hunter2}]}}",
    )
    .unwrap();
    let none = ask(&mut probe(&accounts.url_as("b", "hunter2")), &["s/c"]).await.unwrap_err();
    assert_eq!(none.reason, Reason::SourceFailed, "{}", none.message);
    assert!(none.message.contains("enable"), "{}", none.message);
    let context = jetstream(&accounts.url_as("a", "hunter2")).await;
    stream(&context, "s").await.create_consumer(durable("c")).await.unwrap();
    let mut own = probe(&accounts.url_as("a", "hunter2"));
    for (domain, known) in [(None, true), (Some("hub"), true), (Some("leaf"), false)] {
        let question = Question { domain: domain.map(str::to_owned), ..question(&["s/c"]) };
        let answer = own.answer(&[&question], tokio::time::Instant::now() + DEADLINE).await.pop().unwrap();
        match answer {
            Ok(sample) => assert!(known && sample.pending == exactly(0), "{domain:?}"),
            Err(unknown) => assert!(!known && unknown.message.contains("domain"), "{domain:?}: {}", unknown.message),
        }
    }
}

#[tokio::test]
async fn tls_is_verified_and_a_client_certificate_is_shown() {
    let (ours, other) = (authority(), authority());
    let files = Files::signed(&ours);
    let own = Nats::with(&format!(
        "jetstream: {{store_dir: {{root}}/jetstream}}\ntls: {{cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true}}",
        files.path("crt"),
        files.path("key"),
        files.path("ca")
    ))
    .unwrap();
    let port = own.address().port();
    let (named, by_address) = (format!("tls://localhost:{port}"), format!("tls://127.0.0.1:{port}"));
    let (mine, mine_key) = signed(&ours, "projectionist");
    let client = |url: &str, ca: &Authority| {
        settings(url).with_ca(ca.pem().as_bytes()).with_client_certificate(mine.as_bytes(), mine_key.as_bytes())
    };
    let asked = async |settings| {
        let mut probe = NatsProbe::new(settings, loopback(), std::time::Instant::now());
        ask(&mut probe, &["s/c"]).await.unwrap_err()
    };
    for url in [named.clone(), named.replace("tls://", "nats://")] {
        let answered = asked(client(&url, &ours)).await;
        assert_eq!(answered.reason, Reason::StreamNotFound, "TLS in both directions: {}", answered.message);
    }
    for (what, settings) in [
        ("an authority that signed nothing here", client(&named, &other)),
        ("another name", client(&by_address, &ours)),
        ("the public authorities", settings(&named)),
        ("nor where the server insists on TLS", settings(&named.replace("tls://", "nats://"))),
        ("no client certificate", settings(&named).with_ca(ours.pem().as_bytes())),
        ("an authority that is none", settings(&named).with_ca(b"hello")),
        ("a server without TLS", settings(&server().url().replace("nats://", "tls://"))),
    ] {
        let refused = asked(settings).await;
        assert_eq!(refused.reason, Reason::TlsFailed, "{what}: {}", refused.message);
    }
    let none = server().url().replace("nats://", "tls://");
    let none = ask_within(&mut probe(&none), &["s/c"], Duration::from_secs(10)).await.unwrap_err();
    assert!(none.message.contains("the server offers no TLS"), "{}", none.message);
}
