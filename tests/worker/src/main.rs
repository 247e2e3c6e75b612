//! A projector that knows nothing of Projectionist, as a team may have one: consumes the shards of an event table as a consumer group of Kafka does its
//! partitions, takes its time over each event by sleeping, and commits as its settings say. It writes down when it handled each event.
//!
//! Whatever it needs is in a schema of its own (`SCHEMA`): `events (position, shard, cost_ms, recorded_at)`, `checkpoints`, `handled`, and where there
//! is one row for all shards also `progress`.
//!
//! With one of these in its environment it consumes something else: `STREAM` a stream in Redis ([`stream`]), `LIST` a list in Redis ([`list`]),
//! `KAFKA_BROKERS` topics in Kafka, as a member of a group ([`topics`]) or with `OFFSETS` by a table ([`partitions`]), `TAKE` an event store in PostgreSQL
//! ([`journal`]), `NATS_URL` a consumer of JetStream ([`jetstream`]), `AMQP_URL` a queue in RabbitMQ ([`queue`]) or with `SUPER_STREAM` the streams of one
//! ([`super_stream`]), `OUTBOX` an outbox in PostgreSQL ([`relay`]). With `PAGE_PORT` it shows a page besides ([`page`]), or does nothing else.

mod group;
mod jetstream;
mod journal;
mod list;
mod log;
#[path = "../../cluster/src/rabbitmq/streams.rs"]
mod offsets;
mod page;
mod partitions;
mod queue;
mod record;
mod relay;
mod settings;
mod share;
mod stream;
mod super_stream;
mod topics;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use log::{Event, Log};
use settings::{Commit, Settings};

/// How often a worker looks who else is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long it waits when it found nothing to do.
const REST: Duration = Duration::from_millis(200);
/// How often it writes down what it handled, which is no commit.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// A worker that was held up by the machine makes up for so much, and no more.
const MAKES_UP: Duration = Duration::from_millis(500);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    // First of all: the first process of a container does not hear a signal that it has no handler for, and would be killed in the middle of its work.
    let mut ends = signal(SignalKind::terminate())?;
    let shows_page = page::show().await?;
    if let Some(settings) = stream::Settings::from_environment()? {
        return stream::consume(&settings, &mut ends).await;
    }
    if let Ok(brokers) = std::env::var("KAFKA_BROKERS") {
        return match std::env::var("OFFSETS") {
            Ok(table) => partitions::consume(&brokers, table, &mut ends).await,
            Err(_) => topics::consume(&brokers, &mut ends).await,
        };
    }
    if let Ok(server) = std::env::var("NATS_URL") {
        return jetstream::consume(&server, &mut ends).await;
    }
    if let Ok(server) = std::env::var("AMQP_URL") {
        return match std::env::var("SUPER_STREAM") {
            Ok(name) => super_stream::consume(&server, name, &mut ends).await,
            Err(_) => queue::consume(&server, &mut ends).await,
        };
    }
    if let Ok(list) = std::env::var("LIST") {
        return list::consume(&list, &mut ends).await;
    }
    if let Ok(table) = std::env::var("OUTBOX") {
        return relay::send(&table, &mut ends).await;
    }
    if let Ok(take) = std::env::var("TAKE") {
        return journal::consume(&take, &mut ends).await;
    }
    if shows_page && std::env::var_os("SCHEMA").is_none() {
        ends.recv().await;
        return Ok(());
    }
    let settings = Settings::from_environment()?;
    let worker = async {
        sleep(settings.slow_start).await;
        // A probe finds it here as soon as it can work.
        let listener = TcpListener::bind(("0.0.0.0", settings.port)).await.context("listening for the probe")?;
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        Worker::begin(&settings).await
    };
    let mut worker = tokio::select! {
        worker = worker => worker?,
        _ = ends.recv() => return Ok(()),
    };
    loop {
        tokio::select! {
            biased;
            _ = ends.recv() => return worker.end().await,
            waited = worker.wait() => waited?,
        }
        worker.step().await?;
    }
}

/// What a worker is about to do.
#[derive(Clone, Copy)]
enum Next {
    Handle,
    Look,
}

struct Worker<'a> {
    settings: &'a Settings,
    log: Log,
    /// Each shard that is this worker's, and how far it has come there.
    shards: BTreeMap<i32, i64>,
    /// Shards that moved since the last commit.
    moved: BTreeMap<i32, i64>,
    uncommitted: u32,
    committed: Instant,
    waiting: VecDeque<Event>,
    handled: Vec<(i64, SystemTime)>,
    written: Instant,
    looked: Option<Instant>,
    /// When the event at hand is done.
    due: Instant,
    slow: bool,
    /// The last fetch brought nothing.
    idle: bool,
}

impl<'a> Worker<'a> {
    async fn begin(settings: &'a Settings) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            settings,
            log: Log::open(settings).await?,
            shards: BTreeMap::new(),
            moved: BTreeMap::new(),
            uncommitted: 0,
            committed: now,
            waiting: VecDeque::new(),
            handled: Vec::new(),
            written: now,
            looked: None,
            due: now,
            slow: false,
            idle: false,
        })
    }

    fn next(&self) -> Next {
        let looks = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if looks || self.waiting.is_empty() { Next::Look } else { Next::Handle }
    }

    /// Until the event at hand is done. May be given up at any time.
    async fn wait(&mut self) -> Result<()> {
        match (self.next(), self.waiting.front()) {
            (Next::Handle, Some(event)) => {
                let now = Instant::now();
                let begun = self.due.max(now.checked_sub(MAKES_UP).unwrap_or(now));
                sleep_until(begun + event.cost.mul_f64(self.factor())).await;
            }
            _ if self.idle => {
                sleep(REST).await;
                self.due = Instant::now();
            }
            _ => {}
        }
        Ok(())
    }

    fn factor(&self) -> f64 {
        if self.slow { self.settings.slow_one } else { 1.0 }
    }

    async fn step(&mut self) -> Result<()> {
        match self.next() {
            Next::Handle => self.handle(),
            Next::Look => {
                if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
                    self.look().await?;
                    self.looked = Some(Instant::now());
                }
                if self.waiting.is_empty() {
                    self.fetch().await?;
                }
            }
        }
        if self.is_time_to_commit() {
            self.commit().await?;
        }
        if self.written.elapsed() >= WRITE_EVERY {
            self.write().await?;
        }
        Ok(())
    }

    fn handle(&mut self) {
        let Some(event) = self.waiting.pop_front() else { return };
        let now = Instant::now();
        let begun = self.due.max(now.checked_sub(MAKES_UP).unwrap_or(now));
        self.due = begun + event.cost.mul_f64(self.factor());
        self.handled.push((event.position, SystemTime::now()));
        self.shards.insert(event.shard, event.position);
        self.moved.insert(event.shard, event.position);
        self.uncommitted += 1;
    }

    fn is_time_to_commit(&self) -> bool {
        let due = match self.settings.commit {
            Commit::Every(interval) => self.committed.elapsed() >= interval,
            Commit::After(events) => self.uncommitted >= events,
        };
        due && !self.moved.is_empty()
    }

    async fn commit(&mut self) -> Result<()> {
        self.log.commit(&std::mem::take(&mut self.moved)).await?;
        self.uncommitted = 0;
        self.committed = Instant::now();
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        self.log.write_handled(&std::mem::take(&mut self.handled)).await?;
        self.written = Instant::now();
        Ok(())
    }

    /// Sees who is there, gives up what is another's, and takes what is free of its own.
    async fn look(&mut self) -> Result<()> {
        if self.settings.slow_one > 1.0 && !self.slow {
            self.slow = self.log.group.takes(settings::SLOW_ONE).await?;
        }
        let wanted = self.log.group.share(self.settings.shards).await?;
        let lost: Vec<i32> = self.shards.keys().copied().filter(|shard| !wanted.contains(shard)).collect();
        if !lost.is_empty() {
            self.commit().await?;
            self.waiting.retain(|event| !lost.contains(&event.shard));
        }
        for shard in lost {
            self.shards.remove(&shard);
            self.log.group.gives_up(shard).await?;
        }
        for shard in wanted {
            if !self.shards.contains_key(&shard) && self.log.group.takes(shard).await? {
                let position = self.log.checkpoint(shard).await?;
                self.shards.insert(shard, position);
                // What it comes after is fetched with the rest, in order.
                self.waiting.clear();
            }
        }
        Ok(())
    }

    async fn fetch(&mut self) -> Result<()> {
        let (events, head) = self.log.fetch(&self.shards).await?;
        if let Some(head) = head {
            // One row for all: a shard without events must not hold it back.
            for (shard, position) in &mut self.shards {
                if *position < head && events.iter().all(|event| event.shard != *shard) {
                    *position = head;
                    self.moved.insert(*shard, head);
                }
            }
        }
        self.idle = events.is_empty();
        self.waiting = events.into();
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.commit().await?;
        self.write().await
    }
}
