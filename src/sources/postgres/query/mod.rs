//! The user's own SQL: one row that says what waits. Projections with the same query share one statement a poll.
//!
//! It is sent as a part of one statement of ours, by the protocol that takes one statement at a time, in a read-only transaction with the limits of time of
//! all statements, and rolled back: what it may set or notify is undone. The server sends two rows at most, of a bounded length.

mod answer;

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_postgres::{Client, Error, error::SqlState};

use super::{
    Answer as Answers, AskRef,
    columns::TRUST_CHECKS_FOR,
    counting::Oldest,
    flow::{Counter, Flow},
};
use crate::{
    api::Reason,
    clients::postgres::{Live, Query, UsersQuery, classify},
    lag::{Certain, CheckpointState, Head, Note, Pending, Position, Sample},
    measure::MeasureError,
};
use answer::Answer;

/// A row of numbers and times is far shorter.
const LONGEST_ROW: i32 = 8_000;

/// What is remembered of a query from poll to poll.
pub(super) struct SqlProbe {
    sql: String,
    /// When the functions that it calls were found to be harmless.
    checked: Option<Instant>,
    flow: Flow,
    arrived: Counter,
    handled: Counter,
    head: Option<Position>,
}

impl SqlProbe {
    /// A query that was not run yet.
    pub(super) fn new(sql: String) -> Self {
        Self {
            sql,
            checked: None,
            flow: Flow::default(),
            arrived: Counter::default(),
            handled: Counter::default(),
            head: None,
        }
    }

    /// What was found of its functions is asked again.
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
        asks: &[AskRef],
        started: std::time::Instant,
    ) -> Result<Vec<Answers>, MeasureError> {
        let query = UsersQuery::read(&self.sql)
            .map_err(|why| refused(Reason::InvalidSpec, &format!("spec.source.postgres.query.sql: {why}")))?;
        let ran = live.reading_and_undoing(self.run(&live.session.client, &query)).await;
        let answer = ran.unwrap_or_else(|error| Err(failed(&error)))?;
        let at = started.elapsed();
        let sample = self.sample(&answer, at);
        Ok(asks
            .iter()
            .map(|ask| {
                let unheard = ask.question.notify_channel().is_some() && !live.session.ours_alone;
                let notes = unheard.then_some(Note::PooledConnection).into_iter().collect();
                (Arc::clone(ask), Ok(Sample { notes, ..sample.clone() }))
            })
            .collect())
    }

    async fn run(&mut self, client: &Client, query: &UsersQuery) -> Result<Answer, MeasureError> {
        if self.checked.is_none_or(|at| at.elapsed() >= TRUST_CHECKS_FOR) {
            check_functions(client, query).await?;
            self.checked = Some(Instant::now());
        }
        // A comment at the end of the query ends with its line.
        let statement = format!(
            "select pg_catalog.left(pg_catalog.to_jsonb(q)::text, {}), extract(epoch from pg_catalog.clock_timestamp())::float8 from (\n{}\n) q limit 2",
            LONGEST_ROW + 1,
            query.sql
        );
        let rows = Query::new(statement, &[]).rows(client, &[]).await.map_err(|error| failed(&error))?;
        let wrong = |what: &str| Err(refused(Reason::InvalidAnswer, what));
        let row = match rows.as_slice() {
            [row] => row,
            [] => return wrong("it gave no row, and must give exactly one: an aggregate such as count(*) always does"),
            _ => return wrong("it gave more than one row, and must give exactly one: sum them up"),
        };
        let cells = row.try_get::<_, Option<String>>(0).and_then(|text| Ok((text, row.try_get::<_, f64>(1)?)));
        let (text, now) = cells.map_err(|error| failed(&error))?;
        let text = text.unwrap_or_default();
        if text.len() > usize::try_from(LONGEST_ROW).unwrap_or_default() {
            return wrong("its row is too long: select numbers and times only");
        }
        let row: Map<String, Value> = match serde_json::from_str(&text) {
            Ok(row) => row,
            Err(_) => return wrong("its row cannot be read"),
        };
        answer::read(&row, now).map_err(|unknown| refused(unknown.reason, &unknown.message))
    }

    fn sample(&mut self, answer: &Answer, at: Duration) -> Sample {
        if self.head.zip(answer.head).is_some_and(|(before, now)| now < before) {
            // The log was emptied or restored: what is gone was not handled.
            (self.flow, self.arrived, self.handled, self.head) =
                (Flow::default(), Counter::default(), Counter::default(), None);
        }
        let by_head = self.head.zip(answer.head).map(|(before, now)| now.0.abs_diff(before.0));
        let came = answer.arrived.map(|now| self.arrived.growth(now)).or(by_head).unwrap_or(0);
        let left = answer.handled.map_or(0, |now| self.handled.growth(now));
        self.head = answer.head.or(self.head);
        self.flow.take(answer.pending, came, left);
        let Flow { arrived, handled, .. } = self.flow;
        let (head, checkpoint) = match (answer.head, answer.checkpoint) {
            (Some(head), Some(Some(checkpoint))) => {
                (Head::log(head, head), CheckpointState::Committed(vec![checkpoint]))
            }
            (Some(head), Some(None)) => (Head::log(head, head), CheckpointState::NeverCommitted),
            _ => (Head::Unnumbered, CheckpointState::Handled(handled)),
        };
        let never = checkpoint == CheckpointState::NeverCommitted;
        let pending = (!never).then_some(Pending { events: answer.pending, exact: answer.exact });
        let (staleness, ahead_of_clock) = answer.oldest.after(Duration::ZERO);
        Sample {
            taken: jiff::Timestamp::now(),
            staleness: staleness.filter(|_| !never),
            ahead_of_clock,
            upper_bound: (!never && !answer.exact).then(|| Arc::from(DISTANCE)),
            // Positions that no event has look as if one waited; the age of the oldest is that of an event.
            certain: (!never && !answer.exact && matches!(answer.oldest, Oldest::Age(_))).then_some(Certain::Oldest(1)),
            ..Sample::new(at, head, checkpoint, pending, arrived)
        }
    }
}

/// Why the number is a bound, for people.
const DISTANCE: &str = "the query tells the distance between the columns head and checkpoint, and positions may have gaps: add a column pending that counts the events which wait, or oldest with the time of the oldest of them, without which none is known to wait";

async fn check_functions(client: &Client, query: &UsersQuery) -> Result<(), MeasureError> {
    match query.effects(client).await.map_err(|error| failed(&error))? {
        None => Ok(()),
        Some(why) => Err(refused(Reason::InvalidSpec, &format!("spec.source.postgres.query.sql: {why}"))),
    }
}

fn failed(error: &Error) -> MeasureError {
    let (reason, message) = classify(error);
    match error.code() {
        Some(code) if *code == SqlState::READ_ONLY_SQL_TRANSACTION || *code == SqlState::SYNTAX_ERROR => {
            refused(Reason::InvalidSpec, &format!("spec.source.postgres.query.sql: {message}"))
        }
        _ => refused(reason, &message),
    }
}

fn refused(reason: Reason, message: &str) -> MeasureError {
    MeasureError { reason, message: format!("query: {message}") }
}
