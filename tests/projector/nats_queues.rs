//! Consumers of a real NATS JetStream: each effect once, however workers and servers end, and whatever is delivered twice.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{AckPolicy, PullConsumer, pull, push},
        stream,
    },
};
use projectionist::{
    api::{HumanDuration, StreamConsumer},
    projector::{Input, NatsConsumers, QueueInput, QueueKind},
};
use test_cluster::{Nats, eventually, eventually_is};

use crate::{
    killing::{SLOWLY, keeps_the_order_through_a_kill},
    queues::{APPLY, assert_each_once, assert_positions_are_refused, failures},
    workshop::{PATIENCE, Workshop},
};

pub(crate) const CONSUMER: &str = "list";

pub(crate) async fn jetstream(nats: &Nats) -> jetstream::Context {
    jetstream::new(async_nats::connect(nats.address().to_string()).await.unwrap())
}

/// The same as a user that may do everything.
async fn jetstream_as_admin(nats: &Nats) -> jetstream::Context {
    let options = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned());
    jetstream::new(options.connect(nats.address().to_string()).await.unwrap())
}

/// What teams make: a stream with the subjects below its name.
async fn create_stream(context: &jetstream::Context, name: &str) -> stream::Stream {
    let config = stream::Config { name: name.to_owned(), subjects: vec![format!("{name}.>")], ..Default::default() };
    context.create_stream(config).await.unwrap()
}

/// A consumer that gives messages again after five seconds.
pub(crate) fn durable() -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_wait: Duration::from_secs(5),
        max_ack_pending: 10_000,
        ..Default::default()
    }
}

/// Workers that read this stream of the server.
pub(crate) async fn open(
    nats: &Nats,
    name: &str,
    handler: &str,
    alone: bool,
) -> (Workshop, jetstream::Context, PullConsumer) {
    let context = jetstream(nats).await;
    let (mut shop, consumer) = open_with(&context, name, handler, alone).await;
    shop.source_url = nats.url();
    (shop, context, consumer)
}

async fn open_with(context: &jetstream::Context, name: &str, handler: &str, alone: bool) -> (Workshop, PullConsumer) {
    let consumer = create_stream(context, name).await.create_consumer(durable()).await.unwrap();
    let mut shop = Workshop::open(name, handler).await;
    let consumers = vec![StreamConsumer { stream: name.to_owned(), consumer: CONSUMER.to_owned() }];
    let event = serde_json::from_value(serde_json::json!({"stream": {"subjectToken": 2}})).unwrap();
    shop.config.input = Input::Queue(QueueInput {
        queue: QueueKind::Nats(NatsConsumers { consumers, domain: None, event }),
        keep_for: HumanDuration(Duration::from_secs(3_600)),
        alone,
    });
    (shop, consumer)
}

/// Publishes events with these numbers, of forty streams, and waits until the server has stored them.
pub(crate) async fn append(context: &jetstream::Context, name: &str, numbers: std::ops::Range<i64>) {
    let mut stored = Vec::new();
    for n in numbers {
        stored.push(publish(context, &format!("{name}.o-{}", n % 40), "Counted", &format!("{{\"n\": {n}}}")).await);
    }
    for stored in stored {
        stored.await.unwrap();
    }
}

async fn publish(
    context: &jetstream::Context,
    subject: &str,
    event_type: &str,
    body: &str,
) -> jetstream::context::PublishAckFuture {
    let mut headers = HeaderMap::new();
    headers.insert("type", event_type);
    context.publish_with_headers(subject.to_owned(), headers, body.to_owned().into()).await.unwrap()
}

/// Waits until so many messages are given and not acknowledged, and none is left to be given.
pub(crate) async fn held(consumer: &PullConsumer, held: usize) {
    eventually(PATIENCE, "all that can be is acknowledged", || async {
        let info = consumer.get_info().await?;
        Ok::<_, anyhow::Error>(info.num_ack_pending == held && info.num_pending == 0)
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_delivered_again_change_nothing_and_those_of_a_stream_made_again_are_new() {
    let nats = Nats::on_loopback().unwrap();
    let (shop, context, consumer) = open(&nats, "nats_again", APPLY, false).await;
    let worker = shop.start("a");
    append(&context, "nats_again", 0..300).await;
    assert_each_once(&shop, 300).await;
    held(&consumer, 0).await;
    // A consumer that is made again gives all of them once more.
    let stream = context.get_stream("nats_again").await.unwrap();
    stream.delete_consumer(CONSUMER).await.unwrap();
    let consumer: PullConsumer = stream.create_consumer(durable()).await.unwrap();
    append(&context, "nats_again", 300..310).await;
    assert_each_once(&shop, 310).await;
    held(&consumer, 0).await;
    assert_eq!(shop.ask::<i64>("select count(*) from applied").await, 310, "none twice");
    // A stream that is made again has messages with the same numbers.
    context.delete_stream("nats_again").await.unwrap();
    let consumer = create_stream(&context, "nats_again").await.create_consumer(durable()).await.unwrap();
    append(&context, "nats_again", 310..330).await;
    assert_each_once(&shop, 330).await;
    held(&consumer, 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_handled_stays_and_is_told_while_the_others_go_on() {
    let nats = Nats::on_loopback().unwrap();
    let (mut shop, context, consumer) = open(&nats, "nats_poison", APPLY, false).await;
    shop.config.max_event_bytes = 1_024;
    shop.sql.setup = Some(
        "create table if not exists applied (seq bigserial, position bigint, stream text, n bigint constraint unlucky check (n <> 13))"
            .to_owned(),
    );
    for (event_type, body) in
        [("Counted", "no-json-canary"), ("Other", "no-json"), ("Counted", &"canary".repeat(50_000))]
    {
        publish(&context, "nats_poison.o-1", event_type, body).await.await.unwrap();
    }
    context.publish("nats_poison.o-1", "{}".into()).await.unwrap().await.unwrap();
    append(&context, "nats_poison", 0..50).await;
    let worker = shop.start("a");
    shop.applied(49).await;
    append(&context, "nats_poison", 50..60).await;
    shop.applied(59).await;
    held(&consumer, 4).await;
    let told: Vec<String> =
        eventually_is(PATIENCE, "all are told", |told: &Vec<String>| told.len() == 4, || failures(&shop))
            .await
            .unwrap();
    for words in
        ["message 1 of stream nats_poison cannot be read: its value is no JSON", "300", "no header type", "unlucky"]
    {
        assert!(told.iter().any(|why| why.contains(words)), "{words}: {told:?}");
    }
    assert!(told.iter().all(|why| !why.contains("canary")), "{told:?}");
    // Once it can be handled, it is; nothing is told of it any more.
    shop.store.batch_execute("alter table applied drop constraint unlucky").await.unwrap();
    shop.applied(60).await;
    eventually_is(PATIENCE, "three are left", |told: &Vec<String>| told.len() == 3, || failures(&shop)).await.unwrap();
    held(&consumer, 3).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handled_slowly_is_given_to_no_other_worker() {
    // One batch takes longer than ack_wait.
    const SLOWLY: &str = "insert into applied (position, stream, n) select (:data->>'n')::bigint, :stream, (:data->>'n')::bigint from pg_sleep(0.15)";
    let nats = Nats::on_loopback().unwrap();
    let (shop, context, consumer) = open(&nats, "nats_slow", SLOWLY, false).await;
    append(&context, "nats_slow", 0..100).await;
    let worker = shop.start("a");
    let other = shop.start("b");
    assert_each_once(&shop, 100).await;
    held(&consumer, 0).await;
    assert_eq!(consumer.get_info().await.unwrap().delivered.consumer_sequence, 100, "each was delivered once");
    worker.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_alone_keeps_the_order_through_a_kill() {
    let nats = Nats::on_loopback().unwrap();
    let (shop, context, _) = open(&nats, "nats_order", SLOWLY, true).await;
    append(&context, "nats_order", 0..1_500).await;
    keeps_the_order_through_a_kill(&shop, 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_would_lose_events_are_refused_until_they_are_changed() {
    let nats = Nats::on_loopback().unwrap();
    let (mut shop, context, _) = open(&nats, "nats_refused", APPLY, false).await;
    let stream = context.get_stream("nats_refused").await.unwrap();
    let again = async |config: pull::Config| {
        stream.delete_consumer(CONSUMER).await.unwrap();
        stream.create_consumer(config).await.unwrap()
    };
    for (config, expected) in [
        (pull::Config { ack_policy: AckPolicy::All, ..durable() }, "its ack_policy is all"),
        (pull::Config { max_deliver: 5, ..durable() }, "its max_deliver is 5"),
        (pull::Config { ack_wait: Duration::from_secs(1), ..durable() }, "set ack_wait to at least 2s"),
    ] {
        again(config).await;
        shop.start("a").says(expected).await;
    }
    let push = push::Config {
        durable_name: Some(CONSUMER.to_owned()),
        deliver_subject: "pushed".to_owned(),
        ..Default::default()
    };
    stream.delete_consumer(CONSUMER).await.unwrap();
    stream.create_consumer(push).await.unwrap();
    shop.start("a").says("it is a push consumer").await;
    stream.delete_consumer(CONSUMER).await.unwrap();
    let worker = shop.start("a");
    worker.says("there is no such consumer").await;
    stream.create_consumer(durable()).await.unwrap();
    worker.says("200 OK").await;
    append(&context, "nats_refused", 0..20).await;
    assert_each_once(&shop, 20).await;
    worker.stop().await;
    assert_positions_are_refused(&mut shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_page_suffice_and_one_that_is_missing_is_told() {
    let user = |name: &str, more: &str| {
        format!(
            "{{user: {name}, password: hunter2, permissions: {{publish: [\"$JS.API.CONSUMER.INFO.nats_rights.list\", \"$JS.API.CONSUMER.MSG.NEXT.nats_rights.list\"{more}], subscribe: [\"_INBOX.projectionist.>\"]}}}}"
        )
    };
    let nats = Nats::with(&format!(
        "jetstream: {{store_dir: {{root}}/jetstream}}\nauthorization: {{users: [\n  {{user: admin, password: admin}}\n  {}\n  {}\n]}}",
        user("worker", ", \"$JS.ACK.nats_rights.list.>\""),
        user("mute", ""),
    ))
    .unwrap();
    let context = jetstream_as_admin(&nats).await;
    let (mut shop, consumer) = open_with(&context, "nats_rights", APPLY, false).await;
    append(&context, "nats_rights", 0..50).await;
    shop.source_url = nats.url_as("mute", "hunter2");
    let told = shop.start("a").says("Permissions Violation for Publish to \"$JS.ACK").await;
    assert!(told.contains("docs/sources/nats.md") && !told.contains("hunter2"), "{told}");
    // What it could not acknowledge is given to another, which finds it handled.
    shop.source_url = nats.url_as("worker", "hunter2");
    let worker = shop.start("b");
    held(&consumer, 0).await;
    assert_each_once(&shop, 50).await;
    worker.stop().await;
}
