//! Servers that prove who they are, and servers that only follow another.

use projectionist::api::Reason;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;
use test_cluster::{Postgres, eventually_is};

use crate::{
    certificates::write,
    harness::{Running, SOON, append, commit, database, server},
};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for this name and its key, one after the other.
fn signed(by: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let (key, mut certificate) = (KeyPair::generate().unwrap(), CertificateParams::new(vec![name.to_owned()]).unwrap());
    certificate.distinguished_name.push(DnType::CommonName, name);
    (certificate.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
}

fn with_authority(sampler: &mut Running, name: &str, secret: &str) {
    sampler.declare(name, |spec| {
        for store in ["source", "readStore"] {
            spec[store]["postgres"]["connection"] =
                json!({"secretRef": {"name": secret}, "caSecretRef": {"name": "authority"}});
        }
    });
}

#[tokio::test]
async fn a_server_is_believed_only_with_a_certificate_of_the_authority_that_is_given_and_for_its_own_name() {
    let own = Postgres::on_loopback().unwrap();
    let (url, client) = database(&own, "verified").await;
    append(&client, 3).await;
    commit(&client, "a", 1).await;
    commit(&client, "chain", 1).await;
    let (ours, other) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ours).unwrap();
    own.offer_tls(&certificate.pem(), &key.serialize_pem()).unwrap();
    own.stop().unwrap();
    own.start().unwrap();

    let named = url.replace("127.0.0.1", "localhost");
    let (full, chain) = (format!("{named}?sslmode=verify-full"), format!("{url}?sslmode=verify-ca"));
    let wrong_name = format!("{url}?sslmode=verify-full");
    let mut sampler = Running::start(&[
        ("full", &full),
        ("chain", &chain),
        ("wrong-name", &wrong_name),
        ("unverified", &named),
        ("authority", &other.pem()),
    ]);
    // Signed by an authority that no client here trusts.
    with_authority(&mut sampler, "a", "full");
    let refused = sampler.wait_unknown("a", Reason::TlsFailed).await;
    assert!(refused.message.contains("localhost"), "{}", refused.message);

    sampler.secrets.0.lock().unwrap().insert("authority".to_owned(), ours.pem());
    sampler.wait_pending("a", 2).await;
    let client = own.connect("verified").await.unwrap();
    let encrypted = "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'projectionist-sampler'";
    assert!(client.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0));

    with_authority(&mut sampler, "chain", "chain");
    sampler.wait_pending("chain", 2).await;
    with_authority(&mut sampler, "wrong", "wrong-name");
    sampler.wait_unknown("wrong", Reason::TlsFailed).await;
    with_authority(&mut sampler, "idle", "unverified");
    let idle = sampler.wait_unknown("idle", Reason::ConnectionStringInvalid).await;
    assert!(idle.message.contains("add sslmode=verify-full"), "{}", idle.message);
}

/// Lets the server show a certificate of this authority, and take the role `views` only with one of the same. It is restarted.
async fn belongs_to(own: &Postgres, authority: &CertifiedIssuer<'static, KeyPair>) {
    let (certificate, key) = signed(authority, "localhost");
    own.offer_tls(&certificate, &key).unwrap();
    let admin = own.connect("certified").await.unwrap();
    write(&admin, "ssl_ca_file", "clients.crt", &authority.pem()).await;
    let rules = "host all postgres all scram-sha-256\nhostssl all views all scram-sha-256 clientcert=verify-ca";
    write(&admin, "", "pg_hba.conf", rules).await;
    own.stop().unwrap();
    own.start().unwrap();
}

#[tokio::test]
async fn a_rotated_authority_and_a_rotated_client_certificate_take_effect_without_a_restart() {
    let own = Postgres::on_loopback().unwrap();
    let (_, client) = database(&own, "certified").await;
    append(&client, 3).await;
    commit(&client, "a", 1).await;
    own.create_role("views", "hunter2").await.unwrap();
    client.batch_execute("grant select on events, checkpoints to views").await.unwrap();
    let (old, new) = (authority(), authority());
    belongs_to(&own, &old).await;
    let certified = |by| {
        let (certificate, key) = signed(by, "views");
        certificate + &key
    };
    let url = own.url_as("views", "hunter2", "certified").replace("127.0.0.1", "localhost") + "?sslmode=verify-full";
    let mut sampler = Running::start(&[("db", &url), ("authority", &old.pem()), ("me", &certified(&old))]);
    sampler.declare("a", |spec| {
        for store in ["source", "readStore"] {
            spec[store]["postgres"]["connection"] = json!({
                "secretRef": { "name": "db" },
                "caSecretRef": { "name": "authority" },
                "clientCertificateSecretRef": { "name": "me" },
            });
        }
    });
    sampler.wait_pending("a", 2).await;
    belongs_to(&own, &new).await;
    sampler.wait_unknown("a", Reason::TlsFailed).await;
    // Either alone does not suffice: the server is not believed, or does not believe us.
    sampler.secrets.0.lock().unwrap().extend([("authority".to_owned(), new.pem()), ("me".to_owned(), certified(&new))]);
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn a_standby_is_refused_because_it_does_not_show_who_is_writing() {
    let (_, client) = database(server(), "followed").await;
    commit(&client, "a", 0).await;
    let standby = server().standby().unwrap();
    let reader = || async { standby.connect("followed").await.map(|_| true) };
    eventually_is(SOON, "the standby answers", |answers| *answers, reader).await.unwrap();
    let mut sampler = Running::start(&[("db", &standby.url("followed"))]);
    sampler.declare("a", |_| {});
    let refused = sampler.wait_unknown("a", Reason::SourceIsReplica).await;
    assert!(refused.message.contains("connect to the primary"), "{}", refused.message);
    standby.connect("followed").await.unwrap().execute("select pg_promote()", &[]).await.unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_pending("a", 0).await;
}

#[tokio::test]
async fn where_several_hosts_are_named_measuring_goes_on_at_the_one_that_becomes_the_primary() {
    let primary = Postgres::on_loopback().unwrap();
    let (_, client) = database(&primary, "failover").await;
    append(&client, 5).await;
    commit(&client, "a", 2).await;
    let standby = primary.standby().unwrap();
    let has_all = || async {
        let follower = standby.connect("failover").await?;
        let handled = follower.query_opt("select from checkpoints where position = 2", &[]).await?;
        anyhow::Ok(handled.is_some())
    };
    eventually_is(SOON, "the standby has followed", |has_all| *has_all, has_all).await.unwrap();
    let (first, second) = (primary.address(), standby.address());
    // The standby comes first, and is passed over as long as it is one.
    let hosts = format!("{second},{first}");
    let url = primary.url("failover").replace(&first.to_string(), &hosts) + "?target_session_attrs=primary";
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 3).await;
    drop(client);
    primary.stop().unwrap();
    sampler.wait("nothing is known while none is the primary", "a", |seen| seen.failure.is_some()).await;
    let promoted = standby.connect("failover").await.unwrap();
    promoted.execute("select pg_promote()", &[]).await.unwrap();
    append(&promoted, 1).await;
    sampler.wait_pending("a", 4).await;
}

#[tokio::test]
async fn a_login_that_was_refused_for_long_is_taken_within_two_polls_of_being_allowed() {
    let (_, client) = database(server(), "logins").await;
    server().create_role("locked_out", "locked_out").await.unwrap();
    client
        .batch_execute("grant select on events, checkpoints to locked_out; alter role locked_out nologin")
        .await
        .unwrap();
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &server().url_as("locked_out", "locked_out", "logins"))]);
    sampler.declare("a", |_| {});
    sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    sampler.wait_refused(20).await;
    client.batch_execute("alter role locked_out login").await.unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_pending("a", 0).await;
}
