//! The safe head of a log whose positions are handed out before their transactions commit.
//!
//! A sequence gives position 5 to one transaction and 6 to the next; the second may commit first. A reader that reads up to 6 then and remembers 6
//! never sees 5. So the reader must know which transactions may still be writing: a transaction that holds a position holds a lock on the log's table
//! or its sequence until it ends. Therefore a head `H` that was read **before** the list of writers is safe as soon as each writer of that list has
//! ended: a transaction that got a position up to `H` had it before `H` was read, and has either ended (its events are visible to every later
//! snapshot, or will never be) or is in the list.
//! Where no position is missing up to some point, that point is safe at once: nothing can appear in between.
//!
//! Frozen rows, and long transactions on other tables and in other databases, do not affect this rule; they would affect a rule by `xmin`.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use super::{Position, SessionInfo};

/// What the server calls a transaction; never used again by another one while the server runs.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WriterId(pub String);

/// A transaction that may hold positions which are not visible yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Writer {
    /// Its identity.
    pub id: WriterId,
    /// Its server process, unless it is a prepared transaction.
    pub pid: Option<i32>,
    /// How long it has been open, where the server shows it.
    pub open_for: Option<Duration>,
    /// What is known of its session.
    pub session: SessionInfo,
}

/// Follows one log and says up to where it may be read.
#[derive(Clone, Debug, Default)]
pub struct SafeHead {
    safe: Option<Position>,
    candidates: VecDeque<Candidate>,
}

#[derive(Clone, Debug)]
struct Candidate {
    head: Position,
    writers: BTreeSet<WriterId>,
}

/// More candidates than this are merged: the newest two become one, which is safe, only later.
const MOST_CANDIDATES: usize = 64;

impl SafeHead {
    /// The highest position known to be safe, once there is one.
    pub fn position(&self) -> Option<Position> {
        self.safe
    }

    /// The transactions of which each must end before the safe head moves, as far as gaps are concerned; absent while none holds it back.
    pub fn waits_for(&self) -> Option<&BTreeSet<WriterId>> {
        let next = self.candidates.iter().find(|candidate| self.safe.is_none_or(|safe| candidate.head > safe))?;
        Some(&next.writers)
    }

    /// Takes in one observation and returns the safe head.
    ///
    /// `head` must have been read before `writers`; whatever is read up to the answer must be read in a snapshot taken after both.
    /// `dense_until` is the end of the run of positions without a gap that starts at the last safe head or at a checkpoint,
    /// if anything follows there. It may be read in any snapshot.
    pub fn observe(&mut self, head: Position, writers: &[Writer], dense_until: Option<Position>) -> Option<Position> {
        let running: BTreeSet<WriterId> = writers.iter().map(|writer| writer.id.clone()).collect();
        for candidate in &mut self.candidates {
            candidate.writers.retain(|id| running.contains(id));
        }
        while self.candidates.front().is_some_and(|candidate| candidate.writers.is_empty()) {
            let drained = self.candidates.pop_front().map(|candidate| candidate.head);
            self.safe = self.safe.max(drained);
        }
        if running.is_empty() {
            self.candidates.clear();
            self.safe = self.safe.max(Some(head));
        } else if self.safe.is_none_or(|safe| head > safe) {
            self.remember(head, running);
        }
        self.safe = self.safe.max(dense_until);
        self.safe
    }

    fn remember(&mut self, head: Position, writers: BTreeSet<WriterId>) {
        let full = self.candidates.len() >= MOST_CANDIDATES;
        match self.candidates.back_mut() {
            Some(newest) if newest.head == head => {
                // The same head with other writers: those of the first look are the ones that count.
            }
            Some(newest) if full => {
                newest.head = head;
                newest.writers.extend(writers);
            }
            _ => self.candidates.push_back(Candidate { head, writers }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers(names: &[&str]) -> Vec<Writer> {
        let writer = |name: &&str| Writer {
            id: WriterId((*name).to_owned()),
            pid: None,
            open_for: None,
            session: SessionInfo::default(),
        };
        names.iter().map(writer).collect()
    }

    #[test]
    fn a_head_without_writers_is_safe_at_once() {
        let mut safe_head = SafeHead::default();
        assert_eq!(safe_head.observe(Position(7), &[], None), Some(Position(7)));
    }

    #[test]
    fn a_head_waits_for_the_writers_that_were_there_when_it_was_seen() {
        let mut safe_head = SafeHead::default();
        safe_head.observe(Position(4), &[], None);
        assert_eq!(safe_head.observe(Position(6), &writers(&["a", "b"]), None), Some(Position(4)));
        assert_eq!(safe_head.observe(Position(8), &writers(&["b", "c"]), None), Some(Position(4)), "b still writes");
        assert_eq!(
            safe_head.observe(Position(9), &writers(&["c"]), None),
            Some(Position(6)),
            "c came after 6 was seen"
        );
        assert_eq!(safe_head.observe(Position(9), &[], None), Some(Position(9)));
    }

    #[test]
    fn the_writer_that_holds_it_back_is_the_one_that_was_there_when_the_next_head_was_seen() {
        let mut safe_head = SafeHead::default();
        safe_head.observe(Position(4), &[], None);
        assert_eq!(safe_head.waits_for(), None);
        safe_head.observe(Position(6), &writers(&["a"]), None);
        safe_head.observe(Position(8), &writers(&["a", "b"]), None);
        assert_eq!(safe_head.waits_for(), Some(&BTreeSet::from([WriterId("a".to_owned())])));
        safe_head.observe(Position(8), &writers(&["a", "b"]), Some(Position(7)));
        assert_eq!(safe_head.waits_for().unwrap().len(), 2, "7 is safe; 8 waits for both");
        safe_head.observe(Position(8), &[], None);
        assert_eq!(safe_head.waits_for(), None);
    }

    #[test]
    fn a_log_without_gaps_needs_to_wait_for_no_writer() {
        let mut safe_head = SafeHead::default();
        safe_head.observe(Position(4), &[], None);
        assert_eq!(safe_head.observe(Position(9), &writers(&["a"]), Some(Position(7))), Some(Position(7)));
    }

    #[test]
    fn never_goes_back_and_knows_nothing_at_first() {
        let mut safe_head = SafeHead::default();
        assert_eq!(safe_head.observe(Position(9), &writers(&["a"]), None), None);
        assert_eq!(safe_head.observe(Position(9), &[], None), Some(Position(9)));
        assert_eq!(safe_head.observe(Position(8), &writers(&["b"]), Some(Position(3))), Some(Position(9)));
    }

    #[test]
    fn one_endless_writer_does_not_make_it_grow() {
        let mut safe_head = SafeHead::default();
        for head in 0..10_000 {
            let short = format!("short-{head}");
            assert_eq!(safe_head.observe(Position(head), &writers(&["endless", &short]), None), None);
        }
        assert!(safe_head.candidates.len() <= MOST_CANDIDATES);
        assert_eq!(safe_head.observe(Position(10_000), &[], None), Some(Position(10_000)));
    }
}
