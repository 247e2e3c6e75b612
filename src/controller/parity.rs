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
/// Where there was no moment to compare them at, the next one is looked for after this.
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

/// A comparison that goes on. Ends with its owner.
#[derive(Debug)]
struct Running(JoinHandle<Outcome>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
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

    /// Takes in what came of comparing these two, and begins anew where that is due. Returns when to look again.
    pub(super) fn follow(
        &mut self,
        of: Comparison,
        readers: &Arc<dyn SwitchReaders>,
        (now, time): (Instant, Timestamp),
    ) -> Option<Duration> {
        if self.of.as_deref() != Some(&of) {
            *self = Self { of: Some(Arc::new(of)), since: time, ..Self::default() };
        }
        if let Some(ended) = self.running.as_mut().and_then(|running| (&mut running.0).now_or_never()) {
            self.running = None;
            match ended {
                Ok(outcome) => self.take(outcome, now),
                // One that was aborted or panicked found nothing.
                Err(_) => self.ended = Some((now, now + AGAIN)),
            }
        }
        if let Parity::Broken { for_good: true, .. } = self.known {
            return None;
        }
        let rest = self.ended.map(|(_, due)| due.saturating_duration_since(now)).filter(|rest| !rest.is_zero());
        if rest.is_some() && self.running.is_none() {
            return rest;
        }
        if self.running.is_none()
            && let Some(of) = &self.of
        {
            if self.known == Parity::Holds {
                self.known = Parity::default();
            }
            self.running = Some(Running(tokio::spawn(readers.compare(Arc::clone(of), WITHIN))));
        }
        Some(LOOK)
    }

    fn take(&mut self, outcome: Outcome, now: Instant) {
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
                NEXT_MOMENT
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
        memory.take(differs(), now);
        memory.take(Ok(Compared::Same), now);
        assert_eq!(*memory.known(), Parity::Holds);
        for expected in [false, false, true] {
            memory.take(differs(), now);
            assert_eq!(for_good(&memory), Some(expected));
            // That they cannot be compared does not unsay what was found.
            memory.take(Ok(Compared::NeverAtOnePosition("apart".to_owned())), now);
            memory.take(Err(MeasureError { reason: crate::api::Reason::TimedOut, message: "late".to_owned() }), now);
            assert_eq!(for_good(&memory), Some(expected));
        }
    }

    #[test]
    fn that_nothing_could_be_compared_is_neither_the_same_nor_a_difference() {
        let (mut memory, now) = (memory(), Instant::now());
        memory.take(Ok(Compared::NeverAtOnePosition("one was at 5, the other at 6".to_owned())), now);
        let Parity::Unknown(why) = memory.known() else { panic!("{:?}", memory.known()) };
        assert!(why.contains("one was at 5"), "{why}");
        assert!(memory.holds_back(now) && !memory.holds_back(now + CATCHES_UP_WITHIN));
        memory.take(Err(MeasureError { reason: crate::api::Reason::TimedOut, message: "late".to_owned() }), now);
        assert_eq!(*memory.known(), Parity::Unknown("late".to_owned()));
    }
}
