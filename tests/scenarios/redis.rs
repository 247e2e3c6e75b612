//! Redis Streams: consumers of a team's own, written with a client library of Redis, scaled by a real autoscaler on what Projectionist counts.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail, ensure};
use projectionist::api::Phase;
use serde_json::{Value, json};
use test_cluster::{Redis, eventually_is, images::WORKER_IMAGE, redis::Answer};
use tokio::time::sleep;

use crate::consumers::pending_exactly;
use crate::secrets::CANARY;
use crate::shop::{Shop, phase};
use crate::stage::{PATIENCE, play, together};

/// How long a consumer takes over an entry, in milliseconds: it handles at most 40 a second.
const COST: u32 = 25;
/// Entries that are appended at once, and how often: 60 a second.
const ARRIVING: usize = 12;
const ARRIVE_EVERY: Duration = Duration::from_millis(200);

/// The stream `orders`, which the group `order-list` reads.
struct Stream(Redis);

impl Stream {
    /// Makes the group, and users with the rights that each needs: the operator those that its page lists.
    fn make(server: Redis) -> Result<Self> {
        server.run(&format!(
            "ACL SETUSER projectionist on >{CANARY} ~orders +xinfo|stream +xinfo|groups +xpending +xrange +time"
        ))?;
        server.run("ACL SETUSER worker on >handles ~orders* +@stream +@hash +@transaction +client")?;
        server.run("XGROUP CREATE orders order-list 0 MKSTREAM")?;
        Ok(Self(server))
    }

    fn append(&self, count: usize) -> Result<()> {
        let entry: &[&str] = &["XADD", "orders", "*", "order", "placed"];
        self.0.run_all(&vec![entry; count]).map(drop)
    }

    fn number(&self, command: &str) -> Result<i64> {
        match self.0.run(command)? {
            Answer::Integer(number) => Ok(number),
            other => bail!("{command}: {other:?}"),
        }
    }

    fn array(&self, command: &str) -> Result<Vec<Answer>> {
        match self.0.run(command)? {
            Answer::Array(answers) => Ok(answers),
            other => bail!("{command}: {other:?}"),
        }
    }

    /// What no consumer has recorded yet, counted without any of the numbers that the operator asks for.
    fn unhandled(&self) -> Result<i64> {
        Ok(self.number("XLEN orders")? - self.number("HLEN orders:handled")?)
    }

    /// Entries that consumers hold.
    fn held(&self) -> Result<i64> {
        match self.array("XPENDING orders order-list")?.first() {
            Some(Answer::Integer(held)) => Ok(*held),
            other => bail!("XPENDING: {other:?}"),
        }
    }

    /// Entries arrive for as long as it is polled.
    async fn arrivals(&self) -> Result<()> {
        loop {
            self.append(ARRIVING)?;
            sleep(ARRIVE_EVERY).await;
        }
    }

    /// Checks that the recorded entries are those of the stream, each handled once.
    fn each_was_handled_once(&self) -> Result<()> {
        let text = |answer: &Answer| answer.text().to_owned();
        let recorded = self.array("HGETALL orders:handled")?;
        let often: Vec<&[Answer]> =
            recorded.chunks(2).filter(|pair| pair.last().map(text).as_deref() != Some("1")).collect();
        ensure!(often.is_empty(), "handled more than once: {often:?}");
        let recorded: BTreeSet<String> = recorded.chunks(2).filter_map(|pair| pair.first().map(text)).collect();
        let appended = self.array("XRANGE orders - +")?;
        let appended: BTreeSet<String> = appended
            .iter()
            .filter_map(|entry| if let Answer::Array(parts) = entry { parts.first().map(text) } else { None })
            .collect();
        ensure!(recorded == appended, "{} entries are recorded and {} were appended", recorded.len(), appended.len());
        Ok(())
    }
}

fn source(secret: &str) -> Value {
    json!({"redis": {
        "connection": {"secretRef": {"name": secret}}, "streams": [{"key": "orders", "group": "order-list"}],
    }})
}

/// The Projection `orders` of the stream's consumers.
fn projection(namespace: &str, suspend: bool) -> Value {
    let variable = |name: &str, value: &str| json!({"name": name, "value": value});
    json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": "orders", "namespace": namespace},
        "spec": {
            "suspend": suspend,
            "source": source("orders-redis"),
            "lag": {"target": "5s"},
            "scaling": {
                "minWorkers": 1, "maxWorkers": 4, "ordering": "None",
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
            },
            "projector": {"template": {"spec": {
                "terminationGracePeriodSeconds": 10,
                "containers": [{
                    "name": "worker", "image": WORKER_IMAGE, "imagePullPolicy": "Never",
                    "env": [
                        {"name": "REDIS_URL", "valueFrom": {"secretKeyRef": {"name": "workers-redis", "key": "url"}}},
                        variable("STREAM", "orders"),
                        variable("GROUP", "order-list"),
                        variable("COST_MS", &COST.to_string()),
                    ],
                    "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
                }],
            }}},
        },
    })
}

#[test]
fn consumers_of_a_redis_stream_are_scaled_by_lag_and_every_entry_is_counted_and_handled_once() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "streams").await?;
        let stream = Stream::make(stage.cluster.redis()?)?;
        let wrong = format!("{CANARY}-wrong");
        for (secret, user, password) in [
            ("orders-redis", "projectionist", CANARY),
            ("workers-redis", "worker", "handles"),
            ("wrong", "projectionist", wrong.as_str()),
        ] {
            shop.secret(secret, &[("url", stream.0.url_as(user, password).as_str())])?;
        }
        shop.a_stranger_is_refused(&source("wrong")).await?;

        // Before any consumer runs. Twenty entries are held by one that never comes back: they wait as well.
        stream.append(500)?;
        stream.0.run("XREADGROUP GROUP order-list gone COUNT 20 STREAMS orders >")?;
        shop.apply(&projection(&shop.namespace, true))?;
        shop.projection_is("orders", "500 events are pending", pending_exactly(500)).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "500").await?;
        shop.projection_is("orders", "it is suspended", |one| phase(one) == Some(Phase::Suspended)).await?;

        // One consumer cannot keep up with what arrives.
        shop.apply(&projection(&shop.namespace, false))?;
        let scaled_out = async {
            shop.autoscaler_asks_for("the autoscaler asks for more than one", |asked| asked > 1).await?;
            shop.workers_are("orders", "more than one consumer is ready", |ready| ready > 1).await
        };
        let most = tokio::select! {
            ended = stream.arrivals() => bail!("the arrivals ended: {ended:?}"),
            ready = scaled_out => ready?,
        };

        // All of them are stopped in the middle of their work: what they held and did not handle is counted like what no worker was given.
        stream.append(2_000)?;
        shop.apply(&projection(&shop.namespace, true))?;
        shop.consumers_are_gone().await?;
        stream.append(100)?;
        let (unhandled, held) = (stream.unhandled()?, stream.held()?);
        shop.projection_is("orders", "what is not handled is pending", pending_exactly(unhandled)).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == unhandled.to_string()).await?;
        ensure!(stream.unhandled()? == unhandled, "a consumer that was gone has handled something");

        // They come back, claim what is held, and are sent away again when there is nothing to do.
        shop.apply(&projection(&shop.namespace, false))?;
        let rest = || async { stream.unhandled() };
        eventually_is(PATIENCE * 2, "every entry is handled", |rest| *rest == 0, rest)
            .await
            .map_err(|error| stage.cluster.explain(&error, &shop.namespace))?;
        shop.projection_is("orders", "nothing is pending", pending_exactly(0)).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        shop.workers_are("orders", "quiet has left one consumer", |ready| ready == 1).await?;
        shop.replicas_become(1).await?;
        shop.autoscaler_asks_for("the autoscaler asks for one", |asked| asked == 1).await?;
        for condition in ["LagKnown", "WithinTarget", "Available", "Ready"] {
            shop.condition_is("orders", condition, "True", "").await?;
        }
        shop.projection_is("orders", "it is live", |one| phase(one) == Some(Phase::Live)).await?;
        stream.each_was_handled_once()?;
        ensure!(stream.held()? == 0, "{} entries are still held", stream.held()?);
        shop.no_secret_is_told()?;

        let (entries, consumers) = (stream.number("XLEN orders")?, stream.number("HLEN orders:handled-by")?);
        println!(
            "{entries} entries, each handled once, by {consumers} consumers (first {most} at a time); \
             while none ran, {unhandled} pending, {held} of them held, as counted"
        );
        Ok(())
    });
}
