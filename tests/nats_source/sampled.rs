//! The whole way from a Projection and its Secret to an observation.

use projectionist::api::Reason;
use serde_json::{Value, json};
use test_cluster::Nats;

use crate::{
    harness::{acknowledge, durable, fetch, jetstream, publish, stream},
    sampler::Running,
};

fn source(secret: &str, consumers: &Value) -> Value {
    json!({ "nats": { "connection": { "secretRef": { "name": secret } }, "consumers": consumers } })
}

#[tokio::test]
async fn a_projection_is_measured_by_its_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    let own =
        Nats::with("jetstream: {store_dir: {root}/jetstream}\nauthorization: {user: shop, password: hunter2}").unwrap();
    let context = jetstream(&own.url_as("shop", "hunter2")).await;
    let made = stream(&context, "orders").await;
    let list = made.create_consumer(durable("list")).await.unwrap();
    publish(&context, "orders.made", 2).await;
    let secret = |password: &str| {
        let address = own.address();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        json!({ "host": host, "port": port, "username": "shop", "password": password })
    };
    let mut sampler = Running::start();
    sampler.secret("nats", &secret("hunter2-old"));
    let consumers = json!([{"stream": "orders", "consumer": "list"}]);
    sampler.declare("a", &source("nats", &consumers));
    sampler.declare("b", &source("missing", &consumers));
    sampler.declare("c", &source("nats", &json!([{"stream": "orders", "consumer": "list\r\nPUB orders.made 0"}])));
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("NATS at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    sampler.wait_unknown("c", Reason::InvalidSpec).await;
    sampler.secret("nats", &secret("hunter2"));
    sampler.wait_pending("a", 2).await;
    acknowledge(&fetch(&list, 2).await).await;
    sampler.wait_pending("a", 0).await;
    made.delete_consumer("list").await.unwrap();
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
}

#[tokio::test]
async fn a_server_that_hangs_stops_no_other() {
    let (one, other) = (Nats::on_loopback().unwrap(), Nats::on_loopback().unwrap());
    let mut sampler = Running::start();
    let mut contexts = Vec::new();
    for (name, server) in [("one", &one), ("other", &other)] {
        let context = jetstream(&server.url()).await;
        stream(&context, "orders").await.create_consumer(durable("list")).await.unwrap();
        sampler.secret(name, &json!({ "url": server.url() }));
        sampler.declare(name, &source(name, &json!([{"stream": "orders", "consumer": "list"}])));
        sampler.wait_pending(name, 0).await;
        contexts.push(context);
    }
    one.pause();
    sampler.wait_unknown("one", Reason::TimedOut).await;
    for events in 1..=3 {
        publish(&contexts[1], "orders.made", 1).await;
        sampler.wait_pending("other", events).await;
    }
    one.resume();
    sampler.wait_pending("one", 0).await;
}
