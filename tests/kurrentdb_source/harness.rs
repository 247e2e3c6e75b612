//! A probe that asks a fake server, and what a Projection asks.

use std::time::Duration;

pub use projectionist::sources::kurrentdb::Asked;
use projectionist::{
    api::PersistentSubscription,
    clients::kurrentdb::{ConnectionSettings, Filter},
    lag::{CheckpointState, Pending, Position, Sample},
    measure::{MeasureError, RunKey},
    read_stores::Checkpoint,
    sources::kurrentdb::{KurrentDbProbe, Question},
};
use tokio::time::Instant;

use crate::server::Fake;

pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn settings(url: &str) -> ConnectionSettings {
    ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap()
}

pub fn probe_of(settings: ConnectionSettings) -> KurrentDbProbe {
    KurrentDbProbe::new(settings, crate::sampler::loopback(), std::time::Instant::now())
}

pub fn probe(fake: &Fake) -> KurrentDbProbe {
    probe_of(settings(&format!("esdb://shop:hunter2@{}?tls=false", fake.at)))
}

/// Persistent subscriptions, each as `stream/group`.
pub fn persistent(names: &[&str]) -> Question {
    let of = |name: &&str| {
        let (stream, group) = name.split_once('/').unwrap();
        PersistentSubscription { stream: stream.to_owned(), group: group.to_owned() }
    };
    Question::Persistent(names.iter().map(of).collect())
}

pub fn stream(name: &str) -> Question {
    Question::Stream(name.to_owned())
}

pub fn log() -> Question {
    Question::All(Filter::NotSystem)
}

/// A checkpoint in the read store; absent where no row is there.
pub fn at(position: Option<i64>) -> Checkpoint {
    let state = position
        .map_or(CheckpointState::NeverCommitted, |position| CheckpointState::Committed(vec![Position(position)]));
    Checkpoint { state, shards: None, bound: None, failed: Vec::new(), parked: None, uncalled: Vec::new() }
}

pub fn key(name: &str) -> RunKey {
    RunKey::unversioned("shop", name)
}

/// Asks for one Projection.
pub async fn ask(
    probe: &mut KurrentDbProbe,
    question: &Question,
    checkpoint: Option<&Checkpoint>,
) -> Result<Sample, MeasureError> {
    ask_within(probe, question, checkpoint, DEADLINE).await
}

pub async fn ask_within(
    probe: &mut KurrentDbProbe,
    question: &Question,
    checkpoint: Option<&Checkpoint>,
    deadline: Duration,
) -> Result<Sample, MeasureError> {
    let key = key("p");
    let asked = Asked { key: &key, question, checkpoint };
    let mut answers = probe.answer(&[asked], Instant::now() + deadline).await;
    assert_eq!(answers.len(), 1);
    answers.pop().unwrap()
}

pub fn exactly(events: u64) -> Option<Pending> {
    Some(Pending { events, exact: true })
}

pub fn about(events: u64) -> Option<Pending> {
    Some(Pending { events, exact: false })
}

pub fn handled(sample: &Sample) -> u64 {
    match sample.checkpoint {
        CheckpointState::Handled(handled) => handled,
        ref other => panic!("{other:?}"),
    }
}

pub fn ago(seconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)
}

/// The age is that of an event of so many seconds ago: a date in whole seconds makes it up to a second too young.
pub fn is_old(sample: &Sample, seconds: u64) {
    let age = sample.staleness.unwrap();
    assert!(age >= Duration::from_secs(seconds - 1) && age < Duration::from_secs(seconds + 60), "{age:?}");
}
