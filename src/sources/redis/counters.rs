//! What is remembered of streams and groups from poll to poll: counters that only grow. Pure.

use super::{
    answers::{EntryId, Group, Stream},
    backlog::Backlog,
};

/// Entries that were added to a stream since measuring it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrived {
    total: u64,
    added: Option<u64>,
}

impl Arrived {
    /// Takes in what the stream tells. Of a stream that was deleted and made again, all entries are new.
    pub(super) fn take(&mut self, stream: &Stream) -> u64 {
        if let Some(before) = self.added {
            self.total += stream.added.checked_sub(before).unwrap_or(stream.added);
        }
        self.added = Some(stream.added);
        self.total
    }
}

/// Entries that a group's consumers have acknowledged since measuring it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Handled {
    total: u64,
    /// Entries acknowledged since the stream began, when that was last known.
    known: Option<u64>,
    /// Counted since then on the evidence that the group moves.
    credited: u64,
    place: Option<(EntryId, Option<EntryId>)>,
}

impl Handled {
    /// Takes in what the group tells. Where the server has lost count and the backlog is only a bound, a group that moves has handled at least one. Where the
    /// group was set back or made again, what it handles from now on is added.
    pub(super) fn take(&mut self, stream: &Stream, group: &Group, backlog: &Backlog, held: Option<EntryId>) -> u64 {
        let exact = backlog.bound.is_none();
        let known = match group.read {
            Some(read) => read.checked_sub(group.pending),
            None if exact => stream.added.checked_sub(backlog.events),
            None => None,
        };
        let place = Some((group.delivered, held));
        match (self.known, known) {
            (Some(before), Some(now)) => {
                self.total += now.saturating_sub(before).saturating_sub(self.credited);
                (self.known, self.credited) = (Some(now), 0);
            }
            (None, Some(now)) => (self.known, self.credited) = (Some(now), 0),
            (_, None) if self.place.is_some() && self.place != place => {
                self.total += 1;
                self.credited += 1;
            }
            (_, None) => {}
        }
        self.place = place;
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::redis::backlog::{Bound, Lost};

    fn stream(added: u64) -> Stream {
        Stream { added, ..Stream::default() }
    }

    #[test]
    fn arrivals_only_grow_also_over_a_stream_that_is_made_again() {
        let mut arrived = Arrived::default();
        let seen = [10, 15, 15, 3, 4].map(|added| arrived.take(&stream(added)));
        assert_eq!(seen, [0, 5, 5, 8, 9]);
    }

    #[test]
    fn handled_is_what_was_read_and_is_not_held() {
        let mut handled = Handled::default();
        let mut take = |read, pending, events, bound, delivered| {
            let group = Group {
                pending,
                read,
                delivered: EntryId { milliseconds: delivered, sequence: 0 },
                ..Group::default()
            };
            handled.take(
                &stream(100),
                &group,
                &Backlog { events, bound, certain: 0, unseen: false, oldest: None },
                None,
            )
        };
        assert_eq!(take(Some(10), 2, 92, None, 10), 0, "what was handled before is not ours to count");
        assert_eq!(take(Some(20), 5, 85, None, 20), 7);
        assert_eq!(take(Some(20), 0, 80, None, 20), 12);
        assert_eq!(take(None, 0, 70, None, 30), 22, "NULL, and counted: what was added and does not wait");
        let bound = Some(Bound::TooManyToCount(Lost::Null));
        assert_eq!(take(None, 0, 90, bound, 33), 23, "NULL, and not counted: it moves");
        assert_eq!(take(None, 0, 90, bound, 33), 23, "it does not");
        assert_eq!(take(Some(40), 0, 60, None, 40), 32);
        assert_eq!(take(Some(5), 0, 95, None, 5), 32, "set back");
        assert_eq!(take(Some(9), 0, 91, None, 9), 36);
    }
}
