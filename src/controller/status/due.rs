//! When a new status is written: at once where it is news, later where only numbers or counts changed. Pure: clocks come in.

use std::time::{Duration, Instant};

use super::{
    report::Stored,
    urgency::{COUNTS_EVERY, COUNTS_SETTLE, FIRST_WORD, Urgency},
};

/// The least time between two corrections of a status that another client changes.
const CORRECT_EVERY: Duration = Duration::from_secs(1);

/// A turn that has come is kept for this long. A server that goes away and comes back all the time gives each Projection news at each change: if each of
/// them took another turn, the turns would be ever further away.
const TURN_KEPT: Duration = Duration::from_secs(5);

/// What is remembered of one Projection's status between two rounds.
#[derive(Debug, Default)]
pub struct StatusMemory {
    /// The status that this replica wrote last, as the API server has it, and when.
    pub written: Option<(Stored, Instant)>,
    /// Since when only the counts of workers differ from those in the status.
    counts_since: Option<Instant>,
    /// When there was something to report for the first time.
    begun: Option<Instant>,
    /// When the numbers that are due may be written.
    numbers_at: Option<Instant>,
    /// When the turn of its news is, or was.
    news_at: Option<Instant>,
    /// The API server permanently refuses the status that records the suspension, which then goes unrecorded.
    pub unrecordable: bool,
}

/// What a new status is, compared with the one that is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct News {
    /// How soon it is to be written.
    pub urgency: Urgency,
    /// Another client has changed the status that is there.
    pub foreign: bool,
    /// It is the first one, and only says that all has just begun.
    pub only_begun: bool,
    /// The time between two writes of one Projection's numbers.
    pub numbers_every: Duration,
}

impl StatusMemory {
    /// How long the status still waits at `now`; zero when it is to be written. `slot` gives the next moment that is free for writing what is of this
    /// urgency: numbers (`Soon`) or news (`InTurn`).
    pub fn wait(&mut self, news: News, now: Instant, slot: impl FnOnce() -> Instant) -> Duration {
        let since_written = self.written.as_ref().map(|(_, at)| now.saturating_duration_since(*at));
        let after_write = |every: Duration| since_written.map_or(Duration::ZERO, |since| every.saturating_sub(since));
        match news.urgency {
            Urgency::Never => Duration::ZERO,
            _ if news.foreign => after_write(CORRECT_EVERY),
            Urgency::Soon => {
                let early = after_write(news.numbers_every);
                if !early.is_zero() {
                    return early;
                }
                self.numbers_at.get_or_insert_with(slot).saturating_duration_since(now)
            }
            Urgency::Shortly => {
                let since = now.saturating_duration_since(*self.counts_since.get_or_insert(now));
                COUNTS_SETTLE.saturating_sub(since).max(after_write(COUNTS_EVERY))
            }
            Urgency::InTurn | Urgency::Now if news.only_begun => {
                FIRST_WORD.saturating_sub(now.saturating_duration_since(*self.begun.get_or_insert(now)))
            }
            Urgency::InTurn => {
                let turn = self.news_at.filter(|at| now.saturating_duration_since(*at) < TURN_KEPT);
                self.news_at.insert(turn.unwrap_or_else(slot)).saturating_duration_since(now)
            }
            Urgency::Now => Duration::ZERO,
        }
    }

    /// The status was written at `now`.
    pub fn was_written(&mut self, stored: Stored, now: Instant) {
        self.written = Some((stored, now));
        (self.numbers_at, self.news_at, self.counts_since, self.unrecordable) = (None, None, None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ProjectionStatus;

    const EVERY: Duration = Duration::from_secs(10);

    fn news(urgency: Urgency) -> News {
        News { urgency, foreign: false, only_begun: false, numbers_every: EVERY }
    }

    fn written(at: Instant) -> StatusMemory {
        let stored = Stored { status: ProjectionStatus::default(), version: "1".to_owned() };
        StatusMemory { written: Some((stored, at)), ..StatusMemory::default() }
    }

    #[test]
    fn news_is_written_at_once_and_numbers_when_the_last_write_is_old_enough() {
        let start = Instant::now();
        for (after, urgency, left) in [
            (1, Urgency::Now, 0),
            (1, Urgency::Never, 0),
            (1, Urgency::Soon, 9),
            (10, Urgency::Soon, 0),
            (2, Urgency::Shortly, 1),
        ] {
            let now = start + Duration::from_secs(after);
            assert_eq!(
                written(start).wait(news(urgency), now, || now),
                Duration::from_secs(left),
                "{after} {urgency:?}"
            );
        }
    }

    #[test]
    fn counts_settle_before_they_are_written_and_a_fresh_write_starts_the_wait_again() {
        let (start, mut memory) = (Instant::now(), StatusMemory::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(memory.wait(news(Urgency::Shortly), at(0), || at(0)), COUNTS_SETTLE);
        assert_eq!(memory.wait(news(Urgency::Shortly), at(1), || at(1)), Duration::ZERO);
        memory.was_written(Stored { status: ProjectionStatus::default(), version: "2".to_owned() }, at(1));
        assert_eq!(memory.wait(news(Urgency::Shortly), at(3), || at(3)), COUNTS_SETTLE, "they differ only since now");
    }

    #[test]
    fn numbers_keep_the_moment_that_they_were_given() {
        let (start, mut memory) = (Instant::now(), StatusMemory::default());
        let slot = start + Duration::from_millis(150);
        assert_eq!(memory.wait(news(Urgency::Soon), start, || slot), Duration::from_millis(150));
        let later = start + Duration::from_millis(100);
        assert_eq!(memory.wait(news(Urgency::Soon), later, || later + EVERY), Duration::from_millis(50));
    }

    #[test]
    fn a_turn_is_kept_until_it_has_come_and_for_a_moment_longer() {
        let (start, mut memory) = (Instant::now(), StatusMemory::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wait = |now: u64, slot: u64| memory.wait(news(Urgency::InTurn), at(now), || at(slot)).as_secs();
        assert_eq!(wait(0, 7), 7);
        assert_eq!(wait(3, 30), 4, "there was no news in between, and now there is again");
        assert_eq!(wait(9, 30), 0, "its turn has come");
        assert_eq!(wait(13, 30), 17, "it was not used, and others have had news since");
        memory.was_written(Stored { status: ProjectionStatus::default(), version: "2".to_owned() }, at(30));
        assert_eq!(memory.wait(news(Urgency::InTurn), at(31), || at(50)), Duration::from_secs(19), "another turn");
    }

    #[test]
    fn what_another_client_wrote_is_put_right_once_a_second() {
        let start = Instant::now();
        let foreign = News { foreign: true, ..news(Urgency::Soon) };
        assert_eq!(StatusMemory::default().wait(foreign, start, || start + EVERY), Duration::ZERO);
        let soon = start + Duration::from_millis(400);
        assert_eq!(written(start).wait(foreign, soon, || soon), Duration::from_millis(600));
    }

    #[test]
    fn a_first_status_that_says_nothing_yet_waits_for_more() {
        let (start, mut memory) = (Instant::now(), StatusMemory::default());
        let begun = News { only_begun: true, ..news(Urgency::Now) };
        assert_eq!(memory.wait(begun, start, || start), FIRST_WORD);
        assert_eq!(memory.wait(begun, start + FIRST_WORD, || start), Duration::ZERO);
    }
}
