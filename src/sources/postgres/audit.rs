//! Looks below the positions that were passed for events that were committed late, and says which projections have passed them.
//!
//! Once for each table, whatever the number of projections, at a bounded cost: the positions of new events are read once more (from the index), and the
//! remembered gaps are probed, the recent ones at each poll and all of them every [`ALL_EVERY`].
//!
//! It sees every event that appears at a remembered gap after the poll that saw the gap. It does not see an event that is committed between the moment
//! at which a projector passed its position and the next poll, and none below the oldest gap that is remembered.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;
use tokio_postgres::{Client, Error, types::Type};

use super::questions::Wanted;
use crate::{
    lag::{PassedOver, Position},
    postgres::{
        Query,
        gaps::{Gaps, filled_sql, gaps_sql, window_sql},
    },
    snapshot::ProjectionKey,
};

/// The first look covers so many of the newest events.
const WINDOW: i64 = 10_000;
/// So many new events are looked at in one poll; the rest in the next ones.
const READ_AT_ONCE: i64 = 20_000;
/// All gaps are probed this often.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// So many late events are taken from one probe.
const LATE_AT_ONCE: i64 = 1_000;
/// A projection remembers so many of the positions that it has passed over, the lowest.
const REMEMBERED: usize = 100;
/// A late event is told for so long, unless it is handled or gone before.
const TOLD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// What one table's audit remembers.
#[derive(Debug, Default)]
pub(super) struct Audit {
    gaps: Gaps,
    all_probed: Option<Instant>,
    /// How far each projection had come when recent gaps, and when all gaps, were last seen to be empty.
    passed: [HashMap<ProjectionKey, Position>; 2],
    late: HashMap<ProjectionKey, Late>,
}

#[derive(Debug, Default)]
struct Late {
    positions: BTreeMap<i64, Instant>,
    more: u64,
}

impl Audit {
    /// Forgets everything: the log went back.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }

    /// What the projection has passed over, as far as it is known.
    pub(super) fn passed_over(&self, key: &ProjectionKey) -> PassedOver {
        self.late.get(key).map_or_else(PassedOver::default, |late| PassedOver {
            positions: late.positions.keys().copied().map(Position).collect(),
            more: late.more,
        })
    }

    /// Looks once. `wanted` holds checkpoints that were read before `safe` was; `safe` is `None` while it is not known.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn look(
        &mut self,
        client: &Client,
        (table, position): (&str, &str),
        safe: Option<Position>,
        head: Position,
        wanted: &[Wanted],
    ) -> Result<(), Error> {
        let recent_from = self.gaps.bounds(false).0.last().copied().unwrap_or(i64::MIN);
        let all = self.gaps.has_older() && self.all_probed.is_none_or(|at| at.elapsed() >= ALL_EVERY);
        let (low, high) = self.gaps.bounds(all);
        let mut filled = Vec::new();
        if !low.is_empty() {
            let probe = Query::new(filled_sql(table, position), &[Type::INT8_ARRAY, Type::INT8_ARRAY, Type::INT8]);
            let rows = probe.rows(client, &[&low, &high, &LATE_AT_ONCE]).await?;
            filled = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        }
        self.take(&filled, recent_from, all, wanted);
        self.forget(wanted);
        // What a projector has passed beyond the safe head, if it reads more boldly, is passed as well.
        let furthest = wanted.iter().filter_map(|wanted| wanted.checkpoint.state.highest()).max();
        let passed = safe.max(furthest.filter(|position| *position <= head));
        if let Some(passed) = passed {
            self.extend(client, (table, position), passed.0).await?;
        }
        Ok(())
    }

    /// Reads the positions that were passed since the last time.
    async fn extend(&mut self, client: &Client, (table, position): (&str, &str), passed: i64) -> Result<(), Error> {
        if self.gaps.until().is_none() {
            let window = Query::new(window_sql(table, position), &[Type::INT8, Type::INT8]);
            let from: Option<i64> = window.row(client, &[&passed, &WINDOW]).await?.try_get(0)?;
            self.gaps.begin(from.unwrap_or(0));
        }
        let Some(from) = self.gaps.until().filter(|until| *until < passed) else { return Ok(()) };
        let gaps = Query::new(gaps_sql(table, position), &[Type::INT8, Type::INT8, Type::INT8]);
        let row = gaps.row(client, &[&from, &passed, &READ_AT_ONCE]).await?;
        let (count, last): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let (low, high): (Vec<i64>, Vec<i64>) = (row.try_get(2)?, row.try_get(3)?);
        let last = last.unwrap_or(from);
        let found = low.into_iter().zip(high);
        if count < READ_AT_ONCE {
            self.gaps.extend(found.chain([(last + 1, passed)]), passed);
        } else {
            self.gaps.extend(found, last);
        }
        Ok(())
    }

    /// Takes in events that were found in gaps, and how far the projections had come when the gaps were seen last.
    fn take(&mut self, filled: &[i64], recent_from: i64, all: bool, wanted: &[Wanted]) {
        let now = Instant::now();
        for position in filled {
            if !self.gaps.fill(*position) {
                continue;
            }
            let passed = &self.passed[usize::from(*position < recent_from)];
            for Wanted { ask, .. } in wanted {
                if passed.get(&ask.key).is_none_or(|passed| passed.0 < *position) {
                    continue;
                }
                tracing::warn!(projection = %ask.key, position, "an event appeared at a position that the checkpoint had passed");
                let late = self.late.entry(ask.key.clone()).or_default();
                if late.positions.len() < REMEMBERED {
                    late.positions.insert(*position, now);
                } else {
                    late.more = late.more.saturating_add(1);
                }
            }
        }
        let both = all || !self.gaps.has_older();
        self.all_probed = if both { Some(now) } else { self.all_probed };
        // A projection whose checkpoint was not read this time has come at least as far as the last time.
        for passed in self.passed.iter_mut().take(if both { 2 } else { 1 }) {
            if passed.len() > wanted.len() * 2 + 16 {
                passed.retain(|key, _| wanted.iter().any(|wanted| wanted.ask.key == *key));
            }
            for Wanted { ask, checkpoint } in wanted {
                match checkpoint.state.highest() {
                    Some(highest) => drop(passed.insert(ask.key.clone(), highest)),
                    None => drop(passed.remove(&ask.key)),
                }
            }
        }
    }

    /// An event before which the checkpoint has gone back is handled after all.
    fn forget(&mut self, wanted: &[Wanted]) {
        for Wanted { ask, checkpoint } in wanted {
            let Some(late) = self.late.get_mut(&ask.key) else { continue };
            let lowest = checkpoint.state.lowest().map_or(i64::MIN, |lowest| lowest.0);
            late.positions.retain(|position, since| *position <= lowest && since.elapsed() < TOLD_FOR);
            if late.positions.is_empty() {
                self.late.remove(&ask.key);
            }
        }
    }
}
