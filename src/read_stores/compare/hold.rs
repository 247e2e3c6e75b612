//! Lets a new version wait where the other one was, so that two versions come to one position also under a load that never pauses.
//!
//! The one that readers see goes on: it is asked at a moment at which it has come as far as the new one or further, and the new one is let on to just that position in each
//! shard, and is asked there. Workers of the built-in projector heed `hold_at` in their table; those that do not are found to have gone on, and nothing is compared. A hold ends by
//! itself, so that an operator that is gone holds nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::{Client, Error, types::Type};

use super::{Question, Told, ask, failed};
use crate::{
    api::{CheckpointRows, TableLocation},
    clients::postgres::{Database, Query, UsersQuery, quote_identifier, quote_table},
    measure::MeasureError,
    rebuild::{Compared, Comparison, difference},
};

/// A hold that is not renewed ends after this, in seconds: it is longer than one statement of the user's may take.
const HOLDS_FOR: u32 = 60;
/// Workers look at their table every second. One whose shards stand for this long has heard that they are held.
const STILL: Duration = Duration::from_secs(3);
/// So long is waited for workers to stop, for the other version to come as far, and for them to come where that was.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time between two looks.
const BETWEEN: Duration = Duration::from_millis(200);
/// A hold is written within this time.
const WRITE: Duration = Duration::from_secs(5);

/// Whether the workers of the new version heed a hold, and its shards are those of the other.
pub(super) fn may_hold(of: &Comparison) -> bool {
    matches!(of.candidate.checkpoint.rows, CheckpointRows::Numbered(_))
        && of.candidate.checkpoint.rows == of.live.checkpoint.rows
}

/// Compares under a hold, which has ended then.
///
/// # Errors
/// As without a hold.
pub(super) async fn compare_held(
    database: &Database,
    of: &Comparison,
    query: &UsersQuery,
    by: Instant,
) -> Result<Compared, MeasureError> {
    let compared = under_hold(database, of, query, by).await;
    if let Err(why) = hold(database, &of.candidate.checkpoint, At::Nowhere).await {
        tracing::warn!(version = &*of.candidate.version, "a hold was not ended, and ends by itself: {}", why.message);
    }
    compared
}

async fn under_hold(
    database: &Database,
    of: &Comparison,
    query: &UsersQuery,
    by: Instant,
) -> Result<Compared, MeasureError> {
    let held = &of.candidate.checkpoint;
    hold(database, held, At::WhereItIs).await?;
    let (began, mut still) = (Instant::now(), (Vec::new(), Instant::now()));
    while still.1.elapsed() < STILL {
        if began.elapsed() > PATIENCE {
            return Ok(Compared::NeverAtOnePosition(format!("the workers of {} did not wait", of.candidate.version)));
        }
        if let Told::Apart { candidate, .. } = ask(database, of, query, Question::Positions, by).await?
            && candidate != still.0
        {
            still = (candidate, Instant::now());
        }
        sleep(BETWEEN).await;
    }
    // For as long again.
    hold(database, held, At::These(&still.0)).await?;
    let began = Instant::now();
    let (at, live) = loop {
        match ask(database, of, query, Question::Live, by).await? {
            Told::Live { at, answer } => break (at, answer),
            Told::Apart { why, .. } if began.elapsed() > PATIENCE => return Ok(Compared::NeverAtOnePosition(why)),
            _ => sleep(BETWEEN).await,
        }
    };
    hold(database, held, At::These(&at)).await?;
    let began = Instant::now();
    loop {
        match ask(database, of, query, Question::Candidate(&at), by).await? {
            Told::Candidate { answer } => {
                return Ok(difference(of, &live, &answer).map_or(Compared::Same, Compared::Differs));
            }
            Told::Apart { candidate, .. } if candidate.iter().zip(&at).any(|(its, at)| its > at) => {
                let version = &of.candidate.version;
                return Ok(Compared::NeverAtOnePosition(format!(
                    "the workers of {version} went on although they were to wait"
                )));
            }
            Told::Apart { why, .. } if began.elapsed() > PATIENCE => return Ok(Compared::NeverAtOnePosition(why)),
            _ => sleep(BETWEEN).await,
        }
    }
}

/// Where workers are to wait.
enum At<'a> {
    WhereItIs,
    /// By shard.
    These(&'a [i64]),
    Nowhere,
}

async fn hold(database: &Database, of: &TableLocation, at: At<'_>) -> Result<(), MeasureError> {
    let by = Instant::now() + WRITE;
    let lease = database.lease(by).await?;
    let Ok(written) = timeout_at(by, write(&lease.live.session.client, of, at)).await else {
        lease.abandon().await;
        return Err(database.timed_out());
    };
    // What failed has left a transaction open: the connection is closed with the lease.
    written.map_err(|error| failed(&error, None))?;
    lease.give_back();
    Ok(())
}

async fn write(client: &Client, of: &TableLocation, at: At<'_>) -> Result<(), Error> {
    let table = quote_table(&of.table);
    let (name, position) = (quote_identifier(&of.name_column), quote_identifier(&of.position_column));
    let positions: Vec<i64> = match at {
        At::These(positions) => positions.to_vec(),
        At::WhereItIs | At::Nowhere => Vec::new(),
    };
    let place = match at {
        At::WhereItIs => format!("c.{position}"),
        At::These(_) => "($2::bigint[])[c.shard + 1]".to_owned(),
        At::Nowhere => "null::bigint".to_owned(),
    };
    // Workers lock what they commit; in one order, so that there is no deadlock.
    let statement = format!(
        "update {table} c set hold_at = {place},
             hold_until = case when $2::bigint[] is not null and {place} is not null then pg_catalog.clock_timestamp() + interval '{HOLDS_FOR} seconds' end
         from (select shard from {table} where {name} = $1 order by shard for update) l
         where c.{name} = $1 and c.shard = l.shard"
    );
    client.batch_execute("begin read write; set local lock_timeout = 2000").await?;
    Query::new(statement, &[Type::TEXT, Type::INT8_ARRAY]).execute(client, &[&of.name, &positions]).await?;
    client.batch_execute("commit").await
}
