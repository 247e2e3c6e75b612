//! RabbitMQ: consumers that compete for a quorum queue, by the client lapin, from zero and back to zero.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use serde_json::json;
use test_cluster::RabbitMq;

use crate::consumers::{Course, Setting, Source, projection};
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::stage::{play, together};

/// The quorum queue `orders`.
struct Queue {
    server: RabbitMq,
    appended: AtomicUsize,
}

impl Queue {
    /// Makes the queue, and users with the rights that each needs: the operator those that its page lists.
    fn make(server: RabbitMq) -> Result<Self> {
        let queue = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
        server.run("PUT", "queues/%2F/orders", &queue)?;
        for (user, password, tags, read) in
            [("projectionist", CANARY, "management", "^$"), ("worker", "handles", "", "^orders$")]
        {
            server.run("PUT", &format!("users/{user}"), &json!({"password": password, "tags": tags}))?;
            let rights = json!({"configure": "^$", "write": "^$", "read": read});
            server.run("PUT", &format!("permissions/%2F/{user}"), &rights)?;
        }
        Ok(Self { server, appended: AtomicUsize::new(0) })
    }
}

impl Source for Queue {
    async fn append(&self, count: usize) -> Result<()> {
        let before = self.appended.fetch_add(count, Ordering::Relaxed);
        self.server.consumer()?.publish("orders", (before..before + count).map(|number| number.to_string()))
    }

    async fn unfinished(&self) -> Result<i64> {
        let queue = self.server.run("GET", "queues/%2F/orders", &json!(null))?;
        queue["messages"].as_i64().context("no number yet")
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        Ok((0..self.appended.load(Ordering::Relaxed)).map(|number| number.to_string()).collect())
    }
}

#[test]
fn consumers_of_a_rabbitmq_queue_are_scaled_by_lag_from_zero_and_every_message_is_counted_and_handled_once() {
    let _turn = together();
    play(|stage| async move {
        let queue = Queue::make(stage.cluster.rabbitmq()?)?;
        let shop = Shop::open(stage, "queues").await?;
        shop.make_record().await?;
        shop.secret("orders-rabbitmq", &[("url", queue.server.url_as("projectionist", CANARY).as_str())])?;
        let wrong = queue.server.url_as("projectionist", &format!("{CANARY}-wrong"));
        shop.secret("wrong", &[("url", wrong.as_str())])?;
        shop.secret("workers-rabbitmq", &[("url", queue.server.amqp_url_as("worker", "handles").as_str())])?;
        let environment =
            [("AMQP_URL", Setting::Secret("workers-rabbitmq", "url")), ("QUEUE", Setting::Value("orders"))];
        let course = Course { first: 500, arriving: 12, scaled_out: 2, most: 6, burst: 1_500, least: 0 };
        let source =
            |secret: &str| json!({"rabbitmq": {"connection": {"secretRef": {"name": secret}}, "queues": ["orders"]}});
        shop.a_stranger_is_refused(&source("wrong")).await?;
        let change = |suspend| {
            json!({"spec": {
                "suspend": suspend,
                "source": source("orders-rabbitmq"),
                "scaling": {"minWorkers": 0, "idleFor": "5s"},
            }})
        };
        shop.consumers_follow_the_lag(&queue, &course, |suspend| {
            projection(&shop.namespace, &environment, &change(suspend))
        })
        .await?;
        shop.no_secret_is_told()
    });
}
