//! What is remembered of consumers from poll to poll: counters that only grow. Pure.

use std::time::Duration;

use super::answers::Consumer;

/// A consumer that was full for so long, without a delivery, has stopped. Workers that are busy acknowledge now and then.
const STOPPED: Duration = Duration::from_secs(15);

/// Messages that came for a consumer, and that it has handled, since measuring it began.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    arrived: u64,
    handled: u64,
    before: Option<Consumer>,
    /// Since when the consumer is full and nothing was delivered.
    full_since: Option<Duration>,
}

/// What is known of a consumer since measuring it began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Totals {
    pub(super) arrived: u64,
    pub(super) handled: u64,
    /// Nothing was delivered for a while, since workers hold as much as they may.
    pub(super) stopped: bool,
}

impl Counters {
    /// Takes in what the consumer tells at this time, on a clock that never goes back.
    ///
    /// The server counts deliveries, redeliveries included, and messages of the stream, including deleted ones and those of other subjects: the
    /// number of first deliveries is at most the smaller of the two. First deliveries that are no longer held were handled. Arrivals are what was
    /// handled, plus the growth of what is pending. Of a consumer that was deleted and made again nothing is counted until the next look.
    pub(super) fn take(&mut self, now: &Consumer, at: Duration) -> Totals {
        let same = |before: &&Consumer| {
            before.created == now.created && before.delivered.consumer_seq <= now.delivered.consumer_seq
        };
        if let Some(before) = self.before.as_ref().filter(same) {
            let deliveries = now.delivered.consumer_seq.saturating_sub(before.delivered.consumer_seq);
            let passed = now.delivered.stream_seq.saturating_sub(before.delivered.stream_seq);
            let handled = deliveries.min(passed).saturating_add(before.held).saturating_sub(now.held);
            let arrived = now.pending().saturating_add(handled).saturating_sub(before.pending());
            self.handled = self.handled.saturating_add(handled);
            self.arrived = self.arrived.saturating_add(arrived);
        }
        let delivered = self.before.as_ref().is_none_or(|before| before.delivered != now.delivered);
        let since = self.full_since.filter(|_| !delivered).unwrap_or(at);
        self.full_since = now.is_full().then_some(since);
        let stopped = self.full_since.is_some_and(|since| at.saturating_sub(since) >= STOPPED);
        self.before = Some(now.clone());
        Totals { arrived: self.arrived, handled: self.handled, stopped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::nats::answers::Place;

    fn consumer(created: i64, deliveries: u64, passed: u64, held: u64, waiting: u64) -> Consumer {
        Consumer {
            created: jiff::Timestamp::from_second(created).unwrap(),
            delivered: Place { consumer_seq: deliveries, stream_seq: passed },
            ack_floor: Place::default(),
            held,
            waiting,
            may_have_given_up: false,
            subjects: Vec::new(),
            most_held: Some(3),
            now: None,
        }
    }

    #[test]
    fn what_arrives_and_what_is_handled_only_grows() {
        let mut counters = Counters::default();
        let mut take = |created, deliveries, passed, held, waiting| {
            let totals = counters.take(&consumer(created, deliveries, passed, held, waiting), Duration::ZERO);
            (totals.arrived, totals.handled)
        };
        assert_eq!(take(1, 5, 5, 2, 10), (0, 0), "what was before is not ours to count");
        assert_eq!(take(1, 9, 9, 3, 6), (0, 3), "four given, one more held");
        assert_eq!(take(1, 9, 9, 0, 8), (2, 6), "three acknowledged, two came");
        assert_eq!(take(1, 12, 19, 3, 5), (2, 6), "three given of ten that are passed");
        assert_eq!(take(1, 20, 19, 3, 5), (2, 6), "redelivered, not handled");
        assert_eq!(take(1, 20, 24, 0, 0), (2, 9), "purged: what was held is gone");
        assert_eq!(take(2, 0, 0, 0, 24), (2, 9), "made again");
        assert_eq!(take(2, 24, 24, 0, 0), (2, 33));
        assert_eq!(take(2, 1, 1, 0, 23), (2, 33), "set back");
    }

    #[test]
    fn a_consumer_that_is_full_has_stopped_when_nothing_was_delivered_for_a_while() {
        let mut counters = Counters::default();
        let mut take = |second, deliveries, held, waiting| {
            counters.take(&consumer(1, deliveries, deliveries, held, waiting), Duration::from_secs(second)).stopped
        };
        assert!(!take(0, 3, 3, 5) && !take(14, 3, 3, 5), "not yet");
        assert!(take(15, 3, 3, 9));
        assert!(!take(16, 4, 3, 8) && !take(30, 4, 3, 8), "one was acknowledged, and the next delivered");
        assert!(take(31, 4, 3, 8));
        assert!(!take(32, 4, 2, 8), "there is room");
        assert!(!take(33, 4, 3, 0) && !take(60, 4, 3, 0), "nothing waits");
    }
}
