//! One look at a source and its projection's checkpoint: what a probe answers.

use std::{fmt, sync::Arc, time::Duration};

use crate::measure::MeasureError;

/// An event's place in the log. Grows with time; may have gaps, so a difference of positions is no count.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position(pub i64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The newest positions of a log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogHead {
    /// The highest committed position.
    pub raw: Position,
    /// The highest position below which everything is committed.
    pub safe: Position,
}

/// The source's newest positions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Head {
    /// One log, which all shards of a projection read.
    Log(LogHead),
    /// A log for each shard: the highest committed position of each, in the order of the checkpoint's.
    Shards(Vec<Position>),
    /// The source numbers no events, as queues do.
    Unnumbered,
}

impl Head {
    /// That of one log.
    pub fn log(raw: Position, safe: Position) -> Self {
        Self::Log(LogHead { raw, safe })
    }

    /// The head of the log that this shard reads, by its place in the checkpoint.
    fn of_shard(&self, index: usize) -> Option<Position> {
        match self {
            Self::Log(log) => Some(log.raw),
            Self::Shards(heads) => heads.get(index).copied(),
            Self::Unnumbered => None,
        }
    }

    /// The first checkpoint that is beyond its head, with that head.
    pub(super) fn passed_by(&self, checkpoints: &[Position]) -> Option<(Position, Position)> {
        let beyond = checkpoints.iter().enumerate().filter_map(|(index, checkpoint)| {
            self.of_shard(index).filter(|head| checkpoint > head).map(|head| (*checkpoint, head))
        });
        beyond.max_by_key(|(checkpoint, _)| *checkpoint)
    }
}

/// How far the projection has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CheckpointState {
    /// No checkpoint was ever written: what is pending cannot be distinguished from "nothing".
    NeverCommitted,
    /// The checkpoint of each shard, at least one, in the order of the shards.
    Committed(Vec<Position>),
    /// The source keeps no position, since it removes what has been handled: the number of events that have been handled since measuring it began.
    Handled(u64),
}

impl CheckpointState {
    /// The position up to which every shard is done.
    pub fn lowest(&self) -> Option<Position> {
        self.positions().iter().min().copied()
    }

    /// The checkpoint of each shard; empty where none was ever written, and where the source keeps none.
    pub fn positions(&self) -> &[Position] {
        match self {
            Self::NeverCommitted | Self::Handled(_) => &[],
            Self::Committed(shards) => shards,
        }
    }

    /// The furthest that any shard has come.
    pub fn highest(&self) -> Option<Position> {
        self.positions().iter().max().copied()
    }
}

/// Committed events beyond the checkpoint, up to the raw head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pending {
    /// How many.
    pub events: u64,
    /// False when it is a bound: an upper one, unless `Sample::certain` says that it is a lower one.
    pub exact: bool,
}

/// What waits for certain where `pending` is no exact count. What else it counts may have been handled long ago, or be no events at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Certain {
    /// So many of the newest events, and none before them is known to wait: then `staleness` is a bound as well. Zero where nothing is known to wait.
    Newest(u64),
    /// At least so many, at least one, with the oldest among them: `staleness` is the age of an event that waits, and only the number is a bound.
    Oldest(u64),
    /// So many were counted, the oldest among them, and more may wait: `pending` is a lower bound.
    AtLeast(u64),
    /// It was looked for and not found out: what is counted may wait, all or none of it, for any time.
    Unknown,
}

impl Certain {
    /// The oldest wait, and `events` of them for certain; where there are none, nothing is known to wait.
    pub fn oldest(events: u64) -> Self {
        if events == 0 { Self::Newest(0) } else { Self::Oldest(events) }
    }

    /// The same where a part could not be looked at: that nothing else was found then says nothing.
    pub fn oldest_of_part(events: u64) -> Self {
        if events == 0 { Self::Unknown } else { Self::Oldest(events) }
    }

    /// How many events.
    pub fn events(self) -> u64 {
        match self {
            Self::Newest(events) | Self::Oldest(events) | Self::AtLeast(events) => events,
            Self::Unknown => 0,
        }
    }
}

/// What the server reports of the session behind a transaction. Each part is absent where the server does not show it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SessionInfo {
    /// The `application_name` of its connection.
    pub application: Option<String>,
    /// The first keyword of its last statement, such as `INSERT`; never more of its text.
    pub statement: Option<String>,
    /// The last statement has ended and the transaction waits for its client.
    pub idle: bool,
    /// The identifier of a prepared transaction, for `rollback prepared`.
    pub prepared: Option<String>,
}

/// A transaction that keeps the safe head below the raw head.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BlockingWriter {
    /// The server process, for `pg_stat_activity` or `pg_terminate_backend`; absent for a prepared transaction.
    pub pid: Option<i32>,
    /// How long its transaction has been open, where the server shows it.
    pub open_for: Option<Duration>,
    /// For how long the safe head has not moved.
    pub holds_for: Duration,
    /// What is known of its session.
    pub session: SessionInfo,
}

/// A shorter hold is normal with concurrent appends, and is not reported.
const SHORT_HOLD: Duration = Duration::from_secs(5);
/// An event that a worker of the built-in projector cannot handle: its shard waits before it, or it stays in its queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FailedEvent {
    /// The shard; 0 for a queue, which has none.
    pub shard: u32,
    /// The part of the source that the shard is, such as a partition, where the source has such.
    pub part: Option<Arc<str>>,
    /// The event's position; absent for a message of a queue, which has none.
    pub position: Option<Position>,
    /// What the worker says. Holds nothing of the event but position and type.
    pub why: String,
}

/// Events that were committed at positions which the checkpoint had passed already.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PassedOver {
    /// Some of their positions, the lowest first.
    pub positions: Vec<Position>,
    /// How many more there are.
    pub more: u64,
}

/// Single events that are not handled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EventFaults {
    /// Those that workers cannot handle, the lowest position first.
    pub failed: Vec<FailedEvent>,
    /// Those that came too late.
    pub passed_over: PassedOver,
    /// How many the source has deleted before they were handled, as its retention says.
    pub deleted: u64,
}

/// What people should know of a source although measuring it works. A text says what is so, where, and what to do; it holds no number that changes
/// from sample to sample, since each change is written to the status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Note {
    /// The source should notify of new events, or the built-in projector should read the notifications, and cannot, since a connection pooler stands
    /// between.
    PooledConnection,
    /// Events wait, and the source gives workers no more of them before they have acknowledged what they hold.
    DeliveryStopped(Arc<str>),
    /// Events wait, and no consumer is connected to the source that would be given them.
    NoConsumer(Arc<str>),
    /// Events are held by consumers that do nothing with them, and no other consumer is given them.
    HeldByIdleConsumer(Arc<str>),
    /// How many events are set aside cannot be told.
    ParkedUnknown(Arc<str>),
    /// Handlers of the built-in projector that no event has come for.
    HandlerNeverCalled(Arc<str>),
    /// Numbers are older or less precise than they should be, since the source does not tell better ones.
    Estimated(Arc<str>),
}

impl Note {
    /// How many messages are set aside is not known, and why.
    pub(crate) fn parked_unknown(why: &MeasureError) -> Self {
        Self::ParkedUnknown(Arc::from(format!("how many messages failed is not known: {}", why.message)))
    }

    /// That no event of these types has come, where there are such.
    pub(crate) fn never_called(types: &[String]) -> Option<Self> {
        if types.is_empty() {
            return None;
        }
        let types: Vec<String> = types.iter().map(|name| format!("{name:?}")).collect();
        Some(Self::HandlerNeverCalled(Arc::from(format!(
            "handlers that were never called: no event of type {} has come to any worker since it took its shards. Each has handled 1,000 events or more and caught up: is the type written in spec.projector.builtin.handlers as the source writes it?",
            types.join(", ")
        ))))
    }
}

/// How far a projection has come in one of the logs of a source that has several, such as partitions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogProgress {
    /// The name that the log shares with others.
    pub name: Arc<str>,
    /// Its number among those.
    pub number: i32,
    /// Every event up to here has been handled.
    pub done_up_to: Position,
}

/// One consistent measurement of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When it was taken, on a clock that never goes back (time since the process started).
    pub at: Duration,
    /// When it was taken, for people and for the metrics API's time stamps.
    pub taken: jiff::Timestamp,
    /// The time until the next one, where that is longer than the time between two polls. Zero where it is not.
    pub next_within: Duration,
    /// The source's newest positions.
    pub head: Head,
    /// How far the projection has come. Read before the head, so that a healthy checkpoint is never beyond it.
    pub checkpoint: CheckpointState,
    /// What waits, whether or not it may be read yet. Absent when the projection has never committed, or when the answer made no sense.
    pub pending: Option<Pending>,
    /// A plain number in place of what waits, with a target of its own: then `pending` is absent, and neither head nor checkpoint says anything.
    pub value: Option<f64>,
    /// The part of `pending` above the safe head: these events wait, and no worker may read them yet.
    pub held_back: u64,
    /// What waits for certain where `pending` is a bound. Absent where it is exact; absent with an upper bound, nothing is known to wait.
    pub certain: Option<Certain>,
    /// Although `pending` is an upper bound, the difference of two of them is a number of events, or nearly so: rates may be learnt from it. That is
    /// not so of a lower bound, nor of a distance of positions with gaps among them.
    pub tells_rates: bool,
    /// Why the checkpoint gives only an upper bound of what waits, and what to add to the spec.
    pub upper_bound: Option<Arc<str>>,
    /// What waits in each shard, where the shards of events are known; empty where they are not.
    pub pending_by_shard: Vec<u64>,
    /// No event at or below this position waits, although shards without events may have stayed behind it. Absent where only the checkpoint tells.
    pub handled_up_to: Option<Position>,
    /// How far it has come in each log of a source that has several, where that is known. Logs without a commit are absent.
    pub by_log: Vec<LogProgress>,
    /// Committed events that came since measuring this source began, whether or not they may be read yet: a counter that only grows.
    pub arrived: u64,
    /// Age of the oldest unprocessed event by the source's own clock; zero when nothing is pending, absent when unknown.
    pub staleness: Option<Duration>,
    /// How far the newest looked-at event's time lies in the future of the source's clock, zero normally.
    pub ahead_of_clock: Duration,
    /// The transaction that holds the safe head back, while the safe head is below the raw head.
    pub blocked_by: Option<BlockingWriter>,
    /// Events that were set aside after failing, such as dead letters. Absent where the source keeps none or does not tell.
    pub parked: Option<u64>,
    /// What people should know although measuring works.
    pub notes: Vec<Note>,
    /// Events that are not handled although everything else goes on.
    pub faults: EventFaults,
}

/// Of more shards than this the positions are not all shown.
const MOST_SHOWN: usize = 16;

/// Positions for people: one, or one a shard.
fn shown(positions: &[Position]) -> String {
    let mut text: Vec<String> = positions.iter().take(MOST_SHOWN).map(ToString::to_string).collect();
    if positions.len() > MOST_SHOWN {
        text.push("…".to_owned());
    }
    text.join(",")
}

impl Sample {
    /// Takes over how many events the workers have parked in the read store, or why that is not known; absent where they park none there.
    pub fn parked_in_store(&mut self, parked: Option<&Result<u64, MeasureError>>) {
        match parked {
            Some(Ok(parked)) => self.parked = Some(self.parked.unwrap_or(0).saturating_add(*parked)),
            Some(Err(why)) => {
                self.parked = None;
                self.notes.push(Note::parked_unknown(why));
            }
            None => {}
        }
    }

    /// A measurement of a source that holds nothing back and counts exactly what waits, without the times of events. Callers that know more set the
    /// other fields.
    pub fn new(at: Duration, head: Head, checkpoint: CheckpointState, pending: Option<Pending>, arrived: u64) -> Self {
        Self {
            at,
            taken: jiff::Timestamp::UNIX_EPOCH,
            next_within: Duration::ZERO,
            head,
            checkpoint,
            pending,
            value: None,
            held_back: 0,
            certain: None,
            tells_rates: false,
            upper_bound: None,
            pending_by_shard: Vec::new(),
            handled_up_to: None,
            by_log: Vec::new(),
            arrived,
            staleness: None,
            ahead_of_clock: Duration::ZERO,
            blocked_by: None,
            parked: None,
            notes: Vec::new(),
            faults: EventFaults::default(),
        }
    }

    /// The position up to which every event of the log has been handled. Absent where that is not known: before the first commit, where the checkpoint is
    /// beyond the log, and of a source that has no log, or several.
    pub fn done_up_to(&self) -> Option<Position> {
        let Head::Log(log) = &self.head else { return None };
        let lowest = self.checkpoint.lowest()?;
        if self.head.passed_by(self.checkpoint.positions()).is_some() {
            return None;
        }
        let all = self.pending.is_some_and(|pending| pending.exact && pending.events == 0).then_some(log.safe);
        [Some(lowest), self.handled_up_to, all].into_iter().flatten().max()
    }

    /// What waits for certain, where `pending` is a bound.
    pub(super) fn certain(&self) -> Option<Certain> {
        let bound = self.pending.is_some_and(|pending| !pending.exact);
        bound.then(|| self.certain.unwrap_or(Certain::Newest(0)))
    }

    /// The difference of two such counts says how many events were handled.
    pub(super) fn teaches(&self) -> bool {
        match self.certain() {
            None => true,
            Some(Certain::Oldest(_) | Certain::Unknown) => self.tells_rates,
            Some(Certain::Newest(_) | Certain::AtLeast(_)) => false,
        }
    }

    /// The newest positions for people, raw and safe; absent where the source numbers nothing.
    pub fn head_text(&self) -> Option<(String, String)> {
        match &self.head {
            Head::Log(log) => Some((log.raw.to_string(), log.safe.to_string())),
            Head::Shards(heads) => Some((shown(heads), shown(heads))),
            Head::Unnumbered => None,
        }
    }

    /// The checkpoint for people: the position up to which all shards of one log are done, or that of each shard where each has a log. Absent where
    /// there is none.
    pub fn checkpoint_text(&self) -> Option<String> {
        match &self.head {
            Head::Log(_) => self.checkpoint.lowest().map(|lowest| lowest.to_string()),
            Head::Shards(_) => Some(shown(self.checkpoint.positions())).filter(|text| !text.is_empty()),
            Head::Unnumbered => None,
        }
    }

    /// The transaction that has kept events of this projection from being read for longer than a short moment.
    pub fn held_by(&self) -> Option<&BlockingWriter> {
        self.blocked_by.as_ref().filter(|writer| self.held_back > 0 && writer.holds_for >= SHORT_HOLD)
    }

    /// Events wait, and no worker may read any of them yet.
    pub fn all_held_back(&self) -> bool {
        self.held_back > 0 && self.pending.is_some_and(|pending| pending.events <= self.held_back)
    }
}

/// Counts of events stay far below 2^53, above which a float would round them.
#[allow(clippy::cast_precision_loss)]
pub(super) fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(checkpoint: &[i64], (raw, safe): (i64, i64), pending: Option<Pending>, handled: Option<i64>) -> Sample {
        let checkpoint = match checkpoint {
            [] => CheckpointState::NeverCommitted,
            shards => CheckpointState::Committed(shards.iter().copied().map(Position).collect()),
        };
        let head = Head::log(Position(raw), Position(safe));
        let handled_up_to = handled.map(Position);
        Sample { handled_up_to, ..Sample::new(Duration::ZERO, head, checkpoint, pending, 0) }
    }

    #[test]
    fn what_is_done_is_never_more_than_is_known() {
        let exact = |events| Some(Pending { events, exact: true });
        let bound = |events| Some(Pending { events, exact: false });
        for (what, checkpoint, head, pending, handled, expected) in [
            ("never committed", &[][..], (9, 9), None, None, None),
            ("one checkpoint tells it", &[4], (9, 9), exact(5), None, Some(4)),
            ("the lowest of several", &[7, 4], (9, 9), bound(5), None, Some(4)),
            ("a quiet shard stays behind", &[9, 4], (9, 9), exact(0), None, Some(9)),
            ("an event waits at 8", &[7, 4], (9, 9), exact(1), Some(7), Some(7)),
            ("nothing waits that may be read", &[5], (9, 7), exact(2), Some(7), Some(7)),
            ("a writer holds back what is beyond 7", &[7], (9, 7), exact(2), None, Some(7)),
            ("a bound of nothing is no count", &[4], (9, 9), bound(0), None, Some(4)),
            ("the log was replaced", &[12], (9, 9), exact(0), None, None),
        ] {
            let sample = sample(checkpoint, head, pending, handled);
            assert_eq!(sample.done_up_to(), expected.map(Position), "{what}");
        }
        let queue = Sample { head: Head::Unnumbered, ..sample(&[4], (9, 9), exact(0), None) };
        assert_eq!(queue.done_up_to(), None);
    }
}
