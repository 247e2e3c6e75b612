//! Counts what waits in the shards of projections, for all projections with one way to tell an event's shard in one statement.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tokio::time::Instant;
use tokio_postgres::{Client, Error, types::Type};

use super::{
    columns::{Columns, TRUST_CHECKS_FOR, TRUST_COUNTS_FOR},
    counting::{EXACT_UP_TO, Oldest, has_gaps},
    expression::{ExpressionError, check_expression},
    questions::{EventShard, Wanted},
    tally::{Found, ShardRow, Tally, Walk},
    untold_shard::{first_untold, is_about_a_value},
};
use crate::{
    api::{CheckpointRows, Reason},
    clients::postgres::{Query, classify},
    lag::{LogHead, Pending},
    measure::{MeasureError, RunKey},
};

/// All walks of one statement together read no more events than this.
const WALKED_AT_MOST: i64 = 200_000;
/// One walk.
const LONGEST_WALK: i64 = 50_000;
/// Events that are kept for all projections of a table together.
const KEPT_AT_MOST: usize = 200_000;

/// What is remembered of the shards of all projections on one table.
pub(super) struct ShardCounts {
    kept: HashMap<RunKey, Kept>,
    /// When the server last took an expression. What it refuses is asked again at each poll.
    checked: HashMap<EventShard, Instant>,
    /// Events whose shard an expression could not tell, and when that was found.
    untold: HashMap<EventShard, (Instant, Option<i64>)>,
    /// The zero of events' times.
    epoch: Instant,
    room: usize,
    /// The last walk that ended at its limit met gaps among the positions.
    gaps: bool,
}

struct Kept {
    tally: Tally,
    /// What waits above the safe head, where some shard has come further than that.
    above: Option<Above>,
    refused: Option<MeasureError>,
    verified: Instant,
}

#[derive(Clone, Copy)]
struct Above {
    pending: Pending,
    first: Option<Option<f64>>,
}

/// What waits for one projection.
pub(super) struct ShardsTold {
    /// Up to the safe head.
    pub(super) pending: Pending,
    pub(super) by_shard: Vec<u64>,
    /// No event at or below this position waits.
    pub(super) handled_up_to: i64,
    pub(super) oldest: Oldest,
    /// The part of `pending` that waits for certain, where the rest may have been handled long ago.
    pub(super) certain: Option<u64>,
    /// So many were looked at one by one, from the oldest on.
    pub(super) counted: u64,
    /// Above the safe head, where that differs from what there is.
    pub(super) above: Option<(Pending, Oldest)>,
}

/// One walk over a piece of the log.
struct Ask<'a> {
    key: &'a RunKey,
    low: i64,
    high: i64,
    limit: i64,
    above: bool,
}

impl ShardCounts {
    pub(super) fn new() -> Self {
        Self {
            kept: HashMap::new(),
            checked: HashMap::new(),
            untold: HashMap::new(),
            epoch: Instant::now(),
            room: 0,
            gaps: false,
        }
    }

    /// Forgets all counts: the log was emptied or restored.
    pub(super) fn restart(&mut self) {
        self.kept.clear();
    }

    /// Forgets one projection.
    pub(super) fn forget(&mut self, key: &RunKey) {
        self.kept.remove(key);
    }

    /// A walk that ended at its limit met gaps among the positions, so that the distance beyond it is no count.
    pub(super) fn gaps(&self) -> bool {
        self.gaps
    }

    /// There is more to walk over, soon.
    pub(super) fn is_walking(&self, head: LogHead) -> bool {
        self.kept.values().any(|kept| kept.refused.is_none() && kept.tally.is_walking(head.safe.0, self.room))
    }

    /// What waits for a projection, or why that cannot be told.
    pub(super) fn told(&self, key: &RunKey, head: LogHead) -> Option<Result<ShardsTold, MeasureError>> {
        let kept = self.kept.get(key)?;
        if let Some(refused) = &kept.refused {
            return Some(Err(refused.clone()));
        }
        let (safe, now) = (head.safe.0, self.epoch.elapsed().as_secs_f64());
        let above = kept.above.map(|above| {
            let oldest = match above.first {
                None => Oldest::None,
                Some(None) => Oldest::Unknown,
                Some(Some(born)) => Oldest::Age(now - born),
            };
            (above.pending, oldest)
        });
        Some(Ok(ShardsTold {
            pending: kept.tally.pending(safe),
            by_shard: kept.tally.by_shard(safe),
            handled_up_to: kept.tally.handled_up_to(),
            oldest: kept.tally.oldest(safe, now),
            certain: kept.tally.certain(safe, self.room),
            counted: kept.tally.counted(),
            above,
        }))
    }

    /// Brings the counts up to date. An expression of a spec that fails concerns only the projections that name it.
    ///
    /// # Errors
    /// Those of the server about anything else.
    pub(super) async fn count(
        &mut self,
        client: &Client,
        columns: &Columns,
        wanted: &[&Wanted],
        head: LogHead,
    ) -> Result<(), Error> {
        if wanted.is_empty() {
            self.kept.clear();
            return Ok(());
        }
        self.kept.retain(|key, _| wanted.iter().any(|wanted| wanted.ask.key == *key));
        self.checked.retain(|shard, _| wanted.iter().any(|wanted| wanted.question.shard.as_ref() == Some(shard)));
        self.untold.retain(|shard, _| self.checked.contains_key(shard));
        self.room = (KEPT_AT_MOST / wanted.len()).clamp(100, usize::try_from(EXACT_UP_TO).unwrap_or(usize::MAX));
        let mut groups: BTreeMap<&EventShard, Vec<&RunKey>> = BTreeMap::new();
        for wanted in wanted {
            let Some(shard) = &wanted.question.shard else { continue };
            let kept = self.kept.entry(wanted.ask.key.clone()).or_insert_with(|| Kept {
                tally: Tally::default(),
                above: None,
                refused: None,
                verified: Instant::now(),
            });
            let rows = rows(wanted);
            kept.tally.follow(&rows, is_complete(&wanted.question.rows, rows.len()));
            groups.entry(shard).or_default().push(&wanted.ask.key);
        }
        for (shard, keys) in groups {
            match shard {
                EventShard::Hashed(_) => self.walk(client, columns, shard, &keys, head).await?,
                EventShard::Told(_) => {
                    let refused = self.walk_as_told(client, columns, shard, &keys, head).await?;
                    for key in keys {
                        if let Some(kept) = self.kept.get_mut(key) {
                            kept.refused.clone_from(&refused);
                        }
                    }
                }
            }
        }
        self.verify(client, columns).await
    }

    /// A walk with an expression that may fail, without the failure of the transaction around it. Returns why it failed.
    async fn walk_as_told(
        &mut self,
        client: &Client,
        columns: &Columns,
        shard: &EventShard,
        keys: &[&RunKey],
        head: LogHead,
    ) -> Result<Option<MeasureError>, Error> {
        client.batch_execute("savepoint by_shard").await?;
        let outcome = async {
            if let Some(refused) = self.check(client, columns, shard).await? {
                return Ok(Some(refused));
            }
            self.walk(client, columns, shard, keys, head).await.map(|()| None)
        };
        match outcome.await {
            Ok(refused) => {
                client.batch_execute("release savepoint by_shard").await?;
                Ok(refused)
            }
            Err(error) if error.as_db_error().is_some() => {
                client.batch_execute("rollback to savepoint by_shard").await?;
                let (reason, message) = classify(&error);
                let event = match is_about_a_value(&error) {
                    true => self.untold(client, columns, shard, keys, head).await?,
                    false => None,
                };
                let event = event.map_or_else(String::new, |position| {
                    format!(
                        "; it fails on the event at position {position}: correct the event, or the expression so that it has a shard for each event"
                    )
                });
                Ok(Some(MeasureError {
                    reason,
                    message: format!("spec.source.postgres.eventTable.shard: {message}{event}"),
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// The event that an expression fails on, searched for again now and then.
    async fn untold(
        &mut self,
        client: &Client,
        columns: &Columns,
        shard: &EventShard,
        keys: &[&RunKey],
        head: LogHead,
    ) -> Result<Option<i64>, Error> {
        if let Some((_, found)) = self.untold.get(shard).filter(|(at, _)| at.elapsed() < TRUST_CHECKS_FOR) {
            return Ok(*found);
        }
        let walked = |key: &&RunKey| self.kept.get(*key)?.tally.next(head.safe.0, LONGEST_WALK, self.room);
        let low = keys.iter().filter_map(walked).map(|(low, _)| low).fold(head.safe.0, i64::min);
        let found = first_untold(client, columns, shard, (low, head.raw.0)).await?;
        self.untold.insert(shard.clone(), (Instant::now(), found));
        Ok(found)
    }

    async fn check(
        &mut self,
        client: &Client,
        columns: &Columns,
        shard: &EventShard,
    ) -> Result<Option<MeasureError>, Error> {
        if self.checked.get(shard).is_some_and(|at| at.elapsed() < TRUST_CHECKS_FOR) {
            return Ok(None);
        }
        match check_expression(client, &columns.table, shard.sql()).await {
            Ok(()) => {
                self.checked.insert(shard.clone(), Instant::now());
                Ok(None)
            }
            Err(ExpressionError::Unsuitable(why)) => Ok(Some(MeasureError {
                reason: Reason::InvalidSpec,
                message: format!("spec.source.postgres.eventTable.shard: {why}"),
            })),
            Err(ExpressionError::Postgres(error)) => Err(error),
        }
    }

    async fn walk(
        &mut self,
        client: &Client,
        columns: &Columns,
        shard: &EventShard,
        keys: &[&RunKey],
        head: LogHead,
    ) -> Result<(), Error> {
        let (safe, raw) = (head.safe.0, head.raw.0);
        let most = (WALKED_AT_MOST / i64::try_from(keys.len().max(1)).unwrap_or(i64::MAX)).clamp(100, LONGEST_WALK);
        let mut asks = Vec::new();
        for key in keys {
            let Some(kept) = self.kept.get_mut(*key) else { continue };
            kept.above = None;
            if let Some((low, limit)) = kept.tally.next(safe, most, self.room) {
                asks.push(Ask { key, low, high: safe, limit, above: false });
            }
            if raw > safe && kept.tally.reaches_beyond(safe) {
                asks.push(Ask { key, low: safe, high: raw, limit: most.min(EXACT_UP_TO + 1), above: true });
            }
        }
        if asks.is_empty() {
            return Ok(());
        }
        let walks = self.ask(client, columns, shard, &asks).await?;
        for (ask, walk) in asks.into_iter().zip(walks) {
            let Some(kept) = self.kept.get_mut(ask.key) else { continue };
            if ask.above {
                let exact = walk.events < ask.limit;
                let waiting = u64::try_from(walk.waiting.len()).unwrap_or(u64::MAX);
                let beyond = if exact { 0 } else { u64::try_from(ask.high - walk.last).unwrap_or(0) };
                kept.above = Some(Above {
                    pending: Pending { events: waiting.saturating_add(beyond), exact },
                    first: walk.waiting.first().map(|first| first.born),
                });
            } else {
                if walk.events >= ask.limit {
                    self.gaps = has_gaps(walk.last.saturating_sub(ask.low), walk.events);
                }
                kept.tally.take(walk, safe, ask.limit, self.room);
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        client: &Client,
        columns: &Columns,
        shard: &EventShard,
        asks: &[Ask<'_>],
    ) -> Result<Vec<Walk>, Error> {
        let (mut owners, mut shards, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for (index, ask) in (1_i64..).zip(asks) {
            let rows = self.kept.get(ask.key).map(|kept| kept.tally.rows()).unwrap_or_default();
            for (name, row) in rows {
                owners.push(index);
                shards.push(&**name);
                done.push(*row);
            }
        }
        let column = |of: fn(&Ask<'_>) -> i64| asks.iter().map(of).collect::<Vec<i64>>();
        let (low, high, limit) = (column(|ask| ask.low), column(|ask| ask.high), column(|ask| ask.limit));
        let numbers = || Type::INT8_ARRAY;
        let types = [numbers(), numbers(), numbers(), numbers(), Type::TEXT_ARRAY, numbers()];
        let query = Query::new(walks_sql(columns, shard), &types);
        let now = self.epoch.elapsed().as_secs_f64();
        let rows = query.rows(client, &[&low, &high, &limit, &owners, &shards, &done]).await?;
        let mut walks: Vec<Walk> = asks.iter().map(|_| Walk::default()).collect();
        for row in &rows {
            let index: i64 = row.try_get(0)?;
            let Some(walk) = usize::try_from(index - 1).ok().and_then(|index| walks.get_mut(index)) else { continue };
            (walk.events, walk.last) = (row.try_get(1)?, row.try_get(2)?);
            let positions: Vec<i64> = row.try_get::<_, Option<_>>(3)?.unwrap_or_default();
            let shards: Vec<String> = row.try_get::<_, Option<_>>(4)?.unwrap_or_default();
            let ages: Vec<Option<f64>> = row.try_get::<_, Option<_>>(5)?.unwrap_or_default();
            let found = positions.into_iter().zip(shards).zip(ages);
            walk.waiting = found
                .map(|((position, shard), age)| Found { position, shard, born: age.map(|age| now - age) })
                .collect();
        }
        Ok(walks)
    }

    /// Events that wait may be deleted meanwhile: now and then it is asked whether they are still there.
    async fn verify(&mut self, client: &Client, columns: &Columns) -> Result<(), Error> {
        let mut positions = BTreeSet::new();
        let mut due = Vec::new();
        for (key, kept) in &mut self.kept {
            if kept.verified.elapsed() >= TRUST_COUNTS_FOR && positions.len() < VERIFIED_AT_ONCE {
                kept.verified = Instant::now();
                positions.extend(kept.tally.positions());
                due.push(key.clone());
            }
        }
        if positions.is_empty() {
            return Ok(());
        }
        let Columns { table, position, .. } = columns;
        let gone = format!(
            "select coalesce(array_agg(w.p), '{{}}') from unnest($1::bigint[]) w(p)
             where not exists (select from {table} where {position} = w.p)"
        );
        let positions: Vec<i64> = positions.into_iter().collect();
        let row = Query::new(gone, &[Type::INT8_ARRAY]).row(client, &[&positions]).await?;
        let gone: Vec<i64> = row.try_get(0)?;
        if !gone.is_empty() {
            for key in due {
                self.kept.entry(key).and_modify(|kept| kept.tally.forget(&gone));
            }
        }
        Ok(())
    }
}

const VERIFIED_AT_ONCE: usize = 20_000;

fn rows(wanted: &Wanted) -> Vec<ShardRow> {
    let shards = wanted.checkpoint.shards.as_deref().unwrap_or_default();
    let positions = wanted.checkpoint.state.positions();
    shards.iter().map(Arc::clone).zip(positions.iter().map(|position| position.0)).collect()
}

/// There is a row for each shard that an event can have.
fn is_complete(rows: &CheckpointRows, found: usize) -> bool {
    match rows {
        CheckpointRows::One | CheckpointRows::LastMessage | CheckpointRows::Parts => false,
        CheckpointRows::Numbered(_) => true,
        CheckpointRows::Keyed { shards, .. } => shards.is_some_and(|shards| found >= shards as usize),
    }
}

/// One row a walk that met any event: how many, the last, and those that wait with their shards and ages.
fn walks_sql(Columns { table, position, age, .. }: &Columns, shard: &EventShard) -> String {
    let shard = shard.sql();
    format!(
        "with walked as materialized (
             select a.i, s.p, s.shard, s.age
             from unnest($1::bigint[], $2::bigint[], $3::bigint[]) with ordinality as a(low, high, most, i)
             cross join lateral (
                 select {position}::bigint as p, coalesce(({shard})::text, '') as shard, {age} as age
                 from {table} where {position} > a.low and {position} <= a.high order by {position} limit a.most
             ) s
         ), sifted as (
             select w.i, w.p, w.shard, w.age, (r.done is null or w.p > r.done) as waits
             from walked w left join unnest($4::bigint[], $5::text[], $6::bigint[]) as r(i, shard, done)
                 on r.i = w.i and r.shard = w.shard
         )
         select i, count(*), max(p), array_agg(p order by p) filter (where waits), array_agg(shard order by p) filter (where waits),
             array_agg(age order by p) filter (where waits)
         from sifted group by i"
    )
}
