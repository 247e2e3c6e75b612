//! Workers other than the built-in projector's: each owns whole shards, handles events one after another, and commits when it pleases. Event by
//! event, so that what is measured from outside and what really waits can be compared.

use std::collections::VecDeque;

use super::*;
use crate::lag::{Assessment, Bounds, Certain, CheckpointState, Head, Pending, Position, Sample, Workers};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Commits {
    /// Each worker commits after this many seconds, with a phase of its own.
    Every(f64),
    /// Each worker commits after this many events.
    Events(u32),
}

/// How much the checkpoint rows show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rows {
    /// Each shard is counted beyond its own row.
    Exact,
    /// The lowest row counts for all.
    Lowest,
    /// Each shard is counted beyond its own row, as so many times its events: most of what is counted is none.
    Times(u64),
    /// All together, with so many more that never wait and never go away; which events wait is known for as long as any do.
    Phantoms(u64),
}

struct Event {
    position: u64,
    came: f64,
}

#[derive(Default)]
struct Shard {
    waits: VecDeque<Event>,
    handled: VecDeque<Event>,
    row: u64,
}

struct Worker {
    made: f64,
    commit_at: f64,
    uncommitted: u32,
    /// Part of an event that is done.
    done: f64,
}

pub(super) struct Foreign {
    pub(super) now: f64,
    pub(super) model: Model,
    pub(super) bounds: Bounds,
    pub(super) each: f64,
    pub(super) start_up: f64,
    pub(super) commits: Commits,
    pub(super) rows: Rows,
    /// The share of the first shard, in thousandths of all events; the other shards share the rest.
    pub(super) hot: u32,
    /// The worker's speed, where it is not the others'.
    pub(super) slow: Option<(usize, f64)>,
    look: f64,
    shards: Vec<Shard>,
    workers: Vec<Worker>,
    head: u64,
    due: f64,
    dealt: u32,
    /// The longest that any event waited before it was handled, and after which it was handled too late.
    pub(super) worst: f64,
    pub(super) late: u64,
    pub(super) worker_seconds: f64,
    /// What was asked for, whenever it changed.
    pub(super) answers: Vec<(f64, u32)>,
}

const TICK: f64 = 0.05;

pub(super) fn bounds(target: u64) -> Bounds {
    Bounds {
        target: Duration::from_secs(target),
        min: 1,
        max: 24,
        shards: Some(24),
        strict: false,
        stuck_after: Duration::from_secs(300),
        idle_for: Duration::from_secs(300),
        catch_up: None,
        given_rate: None,
        connections: None,
        strain: None,
        throttled: None,
        retention: None,
        look_ahead: None,
        value: None,
    }
}

impl Foreign {
    pub(super) fn new(commits: Commits, rows: Rows, target: u64, workers: u32) -> Self {
        let mut world = Self {
            now: 1_000.0,
            model: Model::remembering(None, None, None),
            bounds: bounds(target),
            each: 50.0,
            start_up: 2.0,
            commits,
            rows,
            hot: 42,
            slow: None,
            look: 0.5,
            shards: (0..24).map(|_| Shard::default()).collect(),
            workers: Vec::new(),
            head: 0,
            due: 0.0,
            dealt: 7,
            worst: 0.0,
            late: 0,
            worker_seconds: 0.0,
            answers: Vec::new(),
        };
        world.scale(workers);
        world.workers.iter_mut().for_each(|worker| worker.made = 0.0);
        world
    }

    fn ready(&self) -> usize {
        self.workers.iter().filter(|worker| worker.made + self.start_up <= self.now).count()
    }

    pub(super) fn scale(&mut self, to: u32) {
        let to = to as usize;
        if to < self.workers.len() {
            // The shards change hands: what is handled is committed first.
            self.shards.iter_mut().for_each(commit);
        }
        self.workers.truncate(to);
        while self.workers.len() < to {
            let phase = f64::from(u32::try_from(self.workers.len() * 7 % 10).unwrap()) / 10.0;
            let first = if let Commits::Every(seconds) = self.commits { seconds * (0.1 + phase) } else { 0.0 };
            self.workers.push(Worker { made: self.now, commit_at: self.now + first, uncommitted: 0, done: 0.0 });
        }
    }

    /// Lets `arriving` events a second come for `seconds`, and does what the model says.
    pub(super) fn run(&mut self, seconds: f64, arriving: f64) -> Assessment {
        let mut last = None;
        let ticks = (seconds / TICK).round();
        let each_look = (self.look / TICK).round();
        let mut tick = 0.0;
        while tick < ticks {
            tick += 1.0;
            self.now += TICK;
            self.arrive(arriving * TICK);
            self.work();
            self.worker_seconds += TICK * f64::from(u32::try_from(self.workers.len()).unwrap());
            if tick % each_look == 0.0 {
                let assessment = self.look();
                let asked = assessment.required.workers;
                if self.answers.last().is_none_or(|last| last.1 != asked) {
                    self.answers.push((self.now, asked));
                }
                self.scale(asked);
                last = Some(assessment);
            }
        }
        last.unwrap()
    }

    fn arrive(&mut self, events: f64) {
        self.due += events;
        while self.due >= 1.0 {
            self.due -= 1.0;
            self.head += 1;
            // A linear congruential generator: the same world each time.
            self.dealt = self.dealt.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (draw, shard) = ((self.dealt >> 8) % 1_000, (self.dealt >> 18) % 23);
            let shard = if draw < self.hot { 0 } else { 1 + shard as usize };
            let event = Event { position: self.head, came: self.now };
            self.shards[shard].waits.push_back(event);
        }
    }

    fn work(&mut self) {
        let ready = self.ready();
        for index in 0..ready {
            let speed = self.slow.filter(|(slow, _)| *slow == index).map_or(self.each, |(_, speed)| speed);
            let worker = &mut self.workers[index];
            worker.done += speed * TICK;
            while worker.done >= 1.0 {
                // The oldest of its shards' events.
                let own = self.shards.iter_mut().skip(index).step_by(ready);
                let next = own.filter(|shard| !shard.waits.is_empty()).min_by_key(|shard| shard.waits[0].position);
                let Some(shard) = next else {
                    worker.done = 0.0;
                    break;
                };
                worker.done -= 1.0;
                worker.uncommitted += 1;
                let event = shard.waits.pop_front().unwrap();
                let waited = self.now - event.came;
                self.worst = self.worst.max(waited);
                self.late += u64::from(waited > self.bounds.target.as_secs_f64());
                shard.handled.push_back(event);
            }
            let commits = match self.commits {
                Commits::Every(seconds) if worker.commit_at <= self.now => {
                    worker.commit_at += seconds;
                    true
                }
                Commits::Every(_) => false,
                Commits::Events(events) => worker.uncommitted >= events,
            };
            if commits {
                worker.uncommitted = 0;
                self.shards.iter_mut().skip(index).step_by(ready).for_each(commit);
            }
        }
    }

    fn sample(&self) -> Sample {
        let left = |shard: &Shard| u64::try_from(shard.waits.len() + shard.handled.len()).unwrap();
        let first = |shard: &Shard| shard.handled.front().or(shard.waits.front()).map(|event| event.came);
        let by_shard: Vec<u64> = self.shards.iter().map(left).collect();
        let position = |at: u64| Position(i64::try_from(at).unwrap());
        let head = Head::log(position(self.head), position(self.head));
        let rows: Vec<Position> = self.shards.iter().map(|shard| position(shard.row)).collect();
        let lowest = *rows.iter().min().unwrap();
        let highest = *rows.iter().max().unwrap();
        let since = self.shards.iter().filter_map(first).fold(self.now, f64::min);
        let events = by_shard.iter().sum();
        let sample = Sample {
            pending_by_shard: by_shard,
            staleness: Some(Duration::from_secs_f64(self.now - since)),
            ..Sample::new(
                Duration::from_secs_f64(self.now),
                head,
                CheckpointState::Committed(rows),
                Some(Pending { events, exact: true }),
                self.head,
            )
        };
        let beyond = |position: Position| (self.head.cast_signed() - position.0).unsigned_abs();
        match self.rows {
            Rows::Exact => sample,
            Rows::Times(times) => {
                let certain = sample.pending_by_shard.iter().filter(|waiting| **waiting > 0).count();
                let by_shard: Vec<u64> = sample.pending_by_shard.iter().map(|waiting| waiting * times).collect();
                let events = by_shard.iter().sum();
                Sample {
                    pending: Some(Pending { events, exact: events == 0 }),
                    pending_by_shard: by_shard,
                    certain: Some(Certain::oldest(u64::try_from(certain).unwrap())),
                    ..sample
                }
            }
            Rows::Phantoms(more) => {
                let waiting: u64 = sample.pending_by_shard.iter().sum();
                Sample {
                    pending: Some(Pending { events: waiting + more, exact: false }),
                    pending_by_shard: Vec::new(),
                    certain: Some(Certain::oldest(waiting.min(1))),
                    ..sample
                }
            }
            Rows::Lowest => Sample {
                checkpoint: CheckpointState::Committed(vec![lowest, highest]),
                pending: Some(Pending { events: beyond(lowest), exact: false }),
                pending_by_shard: Vec::new(),
                certain: Some(Certain::Newest(beyond(highest))),
                upper_bound: None,
                staleness: Some(Duration::from_secs_f64(self.age_of(lowest))),
                ..sample
            },
        }
    }

    /// The age of the first event beyond a position, as the source reports it.
    fn age_of(&self, position: Position) -> f64 {
        // Events come evenly enough: by the rate of late.
        let beyond = (self.head - position.0.unsigned_abs()).min(100_000);
        let beyond = f64::from(u32::try_from(beyond).unwrap());
        let rate = self.model.arrivals.rate().unwrap_or(1.0).max(0.1);
        beyond / rate
    }

    fn look(&mut self) -> Assessment {
        let ready = u32::try_from(self.ready()).unwrap();
        let workers = Workers { ready, rolling: self.ready() < self.workers.len() };
        self.model.observe(&self.sample(), workers, self.bounds).unwrap()
    }
}

fn commit(shard: &mut Shard) {
    if let Some(last) = shard.handled.back() {
        shard.row = last.position;
    }
    shard.handled.clear();
}
