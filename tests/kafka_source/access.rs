//! Who gets in, with which rights, and what is said to those who do not.

use std::collections::BTreeMap;

use projectionist::{
    api::Reason,
    clients::kafka::{At, Client, FirstRecord, Isolation, KafkaError},
};
use test_cluster::kafka::{Listener, PLAIN_PASSWORD, PLAIN_USER};

use crate::{
    harness::{ask, broker, client, commit, committed, partition, pki, produce, set, settings, soon, token, topic},
    running::loopback,
};

async fn refused(client: &mut Client) -> KafkaError {
    let error = client.topics(&set(&["any"]), soon()).await.unwrap_err();
    assert!(!error.message.contains("canary"), "{error}");
    error
}

#[tokio::test]
async fn users_are_known_by_plain_and_both_kinds_of_scram() {
    topic("users", 1, "");
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        ask(&["scram", "ad,a=b", mechanism, "scram-canary"]);
    }
    for (mechanism, user, password) in [
        ("PLAIN", PLAIN_USER, PLAIN_PASSWORD),
        ("SCRAM-SHA-256", "ad,a=b", "scram-canary"),
        ("SCRAM-SHA-512", "ad,a=b", "scram-canary"),
    ] {
        let keys = |password| {
            [
                ("securityProtocol", "SASL_PLAINTEXT"),
                ("saslMechanism", mechanism),
                ("username", user),
                ("password", password),
            ]
        };
        // Known, and allowed nothing: without DESCRIBE a topic is not even there.
        let found = client(Listener::Sasl, &keys(password)).topics(&set(&["users"]), soon()).await.unwrap();
        assert_eq!(found["users"].clone().unwrap_err().reason, Reason::PermissionDenied, "{mechanism}");
        let error = refused(&mut client(Listener::Sasl, &keys("wrong-canary"))).await;
        assert_eq!(error.reason, Reason::AuthenticationFailed, "{mechanism}: {error}");
        assert!(error.message.contains("correct username and password in the Secret"), "{error}");
    }
}

#[tokio::test]
async fn a_token_names_the_user_and_one_that_is_refused_is_told_as_such() {
    topic("tokens", 1, "");
    let keys = |token: &str| {
        let more = [("securityProtocol", "SASL_PLAINTEXT"), ("saslMechanism", "OAUTHBEARER"), ("token", token)];
        client(Listener::Sasl, &more)
    };
    ask(&["allow", "bearer", "topic", "tokens", "DESCRIBE"]);
    let until = soon();
    let mut allowed = keys(&token("bearer", 600));
    while let Err(error) = &allowed.topics(&set(&["tokens"]), soon()).await.unwrap()["tokens"] {
        assert_eq!(error.reason, Reason::PermissionDenied, "{error}");
        assert!(tokio::time::Instant::now() < until, "{error}");
    }
    // Another user, who is known and allowed nothing.
    let found = keys(&token("other", 600)).topics(&set(&["tokens"]), soon()).await.unwrap();
    assert_eq!(found["tokens"].clone().unwrap_err().reason, Reason::PermissionDenied);
    // One that has expired, and what is no token at all.
    for wrong in [token("bearer", -60), "canary.canary.canary".to_owned()] {
        let error = refused(&mut keys(&wrong)).await;
        assert_eq!(error.reason, Reason::AuthenticationFailed, "{error}");
        assert!(error.message.contains("refused the token") && !error.message.contains(&wrong), "{error}");
        println!("{error}");
    }
}

#[tokio::test]
async fn describe_is_enough_for_lag_and_read_on_the_topic_adds_the_time() {
    topic("granted", 1, "");
    produce("granted", 0, 4, std::time::Duration::ZERO);
    commit("granted-group", "granted", 0, 1);
    ask(&["scram", "least", "SCRAM-SHA-512", "least-canary"]);
    let mut client = client(Listener::Sasl, &[("username", "least"), ("password", "least-canary")]);
    let coordinator = client.coordinators(&set(&["granted-group"]), soon()).await.unwrap()["granted-group"].clone();
    let error = coordinator.unwrap_err();
    assert_eq!(error.reason, Reason::PermissionDenied);
    assert!(error.message.contains("allow the user DESCRIBE on the group"), "{error}");
    ask(&["allow", "least", "topic", "granted", "DESCRIBE"]);
    ask(&["allow", "least", "group", "granted-group", "DESCRIBE"]);
    let until = soon();
    while client.coordinators(&set(&["granted-group"]), soon()).await.unwrap()["granted-group"].is_err() {
        assert!(tokio::time::Instant::now() < until);
    }
    assert_eq!(committed(&mut client, "granted-group", "granted", 1).await, [Some(1)]);
    let asked = BTreeMap::from([(partition("granted", 0), 1)]);
    for (at, expected) in [(At::Earliest, 0), (At::Latest(Isolation::ReadCommitted), 4)] {
        assert_eq!(
            client.offsets(at, &asked, soon()).await[&partition("granted", 0)].clone().unwrap().offset,
            expected
        );
    }
    let asked = BTreeMap::from([(partition("granted", 0), (1, 1))]);
    let first = client.first_records(Isolation::ReadCommitted, &asked, soon()).await;
    let error = first[&partition("granted", 0)].clone().unwrap_err();
    assert_eq!(error.reason, Reason::PermissionDenied, "{error}");
    ask(&["allow", "least", "topic", "granted", "READ"]);
    let until = soon();
    loop {
        let first = client.first_records(Isolation::ReadCommitted, &asked, soon()).await;
        match &first[&partition("granted", 0)] {
            Ok(first) => break assert!(matches!(first, FirstRecord::Batch { offset: 1, .. }), "{first:?}"),
            Err(error) => assert!(tokio::time::Instant::now() < until, "{error}"),
        }
    }
}

#[tokio::test]
async fn a_broker_is_believed_by_its_authority_and_name_alone() {
    topic("secured", 1, "");
    let ca = |pem: &str| pem.as_bytes().to_vec();
    let address = broker().address(Listener::Tls);
    let trusted = settings(&address, &[]).with_ca(ca(&pki().broker_ca));
    assert!(
        Client::new(trusted, loopback()).unwrap().topics(&set(&["secured"]), soon()).await.unwrap()["secured"].is_ok()
    );
    // Of another authority; by another name; without TLS on our side, and on the broker's.
    let other = settings(&address, &[]).with_ca(ca(&pki().broker.client_ca));
    let by_name = settings(&format!("localhost:{}", address.port()), &[]).with_ca(ca(&pki().broker_ca));
    let public = settings(&address, &[("securityProtocol", "SSL")]);
    let onto_plain = settings(&broker().address(Listener::Plaintext), &[]).with_ca(ca(&pki().broker_ca));
    for settings in [other, by_name, public, onto_plain] {
        let shown = format!("{settings:?}");
        let error = refused(&mut Client::new(settings, loopback()).unwrap()).await;
        assert_eq!(error.reason, Reason::TlsFailed, "{shown}: {error}");
    }
    let error = refused(&mut client(Listener::Tls, &[])).await;
    assert!(error.message.contains("expect TLS"), "{error}");
    let garbage = Client::new(settings(&address, &[]).with_ca(b"nonsense".to_vec()), loopback()).err().unwrap();
    assert_eq!(garbage.reason, Reason::TlsFailed);
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_the_listener_requires_one() {
    topic("mutual", 1, "");
    let ca = pki().broker_ca.clone().into_bytes();
    let settings = settings(&broker().address(Listener::MutualTls), &[]).with_ca(ca);
    let error = refused(&mut Client::new(settings.clone(), loopback()).unwrap()).await;
    assert_eq!(error.reason, Reason::TlsFailed, "{error}");
    assert!(error.message.contains("client certificate"), "{error}");
    ask(&["allow", "CN=projectionist", "topic", "mutual", "DESCRIBE"]);
    let (certificate, key) = pki().client.clone();
    let mut client =
        Client::new(settings.with_client_certificate(certificate.into_bytes(), key.into_bytes()), loopback()).unwrap();
    let until = soon();
    loop {
        match &client.topics(&set(&["mutual"]), soon()).await.unwrap()["mutual"] {
            Ok(topic) => break assert_eq!(topic.leaders.len(), 1),
            Err(error) => {
                assert_eq!(error.reason, Reason::PermissionDenied, "{error}");
                assert!(tokio::time::Instant::now() < until, "{error}");
            }
        }
    }
}
