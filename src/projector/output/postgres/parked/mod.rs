//! Events that are set aside in the read store, in a table beside the checkpoint table: those that failed each time, and those behind them in their streams.
//!
//! A row comes in one transaction with the step of the checkpoint past its event, guarded by owner and fence as every step is, so that a crash loses no event
//! and sets none aside twice. It goes in one transaction with the effects of its event, or stays with the reason why it was dropped.

mod functions;
mod replay;
mod statements;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Error, Statement, types::ToSql};

use self::functions::{DROP, REPLAY};
use super::{
    super::super::{
        error::{ProjectorError, doing},
        event::Event,
        poison::Poison,
    },
    super::Poisoned,
    checkpoint::{Tables, signed},
};
use crate::api::OnPoison;

/// What is being done, for messages.
pub(super) const SETTING_ASIDE: &str = "read store: setting events aside in the table projectionist_parked";
/// How often to look whether events are to be handled again, or were dropped.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The lock that is held while events are parked is asked for so often, with this pause: another worker parks events, or someone drops them.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// What a worker knows of the events that are set aside.
pub(super) struct Parking {
    tables: Tables,
    poison: Poison,
    /// The streams of this worker's shards whose later events are to be parked as well.
    streams: HashMap<u32, HashSet<String>>,
    /// When there was nothing to handle again.
    idle_since: Option<Instant>,
}

/// How many events more may be parked, in a transaction that has begun for it.
pub(super) enum Room {
    For(u32),
    /// The lock could not be had.
    Busy,
}

impl Parking {
    /// Makes the table where events are to be set aside and it is missing. `None` where no event is and there is no table, or one that this role may not write:
    /// no event of its projection can be parked there then.
    pub(super) async fn open(client: &Client, tables: &Tables, poison: Poison) -> Result<Option<Self>, ProjectorError> {
        let failed = doing("read store: making the table projectionist_parked");
        let is_there = "select to_regclass($1::text) is not null";
        let find = async |what: &str| client.query_one(what, &[&tables.parked]).await?.try_get::<_, bool>(0);
        if poison.on_poison == OnPoison::Pause {
            if !find(is_there).await.map_err(&failed)? {
                return Ok(None);
            }
            if !find(statements::MAY_WRITE).await.map_err(&failed)? {
                tracing::warn!(
                    table = tables.parked,
                    "events are parked in this table, which this role may not read and write: no event of this Projection is looked for there"
                );
                return Ok(None);
            }
        } else {
            // Two workers that create the same table at once would both fail.
            client
                .batch_execute("begin; select pg_advisory_xact_lock(hashtextextended('projectionist tables', 0))")
                .await
                .map_err(&failed)?;
            if !find(is_there).await.map_err(&failed)? {
                client.batch_execute(&statements::definition(&tables.parked)).await.map_err(&failed)?;
            }
            for function in [&REPLAY, &DROP] {
                function.make(client, &tables.parked).await.map_err(&failed)?;
            }
            client.batch_execute("commit").await.map_err(&failed)?;
        }
        Ok(Some(Self { tables: tables.clone(), poison, streams: HashMap::new(), idle_since: None }))
    }

    /// Has the statement prepared that parks an event behind others.
    pub(super) async fn prepare(&self, client: &Client) -> Result<Statement, ProjectorError> {
        client.prepare(&statements::behind(&self.tables.parked)).await.map_err(doing(SETTING_ASIDE))
    }

    /// True for an event of a stream with parked events.
    pub(super) fn holds_stream_of(&self, event: &Event) -> bool {
        let parked = self.streams.get(&event.shard).zip(event.stream.as_ref());
        parked.is_some_and(|(streams, stream)| streams.contains(stream))
    }

    /// Notes that an event was set aside.
    pub(super) fn note(&mut self, Poisoned { shard, stream, .. }: &Poisoned<'_>) {
        if self.poison.on_poison == OnPoison::Park
            && self.poison.park_stream
            && let Some(stream) = stream
        {
            self.streams.entry(*shard).or_default().insert((*stream).to_owned());
        }
    }

    /// True where only so many may be set aside.
    pub(super) fn counts(&self) -> bool {
        self.poison.on_poison != OnPoison::Skip
    }

    /// Keeps an event that failed each time, in a transaction that has begun.
    pub(super) async fn insert(&self, client: &Client, poisoned: &Poisoned<'_>) -> Result<(), Error> {
        let Poisoned { shard, position, place, event, stream, reason, class, attempts, failing_for } = poisoned;
        let state = if self.poison.on_poison == OnPoison::Skip { "skipped" } else { "parked" };
        let shown_position = event.map(|event| event.shown_position);
        let event_type = event.map(|event| &event.event_type);
        let (recorded_at, data) = (
            event.and_then(|event| event.recorded_at),
            event.and_then(|event| event.data.as_ref()).map(|data| &data.0),
        );
        let values: [&(dyn ToSql + Sync); 14] = [
            &self.tables.projection,
            shard,
            position,
            &shown_position,
            place,
            stream,
            &event_type,
            &recorded_at,
            &data,
            &state,
            reason,
            class,
            attempts,
            &failing_for.as_secs_f64(),
        ];
        client.execute(&statements::set_aside(&self.tables.parked), &values).await.map(drop)
    }

    /// Reads which streams of these shards have parked events. Returns whether any event there is to be handled again.
    pub(super) async fn load(&mut self, client: &Client, shards: &[u32]) -> Result<bool, Error> {
        let rows = client
            .query(&statements::streams(&self.tables.parked), &[&self.tables.projection, &signed(shards)])
            .await?;
        self.streams.retain(|shard, _| !shards.contains(shard));
        let mut marked = false;
        for row in &rows {
            let shard = u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or_default();
            let stream: Option<String> = row.try_get(1)?;
            if let Some(stream) = stream.filter(|_| self.poison.park_stream)
                && row.try_get(2)?
            {
                self.streams.entry(shard).or_default().insert(stream);
            }
            marked |= row.try_get::<_, bool>(3)?;
        }
        Ok(marked)
    }

    /// Begins a transaction in which no one else parks or drops events of this projection, and counts.
    pub(super) async fn begin(&self, client: &Client) -> Result<Room, Error> {
        client.batch_execute("begin isolation level read committed").await?;
        let projection = &self.tables.projection;
        let lock = format!("select pg_try_advisory_xact_lock({})", statements::LOCK_KEY);
        let mut tries = 0;
        while !client.query_one(&lock, &[projection]).await?.try_get::<_, bool>(0)? {
            tries += 1;
            if tries == LOCK_TRIES {
                return Ok(Room::Busy);
            }
            sleep(LOCK_PAUSE).await;
        }
        let most = i64::from(self.poison.max_parked);
        let row = client.query_one(&statements::count(&self.tables.parked), &[projection, &most]).await?;
        let parked: i64 = row.try_get(0)?;
        Ok(Room::For(u32::try_from(most - parked).unwrap_or_default()))
    }

    /// How many of `events`, which are all to be parked behind others, may be parked in a transaction that has begun. `None` where one of them follows no parked
    /// event any more.
    pub(super) async fn fitting(
        &mut self,
        client: &Client,
        events: &[Event],
        room: u32,
    ) -> Result<Option<usize>, Error> {
        let shards: HashSet<u32> = events.iter().map(|event| event.shard).collect();
        self.load(client, &shards.into_iter().collect::<Vec<_>>()).await?;
        let all_follow = events.iter().all(|event| self.holds_stream_of(event));
        Ok(all_follow.then_some(events.len().min(room as usize)))
    }
}
