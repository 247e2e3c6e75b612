//! Live or catching up: a backlog that cannot be cleared within the target gets a time of its own.

use std::time::Duration;

use super::Bounds;

/// Where a projection stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// At the head: no event is to wait longer than the target.
    Live,
    /// Reading a backlog that broke the target and is more than the workers allowed can clear at once.
    CatchingUp {
        /// What is left of the time allowed for it, zero when it is over.
        left: Duration,
    },
}

/// Follows when the target was broken.
#[derive(Clone, Debug, Default)]
pub(super) struct Phases {
    broken_at: Option<Duration>,
    catching_up: bool,
}

impl Phases {
    /// Takes in the age of the oldest waiting event, and whether the workers allowed could hold the target. A time allowed for catching up counts from when the
    /// target was broken, as far as that was seen.
    pub(super) fn observe(
        &mut self,
        now: Duration,
        staleness: Option<Duration>,
        bounds: &Bounds,
        live_suffices: bool,
    ) -> Stage {
        match staleness {
            Some(age) if age <= bounds.target => *self = Self::default(),
            Some(_) => self.broken_at = Some(self.broken_at.map_or(now, |since| since.min(now))),
            None => {}
        }
        let (Some(catch_up), Some(since)) = (bounds.catch_up, self.broken_at) else { return Stage::Live };
        self.catching_up |= !live_suffices;
        if self.catching_up {
            Stage::CatchingUp { left: catch_up.within.saturating_sub(now.saturating_sub(since)) }
        } else {
            Stage::Live
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::CatchUp;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn bounds(catch_up: Option<CatchUp>) -> Bounds {
        Bounds {
            target: seconds(10),
            min: 1,
            max: 10,
            shards: None,
            strict: false,
            stuck_after: seconds(300),
            idle_for: seconds(300),
            catch_up,
            given_rate: None,
            connections: None,
            strain: None,
            throttled: None,
            retention: None,
            look_ahead: None,
            value: None,
        }
    }

    #[test]
    fn a_backlog_that_is_too_much_for_the_target_gets_the_time_allowed_from_when_the_target_was_broken() {
        let bounds = bounds(Some(CatchUp { within: seconds(600), max: 20 }));
        let mut phases = Phases::default();
        for (second, age, suffices, expected) in [
            (0, Some(3), true, Stage::Live),
            (1, Some(3), false, Stage::Live),
            (100, Some(11), true, Stage::Live),
            (110, Some(21), false, Stage::CatchingUp { left: seconds(590) }),
            (200, Some(90), true, Stage::CatchingUp { left: seconds(500) }),
            (210, None, true, Stage::CatchingUp { left: seconds(490) }),
            (710, Some(90), true, Stage::CatchingUp { left: Duration::ZERO }),
            (720, Some(10), false, Stage::Live),
            (730, Some(11), false, Stage::CatchingUp { left: seconds(600) }),
        ] {
            assert_eq!(phases.observe(seconds(second), age.map(seconds), &bounds, suffices), expected, "{second}");
        }
    }

    #[test]
    fn without_a_time_allowed_everything_is_live() {
        let stage = Phases::default().observe(seconds(1), Some(seconds(9_999)), &bounds(None), false);
        assert_eq!(stage, Stage::Live);
    }
}
