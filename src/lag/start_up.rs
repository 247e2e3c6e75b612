//! How long a worker takes from being asked for to being ready: a backlog goes on growing meanwhile, and those that start must be counted on.

use std::{collections::VecDeque, time::Duration};

/// Until one was seen.
const PRESUMED: Duration = Duration::from_secs(2);
/// Longer ones were held up by something else.
const LONGEST: Duration = Duration::from_secs(60);
/// The median of so many counts.
const REMEMBERED: usize = 5;

/// Follows what was asked for and what is there.
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
        assert_eq!(start_up.typical(), at(7));
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
