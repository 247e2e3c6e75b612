//! The built-in projector from sources other than event tables and topics, side by side: workers are killed under load, and every event has its effect once.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use projectionist::names::PROJECTION_LABEL;
use serde_json::{Value, json};
use test_cluster::{RabbitMq, eventually_is, rabbitmq::Published};
use tokio_postgres::Client;

use crate::event_stores::{COMMANDED, EMMETT, commanded_appended, emmett_appended};
use crate::secrets::CANARY;
use crate::shop::{Shop, merge};
use crate::stage::{PATIENCE, play, together};

/// Events that are appended at once, how often, and how long each takes: some seconds for two workers.
const AT_ONCE: i64 = 600;
const TIMES: i64 = 3;
const HANDLER: &str = "insert into seen (stream, n) select :stream, (:data->>'n')::bigint from pg_sleep(0.01)";

/// Where events come from, all of one database or server.
enum Origin {
    /// Statements that append so many events to a stream after the first so many, whose numbers follow.
    Store(Client, fn(&str, i64, i64) -> String),
    Queue(RabbitMq),
}

impl Origin {
    /// Numbers from this one on, each in the stream that the number names.
    async fn append(&self, first: i64, count: i64) -> Result<()> {
        match self {
            Self::Store(client, append) => {
                let each = count / 20;
                let streams = (0..20).map(|stream| append(&format!("cart-{stream}"), first + stream * each, each));
                client.batch_execute(&streams.collect::<Vec<_>>().join("; ")).await.context("appending")
            }
            Self::Queue(server) => {
                let message = |n: i64| Published {
                    id: Some(format!("m-{n}")),
                    type_: Some("Counted".to_owned()),
                    headers: vec![("stream".to_owned(), format!("cart-{}", n % 20))],
                    body: format!("{{\"n\": {n}}}"),
                };
                server.consumer()?.publish_all("orders", (first..first + count).map(message))
            }
        }
    }
}

/// A Projection with its events.
struct View<'a> {
    shop: &'a Shop<'a>,
    name: &'static str,
    origin: Origin,
    appended: AtomicI64,
    /// Whether the events of a stream come in their order.
    in_order: bool,
}

impl<'a> View<'a> {
    /// `type_`: of the events.
    fn open(shop: &'a Shop<'a>, name: &'static str, origin: Origin, type_: &str, change: &Value) -> Result<Self> {
        let in_order = matches!(origin, Origin::Store(..));
        let all = json!({"spec": {
            "scaling": {"minWorkers": 2, "maxWorkers": 3},
            "projector": {"builtin": {
                "setup": "create table if not exists seen (seq bigserial, stream text, n bigint)",
                "handlers": {"Counted": null, type_: HANDLER},
            }},
        }});
        let mut projection = shop.projection(name, &all);
        merge(&mut projection, change);
        shop.apply(&projection)?;
        Ok(Self { shop, name, origin, appended: AtomicI64::new(0), in_order })
    }

    /// Each number in the read model, in the order in which they came there, by stream.
    async fn seen(&self, reader: &Client) -> Result<BTreeMap<String, Vec<i64>>> {
        let statement = format!("select stream, n from {}.seen order by seq", self.name);
        let mut all: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for row in reader.query(&statement, &[]).await? {
            all.entry(row.get(0)).or_default().push(row.get(1));
        }
        Ok(all)
    }

    async fn is_whole_although_workers_are_killed(&self) -> Result<()> {
        let shop = self.shop;
        let reader = shop.reader().await?;
        let count = || async {
            let all = self.seen(&reader).await?;
            Ok::<i64, anyhow::Error>(i64::try_from(all.values().map(Vec::len).sum::<usize>())?)
        };
        shop.workers_are(self.name, "two workers are ready", |ready| ready >= 2).await?;
        for round in 0..TIMES {
            let first = self.appended.fetch_add(AT_ONCE, Ordering::Relaxed) + 1;
            self.origin.append(first, AT_ONCE).await?;
            let (begun, all) = (AT_ONCE * round, AT_ONCE * (round + 1));
            let at_work = eventually_is(PATIENCE, "they are at work", |count| *count > begun, count).await?;
            // The last time all of them are left to end the rest.
            if round + 1 < TIMES {
                self.one_is_killed().await?;
                ensure!(at_work < all, "{}: it was killed when there was nothing to do", self.name);
            }
        }
        let whole = self.appended.load(Ordering::Relaxed);
        eventually_is(PATIENCE, "every event is in the read model", |count| *count >= whole, count).await?;
        shop.metric_is("projection_pending_events", self.name, |value| value == "0").await?;
        for condition in ["LagKnown", "WithinTarget", "Available", "Ready"] {
            shop.condition_is(self.name, condition, "True", "").await?;
        }
        let seen = self.seen(&reader).await?;
        let mut numbers: Vec<i64> = seen.values().flatten().copied().collect();
        numbers.sort_unstable();
        ensure!(numbers == (1..=whole).collect::<Vec<_>>(), "{}: {} effects of {whole}", self.name, numbers.len());
        let unordered = seen.iter().find(|(_, numbers)| !numbers.is_sorted());
        ensure!(!self.in_order || unordered.is_none(), "{}: not in the order of the stream: {unordered:?}", self.name);
        eprintln!("{}: {} events, each with its effect once, while workers were killed", shop.namespace, whole);
        Ok(())
    }

    /// One of its workers, without a moment to end.
    async fn one_is_killed(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.shop.client.clone(), &self.shop.namespace);
        let its = ListParams::default().labels(&format!("{PROJECTION_LABEL}={}", self.name));
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
        };
        let running = pods.list(&its).await?;
        let first = running.items.iter().find(|pod| ready(pod)).and_then(|pod| pod.metadata.name.as_ref());
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(first.context("no worker is ready")?, &now).await?;
        Ok(())
    }
}

/// The queue `orders`, and a user with the rights that the operator and the workers need.
fn make_queue(server: &RabbitMq) -> Result<()> {
    server.run("PUT", "queues/%2F/orders", &json!({"durable": true, "arguments": {"x-queue-type": "classic"}}))?;
    server.run("PUT", "users/projectionist", &json!({"password": CANARY, "tags": "management"}))?;
    let rights = json!({"configure": "^$", "write": "^$", "read": "^orders$"});
    server.run("PUT", "permissions/%2F/projectionist", &rights).map(drop)
}

#[test]
fn the_built_in_projector_reads_a_queue_and_two_event_stores_side_by_side_and_each_effect_comes_once_while_workers_are_killed()
 {
    let _turn = together();
    play(|stage| async move {
        let rabbit = stage.cluster.rabbitmq()?;
        make_queue(&rabbit)?;
        let shop = Shop::open(stage, "origins").await?;
        let port = rabbit.amqp().port().to_string();
        shop.secret("queue", &[("url", &rabbit.url_as("projectionist", CANARY)), ("amqp-port", &port)])?;
        let client = shop.reader().await?;
        let tables = format!(
            "create schema elixir; set search_path to elixir; {COMMANDED} reset search_path; create schema node; set search_path to node; {EMMETT} \
             create unique index on emt_messages (global_position, is_archived, partition); reset search_path;"
        );
        client.batch_execute(&tables).await?;
        let connection = json!({"secretRef": {"name": "database", "key": "url"}});
        let of_table = |kind: &str, fields: &Value| json!({"spec": {"source": {"postgres": {"connection": connection, "eventTable": null, kind: fields}}}});
        let commanded = Origin::Store(shop.reader().await?, |stream, first, count| {
            let data = format!("convert_to(json_build_object('n', {first} - 1 + n)::text, 'UTF8')");
            commanded_appended("elixir", stream, count, "Elixir.Shop.Counted", &data, "clock_timestamp()")
        });
        let emmett = Origin::Store(shop.reader().await?, |stream, first, count| {
            let data = format!("jsonb_build_object('n', {first} - 1 + n)");
            emmett_appended("node", stream, count, "'emt:default', false", &data)
        });
        let queue = json!({"spec": {
            "source": {"postgres": null, "rabbitmq": {"connection": {"secretRef": {"name": "queue"}}, "queues": ["orders"]}},
            "scaling": {"ordering": "None", "shards": null},
        }});
        let views = [
            View::open(&shop, "queue", Origin::Queue(rabbit), "Counted", &queue)?,
            View::open(
                &shop,
                "commanded",
                commanded,
                "Elixir.Shop.Counted",
                &of_table("commanded", &json!({"schema": "elixir"})),
            )?,
            View::open(&shop, "emmett", emmett, "Counted", &of_table("emmett", &json!({"schema": "node"})))?,
        ];
        let played = try_join_all(views.iter().map(View::is_whole_although_workers_are_killed)).await;
        played.map_err(|error| stage.cluster.explain(&error, &shop.namespace))?;
        shop.no_secret_is_told()
    });
}
