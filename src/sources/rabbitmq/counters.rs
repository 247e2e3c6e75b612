//! What is remembered of a queue from poll to poll: counters that only grow. Pure.
//!
//! The server's own counters say what was published by clients and what consumers have done with. They leave out messages that were dead-lettered into the
//! queue, begin again with the server, run ahead of the depth or behind it by some seconds, and are missing where statistics are off: so the depth tells too.

use std::{collections::VecDeque, time::Duration};

/// For so long counters and depth may be apart: three of the server's usual statistics intervals.
const APART: Duration = Duration::from_secs(15);

/// Consumers that are missing for so long are missed: longer than statistics are old and workers reconnect.
const UNATTENDED: Duration = Duration::from_secs(15);

/// What a poll tells of a queue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct QueueSample {
    /// When, on a clock that never goes back.
    pub(super) at: Duration,
    /// Messages in the queue, those that consumers hold included.
    pub(super) depth: u64,
    /// The server's counter of messages that were published to it, where there is one.
    pub(super) published: Option<u64>,
    /// The server's counter of messages that consumers have done with, where there is one.
    pub(super) handled: Option<u64>,
    /// Messages wait, and no consumer is subscribed.
    pub(super) unattended: bool,
}

/// Since measuring the queue began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Totals {
    /// Messages that came.
    pub(super) arrived: u64,
    /// Messages that consumers have done with.
    pub(super) handled: u64,
    /// Messages have waited for a while with no consumer subscribed, and none was handled meanwhile.
    pub(super) unattended: bool,
}

/// What is remembered of a queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    published: Counter,
    handled: Counter,
    arrived: u64,
    /// The depth at the first look, and at the last one.
    depths: Option<(u64, u64)>,
    /// Since when messages wait unattended, and how many had been handled until then.
    unattended: Option<(Duration, u64)>,
    /// What came since as the depth tells, in the last while.
    by_depth: VecDeque<(Duration, u64)>,
}

impl Counters {
    /// Takes in what a poll tells.
    pub(super) fn take(&mut self, now: QueueSample) -> Totals {
        let Some((first, last)) = self.depths else {
            self.depths = Some((now.depth, now.depth));
            (self.published.known, self.handled.known) = (now.published, now.handled);
            self.unattended = now.unattended.then_some((now.at, 0));
            return Totals::default();
        };
        self.depths = Some((first, now.depth));
        // Without counters, what is there in addition came, and what is gone has been handled.
        self.published.take(now.published, now.depth.saturating_sub(last));
        self.handled.take(now.handled, last.saturating_sub(now.depth));
        // What is there or was handled, and was not there at the beginning, came since.
        let by_depth = (now.depth + self.handled.total).saturating_sub(first);
        let by_depth = self.lasting(now.at, by_depth);
        self.arrived = self.arrived.max(self.published.total).max(by_depth);
        let unattended = self.unattended_for(&now).is_some_and(|time| time >= UNATTENDED);
        Totals { arrived: self.arrived, handled: self.handled.total, unattended }
    }

    /// For how long messages have waited with no consumer subscribed, while none was handled: a worker may fetch messages without subscribing.
    fn unattended_for(&mut self, now: &QueueSample) -> Option<Duration> {
        let handled = self.handled.total;
        let since = self.unattended.filter(|(_, before)| *before == handled).map_or(now.at, |(since, _)| since);
        self.unattended = now.unattended.then_some((since, handled));
        self.unattended.map(|(since, _)| now.at.saturating_sub(since))
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

/// One of the server's counters, and what it has counted since measuring began.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    total: u64,
    /// What the server said last.
    known: Option<u64>,
    /// What the depth told since then.
    credited: u64,
}

impl Counter {
    /// Takes in what the server says, or what the depth tells in its place. One that was never there before began since: it is missing until there is
    /// something to count. One that fell may have begun again, or be a sum over nodes of which one is away: how much was counted meanwhile is not known, and
    /// the depth tells.
    fn take(&mut self, said: Option<u64>, by_depth: u64) {
        let Some(now) = said else {
            self.total += by_depth;
            self.credited += by_depth;
            return;
        };
        self.total += match now.checked_sub(self.known.unwrap_or(0)) {
            Some(growth) => growth.saturating_sub(self.credited),
            None => by_depth,
        };
        (self.known, self.credited) = (Some(now), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A poll a second after the one before.
    fn take(counters: &mut Counters, depth: u64, published: Option<u64>, handled: Option<u64>) -> (u64, u64) {
        let at = counters.by_depth.back().map_or(Duration::ZERO, |(last, _)| *last + Duration::from_secs(1));
        let now = counters.take(QueueSample { at, depth, published, handled, unattended: false });
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
    fn where_counters_fall_the_depth_tells_and_then_they_go_on_growing() {
        let mut queue = Counters::default();
        take(&mut queue, 0, Some(5_000), Some(5_000));
        assert_eq!(take(&mut queue, 0, Some(3_000), Some(3_000)), (0, 0), "a node is away");
        assert_eq!(take(&mut queue, 2, Some(3), Some(0)), (2, 0), "begun again");
        assert_eq!(take(&mut queue, 3, None, None), (3, 0), "missing");
        assert_eq!(take(&mut queue, 0, Some(9), Some(9)), (8, 9), "there again");
        assert_eq!(take(&mut queue, 0, Some(12), Some(12)), (11, 12));
    }

    #[test]
    fn a_counter_is_missing_until_there_is_something_to_count() {
        for between in [(0, Some(3)), (3, None), (3, Some(3)), (0, None)] {
            let mut queue = Counters::default();
            take(&mut queue, 0, None, None);
            take(&mut queue, between.0, between.1, between.1.map(|_| 0));
            assert_eq!(take(&mut queue, 3, Some(3), Some(0)), (3, 0), "{between:?}");
            assert_eq!(take(&mut queue, 2, Some(3), Some(1)), (3, 1), "{between:?}");
        }
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
    fn consumers_are_missed_after_a_while_in_which_nothing_was_handled() {
        let mut queue = Counters::default();
        let mut take = |second, handled, unattended| {
            let at = Duration::from_secs(second);
            queue.take(QueueSample { at, depth: 5, published: Some(9), handled: Some(handled), unattended }).unattended
        };
        assert!(!take(0, 4, true) && !take(14, 4, true), "not yet");
        assert!(take(15, 4, true) && take(20, 4, true));
        assert!(!take(21, 5, true) && !take(35, 5, true), "a worker fetches without subscribing");
        assert!(take(36, 5, true));
        assert!(!take(37, 5, false) && !take(52, 5, true), "a consumer was there");
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
