//! A real server for all tests that do not reconfigure it, a real client that publishes and consumes, and a probe that asks.

use std::{sync::OnceLock, time::Duration};

use async_nats::jetstream::{self, AckKind, Message, consumer::pull, stream};
use futures::StreamExt as _;
use projectionist::{
    api::StreamConsumer,
    clients::nats::ConnectionSettings,
    lag::{CheckpointState, Pending, Sample},
    measure::MeasureError,
    sources::{
        BatchProbe as _,
        nats::{NatsProbe, Question},
    },
};
use test_cluster::Nats;
use tokio::time::Instant;

use crate::sampler::loopback;

pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn server() -> &'static Nats {
    static SERVER: OnceLock<Nats> = OnceLock::new();
    SERVER.get_or_init(|| Nats::on_loopback().unwrap())
}

/// The client that teams use, as the user in the URL.
pub async fn jetstream(url: &str) -> jetstream::Context {
    let address = url.strip_prefix("nats://").unwrap();
    let client = match address.split_once('@') {
        None => async_nats::connect(address).await,
        Some((credentials, address)) => {
            let (user, password) = credentials.split_once(':').unwrap();
            let options = async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
            options.connect(address).await
        }
    };
    jetstream::new(client.unwrap())
}

/// A stream of this name with the subjects below it.
pub async fn stream(context: &jetstream::Context, name: &str) -> stream::Stream {
    let config = stream::Config { name: name.to_owned(), subjects: vec![format!("{name}.>")], ..Default::default() };
    context.create_stream(config).await.unwrap()
}

pub fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.to_owned()), ..Default::default() }
}

/// Publishes so many messages to `stream.kind`.
pub async fn publish(context: &jetstream::Context, subject: &str, count: usize) {
    for number in 0..count {
        context.publish(subject.to_owned(), format!("event {number}").into()).await.unwrap().await.unwrap();
    }
}

/// Lets a worker take up to so many messages.
pub async fn fetch(consumer: &jetstream::consumer::Consumer<pull::Config>, count: usize) -> Vec<Message> {
    let fetched = consumer.fetch().max_messages(count).expires(Duration::from_secs(1)).messages().await.unwrap();
    fetched.map(Result::unwrap).collect().await
}

/// Acknowledges, and waits until the server has heard it.
pub async fn acknowledge(messages: &[Message]) {
    for message in messages {
        message.double_ack_with(AckKind::Ack).await.unwrap();
    }
}

pub fn settings(url: &str) -> ConnectionSettings {
    ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap()
}

/// What a Projection that reads these consumers asks, each as `stream/consumer`.
pub fn question(consumers: &[&str]) -> Question {
    let consumers = consumers.iter().map(|text| {
        let (stream, consumer) = text.split_once('/').unwrap();
        StreamConsumer { stream: stream.to_owned(), consumer: consumer.to_owned() }
    });
    Question { consumers: consumers.collect(), domain: None }
}

pub fn probe(url: &str) -> NatsProbe {
    NatsProbe::new(settings(url), loopback(), std::time::Instant::now())
}

/// Asks for one Projection.
pub async fn ask(probe: &mut NatsProbe, consumers: &[&str]) -> Result<Sample, MeasureError> {
    ask_within(probe, consumers, DEADLINE).await
}

pub async fn ask_within(probe: &mut NatsProbe, consumers: &[&str], deadline: Duration) -> Result<Sample, MeasureError> {
    let question = question(consumers);
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
