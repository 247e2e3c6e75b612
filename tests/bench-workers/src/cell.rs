//! One cell of the race: a schema with its own events and checkpoints, workers, and one way to scale them.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use bench_scaling::{rivals::MOST, traces::PER_WORKER};
use projectionist::simulate::Trace;
use serde_json::{Value, json};
use test_cluster::{Postgres, images::WORKER_IMAGE};
use tokio_postgres::Client;

use crate::{
    NAMESPACE,
    kinds::{Kind, SHARDS},
    predict::Race,
    score::Handled,
    ways::Way,
};

/// The database of all cells, and the Secret that leads to it.
pub const DATABASE: &str = "race";
/// How often the events that are due are appended.
const APPEND_EVERY: Duration = Duration::from_millis(100);

/// What is raced how.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub race: Race,
    pub way: Way,
    /// Told apart by it: the schema, and the workers' locks.
    pub number: i32,
}

impl Cell {
    /// The name of its objects.
    pub fn name(&self) -> String {
        format!("{}-{}", self.way.name(), self.number)
    }

    /// Where its tables are.
    pub fn schema(&self) -> String {
        format!("cell_{}", self.number)
    }

    /// Whether its checkpoint is one row.
    pub fn has_one_row(&self) -> bool {
        self.race.kind.has_one_row()
    }

    /// Makes its tables.
    pub async fn make_tables(&self, client: &Client) -> Result<()> {
        let schema = self.schema();
        let name = self.name();
        let rows = |table: &str| {
            format!(
                "create table {schema}.{table} (projection text not null, shard int not null, position bigint not null, primary key (projection, shard));
                 insert into {schema}.{table} select '{name}', shard, 0 from generate_series(0, {SHARDS} - 1) shard;"
            )
        };
        let checkpoints = if self.has_one_row() {
            format!(
                "create table {schema}.checkpoints (projection text primary key, position bigint not null);
                 insert into {schema}.checkpoints values ('{name}', 0);
                 {}",
                rows("progress")
            )
        } else {
            rows("checkpoints")
        };
        let statements = format!(
            "create schema {schema};
             create table {schema}.events (
                 position bigint generated always as identity primary key,
                 shard int not null,
                 cost_ms real not null,
                 recorded_at timestamptz not null default now()
             );
             create index on {schema}.events (shard, position);
             create index on {schema}.events (recorded_at);
             create table {schema}.handled (position bigint not null, at timestamptz not null);
             {checkpoints}"
        );
        client.batch_execute(&statements).await.with_context(|| format!("making the tables of {name}"))
    }

    /// Removes them.
    pub async fn drop_tables(&self, client: &Client) -> Result<()> {
        let statement = format!("set lock_timeout = '20s'; drop schema {} cascade", self.schema());
        client.batch_execute(&statement).await.with_context(|| format!("removing the tables of {}", self.name()))
    }

    /// The workers, the Projection that measures them, and what scales them.
    pub fn objects(&self) -> Vec<Value> {
        [Some(self.workers()), Some(self.projection()), self.way.autoscaler(NAMESPACE, &self.name(), self.race.target)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn workers(&self) -> Value {
        let name = self.name();
        let kind = self.race.kind;
        let mut environment = vec![
            json!({"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": DATABASE, "key": "url"}}}),
            json!({"name": "SCHEMA", "value": self.schema()}),
            json!({"name": "GROUP_NUMBER", "value": self.number.to_string()}),
        ];
        environment.extend(kind.environment().iter().map(|(name, value)| json!({"name": name, "value": value})));
        let mut container = json!({
            "name": "worker", "image": WORKER_IMAGE, "imagePullPolicy": "Never", "env": environment,
            "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}},
        });
        if kind.slow_start() > 0 {
            container["readinessProbe"] =
                json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
        }
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": {"cell": name}},
                "template": {
                    "metadata": {"labels": {"cell": name}},
                    "spec": {
                        "terminationGracePeriodSeconds": 5, "automountServiceAccountToken": false, "enableServiceLinks": false,
                        "containers": [container],
                    },
                },
            },
        })
    }

    fn projection(&self) -> Value {
        let name = self.name();
        let connection = json!({"secretRef": {"name": DATABASE, "key": "url"}});
        let (events, checkpoints) = self.race.kind.tables(&self.schema(), &name);
        let mut projection = json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "source": {"postgres": {"connection": connection, "eventTable": events}},
                "readStore": {"postgres": {"connection": connection}},
                "checkpoint": {"readStore": checkpoints},
                "lag": {"target": format!("{}ms", self.race.target.as_millis())},
            },
        });
        if self.way == Way::Ours {
            projection["spec"]["scaling"] = json!({"maxWorkers": MOST, "shards": SHARDS});
            projection["spec"]["projector"] = json!({"existing": {"kind": "Deployment", "name": name}});
        }
        projection
    }

    /// Appends the trace's events as they are due, until its end.
    pub async fn append(&self, server: &Postgres, trace: &Trace, began: tokio::time::Instant) -> Result<()> {
        let client = server.connect(DATABASE).await?;
        let insert = format!(
            "insert into {}.events (shard, cost_ms) select shard, $2 from unnest($1::int[]) as shard",
            self.schema()
        );
        let insert = client.prepare(&insert).await?;
        let mut deals = Deals::new(&self.race.kind);
        let mut ticks = tokio::time::interval_at(began, APPEND_EVERY);
        let mut appended = 0;
        loop {
            let now = ticks.tick().await.duration_since(began).min(trace.length());
            let due = arrived(trace, now);
            let shards: Vec<i32> = (appended..due).map(|_| deals.next_shard()).collect();
            if !shards.is_empty() {
                client.execute(&insert, &[&shards, &cost(trace, now)]).await.context("appending events")?;
            }
            appended = due;
            if now >= trace.length() {
                return Ok(());
            }
        }
    }

    /// When each event came and was handled, in the order in which they came.
    pub async fn handled(&self, client: &Client, began: SystemTime) -> Result<Vec<Handled>> {
        let schema = self.schema();
        let statement = format!(
            "select extract(epoch from recorded_at - $1::timestamptz)::float8, extract(epoch from done - $1)::float8
             from {schema}.events left join (select position, min(at) as done from {schema}.handled group by position) h using (position)
             order by position"
        );
        let rows = client.query(&statement, &[&began]).await.context("reading what was handled")?;
        Ok(rows.iter().map(|row| Handled { came: row.get(0), done: row.get(1) }).collect())
    }
}

/// Events that have come until `at`, by the trace.
fn arrived(trace: &Trace, at: Duration) -> u64 {
    let step = trace.step().as_secs_f64();
    let (mut left, mut sum) = (at.as_secs_f64(), 0.0);
    for point in trace.points() {
        sum += point.arriving * step.min(left);
        left -= step;
        if left <= 0.0 {
            break;
        }
    }
    whole(sum)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Some hundred thousands.
fn whole(events: f64) -> u64 {
    events.floor() as u64
}

/// Milliseconds that an event of this moment takes a worker.
#[allow(clippy::cast_possible_truncation)] // Some milliseconds.
fn cost(trace: &Trace, at: Duration) -> f32 {
    (1_000.0 / trace.at(at).per_worker.unwrap_or(PER_WORKER)) as f32
}

/// Deals events out to shards as a hash of their streams does: at random, the same each time.
struct Deals {
    /// Up to which part of all each shard's reaches.
    reaches: Vec<f64>,
    random: u64,
}

impl Deals {
    fn new(kind: &Kind) -> Self {
        let weights = kind.weights();
        let all: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let reach = |weight: &f64| {
            sum += weight / all;
            sum
        };
        Self { reaches: weights.iter().map(reach).collect(), random: 0x2545_f491_4f6c_dd1d }
    }

    fn next_shard(&mut self) -> i32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let part = f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        let shard = self.reaches.partition_point(|reach| *reach < part).min(self.reaches.len().saturating_sub(1));
        i32::try_from(shard).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use bench_scaling::traces::{Brief, Cost};

    use super::*;

    #[test]
    fn events_come_as_the_trace_says_and_each_costs_what_it_says() {
        let trace = Brief::Steady.trace(Cost::Doubles);
        let all = arrived(&trace, trace.length());
        assert!((68_000..70_000).contains(&all), "{all} of 230 a second in 300 seconds");
        let half = arrived(&trace, trace.length() / 2);
        assert!(half.abs_diff(all / 2) < 600, "{half} of {all}");
        assert_eq!((cost(&trace, Duration::ZERO), cost(&trace, trace.length() / 2)), (20.0, 40.0));
    }

    #[test]
    fn shards_get_their_parts() {
        for (kind, first, last) in [(Kind::Shards, 1.0 / 24.0, 1.0 / 24.0), (Kind::Uneven, 1.0 / 300.0, 24.0 / 300.0)] {
            let mut deals = Deals::new(&kind);
            let mut counts = vec![0_u32; SHARDS];
            for _ in 0..100_000 {
                counts[usize::try_from(deals.next_shard()).unwrap_or(0)] += 1;
            }
            let part = |shard: usize| f64::from(counts[shard]) / 100_000.0;
            assert!((part(0) - first).abs() < 0.003 && (part(23) - last).abs() < 0.003, "{kind:?}: {counts:?}");
        }
    }
}
