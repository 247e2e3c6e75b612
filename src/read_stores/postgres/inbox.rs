//! What workers of the built-in projector have written into the inbox of a queue about messages that they cannot handle.

use std::collections::HashMap;

use tokio_postgres::{Error, types::Type};

use super::{LONGEST_FAILURE, MOST_FAILED, tables::InTable};
use crate::{
    api::{InboxLocation, Reason},
    clients::postgres::{Live, Query, classify, quote_table},
    lag::{CheckpointState, FailedEvent},
    measure::MeasureError,
    read_stores::Checkpoint,
};

type Answers = super::tables::Answers<InboxLocation>;

/// A failure that no worker has repeated for this long is no longer one: the message was removed from the queue, or no worker runs. Workers try again after
/// 15 s at most.
const FORGOTTEN_AFTER: &str = "2 minutes";

impl InTable for InboxLocation {
    type Table = String;

    const PURPOSE: &'static str = "inboxes";

    fn table(&self) -> String {
        self.table.clone()
    }

    async fn read(live: &Live, table: &String, asked: &[&Self]) -> Result<Answers, MeasureError> {
        let failed = live.reading(failed_events(live, table, asked)).await.and_then(|failed| failed);
        let mut failed = match failed {
            Ok(failed) => failed,
            Err(error) => match refused(table, &error) {
                // The workers make it when they start.
                MeasureError { reason: Reason::TableNotFound, .. } => HashMap::new(),
                unknown => return Err(unknown),
            },
        };
        let mut checkpoint = |location: &Self| {
            let failed = failed.remove(&location.projection).unwrap_or_default();
            Checkpoint { failed, ..Checkpoint::plain(CheckpointState::NeverCommitted) }
        };
        Ok(asked.iter().map(|location| ((*location).clone(), Ok(checkpoint(location)))).collect())
    }
}

async fn failed_events(
    live: &Live,
    table: &str,
    asked: &[&InboxLocation],
) -> Result<HashMap<String, Vec<FailedEvent>>, Error> {
    let names: Vec<&str> = asked.iter().map(|location| location.projection.as_str()).collect();
    let sql = format!(
        "select f.projection, f.failure
         from (select projection, message, left(failure, {LONGEST_FAILURE}) as failure,
                   row_number() over (partition by projection order by message) as n
               from {} where projection = any($1::text[]) and failure is not null
                   and handled_at > now() - interval '{FORGOTTEN_AFTER}') f
         where f.n <= {MOST_FAILED} order by f.projection, f.message",
        quote_table(table)
    );
    let mut failed: HashMap<String, Vec<FailedEvent>> = HashMap::new();
    for row in Query::new(sql, &[Type::TEXT_ARRAY]).rows(&live.session.client, &[&names]).await? {
        let event = FailedEvent { shard: 0, part: None, position: None, why: row.try_get(1)? };
        failed.entry(row.try_get(0)?).or_default().push(event);
    }
    Ok(failed)
}

fn refused(table: &str, error: &Error) -> MeasureError {
    let (reason, message) = classify(error);
    MeasureError { reason, message: format!("inbox table {table}: {message}") }
}
