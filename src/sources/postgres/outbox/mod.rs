//! Outboxes: how many rows wait to be sent, and since when. One statement a poll for each, whatever the number of Projections.
//!
//! Rows that wait are counted up to [`MOST_COUNTED`]. Of more the number is a lower bound, by which no rate is learnt: a count that ends at a limit looks like
//! workers that send just as much as comes.

mod checks;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_postgres::{Client, Error, Row, types::Type};

use super::{
    Answer, Question,
    columns::TRUST_CHECKS_FOR,
    counting::Oldest,
    flow::{Counter, Flow},
};
use crate::{
    api::{Outbox as Spec, Reason},
    clients::postgres::{Live, Query, classify, quote_identifier},
    lag::{Certain, CheckpointState, EventFaults, Head, Note, Pending, Sample},
    measure::MeasureError,
    sources::Target,
};
pub(crate) use checks::{Checked, check, check_visible};

/// More rows are not counted, so that a poll takes no longer however many wait.
const MOST_COUNTED: u64 = 1_000_000;
/// What is told where more wait.
const CUT: &str = "more than 1,000,000 rows wait, which are counted up to that number: their age and what workers do are known again when fewer wait";

/// What is remembered of an outbox from poll to poll.
pub(super) struct Outbox {
    spec: Arc<Spec>,
    /// The table as it was found to be, and when: what the server said is asked again.
    checked: Option<(Instant, Checked)>,
    /// The table's identity and its file's: others after it was made again or truncated.
    table: Option<(u32, u32)>,
    flow: Flow,
    inserted: Counter,
    highest: Option<i64>,
    /// Rows that came while more waited than are counted.
    uncounted: u64,
}

/// One look.
struct OutboxState {
    table: (u32, u32),
    row_security: bool,
    waiting: u64,
    oldest: Oldest,
    /// The server's counter of inserted rows.
    inserted: u64,
    /// Rows beyond the highest position that was seen before, and the highest now.
    beyond: u64,
    highest: Option<i64>,
}

impl Outbox {
    /// An outbox that was not looked at yet.
    pub(super) fn new(spec: &Arc<Spec>) -> Self {
        Self {
            spec: Arc::clone(spec),
            checked: None,
            table: None,
            flow: Flow::default(),
            inserted: Counter::default(),
            highest: None,
            uncounted: 0,
        }
    }

    /// What the server said of the table is asked again.
    pub(super) fn distrust(&mut self) {
        self.checked = None;
    }

    /// The same answer for each projection.
    ///
    /// # Errors
    /// Why what waits is not known.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        targets: &[Target<Question>],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        let looked = live.reading(self.look(&live.session.client)).await;
        let look = looked.unwrap_or_else(|error| Err(self.failed(&error)))?;
        let at = started.elapsed();
        self.take(&look);
        let cut = look.is_cut();
        // The oldest row may be among those that were not looked at.
        let oldest = if cut { Oldest::Unknown } else { look.oldest };
        let (staleness, ahead_of_clock) = oldest.after(Duration::ZERO);
        let Flow { arrived, handled, .. } = self.flow;
        let pending = Some(Pending { events: look.waiting.min(MOST_COUNTED), exact: !cut });
        let sample = Sample {
            taken: jiff::Timestamp::now(),
            staleness,
            ahead_of_clock,
            certain: cut.then_some(Certain::AtLeast(MOST_COUNTED)),
            ..Sample::new(at, Head::Unnumbered, CheckpointState::Handled(handled), pending, arrived)
        };
        let answer = |Target { ask, checkpoint }: &Target<Question>| {
            let unheard = ask.question.notify_channel().is_some() && !live.session.ours_alone;
            let cut = cut.then(|| Note::Estimated(CUT.into()));
            let notes = unheard.then_some(Note::PooledConnection).into_iter().chain(cut).collect();
            // The table tells nothing of rows that the built-in projector could not handle.
            let failed = checkpoint.as_ref().map(|checkpoint| checkpoint.failed.clone()).unwrap_or_default();
            let faults = EventFaults { failed, ..EventFaults::default() };
            (Arc::clone(ask), Ok(Sample { notes, faults, ..sample.clone() }))
        };
        Ok(targets.iter().map(answer).collect())
    }

    async fn look(&mut self, client: &Client) -> Result<OutboxState, MeasureError> {
        let checked = self.checked(client).await?;
        let statement = statement(&self.spec, &checked);
        let statement = Query::new(statement, &[Type::TEXT, Type::INT8]);
        let row = statement.row(client, &[&checked.table, &self.highest]).await;
        let look = row.and_then(|row| OutboxState::read(&row)).map_err(|error| self.failed(&error))?;
        if look.row_security {
            check_visible(client, &self.spec, &checked.table).await?;
        }
        Ok(look)
    }

    async fn checked(&mut self, client: &Client) -> Result<Checked, MeasureError> {
        if let Some((at, checked)) = &self.checked
            && at.elapsed() < TRUST_CHECKS_FOR
        {
            return Ok(checked.clone());
        }
        let checked = check(client, &self.spec).await?;
        self.checked = Some((Instant::now(), checked.clone()));
        Ok(checked)
    }

    fn take(&mut self, look: &OutboxState) {
        if self.table.is_some_and(|before| before != look.table) {
            // Rows that went with the table were not sent.
            (self.flow, self.inserted, self.highest, self.uncounted) = (Flow::default(), Counter::default(), None, 0);
        }
        self.table = Some(look.table);
        let inserted = self.inserted.growth(look.inserted);
        let came = match (&self.spec.filter, self.highest) {
            (None, _) => inserted,
            (Some(_), Some(_)) => look.beyond,
            (Some(_), None) => 0,
        };
        self.uncounted = self.uncounted.saturating_add(came);
        if !look.is_cut() {
            self.flow.take(look.waiting, std::mem::take(&mut self.uncounted), 0);
        }
        // Rows that were sent may have been deleted; their positions do not come again.
        self.highest = self.highest.max(look.highest);
    }

    fn failed(&self, error: &Error) -> MeasureError {
        let (reason, message) = classify(error);
        let advice = if reason == Reason::TimedOut {
            "; for an outbox, a partial index on the rows that wait helps: create index on … (…) where … is null"
        } else {
            ""
        };
        refused(&self.spec, reason, &format!("{message}{advice}"))
    }
}

impl OutboxState {
    fn is_cut(&self) -> bool {
        self.waiting > MOST_COUNTED
    }

    fn read(row: &Row) -> Result<Self, Error> {
        let unsigned = |count: Option<i64>| u64::try_from(count.unwrap_or(0)).unwrap_or(0);
        let (waiting, untimed): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
        let age: Option<f64> = row.try_get(5)?;
        Ok(Self {
            table: (row.try_get(0)?, row.try_get(1)?),
            row_security: row.try_get(2)?,
            waiting: unsigned(Some(waiting)),
            oldest: match (waiting, untimed, age) {
                (0, ..) => Oldest::None,
                // One without a time may be the oldest.
                (_, 0, Some(age)) => Oldest::Age(age),
                _ => Oldest::Unknown,
            },
            inserted: unsigned(row.try_get(6)?),
            beyond: unsigned(row.try_get(7)?),
            highest: row.try_get(8)?,
        })
    }
}

/// One snapshot of everything. `$1`: the table's name; `$2`: the highest position that was seen before.
fn statement(spec: &Spec, checked: &Checked) -> String {
    let Checked { table, time, waits, mine, .. } = checked;
    let position = spec.position.as_deref().filter(|_| spec.filter.is_some()).map(quote_identifier);
    let positions = position.map_or_else(
        || "null::bigint, null::bigint".to_owned(),
        |position| {
            format!(
                "(select count(*) from {table} where {position} > $2 and {mine}), (select max({position})::bigint from {table})"
            )
        },
    );
    format!(
        "select t.oid, coalesce(pg_catalog.pg_relation_filenode(t.oid), 0::oid), pg_catalog.row_security_active(t.oid),
             w.waiting, w.waiting - w.timed, extract(epoch from pg_catalog.clock_timestamp() - w.oldest)::float8,
             (select sum(pg_catalog.pg_stat_get_tuples_inserted(p.oid))::bigint
              from (select t.oid union select relid from pg_catalog.pg_partition_tree(t.oid)) p(oid)),
             {positions}
         from (select cast($1::text as regclass)::oid as oid, $2::bigint as seen) t,
             (select count(*) as waiting, count(s.time) as timed, min(s.time) as oldest
              from (select {time} as time from {table} where {waits} and {mine} limit {MOST_COUNTED} + 1) s) w"
    )
}

fn refused(spec: &Spec, reason: Reason, message: &str) -> MeasureError {
    MeasureError { reason, message: format!("outbox {}: {message}", spec.table) }
}
