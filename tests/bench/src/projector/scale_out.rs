//! A third worker joins two that have enough to do: what all do a second before, meanwhile and after.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use test_cluster::Postgres;
use tokio::time::sleep;

use super::{Source, Task, options, stores::Store};

const NAME: &str = "scaled";
/// So many events are enough for all of it.
pub(super) const EVENTS: u32 = 1_500_000;
/// How often it is looked how many events are done.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So long is measured before the third worker comes, and from then on.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(6);
/// Looks that make a second.
const SECOND: usize = 10;

/// Prints events a second of two workers, of the slowest second while the third joins, and of all three.
pub(super) async fn from_two_to_three(source: &Source, server: &Postgres, events: u32) -> Result<()> {
    let store = Store::Postgres(server);
    store.prepare(NAME).await?;
    let start = |worker: &str| -> Result<Task> {
        let mut options = options(NAME, source, &store, store.counting(NAME), Vec::new())?;
        options.worker_name = worker.to_owned();
        Ok(Task::start(options))
    };
    let _two = [start("a")?, start("b")?];
    owners(server, 2).await?;
    let before = series(&store, BEFORE).await?;
    let _third = start("c")?;
    let joined = Instant::now();
    let shared = async {
        owners(server, 3).await?;
        Ok(joined.elapsed())
    };
    let (after, shared) = tokio::try_join!(series(&store, AFTER), shared)?;
    let all = after.last().map_or(0, |(_, done)| *done);
    println!("\na third worker joins two, from an event table into PostgreSQL");
    if all >= i64::from(events) {
        println!("  not measured: all events were done before the end: there are too few");
        return Ok(());
    }
    let slowest = after.windows(SECOND + 1).map(mean).fold(f64::INFINITY, f64::min);
    let last = after.get(after.len() / 2..).map_or(0.0, mean);
    println!(
        "  {:.0} events a second before, {slowest:.0} in the slowest second after ({:.2} ×), {last:.0} in the end; shared within {:.1} s",
        mean(&before),
        slowest / mean(&before),
        shared.as_secs_f64(),
    );
    Ok(())
}

/// When it was looked, and how many events were done.
async fn series(store: &Store<'_>, length: Duration) -> Result<Vec<(Instant, i64)>> {
    let started = Instant::now();
    let mut all = Vec::new();
    while started.elapsed() < length {
        all.push((Instant::now(), store.counted(NAME).await?));
        sleep(LOOK_EVERY).await;
    }
    Ok(all)
}

/// Events a second over a part of a series.
fn mean(part: &[(Instant, i64)]) -> f64 {
    let (Some((from, before)), Some((to, after))) = (part.first(), part.last()) else { return 0.0 };
    let events = u32::try_from(after - before).unwrap_or(0);
    f64::from(events) / to.duration_since(*from).as_secs_f64().max(f64::EPSILON)
}

/// Waits until so many workers have shards.
async fn owners(server: &Postgres, workers: i64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let client = server.connect(NAME).await?;
    loop {
        let owners = "select count(distinct owner) from projectionist_checkpoints where owner is not null";
        // The table is made by the workers.
        let seen = client.query_one(owners, &[]).await.and_then(|row| row.try_get::<_, i64>(0)).unwrap_or(0);
        if seen >= workers {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{seen} of {workers} workers have shards after a minute");
        }
        sleep(Duration::from_millis(20)).await;
    }
}
