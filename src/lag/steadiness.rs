//! Keeps the answer from flapping: a higher number stays for a while, and a number that was too low is remembered.
//!
//! Scales out at once, and in with patience: each reversal costs a start and a rebalance, and users' trust, while a worker that stays a minute too
//! long costs a minute.

use std::{collections::VecDeque, time::Duration};

/// After the answer rose to a number, it does not fall below it for this long.
const HOLD: Duration = Duration::from_secs(60);
/// A fall that had to be taken back within this time, although no more events arrived than before, was a mistake.
const MISTAKE: Duration = Duration::from_secs(180);
/// A mistake is not repeated for this long, and for twice as long after each further one.
const LESSON: Duration = Duration::from_secs(600);
const LONGEST_LESSON: Duration = Duration::from_secs(3_600);
/// Two arrival rates within this factor of each other are the same load.
const SAME: f64 = 1.15;

/// Follows the answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Steadiness {
    before: Option<u32>,
    /// Another replica's answer, which counts instead of this model's last one, until the next.
    heard: Option<u32>,
    /// The last answer that came from another replica.
    followed: Option<u32>,
    /// Until when the answer must not fall below which number: the numbers fall as the times rise.
    floors: VecDeque<(Duration, u32)>,
    fall: Option<Fall>,
    lesson: Option<Lesson>,
    /// How long the next lesson lasts.
    lasting: Option<Duration>,
    now: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Fall {
    at: Duration,
    to: u32,
    arrival: f64,
}

/// This many workers were not enough for this many events per second.
#[derive(Clone, Copy, Debug)]
struct Lesson {
    workers: u32,
    arrival: f64,
    until: Duration,
}

impl Steadiness {
    /// Starts from the last answer of an earlier run.
    pub(super) fn remembering(before: Option<u32>) -> Self {
        Self { before, ..Self::default() }
    }

    /// Takes in another replica's answer, which counts as though it had been this model's.
    pub(super) fn hear(&mut self, workers: u32) {
        self.heard = Some(workers);
    }

    /// The number that is kept while no worker may be added: the last answer, and before there is one the workers that are ready.
    pub(super) fn held(&self, ready: u32, min: u32) -> u32 {
        self.before().unwrap_or(ready).max(min).max(1)
    }

    /// The last answer.
    pub(super) fn before(&self) -> Option<u32> {
        self.heard.or(self.before)
    }

    /// The answer now: `up` is what the load needs, `down` (never less) what is enough with a margin to hold it. `still`: no worker may be removed
    /// now. `arrival`: events per second, by which a mistake is distinguished from a load that grew.
    pub(super) fn answer(&mut self, now: Duration, up: u32, down: u32, still: bool, arrival: f64) -> u32 {
        if now < self.now {
            // The clock has started again: the times that were kept mean nothing now.
            *self = Self::remembering(self.before);
        }
        self.now = now;
        self.floors.retain(|(until, _)| *until > now);
        if let Some(heard) = self.heard.take() {
            self.follow(heard);
        }
        let Some(before) = self.before else {
            self.before = Some(up);
            return up;
        };
        let answer = if up >= before { up } else { self.lower(down.min(before), before, still, arrival) };
        if answer > before {
            self.rose(answer, arrival);
        } else if answer < before {
            self.fall = Some(Fall { at: now, to: answer, arrival });
        }
        self.before = Some(answer);
        answer
    }

    /// Bounds forced another answer.
    pub(super) fn force(&mut self, answer: u32) {
        self.heard = None;
        self.before = Some(answer);
    }

    fn lower(&self, down: u32, before: u32, still: bool, arrival: f64) -> u32 {
        let floor = self.floors.front().map_or(0, |(_, workers)| *workers);
        let learnt = self.lesson.filter(|lesson| lesson.until > self.now && arrival * SAME >= lesson.arrival);
        let enough = learnt.map_or(0, |lesson| lesson.workers + 1);
        if still { before } else { down.max(floor).max(enough).min(before) }
    }

    fn follow(&mut self, heard: u32) {
        self.floors.retain(|(_, workers)| *workers <= heard);
        if self.followed.is_none_or(|last| last < heard) {
            self.hold(heard);
        }
        self.fall = None;
        (self.before, self.followed) = (Some(heard), Some(heard));
    }

    fn hold(&mut self, answer: u32) {
        while self.floors.back().is_some_and(|(_, workers)| *workers <= answer) {
            self.floors.pop_back();
        }
        self.floors.push_back((self.now + HOLD, answer));
    }

    fn rose(&mut self, answer: u32, arrival: f64) {
        self.hold(answer);
        let Some(fall) = self.fall.take() else { return };
        if self.now - fall.at <= MISTAKE && arrival <= fall.arrival * SAME {
            let lasting = self.lasting.map_or(LESSON, |last| (last * 2).min(LONGEST_LESSON));
            self.lasting = Some(lasting);
            self.lesson = Some(Lesson { workers: fall.to, arrival: fall.arrival, until: self.now + lasting });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of seconds and the number of workers that is needed at that load.
    fn run(steadiness: &mut Steadiness, steps: &[(u64, u32)]) -> Vec<u32> {
        let answer = |(second, need): &(u64, u32)| {
            steadiness.answer(Duration::from_secs(*second), *need, *need, false, f64::from(*need))
        };
        steps.iter().map(answer).collect()
    }

    /// The same, though as much arrives as ever.
    fn run_at_one_load(steadiness: &mut Steadiness, steps: &[(u64, u32)]) -> Vec<u32> {
        let answer =
            |(second, need): &(u64, u32)| steadiness.answer(Duration::from_secs(*second), *need, *need, false, 100.0);
        steps.iter().map(answer).collect()
    }

    #[test]
    fn what_rose_stays_for_a_minute_and_then_falls_to_what_is_needed() {
        let mut steadiness = Steadiness::default();
        let steps = [(0, 2), (1, 8), (2, 3), (60, 3), (61, 3), (62, 2)];
        assert_eq!(run(&mut steadiness, &steps), [2, 8, 8, 8, 3, 2]);
    }

    #[test]
    fn each_rise_has_its_own_minute() {
        let mut steadiness = Steadiness::default();
        let steps = [(0, 1), (1, 4), (30, 8), (31, 1), (61, 1), (90, 1), (91, 1)];
        assert_eq!(run(&mut steadiness, &steps), [1, 4, 8, 8, 8, 1, 1]);
        let mut steadiness = Steadiness::default();
        let steps = [(0, 1), (1, 8), (30, 2), (61, 2), (70, 4), (100, 1), (129, 1), (130, 1)];
        assert_eq!(run(&mut steadiness, &steps), [1, 8, 8, 2, 4, 4, 4, 1]);
    }

    #[test]
    fn the_answer_of_another_counts_as_ours() {
        let mut steadiness = Steadiness::default();
        assert_eq!(run(&mut steadiness, &[(0, 1)]), [1]);
        for (second, heard, need, answer, why) in [
            (1, 4, 1, 4, "it rose there: held for a minute"),
            (30, 4, 1, 4, "the same again"),
            (60, 4, 1, 4, "is no new minute"),
            (61, 4, 1, 1, "after it, what is needed"),
            (62, 1, 8, 8, "more of our own"),
            (63, 2, 1, 2, "is forgotten where the other says less"),
        ] {
            steadiness.hear(heard);
            assert_eq!(run(&mut steadiness, &[(second, need)]), [answer], "{second} s: {why}");
        }
        assert_eq!(run(&mut steadiness, &[(122, 1), (123, 1)]), [2, 1], "left alone, its minute goes on");
    }

    #[test]
    fn a_fall_that_had_to_be_taken_back_is_not_repeated_soon() {
        let mut steadiness = Steadiness::default();
        run_at_one_load(&mut steadiness, &[(0, 4), (100, 2), (150, 4)]);
        assert_eq!(run_at_one_load(&mut steadiness, &[(300, 2), (700, 2)]), [3, 3]);
        assert_eq!(run_at_one_load(&mut steadiness, &[(751, 2), (800, 4), (1_900, 2), (2_001, 2)]), [2, 4, 3, 2]);
    }

    #[test]
    fn a_rise_for_more_load_is_no_mistake() {
        let mut steadiness = Steadiness::default();
        run(&mut steadiness, &[(0, 4), (100, 2)]);
        let at = |second| Duration::from_secs(second);
        assert_eq!(steadiness.answer(at(150), 4, 4, false, 200.0), 4);
        assert_eq!(steadiness.answer(at(300), 2, 2, false, 100.0), 2);
    }

    #[test]
    fn nothing_is_taken_away_while_it_must_be_still() {
        let mut steadiness = Steadiness::remembering(Some(6));
        let at = |second| Duration::from_secs(second);
        assert_eq!(steadiness.answer(at(1), 2, 2, true, 1.0), 6);
        assert_eq!(steadiness.answer(at(2), 2, 3, false, 1.0), 3);
        assert_eq!(steadiness.answer(at(3), 9, 9, true, 1.0), 9, "but more may be asked for");
    }

    #[test]
    fn a_clock_that_was_reset_keeps_the_answer_and_no_time() {
        let mut steadiness = Steadiness::default();
        run(&mut steadiness, &[(1_000, 2), (1_001, 8)]);
        assert_eq!(run(&mut steadiness, &[(5, 2)]), [2]);
    }
}
