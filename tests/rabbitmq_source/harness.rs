//! A real server for all tests that do not reconfigure it, and a probe that asks it.

use std::{sync::OnceLock, time::Duration};

use projectionist::{
    clients::rabbitmq::ConnectionSettings,
    lag::{CheckpointState, Pending, Sample},
    measure::MeasureError,
    sources::{
        BatchProbe as _,
        rabbitmq::{Question, RabbitMqProbe},
    },
};
use serde_json::{Value, json};
use test_cluster::{RabbitMq, free_port};
use tokio::time::Instant;

use crate::certificates::{Authority, Files, authority};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// The one server for all tests that do not stop or reconfigure it, which takes fifteen seconds to start: with TLS beside plain HTTP.
struct Shared {
    rabbit: RabbitMq,
    authority: Authority,
    tls_port: u16,
    streams_tls_port: u16,
    _files: Files,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let authority = authority();
        let files = Files::signed(&authority);
        let (tls_port, streams_tls_port) = (free_port("127.0.0.1").unwrap(), free_port("127.0.0.1").unwrap());
        let all = |of: &str| {
            let (certificate, key, ca) = (files.path("crt"), files.path("key"), files.path("ca"));
            format!(
                "{of}.certfile = {certificate}\n{of}.keyfile = {key}\n{of}.cacertfile = {ca}\n{of}.verify = verify_peer\n{of}.fail_if_no_peer_cert = true\n"
            )
        };
        let rabbit = RabbitMq::with(&format!(
            "management.ssl.ip = 127.0.0.1\nmanagement.ssl.port = {tls_port}\n{}stream.listeners.ssl.1 = 127.0.0.1:{streams_tls_port}\n{}",
            all("management.ssl"),
            all("ssl_options")
        ));
        Shared { rabbit: rabbit.unwrap(), authority, tls_port, streams_tls_port, _files: files }
    })
}

pub fn server() -> &'static RabbitMq {
    &shared().rabbit
}

/// The authority of the server's certificate, which is for `localhost`, and the port with TLS: there a client certificate of this authority is required.
pub fn with_tls() -> (&'static Authority, u16) {
    (&shared().authority, shared().tls_port)
}

/// The port for streams with TLS, where a client certificate of that authority is required, too.
pub fn streams_with_tls() -> u16 {
    shared().streams_tls_port
}

/// The request that declares a queue of this type in the virtual host `/`.
pub fn declare(server: &RabbitMq, queue: &str, kind: &str) {
    let body = json!({"durable": true, "arguments": {"x-queue-type": kind}});
    server.run("PUT", &format!("queues/%2F/{queue}"), &body).unwrap();
}

/// Publishes messages to a queue, each with these properties.
pub fn publish(server: &RabbitMq, queue: &str, messages: u64, properties: &Value) {
    let body = json!({"properties": properties, "routing_key": queue, "payload": "x", "payload_encoding": "string"});
    for _ in 0..messages {
        let routed = server.run("POST", "exchanges/%2F/amq.default/publish", &body).unwrap();
        assert_eq!(routed["routed"], true, "{queue}");
    }
}

pub fn settings(url: &str) -> ConnectionSettings {
    ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap()
}

/// What a Projection that reads these queues of the virtual host `/` asks.
pub fn question(queues: &[&str]) -> Question {
    let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
    Question { vhost: "/".to_owned(), queues, streams: Vec::new(), dead_letter_queues: Vec::new() }
}

pub fn probe(url: &str) -> RabbitMqProbe {
    RabbitMqProbe::new(settings(url), crate::sampler::loopback(), std::time::Instant::now())
}

/// Asks for one Projection.
pub async fn ask(probe: &mut RabbitMqProbe, queues: &[&str]) -> Result<Sample, MeasureError> {
    ask_within(probe, &question(queues), DEADLINE).await
}

pub async fn ask_within(
    probe: &mut RabbitMqProbe,
    question: &Question,
    deadline: Duration,
) -> Result<Sample, MeasureError> {
    let mut answers = probe.answer(&[question], Instant::now() + deadline).await;
    assert_eq!(answers.len(), 1);
    answers.pop().unwrap()
}

/// Asks until the server's statistics tell this: they are up to a second old here.
pub async fn until(
    probe: &mut RabbitMqProbe,
    queues: &[&str],
    what: &str,
    holds: impl Fn(&Result<Sample, MeasureError>) -> bool,
) -> Result<Sample, MeasureError> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = ask(probe, queues).await;
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{queues:?}: {what}: last seen {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Asks until so many messages are pending.
pub async fn until_pending(probe: &mut RabbitMqProbe, queues: &[&str], events: u64) -> Sample {
    let holds = |found: &Result<Sample, MeasureError>| found.as_ref().is_ok_and(|it| it.pending == exactly(events));
    until(probe, queues, &format!("{events} pending"), holds).await.unwrap()
}

pub fn exactly(events: u64) -> Option<Pending> {
    Some(Pending { events, exact: true })
}

pub fn handled(sample: &Sample) -> u64 {
    match sample.checkpoint {
        CheckpointState::Handled(handled) => handled,
        ref other => panic!("{other:?}"),
    }
}
