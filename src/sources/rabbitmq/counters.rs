//! What is remembered of a queue from poll to poll: counters that only grow. Pure.
//!
//! The server's own counters say what was published by clients and what consumers have done with. They leave out messages that were dead-lettered into the
//! queue, begin again with the server, run ahead of the depth or behind it by some seconds, and are missing where statistics are off: so the depth tells too.

/// What a poll tells of a queue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Seen {
    /// Messages in the queue, those that consumers hold included.
    pub(super) depth: u64,
    /// The server's counter of messages that were published to it, where there is one.
    pub(super) published: Option<u64>,
    /// The server's counter of messages that consumers have done with, where there is one.
    pub(super) handled: Option<u64>,
}

/// Since measuring the queue began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counters {
    /// Messages that came.
    pub(super) arrived: u64,
    /// Messages that consumers have done with.
    pub(super) handled: u64,
    published: u64,
    /// The depth at the beginning.
    began: u64,
    last: Option<Seen>,
}

impl Counters {
    /// Takes in what a poll tells.
    pub(super) fn take(&mut self, now: Seen) -> Self {
        let Some(last) = self.last.replace(now) else {
            self.began = now.depth;
            return *self;
        };
        self.published += growth(last.published, now.published).unwrap_or(0);
        // Without a counter, what is gone has been handled.
        let gone = last.depth.saturating_sub(now.depth);
        self.handled += growth(last.handled, now.handled).unwrap_or(gone);
        // What is there or was handled, and was not there at the beginning, came since.
        let by_depth = (now.depth + self.handled).saturating_sub(self.began);
        self.arrived = self.arrived.max(self.published).max(by_depth);
        *self
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

    fn take(counters: &mut Counters, depth: u64, published: Option<u64>, handled: Option<u64>) -> (u64, u64) {
        let now = counters.take(Seen { depth, published, handled });
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
        assert_eq!(take(&mut queue, 0, Some(10), Some(10)), (5, 5));
    }

    #[test]
    fn without_counters_the_depth_tells() {
        let mut queue = Counters::default();
        let seen = [5, 9, 9, 0, 4, 2].map(|depth| take(&mut queue, depth, None, None));
        assert_eq!(seen, [(0, 0), (4, 0), (4, 0), (4, 9), (8, 9), (8, 11)]);
    }

    #[test]
    fn what_is_dead_lettered_into_the_queue_arrives_though_no_client_published_it() {
        let mut queue = Counters::default();
        take(&mut queue, 0, Some(0), Some(0));
        assert_eq!(take(&mut queue, 6, Some(0), Some(0)), (6, 0));
        assert_eq!(take(&mut queue, 0, Some(0), Some(6)), (6, 6));
    }

    #[test]
    fn a_depth_that_lags_behind_the_counters_counts_nothing_twice() {
        let mut queue = Counters::default();
        take(&mut queue, 0, Some(0), Some(0));
        assert_eq!(take(&mut queue, 0, Some(10), Some(0)), (10, 0), "published is ahead");
        assert_eq!(take(&mut queue, 10, Some(10), Some(0)), (10, 0));
        assert_eq!(take(&mut queue, 20, Some(10), Some(0)), (20, 0), "the depth is ahead");
        assert_eq!(take(&mut queue, 20, Some(20), Some(0)), (20, 0));
    }

    #[test]
    fn a_purge_handles_nothing() {
        let mut queue = Counters::default();
        take(&mut queue, 100, Some(100), Some(0));
        assert_eq!(take(&mut queue, 0, Some(100), Some(0)), (0, 0));
        assert_eq!(take(&mut queue, 3, Some(103), Some(0)), (3, 0));
    }
}
