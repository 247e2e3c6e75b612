//! `make bench-workers`: real workers that are not ours, on a real cluster, under real HorizontalPodAutoscalers, scaled by us and by what else there is.
//!
//! A race is a kind of workers under a trace with a target; its cells, one for each way to scale, run side by side, seconds apart, and get the same
//! events. Races run side by side as far as the node has pods. Docs: `docs/benchmarks.md`.
#![allow(clippy::print_stdout)]

mod cell;
mod kinds;
mod predict;
mod query;
mod score;
mod table;
mod watch;
mod ways;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use bench_scaling::traces::{Brief, Cost, PER_WORKER};
use clap::{Parser, ValueEnum};
use kube::Client;
use test_cluster::{Cluster, ClusterOptions, Postgres, eventually};
use tokio::{sync::Semaphore, time::Instant};

use cell::{Cell, DATABASE};
use kinds::Kind;
use predict::Race;
use table::{Finished, Outcome};
use watch::Watched;
use ways::Way;

/// Where everything that is raced lives.
const NAMESPACE: &str = "race";
const PATIENCE: Duration = Duration::from_secs(300);
/// Workers beyond what the peak of a load asks for, of which a cell may have some at once.
const MARGIN: f64 = 1.25;

/// Cells begin so far apart, so that not all start their pods in the same second, which few machines bear.
const APART: Duration = Duration::from_secs(11);
/// What a pod takes to start, where none was seen to.
const USUAL_START_UP: Duration = Duration::from_secs(2);

/// What to race.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Kinds of workers
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Row, Kind::Shards, Kind::CommitFiveSeconds])]
    kinds: Vec<Kind>,
    /// Traces
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Load::Burst, Load::Steady])]
    traces: Vec<Load>,
    /// Lag targets, in seconds
    #[arg(long, value_delimiter = ',', default_values_t = [15])]
    targets: Vec<u64>,
    /// Ways to scale
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Way::ALL)]
    ways: Vec<Way>,
    /// All kinds under all traces: hours
    #[arg(long)]
    all: bool,
    /// Of each trace's events, so many in a hundred: for machines that are busy with other things
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    load: u32,
    /// Only the first seconds of each trace: to try out that a race works
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..))]
    seconds: Option<u32>,
    /// Pods that all cells together may need at once
    #[arg(long, default_value_t = 90)]
    pods: u32,
    /// Where each cell's figures second by second go, as CSV
    #[arg(long, default_value = "target/bench-workers")]
    csv: PathBuf,
    /// Start no cluster and no workers: only print what the simulator says of each race
    #[arg(long)]
    simulate_only: bool,
    /// With --simulate-only: seconds from a worker's creation until its pod is ready, which a cluster would have told
    #[arg(long, requires = "simulate_only", default_value_t = USUAL_START_UP.as_secs_f64(), value_parser = seconds)]
    start_up: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("must be from 0 to 3600".to_owned()) }
}

/// A trace, as on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Load {
    /// Six minutes with two bursts
    Burst,
    /// Four minutes up, and at once down again
    Ramp,
    /// Five minutes of the same
    Steady,
    /// Silence, then everything, twice
    Spike,
    /// A noisy day in half an hour
    Day,
}

impl Load {
    fn trace(self) -> Brief {
        match self {
            Self::Burst => Brief::Burst,
            Self::Ramp => Brief::Ramp,
            Self::Steady => Brief::Steady,
            Self::Spike => Brief::Spike,
            Self::Day => Brief::Day,
        }
    }
}

impl Options {
    /// The races, the longest first.
    fn races(&self) -> Vec<Race> {
        let kinds = if self.all { Kind::value_variants().to_vec() } else { self.kinds.clone() };
        let traces = if self.all { Load::value_variants().to_vec() } else { self.traces.clone() };
        let mut races = Vec::new();
        for load in traces {
            for kind in &kinds {
                for target in &self.targets {
                    let (trace, target) = (load.trace(), Duration::from_secs(*target));
                    let seconds = self.seconds.unwrap_or(u32::MAX).min(trace.seconds());
                    races.push(Race { kind: *kind, trace, target, percent: self.load, seconds });
                }
            }
        }
        races.sort_by_key(|race| std::cmp::Reverse(race.seconds));
        races
    }
}

/// Pods that a race may need at once: what the peak of its load asks for, and some more, in each of its cells.
fn pods(race: &Race, ways: usize) -> u32 {
    let dear = if race.kind.cost() == Cost::Doubles { 2.0 } else { 1.0 };
    let trace = race.arrivals();
    let peak = trace.points().map(|point| point.arriving).fold(0.0, f64::max);
    let workers = (peak / PER_WORKER * dear * MARGIN).ceil().min(f64::from(bench_scaling::rivals::MOST)) + 1.0;
    u32::try_from(ways).unwrap_or(u32::MAX).saturating_mul(whole(workers))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Some dozens.
fn whole(number: f64) -> u32 {
    number as u32
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.simulate_only {
        println!("{}", simulated(&options));
        return Ok(());
    }
    std::fs::create_dir_all(&options.csv).with_context(|| format!("creating {}", options.csv.display()))?;
    let cluster = Cluster::start(&ClusterOptions::default())?;
    let raced = cluster.block_on(race_all(&cluster, &options))?;
    cluster.stop()?;
    raced
}

/// What the simulator says of all races, as a table.
fn simulated(options: &Options) -> String {
    let pod = Duration::try_from_secs_f64(options.start_up).unwrap_or(USUAL_START_UP);
    let rows = options.races().into_iter().flat_map(|race| {
        // What a cluster measures is the time until the worker's probe succeeds, which comes after its own slow start.
        let start_up = pod + Duration::from_secs(race.kind.slow_start());
        options.ways.iter().map(move |way| (race, *way, race.simulated(*way, start_up)))
    });
    table::predictions(&rows.collect::<Vec<_>>())
}

async fn race_all(cluster: &Cluster, options: &Options) -> Result<()> {
    let track = Arc::new(Track::prepare(cluster, options).await?);
    let races = options.races();
    println!(
        "{} processors; one node; the HPA looks every 15 s; a worker handles {PER_WORKER} events/s",
        std::thread::available_parallelism()?
    );
    println!(
        "{} races of {} ways each, as many at once as {} pods allow\n",
        races.len(),
        options.ways.len(),
        options.pods
    );
    let room = Semaphore::new(usize::try_from(options.pods)?);
    let mut first = 1;
    let raced = futures::future::join_all(races.iter().map(|race| {
        let (track, room) = (&track, &room);
        let number = first;
        first += i32::try_from(options.ways.len()).unwrap_or(1);
        async move {
            let _room = room.acquire_many(pods(race, options.ways.len()).min(options.pods)).await?;
            let finished = track.run(race, &options.ways, number).await;
            match &finished {
                Ok(finished) => println!("{}", finished.table()),
                Err(error) => eprintln!("{race:?} failed: {}", cluster.explain(error, NAMESPACE)),
            }
            finished
        }
    }))
    .await;
    // One that failed takes nothing from the others.
    let (finished, failed): (Vec<_>, Vec<_>) = raced.into_iter().partition(Result::is_ok);
    let finished: Vec<Finished> = finished.into_iter().flatten().collect();
    println!("{}", table::summary(&finished));
    ensure!(failed.is_empty(), "{} of {} races failed", failed.len(), races.len());
    Ok(())
}

/// What all races share.
struct Track<'a> {
    cluster: &'a Cluster,
    client: Client,
    server: Postgres,
    schemas: query::Schemas,
    watched: Watched,
    /// No cell begins sooner.
    next_start: tokio::sync::Mutex<Instant>,
    csv: PathBuf,
}

impl<'a> Track<'a> {
    async fn prepare(cluster: &'a Cluster, options: &Options) -> Result<Self> {
        cluster.import_image(&test_cluster::images::image()?)?;
        cluster.import_image(&test_cluster::images::worker()?)?;
        let server = cluster.postgres()?;
        let url = server.create_database(DATABASE).await?;
        cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let literal = format!("--from-literal=url={url}");
        cluster.kubectl(&["create", "secret", "generic", DATABASE, "-n", NAMESPACE, &literal])?;
        let schemas = query::Schemas::default();
        let values = query::serve(cluster, &server, Arc::clone(&schemas)).await?;
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        cluster.install_operator(&values)?;
        let client = cluster.client().await?;
        let watched = Watched::begin(client.clone());
        let next_start = tokio::sync::Mutex::new(Instant::now());
        Ok(Self { cluster, client, server, schemas, watched, next_start, csv: options.csv.clone() })
    }

    async fn run(&self, race: &Race, ways: &[Way], first: i32) -> Result<Finished> {
        let cells: Vec<Cell> =
            ways.iter().zip(first..).map(|(way, number)| Cell { race: *race, way: *way, number }).collect();
        let outcomes = futures::future::try_join_all(cells.iter().map(|cell| self.run_cell(cell))).await?;
        let start_up = outcomes.iter().map(|outcome| outcome.start_up).fold(f64::INFINITY, f64::min);
        let foresight = race.foresight(Duration::try_from_secs_f64(start_up).unwrap_or_default());
        Ok(Finished { race: *race, outcomes, foresight })
    }

    async fn run_cell(&self, cell: &Cell) -> Result<Outcome> {
        let (race, name) = (cell.race, cell.name());
        let database = self.server.connect(DATABASE).await?;
        cell.make_tables(&database).await?;
        let tables = (cell.schema(), cell.has_one_row());
        self.schemas.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), tables);
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": cell.objects()});
        self.cluster.apply(&list.to_string())?;
        self.is_ready(cell).await?;
        let trace = race.arrivals();
        let began = self.turn().await;
        let by_clock = SystemTime::now() + began.saturating_duration_since(Instant::now());
        cell.append(&self.server, &trace, began).await?;
        // The last events may still be written down as handled.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let events = cell.handled(&database, by_clock).await?;
        let run = score::run(&trace, race.target, &events, &self.watched.scales(&name, began));
        let start_up = self.watched.start_up(&name).unwrap_or(USUAL_START_UP);
        self.write(cell, &run, began)?;
        self.remove(cell)?;
        cell.drop_tables(&database).await?;
        let simulated = race.simulated(cell.way, start_up);
        Ok(Outcome { way: cell.way, score: run.score(), simulated, start_up: start_up.as_secs_f64() })
    }

    /// When the next cell may begin.
    async fn turn(&self) -> Instant {
        let mut next = self.next_start.lock().await;
        let began = (*next).max(Instant::now() + Duration::from_secs(1));
        *next = began + APART;
        began
    }

    /// One worker works, and what scales it has a value.
    async fn is_ready(&self, cell: &Cell) -> Result<()> {
        let name = cell.name();
        eventually(PATIENCE, &format!("the first worker of {name} is ready"), || async {
            Ok::<_, anyhow::Error>(self.watched.ready(&name) == Some(1))
        })
        .await?;
        let metric = match cell.way {
            Way::Ours => "projection_required_workers",
            Way::Query => ways::QUERY_METRIC,
            Way::CountTarget | Way::CountTuned => "projection_pending_events",
        };
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/{metric}?labelSelector=projection%3D{name}"
        );
        eventually(PATIENCE, &format!("{metric} of {name} is served"), || async {
            self.client.request_text(http::Request::get(&path).body(Vec::new())?).await?;
            Ok::<_, anyhow::Error>(true)
        })
        .await
    }

    fn remove(&self, cell: &Cell) -> Result<()> {
        let name = cell.name();
        for (kind, name) in [("hpa", format!("rival-{name}")), ("projection", name.clone()), ("deployment", name)] {
            self.cluster.kubectl(&[
                "delete",
                kind,
                &name,
                "-n",
                NAMESPACE,
                "--ignore-not-found",
                "--wait=true",
                "--timeout=60s",
            ])?;
        }
        Ok(())
    }

    /// Each second of a cell: what was there, and what the Projection said of it.
    fn write(&self, cell: &Cell, run: &projectionist::simulate::Run, began: Instant) -> Result<()> {
        use std::fmt::Write;
        let statuses = self.watched.statuses(&cell.name(), began);
        let mut text = "second,arriving,waiting,staleness,replicas,ready,told_pending,told_exact,told_staleness,told_required,told_arrival,told_per_worker,told_reason\n".to_owned();
        for moment in run.moments().iter().step_by(10) {
            let second = moment.at.as_secs_f64();
            let _ = write!(
                text,
                "{second},{:.0},{},{:.2},{},{}",
                moment.arriving,
                moment.pending,
                moment.staleness.as_secs_f64(),
                moment.replicas,
                moment.ready
            );
            let told = statuses.iter().rev().find(|(at, _)| *at <= second).map(|(_, status)| status);
            let (workers, rates) = (told.and_then(|told| told.workers.as_ref()), told.and_then(|told| told.rates));
            let _ = writeln!(
                text,
                ",{},{},{},{},{},{},{:?}",
                shown(told.and_then(|told| told.pending.as_ref()).map(|pending| pending.value)),
                shown(told.and_then(|told| told.pending.as_ref()).map(|pending| pending.exact)),
                shown(told.and_then(|told| told.staleness_seconds)),
                shown(workers.and_then(|workers| workers.required)),
                shown(rates.and_then(|rates| rates.arrival_per_second)),
                shown(rates.and_then(|rates| rates.per_worker_per_second)),
                shown(workers.and_then(|workers| workers.reason.clone())),
            );
        }
        let race = cell.race;
        let name = format!(
            "{}-{}-{}-{}s.csv",
            race.kind.name(),
            format!("{:?}", race.trace).to_lowercase(),
            cell.way.name(),
            race.target.as_secs()
        );
        let path = self.csv.join(Path::new(&name));
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_selection_fits_and_takes_less_than_twenty_minutes() {
        let options = Options::parse_from(["bench-workers"]);
        let need = |race: &Race| f64::from(pods(race, options.ways.len()));
        assert!(options.races().iter().all(|race| need(race) <= f64::from(options.pods)));
        let pod_seconds: f64 = options.races().iter().map(|race| need(race) * f64::from(race.seconds)).sum();
        let least = pod_seconds / f64::from(options.pods);
        assert!(least < 1_000.0, "{least} s");
    }

    #[test]
    fn all_are_every_kind_under_every_trace_the_longest_first() {
        let options = Options::parse_from(["bench-workers", "--all", "--targets", "5,15"]);
        let races = options.races();
        assert_eq!(races.len(), 10 * 5 * 2);
        assert_eq!(races.first().map(|race| race.trace), Some(Brief::Day));
    }
}
