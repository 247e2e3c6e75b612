//! Pauses that grow with each failure: one rule for all that is tried again. Pure.

use std::time::Duration;

/// Pauses between attempts that fail: each twice as long as the one before, up to a longest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// From the `first` pause to the `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause after a failure that `earlier` failures came before without a success in between.
    pub fn pause(self, earlier: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(earlier)).min(self.longest)
    }

    /// The same, less up to half of it by `jitter` from 0 to 1, so that what failed together is not tried together again.
    pub fn jittered(self, earlier: u32, jitter: f64) -> Duration {
        self.pause(earlier).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_jitter_takes_at_most_half() {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let pauses = [0, 1, 2, 5, 6, 31, 32, u32::MAX].map(|earlier| backoff.pause(earlier).as_millis());
        assert_eq!(pauses, [500, 1_000, 2_000, 16_000, 30_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff.jittered(1, 0.0), Duration::from_secs(1));
        assert_eq!([1.0, 7.0].map(|jitter| backoff.jittered(1, jitter).as_millis()), [500, 500]);
    }
}
