//! Workers whose own pages say how much waits in each of them, scaled by the sum with a real autoscaler.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use test_cluster::eventually;
use tokio::time::Instant;

use crate::consumers::{Setting, pending_exactly, projection};
use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

/// What a worker's page shows.
const SAYS: &str = "select events as orders_waiting from waiting where worker in ('', $1) order by worker desc limit 1";

/// What the pages say. Rows of an empty name are for every worker without a row of its own; NULL: the worker answers 500.
struct Pages<'a>(&'a Shop<'a>);

impl Pages<'_> {
    async fn say(&self, worker: &str, events: Option<i64>) -> Result<()> {
        let upsert = "insert into waiting values ($1, $2) on conflict (worker) do update set events = excluded.events";
        self.0.events.client().execute(upsert, &[&worker, &events]).await?;
        Ok(())
    }

    /// Status and metric say that exactly so many events wait.
    async fn sum_to(&self, events: i64) -> Result<()> {
        self.0.projection_is("orders", &format!("{events} are pending"), pending_exactly(events)).await?;
        self.0.metric_is("projection_pending_events", "orders", |value| value == events.to_string()).await
    }

    /// What waits is unknown, since this worker cannot be read: the status and the metric for the autoscaler say so.
    async fn are_unknown_for(&self, worker: &str, reason: &str) -> Result<()> {
        let named = format!("pod {worker}: ");
        let message = self.0.condition_is("orders", "LagKnown", "Unknown", reason).await?;
        ensure!(message.contains(&named), "{message}");
        eventually(PATIENCE, "the metric is an error that says why", || async {
            Ok::<_, anyhow::Error>(match self.0.refusal("projection_required_workers", "orders").await? {
                Some((503, message)) if message.contains(reason) && message.contains(&named) => Ok(()),
                answer => Err(format!("{answer:?}")),
            })
        })
        .await
    }
}

#[test]
fn workers_are_scaled_by_the_sum_of_their_own_pages_and_held_while_one_cannot_be_read() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "pages").await?;
        let pages = Pages(&shop);
        let table = "create table waiting (worker text primary key, events bigint)";
        shop.events.client().batch_execute(table).await?;
        pages.say("", Some(7)).await?;
        let change = json!({"spec": {
            "source": {"scrape": {"pods": {"port": 9100}, "pending": {"metric": "orders_waiting"}}},
            "lag": {"target": "5s"},
            "scaling": {"maxWorkers": 4, "eventsPerWorkerSecond": 100},
        }});
        let environment = [("PAGE_PORT", Setting::Value("9100")), ("PAGE_QUERY", Setting::Value(SAYS))];
        let mut orders = projection(&shop.namespace, &environment, &change);
        orders["spec"]["projector"]["template"]["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"port": 9100, "path": "/metrics"}, "periodSeconds": 1, "failureThreshold": 2});
        let begun = Instant::now();
        let since = |what: &str| eprintln!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());

        shop.apply(&orders)?;
        pages.sum_to(7).await?;
        shop.condition_is("orders", "LagKnown", "True", "").await?;
        since("one worker, 7 are pending");

        // Each worker has more before it than it can do in time, however many there are.
        pages.say("", Some(1_000)).await?;
        shop.autoscaler_asks_for("the autoscaler asks for four", |asked| asked == 4).await?;
        shop.workers_are("orders", "four are ready", |ready| ready == 4).await?;
        let workers: Vec<String> =
            shop.made("pod")?.iter().map(|pod| pod.trim_start_matches("pod/").to_owned()).collect();
        ensure!(workers.len() == 4, "{workers:?}");
        let mut sum = 0;
        for (worker, events) in workers.iter().zip([1_001, 1_020, 1_300, 4_000]) {
            pages.say(worker, Some(events)).await?;
            sum += events;
        }
        pages.sum_to(sum).await?;
        since(&format!("four workers, {sum} are pending"));

        // One hangs, so that it is not ready any more either. What the others say would leave one worker.
        let (hangs, breaks) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
        let frozen = stage.cluster.freeze(hangs)?;
        pages.are_unknown_for(hangs, "TimedOut").await?;
        for worker in &workers {
            pages.say(worker, Some(1)).await?;
        }
        shop.workers_are("orders", "the one that hangs is not ready", |ready| ready == 3).await?;
        shop.replicas_stay(4).await?;
        since("one worker hangs: four are held");
        // Another shows an error in place of its page.
        pages.say(breaks, None).await?;
        drop(frozen);
        pages.are_unknown_for(breaks, "SourceFailed").await?;
        shop.replicas_stay(4).await?;
        since("one worker answers 500: four are held");

        // All can be read again: the autoscaler takes away those that are not needed, and what they said is no part of the sum.
        pages.say(breaks, Some(1)).await?;
        shop.condition_is("orders", "LagKnown", "True", "").await?;
        shop.replicas_become(1).await?;
        shop.autoscaler_asks_for("the autoscaler asks for one", |asked| asked == 1).await?;
        shop.workers_are("orders", "one is left", |ready| ready == 1).await?;
        pages.sum_to(1).await?;
        since("one worker, 1 is pending");
        Ok(())
    });
}
