//! How long a worker takes from being asked for to being ready. A backlog goes on growing meanwhile, and the plan must count on the workers that are
//! starting.

use std::{collections::VecDeque, time::Duration};

/// The start-up time until one was seen.
const PRESUMED: Duration = Duration::from_secs(2);
/// Longer start-ups were held up by something else, and are not counted.
const LONGEST: Duration = Duration::from_secs(60);
/// After this many times the usual time, workers that are not ready are no longer counted on.
const OVERDUE: u32 = 2;
/// The start-up time is the median of this many.
const REMEMBERED: usize = 5;

/// Follows how many workers were asked for and how many are ready.
#[derive(Clone, Debug, Default)]
pub(super) struct StartUp {
    asked: Option<(Duration, u32)>,
    seen: VecDeque<Duration>,
}

impl StartUp {
    /// Takes in the ready workers of a sample.
    pub(super) fn observe(&mut self, now: Duration, ready: u32) {
        let Some((since, workers)) = self.asked else { return };
        let Some(took) = now.checked_sub(since).filter(|took| *took <= LONGEST) else {
            self.asked = None;
            return;
        };
        if ready >= workers {
            self.asked = None;
            if self.seen.len() >= REMEMBERED {
                self.seen.pop_front();
            }
            self.seen.push_back(took);
        }
    }

    /// Takes in an answer.
    pub(super) fn asked(&mut self, now: Duration, workers: u32, ready: u32) {
        match self.asked {
            _ if workers <= ready => self.asked = None,
            // More on top of those that are starting says nothing about these.
            Some((since, before)) => self.asked = Some((since, before.min(workers))),
            None => self.asked = Some((now, workers)),
        }
    }

    /// How long those that were asked for will take yet, as long as they are not overdue.
    pub(super) fn left(&self, now: Duration) -> Option<Duration> {
        let (since, _) = self.asked?;
        let waited = now.checked_sub(since)?;
        let typical = self.typical();
        (waited < typical * OVERDUE).then(|| typical.saturating_sub(waited))
    }

    /// What to count on.
    pub(super) fn typical(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.seen.iter().copied().collect();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().unwrap_or(PRESUMED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_time_from_being_asked_for_to_being_ready_is_learnt() {
        let mut start_up = StartUp::default();
        assert_eq!(start_up.typical(), PRESUMED);
        start_up.asked(at(10), 4, 2);
        start_up.observe(at(13), 3);
        start_up.asked(at(13), 8, 3);
        start_up.observe(at(17), 4);
        assert_eq!((start_up.typical(), start_up.left(at(17))), (at(7), None));
        start_up.asked(at(20), 9, 4);
        let left = |second| start_up.left(at(second));
        assert_eq!((left(22), left(30), left(34)), (Some(at(5)), Some(at(0)), None), "and then they are overdue");
    }

    #[test]
    fn what_never_comes_or_is_no_longer_wanted_teaches_nothing() {
        let mut start_up = StartUp::default();
        start_up.asked(at(10), 4, 2);
        start_up.observe(at(200), 4);
        start_up.asked(at(210), 4, 2);
        start_up.asked(at(211), 2, 2);
        start_up.observe(at(220), 4);
        assert_eq!(start_up.typical(), PRESUMED);
    }
}
