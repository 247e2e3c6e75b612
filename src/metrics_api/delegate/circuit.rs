//! A circuit breaker: an adapter that has just not answered is not asked again at once, so that no request waits for nothing. Pure.

use std::time::{Duration, Instant};

/// After this many failures in a row the adapter is not asked for a while.
const FAILURES: u32 = 3;
/// How long the adapter is not asked; then one request tries again.
const PAUSE: Duration = Duration::from_secs(10);

/// What is remembered of one adapter.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: u32,
    /// Until when the adapter is not asked, and why.
    open: Option<(Instant, String)>,
}

impl Circuit {
    /// Whether to ask now.
    ///
    /// # Errors
    /// Why it failed last.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), String> {
        match &mut self.open {
            Some((until, why)) if now < *until => Err(why.clone()),
            Some((until, _)) => {
                // One request tries; the others wait for its result.
                *until = now + PAUSE;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The adapter answered, whatever the answer.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// The adapter did not answer.
    pub(super) fn failed(&mut self, now: Instant, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.open = Some((now + PAUSE, why.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_keep_everybody_away_until_one_has_tried_again() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        for _ in 0..2 {
            circuit.admit(start).unwrap();
            circuit.failed(start, "refused");
        }
        circuit.answered();
        for _ in 0..3 {
            circuit.admit(start).unwrap();
            circuit.failed(start, "refused");
        }
        assert_eq!(circuit.admit(start), Err("refused".to_owned()));
        let later = start + PAUSE;
        assert_eq!(circuit.admit(later), Ok(()), "one tries");
        assert_eq!(circuit.admit(later), Err("refused".to_owned()), "and only one");
        circuit.failed(later, "hangs");
        assert_eq!(circuit.admit(later), Err("hangs".to_owned()), "one failure more is enough");
        circuit.admit(later + PAUSE).unwrap();
        circuit.answered();
        assert_eq!(circuit.admit(later + PAUSE), Ok(()), "all may ask again");
    }

    #[test]
    fn a_try_of_which_nothing_is_heard_does_not_keep_others_away_for_ever() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        (0..3).for_each(|_| circuit.failed(start, "refused"));
        circuit.admit(start + PAUSE).unwrap();
        assert_eq!(circuit.admit(start + 2 * PAUSE), Ok(()), "the first was dropped with its caller");
    }
}
