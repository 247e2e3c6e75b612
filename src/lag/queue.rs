//! Estimates which of the uncommitted events wait for a worker: an event that is handled and only not committed yet is not in the queue.
//!
//! The events that a step of the checkpoint leaves are the queue. Until the next step it grows by the events that arrive, and shrinks by what the
//! ready workers can do meanwhile: `queued' = max(0, queued + came − able)`, row by row, until the row's next step corrects it. A row that is overdue
//! has stopped, and all its events wait.

use std::time::Duration;

use super::{
    Certain, CheckpointState, Position, Sample, as_float,
    cadence::{Cadence, Steps},
};

/// A row that has not moved for this many times the cadence is overdue.
const OVERDUE: f64 = 1.5;
/// There is no queue while a step leaves no more events than arrive in this many seconds, or in two looks.
const CALM: f64 = 1.0;

/// What workers take in is averaged over two steps and at least `AVERAGED` seconds; the highest average fades with a time constant of at least
/// `SHOWN_FOR` seconds.
const AVERAGED: f64 = 5.0;
const SHOWN_FOR: f64 = 120.0;
/// A step happened up to one look before it is seen: this share of what a worker was seen to do is certain.
const SURELY: f64 = 0.85;
/// An arrival rate of this many times what the workers were seen to do is more than chance.
const OUTGROWN: f64 = 1.5;

#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    steps: Steps,
    rows: Vec<Row>,
    /// When the rows were last seen, and how many events were uncommitted then.
    seen: Option<(Duration, u64)>,
    look: f64,
    /// Events per second that the workers took in from step to step, and the highest recent value: they can do at least that much.
    taken_in: f64,
    shown: f64,
    /// The same for each ready worker, and the highest value: a worker can do at least that much.
    each: f64,
    least_each: f64,
    /// The ready workers, and the sum of the seconds that each has been ready since the step before.
    ready: u32,
    worker_seconds: f64,
    /// Events taken in since the step before, and when that was.
    open: (u64, Option<Duration>),
    /// The number of steps seen.
    count: u32,
    /// A step was seen at this look.
    stepped: bool,
    cadence: Option<Cadence>,
    /// How long busy rows recently took from step to step, in seconds.
    busy_step: f64,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    position: Position,
    pending: u64,
    /// Since when the row's events have waited for a step, as far as that was seen.
    since: Option<Duration>,
    /// Events that the last step left.
    left: u64,
    queued: f64,
    moved: bool,
    moved_at: Option<Duration>,
    /// Events per second between its last two steps, where it had a queue all that time, and when that time began.
    rate: Option<(f64, Duration)>,
}

/// The arrivals and the ready workers, as far as the queue needs them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Able {
    /// Events per second that arrive.
    pub(super) arrival: f64,
    /// Events per second of all ready workers together, once known.
    pub(super) capacity: Option<f64>,
    pub(super) ready: u32,
    /// The uncommitted events were counted one by one, now and at the look before.
    pub(super) counted: bool,
    /// Where the number of uncommitted events says nothing: the age of the oldest.
    pub(super) oldest: Option<Duration>,
}

impl Queue {
    pub(super) fn remembering(cadence: Option<Cadence>) -> Self {
        Self { steps: Steps::remembering(cadence), ..Self::default() }
    }

    /// Forgets the rows: the next sample does not follow on the last one.
    pub(super) fn interrupt(&mut self) {
        self.rows.clear();
        self.seen = None;
        self.open = (0, None);
    }

    /// Takes in a sample with `uncommitted` events. `arrived`: events that arrived since the last sample, absent where this one does not follow on
    /// it.
    pub(super) fn observe(&mut self, sample: &Sample, uncommitted: u64, arrived: Option<u64>, able: Able) {
        let now = rows(sample, uncommitted);
        let follows = self.seen.filter(|(at, _)| *at < sample.at && self.rows.len() == now.len()).zip(arrived);
        self.stepped = false;
        match follows {
            Some(((at, before), arrived)) => {
                self.look = (sample.at - at).as_secs_f64();
                let taken = before.saturating_add(arrived).saturating_sub(uncommitted);
                self.rates(sample.at, &now, taken, arrived);
                self.advance(sample.at, &now, able);
                self.learn(sample.at, taken, arrived, able);
                self.hold_overdue(sample.at, uncommitted, able);
            }
            None => self.begin(&now, uncommitted, sample.staleness, able),
        }
        self.seen = Some((sample.at, uncommitted));
        let each = able.arrival / f64::from(able.ready.max(1));
        self.cadence = self.steps.cadence(self.look, each);
        if self.cadence.is_none() && self.steps.known() {
            // The checkpoint moves all the time: all uncommitted events wait.
            self.rows.iter_mut().for_each(|row| row.queued = as_float(row.pending));
        }
    }

    /// Starts with a first sample: where a cadence is remembered, as many of its events as a step takes count as handled; otherwise all of them wait.
    fn begin(&mut self, now: &[(Position, u64)], uncommitted: u64, staleness: Option<Duration>, able: Able) {
        let each = able.arrival / f64::from(able.ready.max(1));
        let share = match (self.steps.cadence(self.look, each), staleness) {
            (Some(Cadence { events: Some(events), .. }), _) => {
                1.0 - events * f64::from(able.ready) / as_float(uncommitted.max(1))
            }
            (Some(Cadence { every, .. }), Some(age)) => 1.0 - every.as_secs_f64() / age.as_secs_f64().max(0.001),
            _ => 1.0,
        };
        let share = share.clamp(0.0, 1.0);
        let row = |(position, pending): &(Position, u64)| Row {
            position: *position,
            pending: *pending,
            since: None,
            left: rounded(as_float(*pending) * share),
            queued: as_float(*pending) * share,
            moved: false,
            moved_at: None,
            rate: None,
        };
        self.rows = now.iter().map(row).collect();
    }

    /// The rate of each row that moved, since its step before: the events that all rows took in are shared out by how many fewer wait in each.
    fn rates(&mut self, at: Duration, now: &[(Position, u64)], taken: u64, arrived: u64) {
        // Arrivals since the last look count as spread evenly.
        let came = as_float(arrived) / of(now.len().max(1));
        let fewer = |row: &Row, pending: u64| (as_float(row.pending) + came - as_float(pending)).max(0.0);
        let pairs = || self.rows.iter().zip(now).filter(|(row, (position, _))| *position > row.position);
        let all: f64 = pairs().map(|(row, (_, pending))| fewer(row, *pending)).sum();
        let times = if all > 0.0 { as_float(taken) / all } else { 0.0 };
        for (row, (position, pending)) in self.rows.iter_mut().zip(now) {
            if *position > row.position {
                let since = row.moved_at.filter(|_| row.left > 0 && *pending > 0);
                let seconds = |since: Duration| (at - since).as_secs_f64().max(0.001);
                row.rate = since.map(|since| (fewer(row, *pending) * times / seconds(since), since));
                row.moved_at = Some(at);
            }
        }
    }

    fn advance(&mut self, at: Duration, now: &[(Position, u64)], able: Able) {
        let mut demand = 0.0;
        for (row, (position, pending)) in self.rows.iter_mut().zip(now) {
            row.moved = *position > row.position;
            if !row.moved {
                row.queued += as_float(pending.saturating_sub(row.pending));
                demand += row.queued;
                row.since = match able.ready {
                    // The events wait for a worker to start, and not for a step.
                    0 => (*pending > 0).then_some(at),
                    _ => row.since.or((*pending > row.pending).then_some(at)),
                };
            }
        }
        let capacity = if able.ready == 0 { 0.0 } else { able.capacity.unwrap_or(self.shown) };
        let handled = (capacity * self.look / f64::max(demand, f64::MIN_POSITIVE)).min(1.0);
        for (row, (position, pending)) in self.rows.iter_mut().zip(now) {
            if !row.moved {
                row.queued = (row.queued * (1.0 - handled)).min(as_float(*pending));
                row.left = row.left.min(*pending);
            }
            (row.position, row.pending) = (*position, *pending);
        }
    }

    /// Learns from the rows that moved, and takes the events that they left as their queue.
    fn learn(&mut self, at: Duration, taken: u64, arrived: u64, able: Able) {
        let calm = match able.oldest {
            Some(age) => age.as_secs_f64() < (self.busy_step + self.look) * 2.0,
            None => self.is_calm(able.arrival),
        };
        let mut waited: Vec<f64> = Vec::new();
        let mut moved_rows = 0;
        for row in self.rows.iter_mut().filter(|row| row.moved) {
            moved_rows += 1;
            // Events that were there at the first look had waited for an unknown time.
            if let Some(since) = row.since {
                waited.push((at - since).as_secs_f64());
            }
            row.left = row.pending;
            row.queued = as_float(row.pending);
            row.since = (row.pending > 0).then_some(at);
        }
        let moved = moved_rows > 0;
        self.show(at, taken, moved, able);
        // Rows that follow the head although no event arrived have made no step.
        if !moved || (arrived == 0 && taken == 0) {
            return;
        }
        self.stepped = true;
        waited.sort_by(f64::total_cmp);
        let typical = waited.get(waited.len() / 2).copied().unwrap_or(0.0);
        self.busy_step = if self.busy_step > 0.0 { self.busy_step + (typical - self.busy_step) * 0.5 } else { typical };
        if calm {
            // Each worker moves the rows of its shards together.
            let workers = (of(moved_rows) / of(self.rows.len().max(1)) * f64::from(able.ready)).max(1.0);
            self.steps.observe(waited.last().copied().unwrap_or(0.0), as_float(taken) / workers);
        }
    }

    fn show(&mut self, at: Duration, taken: u64, moved: bool, Able { ready, counted, .. }: Able) {
        self.worker_seconds += self.look * f64::from(self.ready + ready) / 2.0;
        self.ready = ready;
        // Fades so slowly that the next steps have the time to show as much.
        self.shown *= (-self.look / SHOWN_FOR.max(self.busy_step * 4.0)).exp();
        self.open.0 = self.open.0.saturating_add(taken);
        let Some(since) = self.open.1 else {
            // The first step starts the count.
            (self.open, self.worker_seconds) = ((0, moved.then_some(at)), 0.0);
            return;
        };
        if !moved || at <= since {
            return;
        }
        let seconds = (at - since).as_secs_f64();
        let rate = as_float(self.open.0) / seconds;
        let weight = 1.0 - (-seconds / (2.0 * self.busy_step).max(AVERAGED)).exp();
        self.taken_in = if self.taken_in > 0.0 { self.taken_in + weight * (rate - self.taken_in) } else { rate };
        self.shown = self.shown.max(self.taken_in);
        let each = rate * seconds / self.worker_seconds.max(seconds);
        self.worker_seconds = 0.0;
        if counted {
            self.each = if self.each > 0.0 { self.each + weight * (each - self.each) } else { each };
            self.least_each = self.least_each.max(self.each);
        }
        self.count = self.count.saturating_add(1);
        self.open = (0, Some(at));
    }

    fn hold_overdue(&mut self, at: Duration, uncommitted: u64, able: Able) {
        let each = able.arrival / f64::from(able.ready.max(1));
        let Some(cadence) = self.steps.cadence(self.look, each) else { return };
        let longest = cadence.every.as_secs_f64() * OVERDUE + self.look * 2.0;
        // At a smaller load a step that comes after a number of events takes longer.
        let too_many = self
            .steps
            .events()
            .is_none_or(|events| as_float(uncommitted) > events * f64::from(able.ready.max(1)) * OVERDUE);
        for row in &mut self.rows {
            let waited = row.since.map_or(0.0, |since| at.saturating_sub(since).as_secs_f64());
            if too_many && waited > longest {
                row.queued = as_float(row.pending);
            }
        }
    }

    /// True when the last steps left no more events than arrive in a moment.
    fn is_calm(&self, arrival: f64) -> bool {
        as_float(self.left()) <= self.in_a_moment(arrival)
    }

    /// The cadence, unless the checkpoint moves all the time.
    pub(super) fn cadence(&self) -> Option<Cadence> {
        self.cadence
    }

    /// The time between the last two looks.
    pub(super) fn look(&self) -> Duration {
        Duration::try_from_secs_f64(self.look).unwrap_or_default()
    }

    /// True when the row with the most uncommitted events has moved within the last two steps.
    pub(super) fn deepest_moves(&self, at: Duration) -> bool {
        let deepest = self.rows.iter().max_by_key(|row| row.pending);
        let since = deepest.and_then(|row| row.moved_at).map(|moved_at| at.saturating_sub(moved_at));
        since.is_some_and(|since| since <= (self.step() + self.look()) * 2)
    }

    /// True when a row moved at the last look.
    pub(super) fn stepped(&self) -> bool {
        self.stepped
    }

    /// True when a step was seen, in this run or an earlier one.
    pub(super) fn knows_steps(&self) -> bool {
        self.steps.known()
    }

    /// The time from one step to the next, as far as known: the cadence, or what busy rows took recently if that is shorter or all that is known.
    pub(super) fn step(&self) -> Duration {
        let seconds = self.cadence.map_or(self.busy_step, |cadence| cadence.every.as_secs_f64().min(self.busy_step));
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// True when rows are counted one by one and move in steps: then rates are learnt from step to step.
    pub(super) fn tells_steps(&self) -> bool {
        self.rows.len() > 1 && self.cadence.is_some()
    }

    /// Events per second that all rows together take in, from step to step. Only where at least three quarters of the rows had a queue all that time,
    /// and since `from`.
    pub(super) fn throughput(&self, from: Duration) -> Option<f64> {
        let rates = || self.rows.iter().filter_map(|row| row.rate).filter(|(_, since)| *since >= from);
        let busy = rates().count();
        let sum: f64 = rates().map(|(rate, _)| rate).sum();
        (self.rows.len() > 1 && busy * 4 >= self.rows.len() * 3).then(|| sum * of(self.rows.len()) / of(busy))
    }

    /// True when more events arrive than the workers were recently seen to do, so that a queue may grow that no step has shown yet.
    pub(super) fn outgrown(&self, arrival: f64, ready: u32) -> bool {
        // Each worker may have a step of its own.
        self.shown > 0.0 && self.count >= ready && arrival > self.shown * OUTGROWN
    }

    /// Events per second that a worker can do at least, as far as steps have shown; 0 where none has.
    pub(super) fn least_each(&self) -> f64 {
        self.least_each * SURELY
    }

    /// Forgets what a worker was seen to do at least: it no longer does so.
    pub(super) fn forget_least_each(&mut self) {
        (self.each, self.least_each) = (0.0, 0.0);
    }

    /// Events per second that the workers were recently seen to take in.
    pub(super) fn shown(&self) -> f64 {
        self.shown
    }

    /// True when the last steps left a queue.
    pub(super) fn outlasts_a_step(&self, arrival: f64) -> bool {
        as_float(self.measured_left()) > self.in_a_moment(arrival)
    }

    fn in_a_moment(&self, arrival: f64) -> f64 {
        arrival * CALM.max(self.look * 2.0) + 2.0
    }

    /// True when the last steps left no queue.
    pub(super) fn calm(&self, arrival: f64) -> bool {
        self.seen.is_some() && self.is_calm(arrival)
    }

    /// Events that wait for a worker.
    pub(super) fn events(&self) -> f64 {
        self.rows.iter().map(|row| row.queued).sum()
    }

    /// Events that the last step of each row left, and that are still uncommitted.
    fn left(&self) -> u64 {
        self.rows.iter().fold(0, |sum, row| sum.saturating_add(row.left))
    }

    /// The same, only for rows of which a step was seen: this is measured, and independent of any estimated rate.
    pub(super) fn measured_left(&self) -> u64 {
        self.rows.iter().filter(|row| row.moved_at.is_some()).fold(0, |sum, row| sum.saturating_add(row.left))
    }

    /// The same by shard, where shards are counted.
    pub(super) fn measured_left_by_shard(&self) -> Vec<u64> {
        let left = |row: &Row| if row.moved_at.is_some() { row.left } else { 0 };
        if self.rows.len() > 1 { self.rows.iter().map(left).collect() } else { Vec::new() }
    }

    /// What waits in each shard, where shards are counted.
    pub(super) fn by_shard(&self) -> Vec<u64> {
        if self.rows.len() > 1 { self.rows.iter().map(|row| rounded(row.queued)).collect() } else { Vec::new() }
    }
}

/// Each row's position and uncommitted events: a row for each shard where shards are counted one by one, otherwise one row for all.
fn rows(sample: &Sample, uncommitted: u64) -> Vec<(Position, u64)> {
    let positions = match &sample.checkpoint {
        CheckpointState::NeverCommitted => return Vec::new(),
        // Any event that is handled is a step.
        CheckpointState::Handled(events) => {
            return vec![(Position(i64::try_from(*events).unwrap_or(i64::MAX)), uncommitted)];
        }
        CheckpointState::Committed(positions) => positions,
    };
    if positions.len() > 1 && positions.len() == sample.pending_by_shard.len() {
        return positions.iter().copied().zip(sample.pending_by_shard.iter().copied()).collect();
    }
    if let (Some(Certain::Newest(_)), Some(highest)) = (sample.certain(), sample.checkpoint.highest()) {
        return vec![(highest, uncommitted)];
    }
    // Any row that moves is a step.
    let sum = positions.iter().fold(0_i64, |sum, position| sum.wrapping_add(position.0 / count(positions.len())));
    vec![(Position(sum), uncommitted)]
}

#[allow(clippy::cast_precision_loss)] // At most 1,024.
fn of(rows: usize) -> f64 {
    rows as f64
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows.max(1)).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Not negative, and below 2^53.
pub(super) fn rounded(events: f64) -> u64 {
    events.round() as u64
}
