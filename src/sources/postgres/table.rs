//! One event table with all projections that read it: look, then count what waits, in a fixed number of statements.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_postgres::{Client, Error, types::Type};

use super::{
    Answer,
    arrivals::Arrivals,
    audit::Audit,
    columns::{Columns, TRUST_CHECKS_FOR, TRUST_COUNTS_FOR},
    counting::{CUT, Oldest, Segment, Waiting, add, between, scan_limit, segments, waiting_between},
    event_log::{Follower, Log, LogError, LogReading, Relation, check_event_columns},
    parked::Parked,
    questions::Wanted,
    sharded::{ShardCounts, ShardsTold},
};
use crate::{
    api::{EventRows, EventTable, Reason},
    clients::postgres::{Live, Query, classify, quote_identifier},
    lag::{BlockingWriter, Certain, CheckpointState, EventFaults, Head, LogHead, Note, Pending, Position, Sample},
    measure::{MeasureError, RunKey},
    read_stores::Checkpoint,
};

/// How many events the run without a gap is followed over in one poll.
const DENSE_RUN: u32 = 10_000;
/// So many polls in a row come soon when the safe head lags behind the head; after that, what holds it back is no short transaction.
const SOON_POLLS: u32 = 8;

/// What is remembered of a table from poll to poll.
pub(super) struct Table {
    table: EventTable,
    /// Which rows are events.
    events: EventRows,
    /// What to say where the table or a column is not there.
    expected: Option<String>,
    /// The table as it was found to be, and when: what the server said is asked again.
    log: Option<(Instant, Log)>,
    /// The columns that built-in projectors read, and what is wrong with them. That nothing is wrong is believed as long as `log` is.
    projector_columns: HashMap<EventTable, Option<MeasureError>>,
    follower: Follower,
    arrivals: Arrivals,
    /// What waits between the safe head and the raw head, and when it was counted.
    above: (Vec<Segment>, Instant),
    counted: HashMap<RunKey, Counted>,
    shards: ShardCounts,
    walking: bool,
    /// The last count that ended at its limit met gaps among the positions.
    gaps: bool,
    /// The safe head that does not move although the raw head is beyond it, and since when.
    held: Option<(Option<Position>, Instant)>,
    audit: Audit,
    parked: Parked,
    settling: u32,
}

/// What waits up to the safe head.
struct Counted {
    safe: Position,
    checkpoint: Checkpoint,
    at: Instant,
    waiting: Waiting,
    /// Events beyond the highest of several rows of which the lowest stands for all.
    beyond_all_rows: Option<u64>,
}

impl Table {
    pub(super) fn new(table: EventTable, events: EventRows, expected: Option<String>) -> Self {
        Self {
            table,
            events,
            expected,
            log: None,
            projector_columns: HashMap::new(),
            follower: Follower::default(),
            arrivals: Arrivals::default(),
            above: (Vec::new(), Instant::now()),
            counted: HashMap::new(),
            shards: ShardCounts::new(),
            walking: false,
            gaps: false,
            held: None,
            audit: Audit::default(),
            parked: Parked::default(),
            settling: 0,
        }
    }

    /// What the server said of the table is asked again.
    pub(super) fn distrust(&mut self) {
        self.log = None;
    }

    /// True when another look soon is likely to tell more.
    pub(super) fn is_settling(&self) -> bool {
        self.walking || (1..=SOON_POLLS).contains(&self.settling)
    }

    /// One sample for each projection.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        wanted: &[Wanted],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        let pooled = !live.session.ours_alone;
        match live.reading(self.measure_in_transaction(&live.session.client, pooled, wanted, started)).await {
            Ok(answers) => answers,
            Err(error) => Err(self.statement_failed(&error)),
        }
    }

    async fn measure_in_transaction(
        &mut self,
        client: &Client,
        pooled: bool,
        wanted: &[Wanted],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        let (look, safe) = self.look(client, wanted).await.map_err(|error| self.log_failed(&error))?;
        let (at, taken) = (started.elapsed(), jiff::Timestamp::now());
        self.settling = if safe == Some(look.head) { 0 } else { self.settling.saturating_add(1) };
        self.check_projector_columns(client, wanted).await.map_err(|error| self.log_failed(&error))?;
        let blocked_by = self.hold(&look, safe);
        let head = LogHead { raw: look.head, safe: safe.unwrap_or_else(|| vouched_for(wanted, look.head)) };
        self.count(client, wanted, head).await.map_err(|error| self.statement_failed(&error))?;
        self.walking = self.shards.is_walking(head);
        let Columns { table, position, .. } = self.columns();
        let audited = self.audit.look(client, (&table, &position), safe, look.head, wanted).await;
        audited.map_err(|error| self.statement_failed(&error))?;
        let parked = wanted.iter().filter_map(|wanted| wanted.question.parked.as_ref());
        self.parked.look(client, parked).await.map_err(|error| self.statement_failed(&error))?;
        let sample = |wanted: &Wanted| {
            let told = self.waiting(wanted, head).transpose()?;
            let cut = wanted.checkpoint.bound.is_none() && told.as_ref().is_some_and(|told| !told.pending.exact);
            let mut sample = Sample {
                at,
                taken,
                next_within: Duration::ZERO,
                head: Head::Log(head),
                checkpoint: wanted.checkpoint.state.clone(),
                pending: told.as_ref().map(|told| told.pending),
                value: None,
                pending_by_shard: told.as_ref().map(|told| told.by_shard.clone()).unwrap_or_default(),
                by_log: Vec::new(),
                handled_up_to: told.as_ref().and_then(|told| told.handled_up_to),
                arrived: self.arrivals.total(),
                staleness: told.as_ref().and_then(|told| told.staleness),
                ahead_of_clock: told.as_ref().map_or(Duration::ZERO, |told| told.ahead_of_clock),
                held_back: told.as_ref().map_or(0, |told| told.held_back),
                certain: told.as_ref().and_then(|told| told.certain),
                // Positions beyond the counted events count events, but for gaps.
                tells_rates: cut && !self.gaps && !self.shards.gaps(),
                upper_bound: wanted.checkpoint.bound.clone(),
                blocked_by: blocked_by.clone(),
                parked: wanted.question.parked.as_ref().and_then(|parked| self.parked.of(parked)),
                notes: notes(pooled && wanted.wants_notifications(), cut),
                faults: EventFaults {
                    failed: wanted.checkpoint.failed.clone(),
                    passed_over: self.audit.passed_over(&wanted.ask.key),
                    deleted: 0,
                },
            };
            sample.parked_in_store(wanted.checkpoint.parked.as_ref());
            sample.notes.extend(Note::never_called(&wanted.checkpoint.uncalled));
            Ok(sample)
        };
        let answer = |wanted: &Wanted| match self.unsuitable_for(wanted) {
            Some(unknown) => Err(unknown),
            None => sample(wanted),
        };
        Ok(wanted.iter().map(|wanted| (Arc::clone(&wanted.ask), answer(wanted))).collect())
    }

    /// Takes note of whether the safe head stands still below the raw head, and says which transaction it waits for.
    fn hold(&mut self, look: &LogReading, safe: Option<Position>) -> Option<BlockingWriter> {
        if safe == Some(look.head) {
            self.held = None;
            return None;
        }
        let now = Instant::now();
        let since = self.held.filter(|(before, _)| *before == safe).map_or(now, |(_, since)| since);
        self.held = Some((safe, since));
        self.follower.blocking(look).map(|writer| BlockingWriter { holds_for: now - since, ..writer })
    }

    /// What waits up to the raw head; absent where the projection has never committed.
    fn waiting(&self, wanted: &Wanted, head: LogHead) -> Option<Result<Told, MeasureError>> {
        match self.shards.told(&wanted.ask.key, head) {
            Some(told) => Some(told.map(|told| self.waiting_in_shards(told, head))),
            None => self.waiting_beyond(wanted, head).map(Ok),
        }
    }

    fn waiting_in_shards(&self, told: ShardsTold, head: LogHead) -> Told {
        let (segments, above_at) = &self.above;
        let (above, oldest_above) = told.above.unwrap_or_else(|| {
            let above = waiting_between(segments, head.safe, head.raw);
            (above.pending, above.oldest.older_by(above_at.elapsed()))
        });
        let oldest = if told.oldest == Oldest::None { oldest_above } else { told.oldest };
        let (staleness, ahead_of_clock) = oldest.after(Duration::ZERO);
        let pending = add(told.pending, above);
        Told {
            pending,
            by_shard: told.by_shard,
            handled_up_to: Some(Position(told.handled_up_to)),
            held_back: above.events,
            certain: match told.certain {
                // What the walk has not come to may have been handled long ago.
                Some(below) => Some(Certain::Newest(below.saturating_add(above.events))),
                None if pending.exact => None,
                // What is held back waits as well, and no worker may read it.
                None => Some(Certain::oldest(told.counted)),
            },
            staleness,
            ahead_of_clock,
        }
    }

    /// What waits beyond the lowest row.
    fn waiting_beyond(&self, wanted: &Wanted, head: LogHead) -> Option<Told> {
        let counted = self.counted.get(&wanted.ask.key)?;
        let (segments, above_at) = &self.above;
        let above = waiting_between(segments, wanted.checkpoint.state.lowest()?.max(head.safe), head.raw);
        let pending = add(counted.waiting.pending, above.pending);
        let several = counted.beyond_all_rows.map(|below| {
            let highest = wanted.checkpoint.state.highest().unwrap_or_default().max(head.safe);
            Certain::Newest(below.saturating_add(between(segments, highest, head.raw).events))
        });
        // What is held back waits as well, and no worker may read it.
        let cut = || Certain::oldest(counted.waiting.counted);
        let certain = several.or_else(|| (!pending.exact).then(cut));
        let (oldest, at) = match counted.waiting.oldest {
            Oldest::None => (above.oldest, *above_at),
            oldest => (oldest, counted.at),
        };
        let (staleness, ahead_of_clock) = oldest.after(at.elapsed());
        Some(Told {
            pending: Pending { exact: pending.exact && wanted.checkpoint.bound.is_none(), ..pending },
            by_shard: Vec::new(),
            handled_up_to: None,
            held_back: above.pending.events,
            certain,
            staleness,
            ahead_of_clock,
        })
    }

    async fn look(&mut self, client: &Client, wanted: &[Wanted]) -> Result<(LogReading, Option<Position>), LogError> {
        let (checked, log) = match self.log.take().filter(|(checked, _)| checked.elapsed() < TRUST_CHECKS_FOR) {
            Some(known) => known,
            None => {
                self.projector_columns.clear();
                (Instant::now(), Log::check(client, &self.table, &self.events).await?)
            }
        };
        let look = log.look(client).await?;
        if self.follower.went_back(&look) {
            self.counted.clear();
            self.audit.restart();
            self.shards.restart();
            self.arrivals.restart();
        }
        let furthest = wanted.iter().filter_map(|wanted| wanted.checkpoint.state.lowest()).max();
        let dense_until = match self.follower.dense_from(&look, furthest) {
            Some(from) => log.dense_until(client, from, DENSE_RUN).await?,
            None => None,
        };
        self.log = Some((checked, log));
        let safe = self.follower.observe(&look, dense_until);
        Ok((look, safe))
    }

    /// Brings all counts up to date. What is at or below the safe head never changes, so where neither checkpoint nor safe head moved the last count
    /// still holds. Above it, all is counted at each poll.
    async fn count(&mut self, client: &Client, wanted: &[Wanted], head: LogHead) -> Result<(), Error> {
        let safe = head.safe;
        if self.counted.len() > wanted.len() * 2 + 16 {
            self.counted.retain(|key, _| wanted.iter().any(|wanted| wanted.ask.key == *key));
        }
        let (mut plain, mut sharded) = (Vec::new(), Vec::new());
        for wanted in wanted {
            let by_shard = wanted.question.shard.is_some() && wanted.checkpoint.shards.is_some();
            match &wanted.checkpoint.state {
                CheckpointState::NeverCommitted | CheckpointState::Handled(_) => {
                    self.counted.remove(&wanted.ask.key);
                    self.shards.forget(&wanted.ask.key);
                }
                // Without the columns that make its shards there is nothing to count.
                CheckpointState::Committed(_) if by_shard && self.unsuitable_for(wanted).is_some() => {}
                CheckpointState::Committed(_) if by_shard => sharded.push(wanted),
                CheckpointState::Committed(_) => {
                    self.shards.forget(&wanted.ask.key);
                    if !self.holds(wanted, safe) {
                        plain.push(wanted);
                    }
                }
            }
        }
        let points = plain.iter().filter_map(|wanted| wanted.checkpoint.state.lowest());
        let highest = plain.iter().filter_map(|wanted| highest_of_several(wanted));
        let beyond =
            wanted.iter().flat_map(|wanted| [wanted.checkpoint.state.lowest(), highest_of_several(wanted)]).flatten();
        let cut = segments(
            points.chain(beyond.filter(|point| *point > safe)).chain(highest).chain(self.arrivals.cuts()).chain([safe]),
            head.raw,
        );
        let counted = if cut.is_empty() { Vec::new() } else { self.count_segments(client, &cut).await? };
        self.arrivals.take(&counted, head);
        if counted.iter().any(|segment| !segment.events.exact) {
            self.gaps = counted.iter().any(|segment| segment.gaps);
        }
        for wanted in plain {
            let lowest = wanted.checkpoint.state.lowest().unwrap_or(safe);
            let beyond = highest_of_several(wanted).map(|highest| between(&counted, highest, safe).events);
            self.remember(wanted, safe, waiting_between(&counted, lowest, safe), beyond);
        }
        self.above = (counted.into_iter().filter(|segment| segment.low >= safe.0).collect(), Instant::now());
        self.shards.count(client, &self.columns(), &sharded, head).await
    }

    fn holds(&self, wanted: &Wanted, safe: Position) -> bool {
        self.counted.get(&wanted.ask.key).is_some_and(|counted| {
            counted.safe == safe && counted.checkpoint == wanted.checkpoint && counted.at.elapsed() < TRUST_COUNTS_FOR
        })
    }

    fn remember(&mut self, wanted: &Wanted, safe: Position, waiting: Waiting, beyond_all_rows: Option<u64>) {
        let checkpoint = wanted.checkpoint.clone();
        let counted = Counted { safe, checkpoint, at: Instant::now(), waiting, beyond_all_rows };
        self.counted.insert(wanted.ask.key.clone(), counted);
    }

    async fn count_segments(&self, client: &Client, cut: &[(i64, i64)]) -> Result<Vec<Segment>, Error> {
        let segments = Query::new(self.segments_sql(), &[Type::INT8_ARRAY, Type::INT8_ARRAY, Type::INT8]);
        let (low, high): (Vec<i64>, Vec<i64>) = cut.iter().copied().unzip();
        let limit = scan_limit(cut.len());
        let rows = segments.rows(client, &[&low, &high, &limit]).await?;
        rows.iter()
            .zip(cut)
            .map(|(row, bounds)| {
                let found: Option<bool> = row.try_get(1)?;
                let (count, last) = (row.try_get(0)?, row.try_get(3)?);
                let segment = Segment::new(*bounds, count, limit, found.unwrap_or(false), row.try_get(2)?);
                Ok(segment.up_to(last, count))
            })
            .collect()
    }

    /// One row a segment: events (at most the limit), whether there is one, the age of the first, and the position of the last that was counted.
    fn segments_sql(&self) -> String {
        let Columns { table, position, age } = self.columns();
        format!(
            "select counted.n, first.found, first.age, counted.last
             from unnest($1::bigint[], $2::bigint[]) with ordinality as s(low, high, i)
             cross join lateral (
                 select count(*) as n, max(e.p) as last from (
                     select {position}::bigint as p from {table} where {position} > s.low and {position} <= s.high order by {position} limit $3::bigint
                 ) e
             ) counted
             left join lateral (
                 select true as found, {age} as age
                 from {table} where {position} > s.low and {position} <= s.high order by {position} limit 1
             ) first on true
             order by s.i"
        )
    }

    fn columns(&self) -> Columns {
        // Nothing is counted before the table was looked at.
        let time = self.log.as_ref().map(|(_, log)| log.event_time().measurable.clone());
        let time = time.unwrap_or_else(|| "null::timestamptz".to_owned());
        Columns {
            table: Relation::new(&self.table, &self.events).events,
            position: quote_identifier(&self.table.position),
            age: format!("extract(epoch from clock_timestamp() - ({time}))::float8"),
        }
    }

    /// Looks at the columns that built-in projectors read.
    async fn check_projector_columns(&mut self, client: &Client, wanted: &[Wanted]) -> Result<(), LogError> {
        // What was refused is asked again, so that it is seen when it has been put right.
        self.projector_columns.retain(|_, wrong| wrong.is_none());
        for columns in wanted.iter().filter_map(|wanted| wanted.question.projector_columns.as_ref()) {
            if self.projector_columns.contains_key(columns) {
                continue;
            }
            let wrong = match check_event_columns(client, columns, &self.events).await {
                Ok(_) => None,
                Err(error @ LogError::Unsuitable { .. }) => Some(self.log_failed(&error)),
                Err(error) => return Err(error),
            };
            self.projector_columns.insert(columns.clone(), wrong);
        }
        Ok(())
    }

    fn unsuitable_for(&self, wanted: &Wanted) -> Option<MeasureError> {
        let columns = wanted.question.projector_columns.as_ref()?;
        self.projector_columns.get(columns).cloned().flatten()
    }

    fn log_failed(&self, error: &LogError) -> MeasureError {
        self.explained(MeasureError { reason: error.reason(), message: error.to_string() })
    }

    fn statement_failed(&self, error: &Error) -> MeasureError {
        let (reason, message) = classify(error);
        self.explained(MeasureError { reason, message: format!("event table {}: {message}", self.table.table) })
    }

    /// Says what is expected, where a library's table is not as it makes it.
    fn explained(&self, MeasureError { reason, message }: MeasureError) -> MeasureError {
        let missing = [Reason::TableNotFound, Reason::ColumnNotFound].contains(&reason);
        match self.expected.as_ref().filter(|_| missing) {
            Some(expected) => MeasureError { reason, message: format!("{message}. {expected}") },
            None => MeasureError { reason, message },
        }
    }
}

/// The furthest of several rows, where the lowest stands for all.
fn highest_of_several(wanted: &Wanted) -> Option<Position> {
    wanted.checkpoint.state.highest().filter(|_| wanted.checkpoint.bound.is_some())
}

/// What people should know although measuring works.
fn notes(pooled: bool, cut: bool) -> Vec<Note> {
    let pooled = pooled.then_some(Note::PooledConnection);
    pooled.into_iter().chain(cut.then(|| Note::Estimated(CUT.into()))).collect()
}

/// What is told of one projection's events.
struct Told {
    pending: Pending,
    by_shard: Vec<u64>,
    /// No event at or below this position waits, where shards are told apart.
    handled_up_to: Option<Position>,
    held_back: u64,
    /// What of it waits for certain, where it is not exact.
    certain: Option<Certain>,
    staleness: Option<Duration>,
    ahead_of_clock: Duration,
}

/// Where the safe head is not known, since a transaction has been writing since before the first look: the position that some projection has
/// come to stands for it, so that all beyond it counts as held back.
fn vouched_for(wanted: &[Wanted], head: Position) -> Position {
    let reached = wanted.iter().filter_map(|wanted| wanted.checkpoint.state.lowest());
    reached.filter(|position| *position <= head).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_again_soon_only_for_a_while() {
        let mut table = Table::new(EventTable::default(), EventRows::All, None);
        assert!(!table.is_settling());
        table.settling = 1;
        assert!(table.is_settling());
        table.settling = SOON_POLLS + 1;
        assert!(!table.is_settling());
    }
}
