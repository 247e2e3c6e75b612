//! What came and what was handled, where only what waits is kept: counters that only grow. Pure.
//!
//! What waits tells both only in sum. Where counters tell one of them they may be some seconds late, so that what waits tells too.

/// What came and what was handled since following it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    /// Events that waited at the first look.
    first: Option<u64>,
    /// Events that came, as counters tell.
    told: u64,
    /// Events that were handled, as counters tell.
    left: u64,
    /// Events that came.
    pub(super) arrived: u64,
    /// Events that came or were there at first, and no longer wait.
    pub(super) handled: u64,
}

impl Flow {
    /// Takes in how many events wait, and how many are told to have come, and to have been handled, since the last look. Zero where nothing is told.
    pub(super) fn take(&mut self, waiting: u64, came: u64, left: u64) {
        let Some(first) = self.first else {
            self.first = Some(waiting);
            return;
        };
        self.told = self.told.saturating_add(came);
        self.left = self.left.saturating_add(left);
        self.handled = self.handled.max(self.left);
        // What waits or has left, and was not there at first, came since; and what was there or came, and does not wait, has left.
        let seen = self.handled.saturating_add(waiting).saturating_sub(first);
        self.arrived = self.arrived.max(self.told).max(seen);
        self.handled = self.handled.max(first.saturating_add(self.arrived).saturating_sub(waiting));
    }
}

/// A counter that may begin again, as the server's do when its statistics are reset. It may be a sum, as over a table's partitions, of which one may go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter(Option<u64>);

impl Counter {
    /// How much was counted since the last look, as far as that is certain: nothing at the first, and nothing where the counter fell.
    pub(super) fn growth(&mut self, now: u64) -> u64 {
        let before = self.0.replace(now).unwrap_or(now);
        now.saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(looks: &[(u64, u64)]) -> (u64, u64) {
        let mut flow = Flow::default();
        looks.iter().for_each(|(waiting, came)| flow.take(*waiting, *came, 0));
        (flow.arrived, flow.handled)
    }

    #[test]
    fn rows_that_came_and_were_sent_between_two_polls_are_counted_where_the_server_tells_them() {
        assert_eq!(after(&[(5, 0)]), (0, 0));
        assert_eq!(after(&[(5, 0), (5, 100)]), (100, 100));
        assert_eq!(after(&[(5, 0), (15, 100), (0, 0)]), (100, 105));
    }

    #[test]
    fn what_is_told_to_be_handled_came_too() {
        let mut flow = Flow::default();
        for (waiting, left) in [(5, 0), (5, 100), (2, 3)] {
            flow.take(waiting, 0, left);
        }
        assert_eq!((flow.arrived, flow.handled), (100, 103));
    }

    #[test]
    fn without_the_server_s_counts_the_rows_that_wait_tell() {
        assert_eq!(after(&[(5, 0), (9, 0)]), (4, 0));
        assert_eq!(after(&[(5, 0), (9, 0), (0, 0)]), (4, 9));
        assert_eq!(after(&[(5, 0), (9, 0), (0, 0), (4, 0), (2, 0)]), (8, 11));
    }

    #[test]
    fn counts_that_come_late_count_nothing_twice() {
        assert_eq!(after(&[(0, 0), (10, 0), (10, 10)]), (10, 0));
        assert_eq!(after(&[(0, 0), (10, 0), (0, 0), (0, 30)]), (30, 30));
        assert_eq!(after(&[(20, 0), (10, 0), (10, 5), (10, 5)]), (10, 20));
    }

    #[test]
    fn the_counters_only_grow() {
        let mut flow = Flow::default();
        let mut last = (0, 0);
        for (waiting, came) in [(7, 0), (3, 9), (90, 0), (0, 1), (4, 4), (4, 0), (1, 300), (0, 0)] {
            flow.take(waiting, came, 0);
            assert!(flow.arrived >= last.0 && flow.handled >= last.1, "{flow:?} after {last:?}");
            assert!(flow.arrived + 7 >= flow.handled + waiting, "{flow:?}: nothing left that did not come");
            last = (flow.arrived, flow.handled);
        }
    }

    #[test]
    fn a_counter_that_began_again_goes_on() {
        let mut counter = Counter::default();
        assert_eq!([100, 107, 3, 3, 4].map(|now| counter.growth(now)), [0, 7, 0, 0, 1]);
    }

    #[test]
    fn a_partition_that_is_dropped_does_not_make_the_rows_of_the_others_new() {
        let mut counter = Counter::default();
        // The sum over three partitions; the oldest goes, and rows are written to the newest.
        assert_eq!([3_000_000, 2_000_000, 2_000_050].map(|now| counter.growth(now)), [0, 0, 50]);
    }
}
