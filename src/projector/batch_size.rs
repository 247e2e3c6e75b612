//! How many events one transaction takes, by how those before it ended.

use std::time::Duration;

use super::{error::ProjectorError, output::ApplyError};
use crate::backoff::Backoff;

/// Pauses after another transaction got in the way.
const CONTENTION: Backoff = Backoff::new(Duration::from_millis(4), Duration::from_millis(500));
/// Contention this often in a row is taken for a failure of the handler.
const MOST_CONTENTION: u32 = 10;

/// The size of the next batch. A batch that is committed doubles it, up to what the Projection says.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSize {
    most: usize,
    now: usize,
    /// How often in a row another transaction got in the way.
    contention: u32,
}

/// What follows from a batch that was not committed.
#[derive(Debug, PartialEq)]
pub(super) enum NotCommitted {
    /// It is tried again, in smaller portions.
    Again,
    /// It is tried again after this pause.
    AgainAfter(Duration),
    /// This event of the batch cannot be handled.
    Event { index: usize, message: String, fault: Fault },
}

/// Whose fault it is that an event cannot be handled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// That is not known, or it is no matter of this event alone.
    Unknown,
    /// The event's own, and it lasts: the class of the error, such as an SQLSTATE.
    Event(String),
    /// It would be parked behind others of its stream, and no more may be parked.
    NoRoom,
}

impl BatchSize {
    pub(super) fn new(most: u32) -> Self {
        let most = most as usize;
        Self { most, now: most, contention: 0 }
    }

    /// At most so many events, at least one.
    pub(super) fn now(self) -> usize {
        self.now
    }

    /// The most that is ever taken.
    pub(super) fn most(self) -> usize {
        self.most
    }

    /// Next time so many are enough.
    pub(super) fn take_at_most(&mut self, count: usize) {
        self.now = count.max(1);
    }

    pub(super) fn committed(&mut self) {
        self.no_contention();
        self.now = (self.now * 2).min(self.most);
    }

    /// Whatever got in the way has nothing to do with what comes next.
    pub(super) fn no_contention(&mut self) {
        self.contention = 0;
    }

    /// Takes in why a batch was not committed. `random` is from 0 to 1.
    ///
    /// # Errors
    /// Where that is no matter of the batch.
    pub(super) fn not_committed(&mut self, error: ApplyError, random: f64) -> Result<NotCommitted, ProjectorError> {
        match error {
            ApplyError::Store(error) => Err(error),
            ApplyError::OneOf { message } => {
                tracing::warn!(error = message, "the commit of a batch failed: trying its events one by one");
                self.now = 1;
                Ok(NotCommitted::Again)
            }
            ApplyError::Contention { message, .. } if self.contention < MOST_CONTENTION => {
                tracing::debug!(error = message, "another transaction got in the way: trying again");
                let pause = CONTENTION.jittered(self.contention, random);
                self.contention += 1;
                self.now = (self.now / 2).max(1);
                Ok(NotCommitted::AgainAfter(pause))
            }
            ApplyError::Contention { index, message } | ApplyError::Event { index, message } => {
                Ok(NotCommitted::Event { index, message, fault: Fault::Unknown })
            }
            ApplyError::Poison { index, message, class } => {
                Ok(NotCommitted::Event { index, message, fault: Fault::Event(class) })
            }
            ApplyError::NoRoom => Ok(NotCommitted::Event { index: 0, message: String::new(), fault: Fault::NoRoom }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contention(size: &mut BatchSize) -> NotCommitted {
        size.not_committed(ApplyError::Contention { index: 3, message: "deadlock".to_owned() }, 0.0).unwrap()
    }

    #[test]
    fn contention_halves_the_batch_and_lengthens_the_pause_until_it_is_taken_for_a_failure() {
        let mut size = BatchSize::new(10);
        let millis = |millis| NotCommitted::AgainAfter(Duration::from_millis(millis));
        assert_eq!((contention(&mut size), size.now()), (millis(4), 5));
        assert_eq!((contention(&mut size), size.now()), (millis(8), 2));
        assert_eq!((2..10).map(|_| contention(&mut size)).last(), Some(millis(500)));
        assert_eq!(size.now(), 1);
        let failure = NotCommitted::Event { index: 3, message: "deadlock".to_owned(), fault: Fault::Unknown };
        assert_eq!(contention(&mut size), failure);
        size.no_contention();
        assert_eq!(contention(&mut size), millis(4));
    }

    #[test]
    fn batches_grow_again_with_each_that_is_committed() {
        let mut size = BatchSize::new(10);
        let one_of = ApplyError::OneOf { message: "a deferred constraint".to_owned() };
        assert_eq!((size.not_committed(one_of, 0.0).unwrap(), size.now()), (NotCommitted::Again, 1));
        let grown: Vec<usize> = (0..5)
            .map(|_| {
                size.committed();
                size.now()
            })
            .collect();
        assert_eq!(grown, [2, 4, 8, 10, 10]);
        size.take_at_most(0);
        assert_eq!((size.now(), size.most()), (1, 10));
    }
}
