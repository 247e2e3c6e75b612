//! Handles events again that were parked and are marked for it, one a transaction.

use std::collections::BTreeMap;

use tokio::time::Instant;
use tokio_postgres::{Client, Error, Row};

use super::{
    super::{
        super::{
            super::{
                error::{ProjectorError, doing},
                event::{Event, JsonText},
                postgres_errors::{Failure, database_message, failure, fault_of_the_event},
            },
            Held, Replayed,
        },
        handlers::Handlers,
        roll_back,
    },
    LOOK_EVERY, Parking, statements,
};

/// What is being done, for messages.
const REPLAYING: &str = "read store: handling parked events again";

impl Parking {
    /// Handles the first marked event of these shards, if it is time to look for such.
    pub(in super::super) async fn replay(
        &mut self,
        client: &Client,
        (handlers, me): (&Handlers, &str),
        held: &BTreeMap<u32, Held>,
    ) -> Result<Replayed, ProjectorError> {
        if self.idle_since.is_some_and(|since| since.elapsed() < LOOK_EVERY) {
            return Ok(Replayed::Nothing);
        }
        self.idle_since = None;
        let marked = self.first_marked(client, held).await.map_err(doing(REPLAYING))?;
        let Some((event, place)) = marked else { return Ok(self.nothing()) };
        let Some(shard_held) = held.get(&event.shard).copied() else { return Ok(self.nothing()) };
        let shard = event.shard;
        let (why, class) = match self.handle(client, handlers, me, (&event, shard_held)).await {
            Ok(Handled::Done) => return Ok(Replayed::Handled { shard, place }),
            Ok(Handled::Lost) => return roll_back(client).await.map(|()| Replayed::Lost),
            // It was dropped meanwhile.
            Ok(Handled::Gone) => return roll_back(client).await.map(|()| self.nothing()),
            Ok(Handled::NoHandler) => ("its type has no handler now".to_owned(), None),
            Err(error) => match failure(&error) {
                Failure::Connection => return Err(doing(REPLAYING)(error)),
                // What may pass: it stays marked.
                Failure::Handler if lasts(&error) => {
                    (database_message(&error), error.code().map(|code| code.code().to_owned()))
                }
                _ => return roll_back(client).await.map(|()| self.nothing()),
            },
        };
        roll_back(client).await?;
        let kept = self.keep(client, me, (&event, shard_held), (&why, class.as_deref())).await;
        if kept.map_err(doing(REPLAYING))? { Ok(Replayed::Failed { shard, place, why }) } else { Ok(Replayed::Lost) }
    }

    /// There is nothing to do for a while.
    fn nothing(&mut self) -> Replayed {
        self.idle_since = Some(Instant::now());
        Replayed::Nothing
    }

    async fn first_marked(
        &mut self,
        client: &Client,
        held: &BTreeMap<u32, Held>,
    ) -> Result<Option<(Event, String)>, Error> {
        let shards: Vec<u32> = held.keys().copied().collect();
        if !self.load(client, &shards).await? {
            return Ok(None);
        }
        let find = statements::first_marked(&self.tables.parked);
        let row = client.query_opt(&find, &[&self.tables.projection, &super::signed(&shards)]).await?;
        row.as_ref().map(event).transpose()
    }

    /// Handles the event in a transaction, which is left open where it is not done.
    async fn handle(
        &self,
        client: &Client,
        handlers: &Handlers,
        me: &str,
        (event, held): (&Event, Held),
    ) -> Result<Handled, Error> {
        client.batch_execute("begin isolation level read committed").await?;
        if !self.tables.hold(client, me, event.shard, held).await? {
            return Ok(Handled::Lost);
        }
        let take_out = statements::take_out(&self.tables.parked);
        let shard = i32::try_from(event.shard).unwrap_or(i32::MAX);
        if client.execute(&take_out, &[&self.tables.projection, &shard, &event.position]).await? == 0 {
            return Ok(Handled::Gone);
        }
        let Some((statement, values)) = handlers.bind(event) else { return Ok(Handled::NoHandler) };
        client.execute_raw(statement, values).await?;
        client.batch_execute("commit").await?;
        Ok(Handled::Done)
    }

    /// Keeps an event that failed again, with why. Returns whether its shard is still this worker's.
    async fn keep(
        &self,
        client: &Client,
        me: &str,
        (event, held): (&Event, Held),
        (why, class): (&str, Option<&str>),
    ) -> Result<bool, Error> {
        client.batch_execute("begin isolation level read committed").await?;
        let is_ours = self.tables.hold(client, me, event.shard, held).await?;
        if is_ours {
            let keep = statements::keep(&self.tables.parked);
            let shard = i32::try_from(event.shard).unwrap_or(i32::MAX);
            client
                .execute(&keep, &[&self.tables.projection, &shard, &event.position, &event.stream, &why, &class])
                .await?;
        }
        client.batch_execute("commit").await?;
        Ok(is_ours)
    }
}

/// True for a failure that trying again does not mend: by the event's own fault, or by the handler's or the schema's (class 42).
fn lasts(error: &Error) -> bool {
    fault_of_the_event(error).is_some() || error.code().is_some_and(|code| code.code().starts_with("42"))
}

/// What came of an event in its transaction.
enum Handled {
    /// It is handled and no longer parked.
    Done,
    /// The shard belongs to another worker.
    Lost,
    /// It is no longer there to be handled.
    Gone,
    /// There is no handler for its type.
    NoHandler,
}

/// The event of a row of [`statements::first_marked`], and its place for people.
fn event(row: &Row) -> Result<(Event, String), Error> {
    let position: i64 = row.try_get(1)?;
    let event = Event {
        shard: u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or_default(),
        position,
        since: position,
        before: position,
        shown_position: row.try_get::<_, Option<i64>>(2)?.unwrap_or(position),
        behind_parked: None,
        stream: row.try_get(4)?,
        event_type: row.try_get(5)?,
        recorded_at: row.try_get(6)?,
        data: row.try_get::<_, Option<String>>(7)?.map(JsonText),
    };
    Ok((event, row.try_get(3)?))
}
