//! NATS JetStream: workers that share a pull consumer, by the client async-nats.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_nats::{
    ConnectOptions,
    jetstream::{self, consumer::pull, stream},
};
use futures::future::try_join_all;
use serde_json::json;

use crate::consumers::{Course, Setting, Source, projection};
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::stage::{play, together};

/// The operator may do what its page lists.
const USERS: &str = r#"
jetstream: {store_dir: {root}/jetstream}
authorization: {users: [
  {user: shop, password: handles}
  {user: projectionist, password: "{measures}", permissions: {
    publish: ["$JS.API.CONSUMER.INFO.orders.list", "$JS.API.STREAM.MSG.GET.orders"]
    subscribe: ["_INBOX.projectionist.>"]
  }}
]}"#;

/// The stream `orders` with the consumer `list`.
struct Stream {
    context: jetstream::Context,
    appended: AtomicUsize,
}

impl Stream {
    async fn make(url: &str) -> Result<Self> {
        let options = ConnectOptions::with_user_and_password("shop".to_owned(), "handles".to_owned());
        let context = jetstream::new(options.connect(url).await.context("connecting to NATS")?);
        let subjects = vec!["orders.>".to_owned()];
        let stream = stream::Config { name: "orders".to_owned(), subjects, ..Default::default() };
        // What workers were given and did not handle when they ended comes again after this time, the server's default. On a busy machine a worker may need
        // seconds for a batch: with a shorter time messages of a live worker would be given to another as well.
        let ack_wait = Duration::from_secs(30);
        let consumer = pull::Config { durable_name: Some("list".to_owned()), ack_wait, ..Default::default() };
        context.create_stream(stream).await?.create_consumer(consumer).await?;
        Ok(Self { context, appended: AtomicUsize::new(0) })
    }
}

impl Source for Stream {
    async fn append(&self, count: usize) -> Result<()> {
        let publish = |_| self.context.publish("orders.made", "an order".into());
        for stored in try_join_all((0..count).map(publish)).await? {
            stored.await?;
        }
        self.appended.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    async fn unfinished(&self) -> Result<i64> {
        let stream = self.context.get_stream("orders").await?;
        let told = stream.consumer_info("list").await.map_err(|error| anyhow!("{error}"))?;
        Ok(i64::try_from(told.num_pending)? + i64::try_from(told.num_ack_pending)?)
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        Ok((1..=self.appended.load(Ordering::Relaxed)).map(|sequence| sequence.to_string()).collect())
    }
}

#[test]
fn workers_on_a_jetstream_consumer_are_scaled_by_lag_and_every_message_is_counted_and_handled_once() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "jetstream").await?;
        shop.make_record().await?;
        let server = stage.cluster.nats(&USERS.replace("{measures}", CANARY))?;
        let stream = Stream::make(&server.url()).await?;
        shop.secret("orders-nats", &[("url", server.url_as("projectionist", CANARY).as_str())])?;
        let wrong = server.url_as("projectionist", &format!("{CANARY}-wrong"));
        shop.secret("wrong", &[("url", wrong.as_str())])?;
        shop.secret("workers-nats", &[("user", "shop"), ("password", "handles")])?;
        let url = server.url();
        let environment = [
            ("NATS_URL", Setting::Value(&url)),
            ("NATS_USER", Setting::Secret("workers-nats", "user")),
            ("NATS_PASSWORD", Setting::Secret("workers-nats", "password")),
            ("NATS_STREAM", Setting::Value("orders")),
            ("NATS_CONSUMER", Setting::Value("list")),
        ];
        let course = Course { first: 500, arriving: 12, scaled_out: 2, most: 6, burst: 1_500, least: 1 };
        let source = |secret: &str| {
            json!({"nats": {
                "connection": {"secretRef": {"name": secret}}, "consumers": [{"stream": "orders", "consumer": "list"}],
            }})
        };
        shop.a_stranger_is_refused(&source("wrong")).await?;
        let change = |suspend| json!({"spec": {"suspend": suspend, "source": source("orders-nats")}});
        shop.consumers_follow_the_lag(&stream, &course, |suspend| {
            projection(&shop.namespace, &environment, &change(suspend))
        })
        .await?;
        shop.no_secret_is_told()
    });
}
