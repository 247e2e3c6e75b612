//! A real server for all tests that do not reconfigure it, and a probe that asks it.

use std::{sync::OnceLock, time::Duration};

use projectionist::{
    api::StreamGroup,
    clients::redis::ConnectionSettings,
    lag::{CheckpointState, Pending, Sample},
    measure::MeasureError,
    sources::{
        BatchProbe as _,
        redis::{Question, RedisProbe},
    },
};
use test_cluster::{Redis, redis::Answer};
use tokio::time::Instant;

use crate::certificates::Files;
pub use crate::sampler::loopback;

pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn server() -> &'static Redis {
    static SERVER: OnceLock<Redis> = OnceLock::new();
    SERVER.get_or_init(|| Redis::on_loopback().unwrap())
}

/// Runs commands on the shared server, each a line of words.
pub fn run(commands: &str) -> Vec<Answer> {
    commands.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| server().run(line).unwrap()).collect()
}

pub fn settings(url: &str) -> ConnectionSettings {
    ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap()
}

/// What a Projection that reads these streams asks, each as `stream/group`.
pub fn question(streams: &[&str]) -> Question {
    let streams = streams.iter().map(|text| {
        let (stream, group) = text.split_once('/').unwrap();
        StreamGroup { key: stream.to_owned(), group: group.to_owned() }
    });
    Question { streams: streams.collect(), lists: Vec::new() }
}

pub fn probe(url: &str) -> RedisProbe {
    RedisProbe::new(settings(url), loopback(), std::time::Instant::now())
}

/// Asks for one Projection.
pub async fn ask(probe: &mut RedisProbe, streams: &[&str]) -> Result<Sample, MeasureError> {
    ask_within(probe, streams, DEADLINE).await
}

pub async fn ask_within(probe: &mut RedisProbe, streams: &[&str], deadline: Duration) -> Result<Sample, MeasureError> {
    let question = question(streams);
    let mut answers = probe.answer(&[&question], Instant::now() + deadline).await;
    assert_eq!(answers.len(), 1);
    answers.pop().unwrap()
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

/// Runs a command with `redis-cli`, which speaks TLS.
pub fn redis_over_tls(port: u16, files: &Files, command: &str) -> String {
    let done = std::process::Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--tls", "--insecure", "--cacert", &files.path("ca")])
        .args(command.split(' '))
        .output()
        .unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The configuration of a server that speaks TLS alone, with a certificate for `localhost`.
pub fn tls_alone(files: &Files) -> String {
    format!(
        "port 0\ntls-port {{port}}\ntls-replication yes\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\n",
        files.path("crt"),
        files.path("key"),
        files.path("ca")
    )
}
