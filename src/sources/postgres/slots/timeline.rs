//! When the write-ahead log had come to which position, learnt by looking at it: PostgreSQL keeps no times of positions. Pure.

use std::{collections::VecDeque, time::Duration};

use crate::lag::Position;

/// More looks than this are thinned out where they lie closest for their age.
const MOST: usize = 256;

/// Positions of the log's end with the time of each look.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline(VecDeque<(Duration, Position)>);

impl Timeline {
    /// Takes in the end of the log, by a clock that never goes back. One that went back is another log.
    pub(super) fn observe(&mut self, at: Duration, end: Position) {
        if self.0.back().is_some_and(|(_, last)| end < *last) {
            self.0.clear();
        }
        // Of looks at an end that stays only the first and the last matter.
        let stays = self.0.len() >= 2 && self.0.iter().rev().take(2).all(|(_, before)| *before == end);
        if stays {
            self.0.pop_back();
        }
        self.0.push_back((at, end));
        if self.0.len() > MOST {
            self.thin_out(at);
        }
    }

    fn thin_out(&mut self, now: Duration) {
        let at = |index: usize| self.0.get(index).map_or(0.0, |(at, _)| at.as_secs_f64());
        let closeness = |index: usize| (at(index + 1) - at(index - 1)) / (now.as_secs_f64() - at(index) + 1.0);
        let inner = 1..self.0.len().saturating_sub(1);
        if let Some(index) = inner.min_by(|a, b| closeness(*a).total_cmp(&closeness(*b))) {
            self.0.remove(index);
        }
    }

    /// How long ago the first byte beyond `position` was written, in proportion between the two looks that it came between. Zero where there is none;
    /// absent where it was there at the first look already.
    pub(super) fn age_beyond(&self, position: Position) -> Option<Duration> {
        let (now, _) = self.0.back()?;
        let Some(after) = self.0.iter().position(|(_, end)| *end > position) else { return Some(Duration::ZERO) };
        let (until, high) = self.0.get(after)?;
        let (since, low) = self.0.get(after.checked_sub(1)?)?;
        #[allow(clippy::cast_precision_loss)]
        let part = position.0.abs_diff(low.0) as f64 / high.0.abs_diff(low.0).max(1) as f64;
        Some(*now - (*since + (*until - *since).mul_f64(part.clamp(0.0, 1.0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(looks: &[(u64, i64)]) -> Timeline {
        let mut timeline = Timeline::default();
        looks.iter().for_each(|(second, end)| timeline.observe(Duration::from_secs(*second), Position(*end)));
        timeline
    }

    fn age(timeline: &Timeline, position: i64) -> Option<u64> {
        timeline.age_beyond(Position(position)).map(|age| age.as_secs())
    }

    #[test]
    fn the_age_lies_between_the_two_looks_that_the_byte_came_between() {
        let log = looks(&[(10, 100), (20, 200), (40, 200), (50, 400)]);
        for (position, seconds) in [(100, 40), (150, 35), (199, 30), (200, 10), (300, 5), (400, 0), (500, 0)] {
            assert_eq!(age(&log, position), Some(seconds), "{position}");
        }
        assert_eq!(age(&log, 99), None, "it was there before");
        assert_eq!(age(&Timeline::default(), 0), None);
    }

    #[test]
    fn a_log_that_went_back_is_another() {
        let log = looks(&[(10, 100), (20, 200), (30, 50), (40, 60)]);
        assert_eq!((age(&log, 40), age(&log, 50)), (None, Some(10)));
    }

    #[test]
    fn it_stays_small_and_knows_old_positions_less_finely() {
        let mut log = Timeline::default();
        let end = |second: u64| Position(i64::try_from(second * second).unwrap());
        (0..100_000).for_each(|second| log.observe(Duration::from_secs(second), end(second)));
        assert!(log.0.len() <= MOST);
        for ago in [10, 100, 1_000, 10_000, 90_000] {
            let age = log.age_beyond(end(99_999 - ago)).unwrap().as_secs();
            assert!((ago * 9 / 10..=ago * 11 / 10).contains(&age), "{age} for {ago}");
        }
        let mut quiet = Timeline::default();
        (0..100_000).for_each(|n| quiet.observe(Duration::from_secs(n), Position(7)));
        assert_eq!(quiet.0.len(), 2);
    }
}
