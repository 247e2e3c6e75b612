//! How far the last prediction was from the events that came: whether the model's input is reliable.

use std::time::Duration;

use super::as_float;

/// The shortest time to look ahead.
const SHORTEST: Duration = Duration::from_secs(10);
/// A prediction is dropped when the sample to compare it with comes later than this many times its length.
const LATE: u32 = 3;

/// What was expected of a time, and what came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Events that should have arrived.
    pub expected: f64,
    /// Events that did.
    pub came: f64,
}

impl Prediction {
    /// What came over what was expected: 1 is right, 2 is twice as much as expected. One event more on both sides keeps it finite.
    pub fn ratio(&self) -> f64 {
        (self.came + 1.0) / (self.expected + 1.0)
    }
}

/// Predicts, waits, compares.
#[derive(Clone, Debug, Default)]
pub(super) struct Predictions {
    open: Option<(Duration, u64, f64)>,
    last: Option<Prediction>,
}

impl Predictions {
    /// Takes in the counter of arrivals and the rate that the model assumes; looks as far ahead as the target. Answers the last comparison.
    pub(super) fn observe(&mut self, now: Duration, arrived: u64, rate: f64, target: Duration) -> Option<Prediction> {
        let horizon = target.max(SHORTEST);
        let Some((since, counted, expected)) = self.open else {
            self.open = Some((now, arrived, rate));
            return self.last;
        };
        let (Some(passed), Some(came)) = (now.checked_sub(since), arrived.checked_sub(counted)) else {
            self.open = Some((now, arrived, rate));
            return self.last;
        };
        if passed >= horizon {
            self.last = (passed < horizon * LATE)
                .then(|| Prediction { expected: expected * passed.as_secs_f64(), came: as_float(came) });
            self.open = Some((now, arrived, rate));
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_compared_with_what_was_expected() {
        let mut predictions = Predictions::default();
        let mut at = |second, arrived| predictions.observe(Duration::from_secs(second), arrived, 10.0, SHORTEST);
        assert_eq!(at(0, 1_000), None);
        assert_eq!(at(5, 1_100), None);
        assert_eq!(at(10, 1_200), Some(Prediction { expected: 100.0, came: 200.0 }));
        assert_eq!(at(15, 1_210).map(|last| last.ratio().round()), Some(2.0));
        assert_eq!(at(20, 1_300), Some(Prediction { expected: 100.0, came: 100.0 }));
        assert_eq!(at(500, 1_400), None, "no sample for long");
        assert_eq!(at(510, 3), None, "the counter started over");
    }
}
