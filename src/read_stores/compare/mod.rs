//! Asks two versions of a read model the same, at a moment at which both have handled the same events.
//!
//! Workers commit their effects together with how far they have come, so that a transaction that sees one moment sees both read models as they were at the positions
//! that it sees. Only where these are the same are the answers compared; else the next moment is tried, and then the new version is held, where its workers heed that.

mod hold;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::{Client, Error, error::SqlState};

use super::{Checkpoint, postgres};
use crate::{
    api::Reason,
    clients::postgres::{Database, Live, Query, UsersQuery, classify, quote_identifier},
    lag::CheckpointState,
    measure::MeasureError,
    rebuild::{Answer, Cell, Compared, Comparison, Side, apart, difference},
};

/// A moment is looked for in this part of the time; the rest is for asking both.
const LOOK_FOR: u32 = 6;
/// Where the new version can be held, it is looked for no longer than this.
const LOOK_BEFORE_HOLD: Duration = Duration::from_secs(3);
/// The time between two tries.
const BETWEEN: Duration = Duration::from_millis(100);
/// More rows are not compared.
const MOST_ROWS: usize = 5_000;
/// Nor more values.
const MOST_CELLS: usize = 20_000;
/// Nor longer ones.
const LONGEST: usize = 200;

/// Compares, on a connection of its own.
///
/// # Errors
/// Why they cannot be compared: the query or its answer is not as it must be, or the server does not answer.
pub(super) async fn compare(database: &Database, of: &Comparison, by: Instant) -> Result<Compared, MeasureError> {
    let query = UsersQuery::read(&of.query).map_err(|why| refused(Reason::InvalidSpec, why))?;
    let may_hold = hold::may_hold(of);
    let look_for = by.saturating_duration_since(Instant::now()) / LOOK_FOR;
    let until = Instant::now() + if may_hold { look_for.min(LOOK_BEFORE_HOLD) } else { look_for };
    loop {
        match ask(database, of, &query, Question::Both, by).await? {
            Told::Both { live, candidate } => {
                return Ok(difference(of, &live, &candidate).map_or(Compared::Same, Compared::Differs));
            }
            _ if Instant::now() < until => sleep(BETWEEN).await,
            _ if may_hold => return hold::compare_held(database, of, &query, by).await,
            Told::Apart { why, .. } => return Ok(Compared::NeverAtOnePosition(why)),
            Told::Live { .. } | Told::Candidate { .. } => {}
        }
    }
}

/// What is to be told of one moment.
#[derive(Clone, Copy)]
enum Question<'a> {
    /// Only how far both have come.
    Positions,
    /// The answers of both, where they have handled the same.
    Both,
    /// That of the version that readers see, where it has come as far as the other in each shard, or further.
    Live,
    /// That of the other, where it has come just as far in each shard.
    Candidate(&'a [i64]),
}

/// What one moment told.
enum Told {
    /// It is not the moment that was asked for: where the new version was, and how far apart both were.
    Apart {
        candidate: Vec<i64>,
        why: String,
    },
    Both {
        live: Answer,
        candidate: Answer,
    },
    Live {
        at: Vec<i64>,
        answer: Answer,
    },
    Candidate {
        answer: Answer,
    },
}

async fn ask(
    database: &Database,
    of: &Comparison,
    query: &UsersQuery,
    question: Question<'_>,
    by: Instant,
) -> Result<Told, MeasureError> {
    let lease = database.lease(by).await?;
    let told = timeout_at(by, lease.live.reading_one_moment(at_one_moment(&lease.live, of, query, question))).await;
    let Ok(told) = told else {
        lease.abandon().await;
        return Err(database.timed_out());
    };
    let told = told.map_err(|error| database.failed(&error))?;
    lease.give_back();
    told
}

async fn at_one_moment(
    live: &Live,
    of: &Comparison,
    query: &UsersQuery,
    question: Question<'_>,
) -> Result<Told, MeasureError> {
    let client = &live.session.client;
    let before = postgres::checkpoint(client, &of.live.checkpoint).await?;
    let after = postgres::checkpoint(client, &of.candidate.checkpoint).await?;
    let (old, new) = (positions(&before), positions(&after));
    let bound = before.bound.is_some() || after.bound.is_some();
    let apart = apart((&old, before.shards.as_deref()), (&new, after.shards.as_deref()), bound);
    let is_the_moment = match question {
        Question::Positions => false,
        Question::Both => apart.is_none(),
        Question::Live => {
            !old.is_empty() && old.len() == new.len() && old.iter().zip(&new).all(|(old, new)| old >= new)
        }
        Question::Candidate(at) => new == at,
    };
    if !is_the_moment {
        let why = apart.unwrap_or_else(|| "they were not where they had to be".to_owned());
        return Ok(Told::Apart { candidate: new, why });
    }
    if let Some(why) = query.effects(client).await.map_err(|error| failed(&error, None))? {
        return Err(refused(Reason::InvalidSpec, &why));
    }
    Ok(match question {
        Question::Positions | Question::Both => Told::Both {
            live: answer(client, &of.live, query).await?,
            candidate: answer(client, &of.candidate, query).await?,
        },
        Question::Live => Told::Live { at: old, answer: answer(client, &of.live, query).await? },
        Question::Candidate(_) => Told::Candidate { answer: answer(client, &of.candidate, query).await? },
    })
}

fn positions(checkpoint: &Checkpoint) -> Vec<i64> {
    match &checkpoint.state {
        CheckpointState::Committed(positions) => positions.iter().map(|position| position.0).collect(),
        _ => Vec::new(),
    }
}

async fn answer(client: &Client, side: &Side, query: &UsersQuery) -> Result<Answer, MeasureError> {
    let failed = |error: &Error| failed(error, Some(side));
    let path = format!("set local search_path = {}", quote_identifier(&side.schema));
    client.batch_execute(&path).await.map_err(|error| failed(&error))?;
    // Each value for itself, so that a long row is no long text. A row without other columns has one line without a value.
    let statement = format!(
        "select r.n, r.j operator(pg_catalog.?) 'key', pg_catalog.left(r.j operator(pg_catalog.->>) 'key', {long}), e.key,
             pg_catalog.left(e.value::text, {long}), pg_catalog.jsonb_typeof(e.value) = 'number',
             r.named operator(pg_catalog.>) (select pg_catalog.count(*) from pg_catalog.jsonb_object_keys(r.j))
         from (
             select pg_catalog.to_jsonb(q) as j, pg_catalog.row_number() over () as n,
                 (select pg_catalog.count(*) from pg_catalog.json_object_keys(pg_catalog.row_to_json(q))) as named
             from (\n{sql}\n) q limit {rows}
         ) r left join lateral pg_catalog.jsonb_each(r.j operator(pg_catalog.-) 'key'::text) e on true limit {cells}",
        long = LONGEST + 1,
        sql = query.sql,
        rows = MOST_ROWS + 1,
        cells = MOST_CELLS + 1,
    );
    let rows = Query::new(statement, &[]).rows(client, &[]).await.map_err(|error| failed(&error))?;
    if rows.len() > MOST_CELLS {
        return Err(invalid("it gave more than 20,000 values, too many to compare: sum them up"));
    }
    let mut all = Answer::default();
    let mut last = None;
    for row in &rows {
        let number: i64 = row.try_get(0).map_err(|error| failed(&error))?;
        let has_key: bool = row.try_get(1).map_err(|error| failed(&error))?;
        let key: Option<String> = row.try_get(2).map_err(|error| failed(&error))?;
        let column: Option<String> = row.try_get(3).map_err(|error| failed(&error))?;
        let text: Option<String> = row.try_get(4).map_err(|error| failed(&error))?;
        let is_number: Option<bool> = row.try_get(5).map_err(|error| failed(&error))?;
        let repeats: bool = row.try_get(6).map_err(|error| failed(&error))?;
        if repeats {
            return Err(invalid("it gave two columns of one name: give each a name of its own (select … as …)"));
        }
        if has_key && key.is_none() {
            return Err(invalid("it gave a row whose key is NULL: select coalesce(…) as key"));
        }
        let key = key.filter(|_| has_key);
        if [&key, &text].into_iter().flatten().any(|text| text.chars().count() > LONGEST) {
            return Err(invalid("it gave a value longer than 200 characters: select md5(…) of long texts"));
        }
        if last != Some(number) && all.0.contains_key(&key) {
            return Err(invalid(match key {
                Some(_) => "it gave several rows of one key: group by what it selects as key",
                None => "it gave several rows and no column key: select … as key, by which rows are compared",
            }));
        }
        last = Some(number);
        let cells = all.0.entry(key).or_default();
        if let (Some(column), Some(text)) = (column, text) {
            cells.insert(column, Cell { text, is_number: is_number == Some(true) });
        }
    }
    if all.0.len() > MOST_ROWS {
        return Err(invalid(
            "it gave more than 5,000 rows, too many to compare: group them, such as by a hash of their key",
        ));
    }
    Ok(all)
}

/// `side`: the version that was asked.
fn failed(error: &Error, side: Option<&Side>) -> MeasureError {
    let (reason, message) = classify(error);
    let wrong = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::SYNTAX_ERROR,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_FUNCTION,
    ];
    let reason = if error.code().is_some_and(|code| wrong.contains(code)) { Reason::InvalidSpec } else { reason };
    let of = side.map_or_else(String::new, |side| format!("asked of version {}: ", side.version));
    refused(reason, &format!("{of}{message}"))
}

fn invalid(why: &str) -> MeasureError {
    refused(Reason::InvalidAnswer, why)
}

fn refused(reason: Reason, message: &str) -> MeasureError {
    MeasureError { reason, message: format!("spec.rollout.promote.parity.query: {message}") }
}
