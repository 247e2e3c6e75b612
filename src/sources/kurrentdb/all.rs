//! Events of `$all`, whose positions are bytes: counted by a bounded page, estimated by bytes beyond it. Pure.

use crate::{
    api::Reason,
    clients::kurrentdb::{Filter, Page, Read, Recorded, Start},
    lag::Pending,
    measure::MeasureError,
};

use super::positions::unknown;

/// So many events are counted one by one.
pub(super) const MOST_EVENTS: u64 = 500;

/// The read that tells where the log ends.
pub(super) fn end_of_log() -> Read {
    Read::All { from: Start::End, filter: Filter::None, most: 1 }
}

/// The commit position of the log's last event, from what [`end_of_log`] brought.
pub(super) fn end(page: &Page) -> Result<u64, MeasureError> {
    let last = page.events.first().copied().flatten().ok_or_else(|| {
        unknown(
            Reason::InvalidAnswer,
            "the last event of $all cannot be told: it is larger than 1 MiB, or there is none",
        )
    })?;
    Ok(last.commit)
}

/// The page holds all events up to the end of the log.
pub(super) fn reaches_end(page: &Page) -> bool {
    page.whole && u64::try_from(page.events.len()).is_ok_and(|read| read < MOST_EVENTS)
}

/// The page holds all events up to the end of the log, and the position of each is known.
pub(super) fn tells_all(page: &Page) -> bool {
    reaches_end(page) && page.events.iter().all(Option::is_some)
}

/// The events of the page of which `waits` says so, and those that were too large to be looked at: these wait for certain.
pub(super) fn counted(page: &Page, waits: impl Fn(&Recorded) -> bool) -> u64 {
    let waiting = page.events.iter().filter(|event| event.as_ref().is_none_or(&waits));
    u64::try_from(waiting.count()).unwrap_or(u64::MAX)
}

/// Events beyond this commit position, up to the end of the log.
pub(super) fn beyond(page: &Page, position: u64, end: u64) -> Pending {
    waiting(page, position, end, |event| event.commit > position)
}

/// Events of which `waits` says so, up to the end of the log; none at or below the commit position `position` does. Where the page does not reach that far,
/// the rest is estimated by its bytes: as many events a byte as in the page, all of which wait.
pub(super) fn waiting(page: &Page, position: u64, end: u64, waits: impl Fn(&Recorded) -> bool) -> Pending {
    let count = counted(page, waits);
    if reaches_end(page) {
        return Pending { events: count, exact: true };
    }
    let last = page.events.iter().rev().flatten().next().map_or(position, |event| event.commit);
    let first = page.events.iter().flatten().next().map_or(position, |event| event.commit);
    // The page may begin before the position, and end before it.
    let (span, all) = (last.saturating_sub(first.min(position)), page.events.len());
    let rest = u128::from(end.saturating_sub(last.max(position)));
    let more = rest * u128::try_from(all).unwrap_or(u128::MAX) / u128::from(span.max(1));
    Pending { events: count.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)), exact: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(commits: impl Iterator<Item = u64>, whole: bool) -> Page {
        let event = |commit| Some(Recorded { revision: 0, commit, created: None, stream_hash: 0 });
        Page { events: commits.map(event).collect(), whole, ..Page::default() }
    }

    #[test]
    fn a_page_that_reaches_the_end_is_counted_without_what_the_checkpoint_has_passed() {
        let three = page([100, 200, 300].into_iter(), true);
        assert_eq!(beyond(&three, 100, 300), Pending { events: 2, exact: true });
        assert_eq!(beyond(&three, 300, 900), Pending { events: 0, exact: true }, "what follows is filtered out");
        assert_eq!(beyond(&page(std::iter::empty(), true), 0, 900), Pending { events: 0, exact: true });
    }

    #[test]
    fn beyond_a_page_events_are_estimated_by_their_bytes() {
        let full = page((1..=MOST_EVENTS).map(|event| event * 100), true);
        let counted = beyond(&full, 0, 1_000_000);
        assert_eq!(counted, Pending { events: 10_000, exact: false });
        let cut = page((1..=10).map(|event| event * 100), false);
        assert_eq!(beyond(&cut, 100, 2_000), Pending { events: 9 + 11, exact: false });
        assert_eq!(beyond(&page([5].into_iter(), false), 5, 5), Pending { events: 0, exact: false });
        let arrived = beyond(&full, 1_000_000, 1_050_000);
        assert_eq!(arrived, Pending { events: 501, exact: false }, "a page far behind tells how dense the log is");
    }

    #[test]
    fn an_event_that_was_too_large_is_counted() {
        let page = Page { events: vec![None, None], whole: true, ..Page::default() };
        assert_eq!(beyond(&page, 7, 900), Pending { events: 2, exact: true });
        assert!(end(&page).is_err(), "where the log ends is not known");
    }
}
