//! Leaves events out that a later one of the same batch makes superfluous, where the user has said which types supersede one another. Pure.
//!
//! An event takes the place of the one that it supersedes in the order of its shard, so that wherever a batch ends early, all events up to the checkpoint are
//! done or superseded by one that is. What was done beyond the checkpoint is done again, which changes nothing: that is what the user has said of these types.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::event::Event;
use crate::api::CoalescedTypes;

/// Which types of events supersede one another: those with the same number.
#[derive(Clone, Debug, Default)]
pub(super) struct Coalesce(BTreeMap<String, usize>);

impl Coalesce {
    pub(super) fn new(groups: &[CoalescedTypes]) -> Self {
        let types = groups.iter().enumerate();
        Self(types.flat_map(|(group, all)| all.types.iter().map(move |name| (name.clone(), group))).collect())
    }

    /// Leaves out each event whose next one in its stream is of a type that supersedes it. `events` are all that have a handler, in the order in which they
    /// are to be handled. An event of another type in between is not passed by, and one without a stream neither supersedes nor is superseded.
    pub(super) fn leave_out_superseded(&self, events: &mut Vec<Event>) {
        if self.0.is_empty() {
            return;
        }
        // The last event of each stream so far: its index and its group.
        let mut last: HashMap<(u32, &str), (usize, Option<usize>)> = HashMap::new();
        // For each event the first whose place it takes, and whether it is left out.
        let mut places: Vec<(usize, bool)> = Vec::with_capacity(events.len());
        for (index, event) in events.iter().enumerate() {
            places.push((index, false));
            let Some(stream) = event.stream.as_deref() else { continue };
            let group = self.0.get(&event.event_type).copied();
            let before = last.insert((event.shard, stream), (index, group));
            if let Some((superseded, of)) = before
                && of.is_some()
                && of == group
                && let Some((first, left_out)) = places.get_mut(superseded)
            {
                *left_out = true;
                let first = *first;
                places[index].0 = first;
            }
        }
        drop(last);
        let mut kept: Vec<(usize, Event)> = Vec::with_capacity(events.len());
        let places_of: Vec<(i64, i64)> = events.iter().map(|event| (event.since, event.before)).collect();
        for (event, (first, left_out)) in events.drain(..).zip(places) {
            if !left_out {
                let (since, before) = places_of.get(first).copied().unwrap_or((event.since, event.before));
                kept.push((first, Event { since, before, ..event }));
            }
        }
        kept.sort_by_key(|(first, _)| *first);
        events.extend(kept.into_iter().map(|(_, event)| event));
    }
}

/// Holds when each type has a handler and is named once.
///
/// # Errors
/// Names the type.
pub(super) fn check(groups: &[CoalescedTypes], handled: &[&str]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in groups.iter().flat_map(|group| &group.types) {
        if !handled.contains(&name.as_str()) {
            return Err(format!("names {name}, for which there is no handler"));
        }
        if !seen.insert(name) {
            return Err(format!("names {name} twice: a type can be in one group only"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(all: &[&[&str]]) -> Vec<CoalescedTypes> {
        let group = |types: &&[&str]| CoalescedTypes { types: types.iter().map(|name| (*name).to_owned()).collect() };
        all.iter().map(group).collect()
    }

    fn event(position: i64, stream: Option<&str>, event_type: &str) -> Event {
        Event {
            position,
            since: position,
            before: position - 1,
            shown_position: position,
            behind_parked: None,
            shard: 0,
            event_type: event_type.to_owned(),
            stream: stream.map(str::to_owned),
            recorded_at: None,
            data: None,
        }
    }

    /// Position and place of what is left of events, each written as its stream and its type.
    fn left(all: &[&[&str]], events: &[&str]) -> Vec<(i64, i64)> {
        let mut events: Vec<Event> =
            (1..).zip(events).map(|(position, of)| event(position, Some(&of[..1]), &of[1..])).collect();
        Coalesce::new(&groups(all)).leave_out_superseded(&mut events);
        events.iter().map(|event| (event.position, event.since)).collect()
    }

    #[test]
    fn the_last_of_a_run_stands_where_its_first_did() {
        assert_eq!(left(&[&["P"]], &["aP", "bP", "aP", "aP", "bP", "cP"]), [(4, 1), (5, 2), (6, 6)]);
        assert_eq!(left(&[&["P", "Q"]], &["aP", "aQ", "aP"]), [(3, 1)], "types of a group supersede one another");
        assert_eq!(left(&[&["P"], &["Q"]], &["aP", "aQ", "aP"]), [(1, 1), (2, 2), (3, 3)], "those of two do not");
    }

    #[test]
    fn an_event_of_another_type_of_the_same_stream_is_not_passed_by() {
        assert_eq!(left(&[&["P"]], &["aP", "aX", "aP", "aP"]), [(1, 1), (2, 2), (4, 3)]);
        assert_eq!(left(&[&["P"]], &["aP", "bX", "aP"]), [(3, 1), (2, 2)], "of another stream it is");
        assert_eq!(left(&[&["P"]], &["aX", "aX"]), [(1, 1), (2, 2)]);
        assert_eq!(left(&[], &["aP", "aP"]), [(1, 1), (2, 2)]);
    }

    #[test]
    fn streams_of_two_shards_and_events_without_a_stream_stay_apart() {
        let mut events = vec![event(1, None, "P"), event(2, None, "P"), event(3, Some("a"), "P")];
        events.push(Event { shard: 1, ..event(4, Some("a"), "P") });
        Coalesce::new(&groups(&[&["P"]])).leave_out_superseded(&mut events);
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn a_type_that_has_no_handler_or_is_named_twice_is_refused() {
        assert_eq!(check(&groups(&[&["P"], &["Q"]]), &["P", "Q", "R"]), Ok(()));
        assert!(check(&groups(&[&["P", "S"]]), &["P"]).unwrap_err().contains("names S, for which"));
        assert!(check(&groups(&[&["P"], &["P"]]), &["P"]).unwrap_err().contains("names P twice"));
    }

    proptest::proptest! {
        /// However far a batch comes, each event up to the checkpoint is done or superseded by one that is, and each stream ends as it would.
        #[test]
        fn what_lies_before_the_first_that_is_not_done_is_done(events in proptest::collection::vec((0..4_u8, 0..3_u8), 0..40), done in 0..40_usize) {
            let name = |letter: u8| ["a", "b", "c", "d"][usize::from(letter)];
            let all: Vec<Event> = (1..).zip(&events).map(|(at, (stream, of))| event(at, Some(name(*stream)), name(*of))).collect();
            let mut left = all.clone();
            Coalesce::new(&groups(&[&["a", "b"]])).leave_out_superseded(&mut left);
            let (done, open) = left.split_at(done.min(left.len()));
            let reach = open.iter().map(|event| event.before).min().unwrap_or(i64::MAX);
            for event in all.iter().filter(|event| event.position <= reach) {
                let of_stream = |other: &&Event| other.stream == event.stream;
                let is_done = |other: &Event| if event.event_type == "c" { other.position == event.position } else { other.since <= event.position && event.position <= other.position };
                proptest::prop_assert!(done.iter().filter(of_stream).any(is_done), "{event:?}");
            }
            // Events of types that are not coalesced come once: none that is done lies beyond the checkpoint.
            for event in done.iter().filter(|event| event.event_type == "c") {
                proptest::prop_assert!(event.position <= reach);
            }
        }
    }
}
