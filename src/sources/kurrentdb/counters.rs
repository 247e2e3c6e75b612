//! What is remembered from poll to poll: counters that only grow. Pure.

use std::time::Duration;

/// Events that came, and that were handled, since measuring began.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    arrived: u64,
    handled: u64,
    before: Option<Before>,
    /// Several Projections may read one subscription: it is counted once a look.
    at: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Before {
    count: Option<u64>,
    pending: u64,
    completed: i64,
}

impl Counters {
    /// Takes in what a persistent subscription tells; returns what has arrived and what has been handled. `count`: the number of events of its stream, where
    /// they are numbered; else arrivals are what was handed out and came back (`completed`, redeliveries included), and the growth of what is pending.
    pub(super) fn take(&mut self, at: Duration, count: Option<u64>, pending: u64, completed: i64) -> (u64, u64) {
        if let Some(before) = self.before {
            if self.at == at {
                return (self.arrived, self.handled);
            }
            let came = match before.count.zip(count) {
                Some((before, now)) => now.saturating_sub(before),
                None => {
                    let done = u64::try_from(completed.saturating_sub(before.completed)).unwrap_or(0);
                    pending.saturating_add(done).saturating_sub(before.pending)
                }
            };
            self.arrived = self.arrived.saturating_add(came);
            let handled = before.pending.saturating_add(came).saturating_sub(pending);
            self.handled = self.handled.saturating_add(handled);
        }
        (self.before, self.at) = (Some(Before { count, pending, completed }), at);
        (self.arrived, self.handled)
    }
}

/// Events of a log that came since measuring it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrivals {
    total: u64,
    /// The end of the log at the last look.
    pub(super) end: Option<u64>,
}

impl Arrivals {
    /// Events that came so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Takes in the end of the log, with the number of events between the last one and this.
    pub(super) fn take(&mut self, end: u64, came: impl FnOnce(u64) -> u64) -> u64 {
        if let Some(before) = self.end.filter(|before| *before < end) {
            self.total = self.total.saturating_add(came(before));
        }
        self.end = Some(end);
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_numbered_stream_arrivals_are_its_growth() {
        let mut counters = Counters::default();
        let at = Duration::from_secs;
        assert_eq!(counters.take(at(1), Some(100), 10, 90), (0, 0), "what was before is not ours to count");
        assert_eq!(counters.take(at(2), Some(120), 5, 115), (20, 25));
        assert_eq!(counters.take(at(2), Some(120), 5, 115), (20, 25), "for another Projection");
        assert_eq!(counters.take(at(3), Some(120), 5, 300), (20, 25), "redelivered, not handled");
        assert_eq!(counters.take(at(4), Some(3), 3, 0), (20, 27), "made again");
        assert_eq!(counters.take(at(5), Some(5), 0, 5), (22, 32));
    }

    #[test]
    fn of_all_events_arrivals_are_what_was_handled_and_what_waits_more() {
        let mut counters = Counters::default();
        let at = Duration::from_secs;
        counters.take(at(1), None, 10, 90);
        assert_eq!(counters.take(at(2), None, 12, 100), (12, 10));
        assert_eq!(counters.take(at(3), None, 12, 0), (12, 10), "the server was started again");
        assert_eq!(counters.take(at(4), None, 0, 12), (12, 22));
    }

    #[test]
    fn a_log_that_went_back_brings_nothing() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.take(100, |_| panic!("no look before")), 0);
        assert_eq!(arrivals.take(300, |before| (300 - before) / 100), 2);
        assert_eq!(arrivals.take(50, |_| panic!("it went back")), 2);
    }
}
