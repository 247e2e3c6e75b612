//! Looks below the positions that were passed for events that were committed late, and says which projections have passed them.
//!
//! Once for each table, whatever the number of projections, at a bounded cost: the positions of new events are read once more (from the index), and the
//! remembered gaps are probed, the recent ones at each poll and all of them every [`ALL_EVERY`], and with those the events that are told.
//!
//! It sees every event that appears at a remembered gap after the poll that saw the gap. It does not see an event that is committed between the moment
//! at which a projector passed its position and the next poll, and none below the oldest gap that is remembered.
//!
//! Of several rows of a checkpoint the furthest counts: which shard an event belongs to is not known here, so whatever one of the rows has passed
//! may have been skipped. An event that a slower shard will still handle may be reported; one that no shard will handle must be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;
use tokio_postgres::{Client, Error, types::Type};

use super::{
    gaps::{Gaps, filled_sql, gaps_sql, window_sql},
    passed_over::PassedOverMemory,
    questions::Wanted,
};
use crate::{
    clients::postgres::Query,
    lag::{PassedOver, Position},
    measure::RunKey,
};

/// The first look covers so many of the newest events.
const WINDOW: i64 = 10_000;
/// So many new events are looked at in one poll; the rest in the next ones.
const READ_AT_ONCE: i64 = 20_000;
/// All gaps, and all events that are told, are probed this often.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// So many late events are taken from one probe.
const LATE_AT_ONCE: i64 = 1_000;
/// Of the positions that a projection has passed over so many are remembered, the lowest; of the others their number.
const REMEMBERED: usize = 100;

/// What one table's audit remembers.
#[derive(Debug, Default)]
pub(super) struct Audit {
    gaps: Gaps,
    all_probed: Option<Instant>,
    late_probed: Option<Instant>,
    /// How far each projection had come when recent gaps, and when all gaps, were last seen to be empty.
    passed: [HashMap<RunKey, Position>; 2],
    late: HashMap<RunKey, Late>,
    /// The projections of which it was taken over what was told before.
    taken_over: HashMap<RunKey, PassedOverMemory>,
}

/// What one projection has passed over.
#[derive(Debug, Default)]
struct Late {
    /// Each position, and whether an event was there when it was last looked at.
    positions: BTreeMap<i64, bool>,
    /// Those beyond all of `positions`. While there are any, `positions` is full.
    more: u64,
}

impl Late {
    /// Of what was told before. Whether the events are still there is yet to be seen.
    fn told_before(PassedOver { positions, more }: PassedOver) -> Self {
        let mut late = Self::default();
        positions.into_iter().for_each(|position| late.add(position.0));
        if late.positions.len() >= REMEMBERED {
            late.more = late.more.saturating_add(more);
        }
        late
    }

    /// Adds an event that is there.
    fn add(&mut self, position: i64) {
        self.positions.insert(position, true);
        if self.positions.len() <= REMEMBERED {
            return;
        }
        let gone = self.positions.iter().find(|(_, there)| !**there).map(|(position, _)| *position);
        if let Some(gone) = gone.filter(|_| self.more == 0) {
            self.positions.remove(&gone);
        } else {
            self.positions.pop_last();
            self.more = self.more.saturating_add(1);
        }
    }

    /// No row of the checkpoint is beyond `highest` any more: what comes after it is still to be read.
    fn go_back(&mut self, highest: i64) {
        let before = self.positions.len();
        self.positions.retain(|position, _| *position <= highest);
        if self.positions.len() < before {
            self.more = 0;
        }
    }

    /// Events that are gone are not told, unless there are others of which it is not known whether they are there.
    fn told(&self) -> PassedOver {
        let told = self.positions.iter().filter(|(_, there)| **there || self.more > 0);
        PassedOver { positions: told.map(|(position, _)| Position(*position)).collect(), more: self.more }
    }
}

impl Audit {
    /// Forgets everything: the log went back.
    pub(super) fn restart(&mut self) {
        let taken_over = std::mem::take(&mut self.taken_over);
        taken_over.values().for_each(|memory| memory.store(PassedOver::default()));
        *self = Self { taken_over, ..Self::default() };
    }

    /// What the projection has passed over, or where its checkpoint has several rows may have, as far as it is known. An event is told until all rows
    /// have gone back before it or it is deleted.
    pub(super) fn passed_over(&self, key: &RunKey) -> PassedOver {
        self.late.get(key).map_or_else(PassedOver::default, Late::told)
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
        self.take_over(wanted);
        let recent_from = self.gaps.bounds(false).0.last().copied().unwrap_or(i64::MIN);
        let all = self.gaps.has_older() && self.all_probed.is_none_or(|at| at.elapsed() >= ALL_EVERY);
        let (low, high) = self.gaps.bounds(all);
        let mut filled = Vec::new();
        if !low.is_empty() {
            filled = events(client, (table, position), (&low, &high), LATE_AT_ONCE).await?;
        }
        self.take(&filled, recent_from, all, wanted);
        self.forget(wanted);
        if self.late_probed.is_none_or(|at| at.elapsed() >= ALL_EVERY) {
            self.probe_late(client, (table, position)).await?;
        }
        wanted.iter().for_each(|wanted| wanted.question.passed_over.store(self.passed_over(&wanted.ask.key)));
        // What a projector has passed beyond the safe head, if it reads more boldly, is passed as well.
        let furthest = wanted.iter().filter_map(|wanted| wanted.checkpoint.state.highest()).max();
        let passed = safe.max(furthest.filter(|position| *position <= head));
        if let Some(passed) = passed {
            self.extend(client, (table, position), passed.0).await?;
        }
        Ok(())
    }

    /// Takes over what was told of each projection before it was first looked at here, to be probed at once.
    fn take_over(&mut self, wanted: &[Wanted]) {
        if self.taken_over.len() > wanted.len() * 2 + 16 {
            self.taken_over.retain(|key, _| wanted.iter().any(|wanted| wanted.ask.key == *key));
            self.late.retain(|key, _| self.taken_over.contains_key(key));
        }
        for Wanted { ask, question, .. } in wanted {
            if self.taken_over.get(&ask.key) == Some(&question.passed_over) {
                continue;
            }
            self.taken_over.insert(ask.key.clone(), question.passed_over.clone());
            self.late.insert(ask.key.clone(), Late::told_before(question.passed_over.load()));
            self.late_probed = None;
        }
    }

    /// Looks whether the late events are still there.
    async fn probe_late(&mut self, client: &Client, columns: (&str, &str)) -> Result<(), Error> {
        let asked: BTreeSet<i64> = self.late.values().flat_map(|late| late.positions.keys().copied()).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let asked: Vec<i64> = asked.into_iter().collect();
        let most = i64::try_from(asked.len()).unwrap_or(i64::MAX);
        let found: BTreeSet<i64> = events(client, columns, (&asked, &asked), most).await?.into_iter().collect();
        for (position, there) in self.late.values_mut().flat_map(|late| late.positions.iter_mut()) {
            *there = found.contains(position);
        }
        self.late_probed = Some(Instant::now());
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
                self.late.entry(ask.key.clone()).or_default().add(*position);
            }
        }
        let both = all || !self.gaps.has_older();
        self.all_probed = if both { Some(now) } else { self.all_probed };
        // A projection whose checkpoint was not read this time has come at least as far as the last time.
        for passed in self.passed.iter_mut().take(if both { 2 } else { 1 }) {
            if passed.len() > wanted.len() * 2 + 16 {
                passed.retain(|key, _| wanted.iter().any(|wanted| wanted.ask.key == *key));
            }
            for Wanted { ask, checkpoint, .. } in wanted {
                match checkpoint.state.highest() {
                    Some(highest) => drop(passed.insert(ask.key.clone(), highest)),
                    None => drop(passed.remove(&ask.key)),
                }
            }
        }
    }

    /// An event before which all rows of the checkpoint have gone back is handled after all. Where one is still beyond it, that one may be its shard's.
    fn forget(&mut self, wanted: &[Wanted]) {
        for Wanted { ask, checkpoint, .. } in wanted {
            let Some(late) = self.late.get_mut(&ask.key) else { continue };
            late.go_back(checkpoint.state.highest().map_or(i64::MIN, |highest| highest.0));
            if late.positions.is_empty() {
                self.late.remove(&ask.key);
            }
        }
    }
}

/// The positions of at most `most` events from each of `low` to the one of `high` beside it.
async fn events(
    client: &Client,
    (table, position): (&str, &str),
    (low, high): (&[i64], &[i64]),
    most: i64,
) -> Result<Vec<i64>, Error> {
    let probe = Query::new(filled_sql(table, position), &[Type::INT8_ARRAY, Type::INT8_ARRAY, Type::INT8]);
    let rows = probe.rows(client, &[&low, &high, &most]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(positions: impl IntoIterator<Item = i64>) -> Late {
        let mut late = Late::default();
        positions.into_iter().for_each(|position| late.add(position));
        late
    }

    fn told(late: &Late) -> (Vec<i64>, u64) {
        let PassedOver { positions, more } = late.told();
        (positions.into_iter().map(|position| position.0).collect(), more)
    }

    #[test]
    fn the_lowest_positions_are_remembered_in_whatever_order_they_are_found_and_the_others_counted() {
        let expected = ((1..=100).collect::<Vec<i64>>(), 20);
        assert_eq!(told(&late(1..=120)), expected);
        assert_eq!(told(&late((1..=120).rev())), expected);
    }

    #[test]
    fn what_was_told_before_is_taken_over_as_it_was_and_whatever_another_made_of_it_stays_bounded() {
        let before =
            |count: i64, more| Late::told_before(PassedOver { positions: (1..=count).map(Position).collect(), more });
        for all in [1..=2, 1..=100, 1..=120] {
            let told = late(all).told();
            assert_eq!(Late::told_before(told.clone()).told(), told);
        }
        assert_eq!(told(&before(2, 7)), (vec![1, 2], 0), "there are others only where there is no room");
        assert_eq!(told(&before(1_000, 7)), ((1..=100).collect::<Vec<i64>>(), 907));
        assert_eq!(told(&before(100, u64::MAX)).1, u64::MAX);
    }

    #[test]
    fn what_all_rows_have_gone_back_before_is_told_no_more_whether_remembered_or_counted() {
        let mut back = late(1..=120);
        back.go_back(200);
        assert_eq!(told(&back).1, 20);
        back.go_back(50);
        assert_eq!(told(&back), ((1..=50).collect::<Vec<i64>>(), 0));
        back.go_back(i64::MIN);
        assert_eq!(told(&back), (Vec::new(), 0));
    }

    #[test]
    fn deleted_events_are_told_only_while_others_may_be_there() {
        let mut some = late(1..=100);
        some.positions.insert(7, false);
        assert!(!told(&some).0.contains(&7));
        some.add(101);
        let known: Vec<i64> = (1..=101).filter(|position| *position != 7).collect();
        assert_eq!(told(&some), (known, 0), "it gives way first");
        some.positions.values_mut().for_each(|there| *there = false);
        assert_eq!(told(&some), (Vec::new(), 0));
        let mut many = late(1..=101);
        many.positions.values_mut().for_each(|there| *there = false);
        assert_eq!(told(&many), ((1..=100).collect::<Vec<i64>>(), 1));
    }
}
