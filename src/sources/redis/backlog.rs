//! How much of a stream one group has before it, and when that began to wait. Pure.
//!
//! `lag` of `XINFO GROUPS` is not enough. It is NULL after an entry was deleted ahead of the group (`XDEL`) and for a group that began in the middle of
//! the stream (`XGROUP CREATE … $`), until the group has come to the end; and after trimming it still counts the entries that were trimmed before the
//! group had read them (Redis 7.0), for good. The length of the stream and its first and last entry tell the number in most of these cases; in the others
//! the entries are counted, up to a bound. Where entries were removed, `lag` is believed of a group that was once seen in a place that is known, and that
//! nothing was removed before since.

use super::answers::{EntryId, Group, Stream};

/// Entries are counted up to this number: they come with their bodies.
pub(super) const MOST_COUNTED: u64 = 1_000;

/// What is known without asking for entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Known {
    /// So many entries wait for being given to a consumer. The first of them, where it is known.
    Exactly(u64, Option<EntryId>),
    /// At most so many; they have to be counted. Why the server's own count is not believed.
    AtMost(u64, Lost),
}

/// Why the server's count is not to be had or not to be believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lost {
    /// The server says so (`lag` is NULL), or tells what cannot be.
    Null,
    /// Entries were removed, maybe before the group had them, and the server still counts those.
    Removed,
}

/// A group in a place in the stream that the server's counters tell rightly. Still right later, unless entries were removed beyond it meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Placed {
    delivered: EntryId,
    added: u64,
    removed: u64,
}

impl Placed {
    /// The place of a group before which `waiting` entries lie, as is known without the server's `lag`; nothing where its counters say something else.
    pub(super) fn by(stream: &Stream, group: &Group, waiting: u64) -> Option<Self> {
        let told = match group.read {
            Some(read) => stream.added.checked_sub(read),
            // Worked out from the ends of the stream.
            None => group.lag,
        };
        let Stream { added, .. } = *stream;
        (told == Some(waiting)).then_some(Self { delivered: group.delivered, added, removed: stream.removed() })
    }

    /// Whether the counters are still right: what was removed since then lay before the place.
    fn holds(self, stream: &Stream, first: EntryId, group: &Group) -> bool {
        let same_stream = stream.added >= self.added && stream.removed() >= self.removed;
        same_stream
            && group.delivered >= self.delivered
            && (first <= self.delivered || stream.removed() == self.removed)
    }
}

/// How many entries lie beyond the last one that was given to a consumer. `placed`: where the group was seen at the last look, if its place was known.
pub(super) fn undelivered(stream: &Stream, group: &Group, placed: Option<Placed>) -> Known {
    // Without ends there are no entries.
    let Some((first, last)) = stream.ends else { return Known::Exactly(stream.length, None) };
    if last <= group.delivered {
        return Known::Exactly(0, None);
    }
    if first > group.delivered {
        return Known::Exactly(stream.length, Some(first));
    }
    let lost = match group.lag.filter(|lag| *lag <= stream.length) {
        // NULL in place of what was read: worked out from the ends of the stream.
        Some(lag) if group.read.is_none() || stream.removed() == 0 => return Known::Exactly(lag, None),
        Some(lag) if placed.is_some_and(|placed| placed.holds(stream, first, group)) => {
            return Known::Exactly(lag, None);
        }
        Some(_) => Lost::Removed,
        None if group.lag.is_some() && stream.removed() > 0 => Lost::Removed,
        None => Lost::Null,
    };
    let by_counters = group.read.and_then(|read| stream.added.checked_sub(read)).unwrap_or(u64::MAX);
    Known::AtMost(stream.length.min(by_counters), lost)
}

/// What a group has before it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Backlog {
    /// Entries that wait, and those that consumers hold.
    pub(super) events: u64,
    /// Why `events` is an upper bound, where it is.
    pub(super) bound: Option<Bound>,
    /// So many wait for certain: all, where `events` is no bound.
    pub(super) certain: u64,
    /// Entries that may wait could not be looked at.
    pub(super) unseen: bool,
    /// The oldest of them, where it is known.
    pub(super) oldest: Option<EntryId>,
}

/// Why there is only an upper bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Bound {
    /// The server's count is not to be had or not believed, and there are more entries than are counted.
    TooManyToCount(Lost),
    /// The group was set back, so that entries that consumers hold come again.
    SetBack,
}

/// How many entries wait, where that is certain. `counted` as in [`backlog`].
pub(super) fn certain(known: Known, counted: Option<(u64, Option<EntryId>)>) -> Option<u64> {
    match known {
        Known::Exactly(waiting, _) => Some(waiting),
        Known::AtMost(..) => counted.map(|(count, _)| count).filter(|count| *count <= MOST_COUNTED),
    }
}

/// Puts together what waits and what consumers hold. `counted`: what asking for the entries came to, a number beyond [`MOST_COUNTED`] meaning "more".
pub(super) fn backlog(
    known: Known,
    counted: Option<(u64, Option<EntryId>)>,
    group: &Group,
    held: Option<(EntryId, EntryId)>,
) -> Backlog {
    let asked_first = counted.and_then(|(_, first)| first);
    let (waiting, first, bound) = match known {
        Known::Exactly(waiting, first) => (waiting, first.or(asked_first), None),
        Known::AtMost(most, lost) => match counted {
            Some((count, first)) if count <= MOST_COUNTED => (count, first, None),
            _ => (most, asked_first, Some(Bound::TooManyToCount(lost))),
        },
    };
    // Entries that came with the answer are there, however many others are not.
    let seen = match bound {
        Some(Bound::TooManyToCount(_)) => counted.map_or(0, |(count, _)| count).min(waiting),
        _ => waiting,
    };
    let set_back = waiting > 0 && held.is_some_and(|(_, newest)| newest > group.delivered);
    let oldest_held = held.map(|(oldest, _)| oldest);
    // The ID of a part that waits and whose first entry is not known may be older than what is known.
    let all_known = (waiting == 0 || first.is_some() || oldest_held.is_some_and(|id| id <= group.delivered))
        && (group.pending == 0 || oldest_held.is_some());
    Backlog {
        events: waiting.saturating_add(group.pending),
        bound: bound.or(set_back.then_some(Bound::SetBack)),
        // What consumers hold may come again among those that wait.
        certain: if set_back { seen.max(group.pending) } else { seen.saturating_add(group.pending) },
        unseen: bound.is_some() && counted.is_none(),
        oldest: first.into_iter().chain(oldest_held).min().filter(|_| all_known),
    }
}

/// Whether the oldest entry is unknown unless the first that waits is asked for.
pub(super) fn needs_first(known: Known, group: &Group, held: Option<(EntryId, EntryId)>) -> bool {
    matches!(known, Known::Exactly(1.., None)) && held.is_none_or(|(oldest, _)| oldest > group.delivered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(milliseconds: u64) -> EntryId {
        EntryId { milliseconds, sequence: 0 }
    }

    /// A stream that holds these entries, of `added` that ever were.
    fn stream(first: u64, last: u64, length: u64, added: u64) -> Stream {
        let ends = (length > 0).then_some((id(first), id(last)));
        Stream { length, ends, newest: id(last), deleted: EntryId::default(), added }
    }

    fn group(delivered: u64, pending: u64, read: Option<u64>, lag: Option<u64>) -> Group {
        Group { pending, delivered: id(delivered), read, lag }
    }

    #[test]
    fn what_the_server_tells_is_taken_only_where_it_can_be_true() {
        for (what, stream, group, expected) in [
            ("empty", stream(0, 0, 0, 0), group(0, 0, None, Some(0)), Known::Exactly(0, None)),
            (
                "all deleted, and lag says 7",
                stream(0, 0, 0, 10),
                group(3, 0, Some(3), Some(7)),
                Known::Exactly(0, None),
            ),
            ("caught up, NULL", stream(1, 10, 10, 10), group(10, 0, None, None), Known::Exactly(0, None)),
            ("the last ones deleted", stream(1, 8, 8, 10), group(9, 0, Some(9), None), Known::Exactly(0, None)),
            ("nothing read", stream(1, 10, 10, 10), group(0, 0, None, Some(10)), Known::Exactly(10, Some(id(1)))),
            (
                "trimmed past the group",
                stream(9, 11, 3, 11),
                group(4, 2, Some(4), Some(7)),
                Known::Exactly(3, Some(id(9))),
            ),
            ("behind", stream(1, 10, 10, 10), group(4, 0, Some(4), Some(6)), Known::Exactly(6, None)),
            ("deleted ahead", stream(1, 10, 9, 10), group(4, 0, Some(4), None), Known::AtMost(6, Lost::Null)),
            ("began in the middle", stream(1, 10, 10, 10), group(3, 0, None, None), Known::AtMost(10, Lost::Null)),
            ("a lag that cannot be", stream(1, 10, 10, 10), group(3, 0, None, Some(99)), Known::AtMost(10, Lost::Null)),
        ] {
            assert_eq!(undelivered(&stream, &group, None), expected, "{what}");
        }
    }

    #[test]
    fn lag_is_believed_after_entries_were_removed_only_where_the_place_of_the_group_is_known() {
        // Of 1,200 entries 100 are trimmed. The group had read 50, and now up to the 600th: the server has counted 550.
        let (trimmed, overtaken) = (stream(101, 1_200, 1_100, 1_200), group(600, 0, Some(550), Some(650)));
        let lost = Known::AtMost(650, Lost::Removed);
        assert_eq!(undelivered(&trimmed, &overtaken, None), lost, "a first look");
        let before = Placed::by(&stream(1, 200, 200, 200), &group(50, 0, Some(50), Some(150)), 150);
        assert!(before.is_some());
        assert_eq!(undelivered(&trimmed, &overtaken, before), lost, "trimmed beyond where it was");
        assert_eq!(Placed::by(&trimmed, &overtaken, 600), None, "counted: the server is wrong");
        let ahead = Placed::by(&stream(1, 200, 200, 200), &group(150, 0, Some(150), Some(50)), 50);
        let right = group(600, 0, Some(600), Some(600));
        assert_eq!(undelivered(&trimmed, &right, ahead), Known::Exactly(600, None), "trimmed behind it");
        let counted = Placed::by(&trimmed, &right, 600);
        assert_eq!(undelivered(&trimmed, &right, counted), Known::Exactly(600, None), "nothing was trimmed since");
        let back = group(300, 0, Some(300), Some(900));
        assert_eq!(undelivered(&trimmed, &back, counted), Known::AtMost(900, Lost::Removed), "set back");
        let again = stream(101, 120, 20, 120);
        assert_eq!(
            undelivered(&again, &group(110, 0, Some(110), Some(10)), ahead),
            Known::AtMost(10, Lost::Removed),
            "another stream of this name"
        );
    }

    #[test]
    fn the_oldest_is_what_a_consumer_holds_or_the_first_that_waits() {
        let held = Some((id(2), id(4)));
        let behind = backlog(Known::Exactly(6, None), None, &group(4, 2, Some(4), Some(6)), held);
        assert_eq!(behind, Backlog { events: 8, bound: None, certain: 8, unseen: false, oldest: Some(id(2)) });
        let idle = group(4, 0, Some(4), Some(6));
        assert!(needs_first(Known::Exactly(6, None), &idle, None));
        assert!(
            !needs_first(Known::Exactly(6, None), &idle, held) && !needs_first(Known::Exactly(0, None), &idle, None)
        );
        let unasked = backlog(Known::Exactly(6, None), None, &idle, None);
        assert_eq!(
            unasked,
            Backlog { events: 6, bound: None, certain: 6, unseen: false, oldest: None },
            "unknown, not now"
        );
        let asked = backlog(Known::Exactly(6, None), Some((1, Some(id(5)))), &idle, None);
        assert_eq!(asked.oldest, Some(id(5)));
    }

    #[test]
    fn null_is_counted_up_to_a_bound_and_never_zero() {
        let lost = group(3, 1, None, None);
        let counted = |count| backlog(Known::AtMost(5_000, Lost::Null), count, &lost, Some((id(3), id(3))));
        assert_eq!(
            counted(Some((7, Some(id(4))))),
            Backlog { events: 8, bound: None, certain: 8, unseen: false, oldest: Some(id(3)) }
        );
        let more = counted(Some((MOST_COUNTED + 1, Some(id(4)))));
        assert_eq!((more.events, more.bound), (5_001, Some(Bound::TooManyToCount(Lost::Null))));
        assert_eq!(more.certain, MOST_COUNTED + 2, "those that were seen, and the one that is held");
        let unanswered = counted(None);
        assert_eq!((unanswered.events, unanswered.bound), (more.events, more.bound), "not answered: the bound");
        assert_eq!((unanswered.certain, unanswered.unseen, more.unseen), (1, true, false));
    }

    #[test]
    fn a_group_that_was_set_back_counts_what_it_holds_twice_and_says_so() {
        let back = group(2, 3, None, Some(8));
        let held = Some((id(4), id(9)));
        assert!(needs_first(Known::Exactly(8, None), &back, held));
        let found = backlog(Known::Exactly(8, None), Some((1, Some(id(3)))), &back, held);
        assert_eq!(
            found,
            Backlog { events: 11, bound: Some(Bound::SetBack), certain: 8, unseen: false, oldest: Some(id(3)) }
        );
    }
}
