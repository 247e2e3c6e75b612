//! The whole way from a Projection and its Secret to an observation.

use projectionist::api::Reason;
use serde_json::{Value, json};

use crate::{
    harness::{declare, publish, server},
    sampler::Running,
};

fn source(secret: &str, queues: &[&str]) -> Value {
    json!({ "rabbitmq": { "connection": { "secretRef": { "name": secret } }, "queues": queues } })
}

#[tokio::test]
async fn a_projection_is_measured_by_its_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    declare(server(), "sampled", "classic");
    declare(server(), "sampled-2", "quorum");
    publish(server(), "sampled", 2, &json!({"delivery_mode": 2}));
    let account = json!({"password": "hunter2", "tags": "management"});
    server().run("PUT", "users/sampled", &account).unwrap();
    let stream = json!({"configure": "^$", "write": "^$", "read": "^sampled-stream$"});
    server().run("PUT", "permissions/%2F/sampled", &stream).unwrap();
    declare(server(), "sampled-stream", "stream");
    server().consumer().unwrap().publish("sampled-stream", vec!["x".to_owned(); 5]).unwrap();
    server().store_offset("sampled-stream", "list", 2).unwrap();
    let streams = server().streams().port().to_string();
    let (host, port) = (server().address().ip().to_string(), server().address().port().to_string());
    let mut sampler = Running::start();
    let set = |sampler: &Running, password: &str| {
        let keys = json!({
            "host": host, "port": port, "stream-port": streams, "username": "sampled", "password": password
        });
        sampler.secret("rabbitmq", &keys);
    };
    set(&sampler, "hunter2-old");
    sampler.declare("a", &source("rabbitmq", &["sampled", "sampled-2"]));
    let reference = json!([{ "stream": "sampled-stream", "reference": "list" }]);
    let connection = json!({ "secretRef": { "name": "rabbitmq" } });
    sampler.declare("stream", &json!({ "rabbitmq": { "connection": connection, "streams": reference } }));
    sampler.declare("b", &source("missing", &["sampled"]));
    sampler.declare("twice", &source("rabbitmq", &["sampled", "sampled"]));
    sampler.declare("none", &source("rabbitmq", &["sampled-none"]));
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("RabbitMQ's management API at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("stream", Reason::AuthenticationFailed).await;
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("a", 2).await;
    sampler
        .wait_measured("2 beyond the offset", "stream", |it| it.sample.pending.is_some_and(|it| it.events == 2))
        .await;
    sampler.wait_pending("twice", 2).await;
    sampler.wait_unknown("none", Reason::QueueNotFound).await;
    publish(server(), "sampled-2", 1, &json!({"delivery_mode": 2}));
    sampler.wait_pending("a", 3).await;
}
