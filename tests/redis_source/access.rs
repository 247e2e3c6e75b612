//! Who may read, over TLS and without, and what a server says that may not be asked.

use projectionist::{api::Reason, sources::redis::RedisProbe};
use test_cluster::{Redis, eventually_is};

use crate::certificates::{Authority, Files, authority, signed};
use crate::harness::{DEADLINE, ask, ask_within, exactly, loopback, probe, run, server, settings};

/// The rights that docs/sources/redis.md lists.
const RIGHTS: [&str; 5] = ["+xinfo|stream", "+xinfo|groups", "+xpending", "+xrange", "+time"];

#[tokio::test]
async fn the_rights_in_the_documentation_suffice_and_each_of_them_is_needed() {
    let page = include_str!("../../docs/sources/redis.md");
    assert!(page.contains(&format!("~orders {}", RIGHTS.join(" "))), "the page lists them");
    run(
        "XADD orders 1-0 a b\nXADD orders 2-0 a b\nXGROUP CREATE orders shop 1-0\nXADD orders 3-0 a b\nXDEL orders 2-0\nXADD orders 4-0 a b\nXGROUP CREATE orders new 0",
    );
    let user = |name: &str, keys: &str, rights: &[&str]| {
        run(&format!("ACL SETUSER {name} on >hunter2 {keys} {}", rights.join(" ")));
        server().url_as(name, "hunter2")
    };
    let mut enough = probe(&user("enough", "~orders", &RIGHTS));
    assert_eq!(ask(&mut enough, &["orders/shop"]).await.unwrap().pending, exactly(2));
    // Each right is taken away once; the group is one whose entries have to be asked for.
    run("XGROUP SETID orders shop 1-0\nXADD orders 5-0 a b\nXDEL orders 4-0");
    for missing in RIGHTS {
        let rest: Vec<&str> = RIGHTS.into_iter().filter(|right| *right != missing).collect();
        run("XGROUP DESTROY orders shop\nXGROUP CREATE orders shop 1-0");
        let mut lacking = probe(&user("lacking", "resetkeys nocommands ~orders", &rest));
        let refused = ask(&mut lacking, &["orders/shop"]).await;
        let refused = refused.expect_err(missing);
        assert_eq!(refused.reason, Reason::PermissionDenied, "{missing}: {}", refused.message);
        assert!(refused.message.contains("ACL SETUSER"), "{}", refused.message);
    }
    let mut elsewhere = probe(&user("elsewhere", "~invoices", &RIGHTS));
    let refused = ask(&mut elsewhere, &["orders/shop"]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::PermissionDenied, "{}", refused.message);
}

#[tokio::test]
async fn a_wrong_password_is_refused_in_words_and_a_rotated_one_is_another_connection() {
    let own = Redis::with("requirepass hunter2").unwrap();
    let with = |password: &str| format!("redis://:{password}@{}", own.address());
    for url in [own.url(), with("wrong"), own.url_as("nobody", "hunter2")] {
        let refused = ask(&mut probe(&url), &["s/g"]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AuthenticationFailed, "{}", refused.message);
        assert!(
            refused.message.contains("in the Secret") && !refused.message.contains("hunter2"),
            "{}",
            refused.message
        );
    }
    let missing = ask(&mut probe(&with("hunter2")), &["s/g"]).await.unwrap_err();
    assert_eq!(missing.reason, Reason::StreamNotFound);
    assert_ne!(settings(&with("hunter2")).identity(), settings(&with("wrong")).identity());
}

#[tokio::test]
async fn another_database_is_chosen_and_one_that_is_not_there_is_said() {
    let own = Redis::with("databases 3").unwrap();
    own.run_all(&[&["SELECT", "2"], &["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"], &["XADD", "s", "*", "a", "b"]])
        .unwrap();
    assert_eq!(ask(&mut probe(&format!("{}/2", own.url())), &["s/g"]).await.unwrap().pending, exactly(1));
    assert_eq!(ask(&mut probe(&own.url()), &["s/g"]).await.unwrap_err().reason, Reason::StreamNotFound);
    let none = ask(&mut probe(&format!("{}/7", own.url())), &["s/g"]).await.unwrap_err();
    assert_eq!(none.reason, Reason::DatabaseNotFound, "{}", none.message);
}

#[tokio::test]
async fn a_replica_is_refused_since_its_numbers_may_stand_still() {
    run("XGROUP CREATE copied shop 0 MKSTREAM");
    let replica = Redis::with(&format!("replicaof 127.0.0.1 {}", server().address().port())).unwrap();
    let copied = || async { Ok::<_, anyhow::Error>(replica.run("EXISTS copied").is_ok()) };
    eventually_is(DEADLINE, "the replica answers", |answers| *answers, copied).await.unwrap();
    let refused = ask(&mut probe(&replica.url()), &["copied/shop"]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::SourceIsReplica, "{}", refused.message);
    assert!(refused.message.contains("name the primary"), "{}", refused.message);
}

#[tokio::test]
async fn a_sentinel_is_told_from_a_server() {
    let sentinel = Redis::sentinel().unwrap();
    let refused = ask(&mut probe(&sentinel.url()), &["s/g"]).await.unwrap_err();
    assert!(refused.message.contains("this is a Redis Sentinel, which holds no streams"), "{}", refused.message);
}

#[tokio::test]
async fn tls_is_verified_and_a_client_certificate_is_shown() {
    let (ours, other) = (authority(), authority());
    let files = Files::signed(&ours);
    let own = Redis::with(&format!(
        "port 0\ntls-port {{port}}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients yes",
        files.path("crt"),
        files.path("key"),
        files.path("ca")
    ))
    .unwrap();
    let port = own.address().port();
    let (named, by_address) = (format!("rediss://localhost:{port}"), format!("rediss://127.0.0.1:{port}"));
    let (mine, mine_key) = signed(&ours, "projectionist");
    let client = |url: &str, ca: &Authority| {
        settings(url).with_ca(ca.pem().as_bytes()).with_client_certificate(mine.as_bytes(), mine_key.as_bytes())
    };
    let asked = async |settings| {
        let mut probe = RedisProbe::new(settings, loopback(), std::time::Instant::now());
        ask(&mut probe, &["s/g"]).await.unwrap_err()
    };
    let answered = asked(client(&named, &ours)).await;
    assert_eq!(answered.reason, Reason::StreamNotFound, "TLS in both directions: {}", answered.message);
    for (what, settings) in [
        ("an authority that signed nothing here", client(&named, &other)),
        ("another name", client(&by_address, &ours)),
        ("the public authorities", settings(&named)),
        ("no client certificate", settings(&named).with_ca(ours.pem().as_bytes())),
        ("an authority that is none", settings(&named).with_ca(b"hello")),
    ] {
        let refused = asked(settings).await;
        assert_eq!(refused.reason, Reason::TlsFailed, "{what}: {}", refused.message);
    }
    let plain = asked(settings(&format!("redis://localhost:{port}"))).await;
    assert!(plain.message.contains("rediss://"), "{}", plain.message);
    let encrypted = server().url().replace("redis://", "rediss://");
    let waits = ask_within(&mut probe(&encrypted), &["s/g"], std::time::Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(waits.reason, Reason::TimedOut, "{}", waits.message);
    assert!(waits.message.contains("does the server speak TLS"), "{}", waits.message);
}
