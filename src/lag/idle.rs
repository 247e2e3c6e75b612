//! How long nothing has waited or arrived, which is what zero workers need.

use std::time::Duration;

use super::Bounds;

/// Across a longer time without a sample nothing is proven.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// Follows quiet.
#[derive(Clone, Debug, Default)]
pub(super) struct Idle {
    /// The last look at which nothing waited: when, and the counter of arrivals.
    quiet: Option<(Duration, u64)>,
    idle_for: Duration,
    /// There were no workers before this process began, so the time before it counts as quiet: no worker could have handled anything.
    asleep: bool,
}

impl Idle {
    /// `asleep`: by the last answer of an earlier run no worker was required.
    pub(super) fn remembering(asleep: bool) -> Self {
        Self { asleep, ..Self::default() }
    }

    /// Takes in the required number of workers from another replica's model of the same projection.
    pub(super) fn hear(&mut self, workers: u32) {
        self.asleep |= workers == 0;
    }

    /// Takes in a sample with a known lag, and returns how long nothing has waited or arrived. Samples without one are not passed in: they change
    /// nothing and prove nothing.
    pub(super) fn observe(&mut self, at: Duration, pending: u64, arrived: u64) -> Duration {
        let before = self.quiet.take();
        if pending > 0 {
            *self = Self::default();
            return Duration::ZERO;
        }
        self.quiet = Some((at, arrived));
        if let Some((seen_at, counted)) = before {
            let gap = at.checked_sub(seen_at).filter(|gap| *gap <= LONGEST_GAP);
            match gap.filter(|_| arrived == counted) {
                Some(gap) => self.idle_for += gap,
                None => (self.idle_for, self.asleep) = (Duration::ZERO, false),
            }
        }
        self.idle_for
    }

    /// How much there is to do is unknown where nothing was ever committed.
    pub(super) fn never_committed(&mut self) {
        *self = Self::default();
    }

    /// No worker is needed.
    pub(super) fn enough(&self, bounds: &Bounds) -> bool {
        bounds.min == 0 && self.quiet.is_some() && (self.asleep || self.idle_for >= bounds.idle_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(min: u32) -> Bounds {
        Bounds {
            target: Duration::from_secs(10),
            min,
            max: 10,
            shards: None,
            strict: false,
            stuck_after: Duration::from_secs(300),
            idle_for: Duration::from_secs(100),
            catch_up: None,
            given_rate: None,
            connections: None,
            strain: None,
            throttled: None,
            retention: None,
            look_ahead: None,
            value: None,
        }
    }

    /// Seconds, pending, arrived; after the last of them: idle for how long, and whether that is enough.
    fn after(idle: &mut Idle, looks: &[(u64, u64, u64)]) -> (u64, bool) {
        let mut last = Duration::ZERO;
        for (second, pending, arrived) in looks {
            last = idle.observe(Duration::from_secs(*second), *pending, *arrived);
        }
        (last.as_secs(), idle.enough(&bounds(0)))
    }

    #[test]
    fn quiet_is_what_was_seen_to_be_quiet() {
        for (looks, expected) in [
            (&[(1_000, 0, 5)][..], (0, false)),
            (&[(1_000, 0, 5), (1_050, 0, 5), (1_099, 0, 5)], (99, false)),
            (&[(1_000, 0, 5), (1_050, 0, 5), (1_100, 0, 5)], (100, true)),
            // Handled between two looks: nothing waited at either, but it came.
            (&[(1_000, 0, 5), (1_050, 0, 5), (1_100, 0, 6)], (0, false)),
            (&[(1_000, 0, 5), (1_050, 1, 6), (1_100, 0, 6), (1_150, 0, 6)], (50, false)),
            // After more than a minute without a sample it is unknown what happened meanwhile.
            (&[(1_000, 0, 5), (1_060, 0, 5), (1_121, 0, 5)], (0, false)),
            // A clock or a counter that started again proves nothing.
            (&[(1_000, 0, 5), (10, 0, 5)], (0, false)),
            (&[(1_000, 0, 5), (1_050, 0, 0)], (0, false)),
        ] {
            assert_eq!(after(&mut Idle::default(), looks), expected, "{looks:?}");
        }
    }

    #[test]
    fn only_a_minimum_of_zero_sleeps() {
        let mut idle = Idle::default();
        assert!(after(&mut idle, &[(0, 0, 5), (60, 0, 5), (120, 0, 5)]).1);
        assert!(!idle.enough(&bounds(1)));
    }

    #[test]
    fn what_never_committed_is_not_idle_however_quiet_it_was() {
        let mut idle = Idle::default();
        after(&mut idle, &[(0, 0, 5), (60, 0, 5), (120, 0, 5)]);
        idle.never_committed();
        assert!(!idle.enough(&bounds(0)));
        assert_eq!(after(&mut idle, &[(130, 0, 5), (140, 0, 5)]), (10, false));
    }

    #[test]
    fn what_slept_before_a_restart_sleeps_on_unless_something_waits() {
        assert!(after(&mut Idle::remembering(true), &[(5, 0, 0)]).1);
        assert!(after(&mut Idle::remembering(true), &[(5, 0, 0), (6, 0, 0)]).1);
        assert!(!after(&mut Idle::remembering(true), &[(5, 1, 0)]).1);
        assert!(!after(&mut Idle::remembering(true), &[(5, 0, 0), (6, 0, 1)]).1);
        assert!(!Idle::remembering(true).enough(&bounds(0)), "not before the first look");
        let mut idle = Idle::default();
        assert!(!after(&mut idle, &[(5, 0, 0), (6, 0, 0)]).1);
        idle.hear(1);
        assert!(!after(&mut idle, &[(7, 0, 0)]).1);
        idle.hear(0);
        assert!(after(&mut idle, &[(8, 0, 0)]).1, "another one found it quiet for long enough");
        assert!(!after(&mut idle, &[(9, 1, 1)]).1, "until something comes");
    }
}
