//! The whole way from a Projection and its Secret to an observation.

use projectionist::api::Reason;
use serde_json::{Value, json};
use test_cluster::Postgres;

use crate::{
    harness::ago,
    sampler::Running,
    server::{Fake, Instead},
};

/// Declares a Projection; `store` is the Secret of the read store with its checkpoint, where it has one.
fn declare(sampler: &mut Running, name: &str, secret: &str, reads: &Value, store: Option<&str>) {
    let connection = |secret: &str| json!({ "secretRef": { "name": secret } });
    let mut source = reads.clone();
    source["connection"] = connection(secret);
    let mut spec = json!({ "source": { "kurrentdb": source } });
    if let Some(store) = store {
        spec["checkpoint"] = json!({ "readStore": { "name": "list" } });
        spec["readStore"] = json!({ "postgres": { "connection": connection(store) } });
    }
    sampler.declare_spec(name, &spec);
}

#[tokio::test]
async fn a_projection_is_measured_by_its_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    let fake = Fake::start().await;
    fake.require_login("shop", "hunter2");
    fake.database(|database| {
        database.pull("orders", "list");
        database.append("orders", 2, ago(5));
    });
    let secret = |password: &str| {
        let (host, port) = (fake.at.ip().to_string(), fake.at.port().to_string());
        json!({ "host": host, "port": port, "username": "shop", "password": password, "tls": "false" })
    };
    let mut sampler = Running::start();
    sampler.secret("kurrent", &secret("hunter2-old"));
    let reads = json!({ "persistentSubscriptions": [{ "stream": "orders", "group": "list" }] });
    declare(&mut sampler, "a", "kurrent", &reads, None);
    declare(&mut sampler, "b", "missing", &reads, None);
    declare(&mut sampler, "c", "kurrent", &json!({}), None);
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("KurrentDB at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    sampler.wait_unknown("c", Reason::InvalidSpec).await;
    sampler.secret("kurrent", &secret("hunter2"));
    sampler.wait_pending("a", 2).await;
    fake.database(|database| {
        let group = database.group("orders", "list");
        let taken = group.push(2);
        group.acknowledge(&taken);
    });
    sampler.wait_pending("a", 0).await;
    fake.instead(Instead::Hangs);
    sampler.wait_unknown("a", Reason::TimedOut).await;
}

#[tokio::test]
async fn a_catch_up_subscription_is_measured_by_the_checkpoint_in_the_read_store() {
    let (fake, store) = (Fake::start().await, Postgres::on_loopback().unwrap());
    fake.database(|database| database.append("order-1", 5, ago(5)));
    let fifth = fake.database(|database| database.commit_of("order-1", 4));
    let (client, connection) = tokio_postgres::connect(&store.url("postgres"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let sql = "create table checkpoints (projection text primary key, position bigint)";
    client.batch_execute(sql).await.unwrap();
    let mut sampler = Running::start();
    sampler.secret("kurrent", &json!({ "url": format!("kurrentdb://{}?tls=false", fake.at) }));
    sampler.secret("store", &json!({ "url": store.url("postgres") }));
    declare(&mut sampler, "stream", "kurrent", &json!({ "catchUp": { "stream": "order-1" } }), Some("store"));
    sampler.wait_unknown("stream", Reason::NeverCommitted).await;
    client.execute("insert into checkpoints values ('list', 1)", &[]).await.unwrap();
    sampler.wait_pending("stream", 3).await;
    client.execute("update checkpoints set position = 4", &[]).await.unwrap();
    sampler.wait_pending("stream", 0).await;
    client.execute("update checkpoints set position = $1", &[&fifth]).await.unwrap();
    declare(&mut sampler, "all", "kurrent", &json!({ "catchUp": { "stream": "$all" } }), Some("store"));
    sampler.wait_pending("all", 0).await;
    fake.database(|database| database.append("order-2", 2, ago(5)));
    sampler.wait_pending("all", 2).await;
}
