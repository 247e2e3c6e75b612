//! The whole way from a Projection and its Secret to an observation.

use projectionist::api::Reason;
use serde_json::{Value, json};
use test_cluster::Redis;

use crate::sampler::Running;

fn source(secret: &str, streams: &Value) -> Value {
    json!({ "redis": { "connection": { "secretRef": { "name": secret } }, "streams": streams } })
}

#[tokio::test]
async fn a_projection_is_measured_by_its_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    let own = Redis::with("user shop on >hunter2 allkeys allcommands").unwrap();
    own.run("XGROUP CREATE orders list 0 MKSTREAM").unwrap();
    own.run("XADD orders * a b").unwrap();
    let (host, port) = (own.address().ip().to_string(), own.address().port().to_string());
    let mut sampler = Running::start();
    let set = |sampler: &Running, password: &str| {
        let keys = json!({"host": host, "port": port, "username": "shop", "password": password});
        sampler.secret("redis", &keys);
    };
    set(&sampler, "hunter2-old");
    sampler.declare("a", &source("redis", &json!([{"key": "orders", "group": "list"}])));
    sampler.declare("b", &source("missing", &json!([{"key": "orders", "group": "list"}])));
    sampler.declare(
        "twice",
        &source("redis", &json!([{"key": "orders", "group": "list"}, {"key": "orders", "group": "list"}])),
    );
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("Redis at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("a", 1).await;
    sampler.wait_pending("twice", 1).await;
    own.run("XREADGROUP GROUP list c STREAMS orders >").unwrap();
    sampler.wait_pending("a", 1).await;
    own.run("XGROUP DESTROY orders list").unwrap();
    let never = sampler.wait_unknown("a", Reason::NeverCommitted).await;
    assert!(never.message.contains("XGROUP CREATE"), "{}", never.message);
}

#[tokio::test]
async fn a_server_that_hangs_stops_no_other() {
    let (one, other) = (Redis::on_loopback().unwrap(), Redis::on_loopback().unwrap());
    let mut sampler = Running::start();
    for (name, server) in [("one", &one), ("other", &other)] {
        server.run("XGROUP CREATE orders list 0 MKSTREAM").unwrap();
        sampler.secret(name, &json!({"url": server.url()}));
        sampler.declare(name, &source(name, &json!([{"key": "orders", "group": "list"}])));
        sampler.wait_pending(name, 0).await;
    }
    one.pause();
    sampler.wait_unknown("one", Reason::TimedOut).await;
    for events in 1..=3 {
        other.run("XADD orders * a b").unwrap();
        sampler.wait_pending("other", events).await;
    }
    one.resume();
    sampler.wait_pending("one", 0).await;
}
