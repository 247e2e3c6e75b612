//! Compares a new version with the one that readers see, beside the rounds: a comparison may take a minute.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use crate::{
    measure::MeasureError,
    rebuild::{Compared, Comparison, Parity, SwitchReaders},
    resolve::RolloutRules,
};

/// A comparison has failed after this.
const WITHIN: Duration = Duration::from_secs(120);
/// What was compared is compared again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// It is looked so often whether a comparison has ended.
const LOOK: Duration = Duration::from_millis(500);
/// Where there was no moment to compare them at, the next one is looked for after this, or after as long as the last search took, so that a version that was held for it goes on
/// meanwhile.
const NEXT_MOMENT: Duration = Duration::from_secs(2);
/// Readers are led to a version within this time after it was found to hold the same.
const HOLDS_FOR: Duration = Duration::from_secs(600);
/// A version may be late for so long after a comparison, which holds it back, without having to be fresh for as long again.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(60);
/// A version has failed once so many comparisons in a row have found it to differ. One alone may be mistaken where workers commit their effects and how far they have come apart
/// from each other.
const FOR_GOOD: u32 = 3;

/// What is remembered of comparing two versions. A new process begins again.
#[derive(Debug, Default)]
pub(super) struct ParityMemory {
    of: Option<Arc<Comparison>>,
    /// Since when a moment has been looked for at which both have handled the same.
    since: Timestamp,
    running: Option<Running>,
    known: Parity,
    /// When a comparison ended last, and when the next one is due.
    ended: Option<(Instant, Instant)>,
    differed: u32,
}

type Outcome = Result<Compared, MeasureError>;

/// A comparison that goes on, or whose end has not been taken in yet. Ends with its owner.
#[derive(Debug)]
struct Running {
    began: Instant,
    /// What came of it, and when.
    task: JoinHandle<(Outcome, Instant)>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ParityMemory {
    /// What is known.
    pub(super) fn known(&self) -> &Parity {
        &self.known
    }

    /// Forgets what is about another version than the rules name, or was asked otherwise.
    pub(super) fn keep_for(&mut self, rules: &RolloutRules) {
        let same = |of: &Arc<Comparison>| {
            let rule = rules.parity.as_ref();
            of.candidate.version == rules.wanted
                && rule.is_some_and(|rule| rule.query == of.query && rule.tolerance.to_bits() == of.tolerance.to_bits())
        };
        if !self.of.as_ref().is_some_and(same) {
            *self = Self::default();
        }
    }

    /// Whether a comparison holds the new version back, or did a short while ago.
    pub(super) fn holds_back(&self, now: Instant) -> bool {
        let ago = self.ended.map(|(ended, _)| now.saturating_duration_since(ended));
        self.running.is_some() || ago.is_some_and(|ago| ago < CATCHES_UP_WITHIN)
    }

    /// They cannot be compared.
    pub(super) fn refuse(&mut self, why: String) {
        *self = Self { known: Parity::Unknown(why), ..Self::default() };
    }

    /// Takes in what came of a comparison that has ended, and forgets what was found too long ago. Comes first in each round, whether a comparison is what decides then or not.
    pub(super) fn look(&mut self, now: Instant) {
        if let Some(ended) = self.running.as_mut().and_then(|running| (&mut running.task).now_or_never())
            && let Some(running) = self.running.take()
        {
            match ended {
                Ok((outcome, at)) => self.take(outcome, at.saturating_duration_since(running.began), at),
                // One that was aborted or panicked found nothing.
                Err(_) => self.ended = Some((now, now + AGAIN)),
            }
        }
        let is_over = self.ended.is_none_or(|(_, due)| due <= now);
        if self.known == Parity::Holds && is_over {
            self.known = Parity::default();
        }
    }

    /// Compares these two, unless that goes on or was done a short while ago. Returns when to look again.
    pub(super) fn follow(
        &mut self,
        of: Comparison,
        readers: &Arc<dyn SwitchReaders>,
        (now, time): (Instant, Timestamp),
    ) -> Option<Duration> {
        if self.of.as_deref() != Some(&of) {
            *self = Self { of: Some(Arc::new(of)), since: time, ..Self::default() };
        }
        if let Parity::Broken { for_good: true, .. } = self.known {
            return None;
        }
        if self.running.is_some() {
            return Some(LOOK);
        }
        let rest = self.ended.map(|(_, due)| due.saturating_duration_since(now)).filter(|rest| !rest.is_zero());
        if rest.is_some() {
            return rest;
        }
        if let Some(of) = &self.of {
            let comparing = readers.compare(Arc::clone(of), WITHIN);
            let task = tokio::spawn(async move { (comparing.await, Instant::now()) });
            self.running = Some(Running { began: now, task });
        }
        Some(LOOK)
    }

    /// `took`: how long it went on.
    fn take(&mut self, outcome: Outcome, took: Duration, now: Instant) {
        let rest = match outcome {
            Ok(Compared::Same) => {
                (self.known, self.differed) = (Parity::Holds, 0);
                HOLDS_FOR
            }
            Ok(Compared::Differs(told)) => {
                self.differed += 1;
                self.known = Parity::Broken { told, for_good: self.differed >= FOR_GOOD };
                AGAIN
            }
            // What was found before stays true.
            _ if self.differed > 0 => AGAIN,
            Ok(Compared::NeverAtOnePosition(apart)) => {
                let since = self.since.strftime("%Y-%m-%dT%H:%M:%SZ");
                self.known = Parity::Unknown(format!(
                    "since {since} there has been no moment at which both versions had handled the same events (last, {apart})"
                ));
                took.max(NEXT_MOMENT)
            }
            Err(why) => {
                self.known = Parity::Unknown(why.message);
                AGAIN
            }
        };
        self.ended = Some((now, now + rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> ParityMemory {
        ParityMemory::default()
    }

    #[test]
    fn one_difference_may_be_a_mistake_and_several_in_a_row_are_none() {
        let (mut memory, now) = (memory(), Instant::now());
        let differs = || Ok(Compared::Differs("k".to_owned()));
        let for_good = |memory: &ParityMemory| match memory.known() {
            Parity::Broken { for_good, .. } => Some(*for_good),
            _ => None,
        };
        memory.take(differs(), LOOK, now);
        memory.take(Ok(Compared::Same), LOOK, now);
        assert_eq!(*memory.known(), Parity::Holds);
        for expected in [false, false, true] {
            memory.take(differs(), LOOK, now);
            assert_eq!(for_good(&memory), Some(expected));
            // That they cannot be compared does not unsay what was found.
            memory.take(Ok(Compared::NeverAtOnePosition("apart".to_owned())), LOOK, now);
            memory.take(
                Err(MeasureError { reason: crate::api::Reason::TimedOut, message: "late".to_owned() }),
                LOOK,
                now,
            );
            assert_eq!(for_good(&memory), Some(expected));
        }
    }

    #[test]
    fn that_nothing_could_be_compared_is_neither_the_same_nor_a_difference() {
        let (mut memory, now) = (memory(), Instant::now());
        memory.take(Ok(Compared::NeverAtOnePosition("one was at 5, the other at 6".to_owned())), LOOK, now);
        let Parity::Unknown(why) = memory.known() else { panic!("{:?}", memory.known()) };
        assert!(why.contains("one was at 5"), "{why}");
        assert!(memory.holds_back(now) && !memory.holds_back(now + CATCHES_UP_WITHIN));
        memory.take(Err(MeasureError { reason: crate::api::Reason::TimedOut, message: "late".to_owned() }), LOOK, now);
        assert_eq!(*memory.known(), Parity::Unknown("late".to_owned()));
        let apart = Compared::NeverAtOnePosition("apart".to_owned());
        memory.take(Ok(apart), Duration::from_secs(40), now);
        assert_eq!(
            memory.ended.map(|(_, due)| due - now),
            Some(Duration::from_secs(40)),
            "it is left alone for as long"
        );
    }

    #[tokio::test]
    async fn what_came_of_a_comparison_counts_from_when_it_ended_and_not_for_ever() {
        let (mut memory, began) = (memory(), Instant::now());
        let task = tokio::spawn(async move { (Ok(Compared::Same), began + Duration::from_secs(5)) });
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        memory.running = Some(Running { began, task });
        memory.look(began + Duration::from_secs(9));
        assert_eq!(*memory.known(), Parity::Holds);
        memory.look(began + HOLDS_FOR + Duration::from_secs(4));
        assert_eq!(*memory.known(), Parity::Holds);
        memory.look(began + HOLDS_FOR + Duration::from_secs(5));
        assert_eq!(*memory.known(), Parity::NotCompared);
        // One that was not looked at in time was the same once, and that says nothing now.
        let task = tokio::spawn(async move { (Ok(Compared::Same), began) });
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        memory.running = Some(Running { began, task });
        memory.look(began + Duration::from_secs(3_600));
        assert_eq!(*memory.known(), Parity::NotCompared);
        assert!(!memory.holds_back(began + Duration::from_secs(3_600)));
    }
}
