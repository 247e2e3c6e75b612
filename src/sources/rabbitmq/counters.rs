//! What is remembered of a queue from poll to poll: counters that only grow. Pure.
//!
//! The server's own counters say what was published by clients and what consumers have done with. They leave out messages that were dead-lettered into the
//! queue, begin again with the server, run ahead of the depth or behind it by some seconds, and are missing where statistics are off: so the depth tells too.

use std::{collections::VecDeque, time::Duration};

/// For so long counters and depth may be apart: three of the server's usual statistics intervals.
const APART: Duration = Duration::from_secs(15);

/// What a poll tells of a queue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Seen {
    /// When, on a clock that never goes back.
    pub(super) at: Duration,
    /// Messages in the queue, those that consumers hold included.
    pub(super) depth: u64,
    /// The server's counter of messages that were published to it, where there is one.
    pub(super) published: Option<u64>,
    /// The server's counter of messages that consumers have done with, where there is one.
    pub(super) handled: Option<u64>,
}

/// Since measuring the queue began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Totals {
    /// Messages that came.
    pub(super) arrived: u64,
    /// Messages that consumers have done with.
    pub(super) handled: u64,
}

/// What is remembered of a queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    totals: Totals,
    published: u64,
    /// The depth at the beginning.
    began: u64,
    last: Option<Seen>,
    /// What came since as the depth tells, in the last while.
    by_depth: VecDeque<(Duration, u64)>,
}

impl Counters {
    /// Takes in what a poll tells.
    pub(super) fn take(&mut self, now: Seen) -> Totals {
        let Some(last) = self.last.replace(now) else {
            self.began = now.depth;
            return self.totals;
        };
        // Without a counter, or with one that has just begun, what is there in addition came, and what is gone has been handled.
        let more = now.depth.saturating_sub(last.depth);
        self.published += growth(last.published, now.published).unwrap_or(more);
        let gone = last.depth.saturating_sub(now.depth);
        self.totals.handled += growth(last.handled, now.handled).unwrap_or(gone);
        // What is there or was handled, and was not there at the beginning, came since.
        let by_depth = (now.depth + self.totals.handled).saturating_sub(self.began);
        let by_depth = self.lasting(now.at, by_depth);
        self.totals.arrived = self.totals.arrived.max(self.published).max(by_depth);
        self.totals
    }

    /// The least that the depth has told for a while: a counter of handled messages that is ahead of the depth makes it tell too much for a moment.
    fn lasting(&mut self, at: Duration, by_depth: u64) -> u64 {
        self.by_depth.push_back((at, by_depth));
        // The newest that is old enough stays, so that the whole while is covered.
        while self.by_depth.get(1).is_some_and(|(since, _)| at.saturating_sub(*since) >= APART) {
            self.by_depth.pop_front();
        }
        let covered = self.by_depth.front().is_some_and(|(since, _)| at.saturating_sub(*since) >= APART);
        self.by_depth.iter().map(|(_, told)| *told).min().filter(|_| covered).unwrap_or(0)
    }
}

/// By how much a counter grew. One that went back began again. Unknown where it was or is missing.
fn growth(last: Option<u64>, now: Option<u64>) -> Option<u64> {
    let (last, now) = last.zip(now)?;
    Some(now.checked_sub(last).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A poll a second after the one before.
    fn take(counters: &mut Counters, depth: u64, published: Option<u64>, handled: Option<u64>) -> (u64, u64) {
        let at = counters.last.map_or(Duration::ZERO, |last| last.at + Duration::from_secs(1));
        let now = counters.take(Seen { at, depth, published, handled });
        (now.arrived, now.handled)
    }

    #[test]
    fn the_server_s_counters_count_from_the_beginning_of_measuring() {
        let mut queue = Counters::default();
        assert_eq!(take(&mut queue, 10, Some(100), Some(90)), (0, 0));
        assert_eq!(take(&mut queue, 12, Some(107), Some(95)), (7, 5));
        assert_eq!(take(&mut queue, 0, Some(107), Some(107)), (7, 17));
    }

    #[test]
    fn counters_that_begin_again_go_on_growing() {
        let mut queue = Counters::default();
        take(&mut queue, 0, Some(100), Some(100));
        assert_eq!(take(&mut queue, 0, Some(3), Some(3)), (3, 3));
        assert_eq!(take(&mut queue, 1, None, None), (4, 3), "missing");
        assert_eq!(take(&mut queue, 0, Some(9), Some(9)), (4, 4), "there again: what they say counts from here");
        assert_eq!(take(&mut queue, 0, Some(12), Some(12)), (7, 7));
        assert_eq!(take(&mut Counters::default(), 0, None, None), (0, 0));
    }

    #[test]
    fn a_counter_that_has_just_begun_is_completed_by_the_depth() {
        let mut queue = Counters::default();
        take(&mut queue, 0, None, None);
        assert_eq!(take(&mut queue, 3, Some(3), Some(0)), (3, 0));
        assert_eq!(take(&mut queue, 2, Some(3), Some(1)), (3, 1));
    }

    #[test]
    fn without_counters_the_depth_tells() {
        let mut queue = Counters::default();
        let seen = [5, 9, 9, 0, 4, 2].map(|depth| take(&mut queue, depth, None, None));
        assert_eq!(seen, [(0, 0), (4, 0), (4, 0), (4, 9), (8, 9), (8, 11)]);
    }

    #[test]
    fn what_is_dead_lettered_into_the_queue_arrives_a_while_later_though_no_client_published_it() {
        let mut queue = Counters::default();
        take(&mut queue, 0, Some(0), Some(0));
        assert_eq!(take(&mut queue, 6, Some(0), Some(0)), (0, 0));
        let later: Vec<_> = (0..20).map(|_| take(&mut queue, 0, Some(0), Some(6))).collect();
        assert_eq!((later[0], later[19]), ((0, 6), (6, 6)));
    }

    #[test]
    fn a_depth_and_counters_that_are_apart_for_a_moment_count_nothing_twice() {
        let mut queue = Counters::default();
        take(&mut queue, 0, Some(0), Some(0));
        assert_eq!(take(&mut queue, 0, Some(10), Some(0)), (10, 0), "published is ahead");
        assert_eq!(take(&mut queue, 20, Some(10), Some(0)), (10, 0), "the depth is ahead");
        assert_eq!(take(&mut queue, 20, Some(20), Some(0)), (20, 0));
        assert_eq!(take(&mut queue, 20, Some(20), Some(15)), (20, 15), "handled is ahead");
        assert_eq!(take(&mut queue, 5, Some(20), Some(15)), (20, 15));
        for _ in 0..40 {
            assert_eq!(take(&mut queue, 5, Some(20), Some(15)), (20, 15));
        }
    }

    #[test]
    fn a_purge_handles_nothing() {
        let mut queue = Counters::default();
        take(&mut queue, 100, Some(100), Some(0));
        assert_eq!(take(&mut queue, 0, Some(100), Some(0)), (0, 0));
        assert_eq!(take(&mut queue, 3, Some(103), Some(0)), (3, 0));
    }

    #[test]
    fn what_is_remembered_stays_small() {
        let mut queue = Counters::default();
        for count in 0..1_000 {
            take(&mut queue, 0, Some(count), Some(count));
        }
        assert!(queue.by_depth.len() <= 17, "{}", queue.by_depth.len());
    }
}
