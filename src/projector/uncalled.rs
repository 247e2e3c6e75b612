//! Handlers that no event has been for so far, as one worker sees it: a misspelt type of event is a handler that is never called. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::event::Event;

/// A worker that has handled fewer events says nothing: a type may be rare.
const ENOUGH_EVENTS: u64 = 1_000;
/// So many types are written down, which have so many bytes together at most: the operator reads no longer texts than 4,096 bytes.
const MOST_NOTED: usize = 20;
const LONGEST_NOTE: usize = 2_000;
/// What is being done, for messages.
pub(super) const NOTING: &str = "read store: noting handlers that were never called";

/// Which handlers a worker has had no event for since it last joined.
#[derive(Clone, Debug, Default)]
pub(super) struct UncalledHandlers {
    uncalled: BTreeSet<String>,
    handled: u64,
    told: bool,
    /// The shards of which it is written down in the read store, with the fences that this worker held them with.
    noted: BTreeMap<u32, i64>,
    /// What is written down names a type that has come since.
    is_outdated: bool,
}

/// What is told, once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Uncalled {
    /// The types of event, quoted and with commas between them.
    pub(super) types: String,
    /// How many events the worker has handled.
    pub(super) handled: u64,
}

impl UncalledHandlers {
    /// Of a worker whose handlers are for these types.
    pub(super) fn new(types: Vec<String>) -> Self {
        Self { uncalled: types.into_iter().collect(), ..Self::default() }
    }

    /// These were read, whether or not each is handled: one may be superseded by another of its batch.
    pub(super) fn came<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) {
        if self.uncalled.is_empty() {
            return;
        }
        for event in events {
            let is_first = self.uncalled.remove(&event.event_type);
            self.is_outdated |= is_first && !self.noted.is_empty();
        }
    }

    /// So many are done.
    pub(super) fn handled(&mut self, count: usize) {
        self.handled = self.handled.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Whether to write down at once what [`Self::unnoted`] says.
    pub(super) fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    /// What to write down of a worker that has caught up and holds these shards, with these fences, and of which shards: the types, as many as fit. Nothing
    /// where it is written down already.
    pub(super) fn unnoted(&mut self, held: &BTreeMap<u32, i64>) -> Option<(Vec<String>, BTreeSet<u32>)> {
        if self.handled < ENOUGH_EVENTS || (self.uncalled.is_empty() && !self.is_outdated) {
            return None;
        }
        if std::mem::take(&mut self.is_outdated) {
            self.noted.clear();
        }
        let new = held.iter().filter(|(shard, fence)| self.noted.get(shard) != Some(fence));
        let shards: BTreeSet<u32> = new.map(|(shard, _)| *shard).collect();
        self.noted.clone_from(held);
        let mut left = LONGEST_NOTE;
        let fits = |name: &&String| {
            let rest = left.checked_sub(name.len());
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let types: Vec<String> = self.uncalled.iter().filter(fits).take(MOST_NOTED).cloned().collect();
        (!shards.is_empty()).then_some((types, shards))
    }

    /// What to tell of a worker that has caught up: once, and after enough events.
    pub(super) fn caught_up(&mut self) -> Option<Uncalled> {
        if self.told || self.uncalled.is_empty() || self.handled < ENOUGH_EVENTS {
            return None;
        }
        self.told = true;
        let types: Vec<String> = self.uncalled.iter().map(|name| format!("{name:?}")).collect();
        Some(Uncalled { types: types.join(", "), handled: self.handled })
    }

    /// Tells of a worker that has caught up, in its log.
    pub(super) fn log_when_caught_up(&mut self) {
        if let Some(Uncalled { types, handled }) = self.caught_up() {
            tracing::warn!(
                handled,
                "handlers that were never called: no event of type {types} has come to this worker since it last joined. Are the names written as the source writes them? Other workers may have had such events"
            );
        }
    }
}

/// What the owner of a shard writes down there.
pub(super) fn note(fence: i64, types: &[String]) -> String {
    format!("{fence} {}", serde_json::Value::from(types))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_type: &str) -> Event {
        Event::without_position(event_type.to_owned(), None, None, None)
    }

    fn of(types: &[&str]) -> UncalledHandlers {
        UncalledHandlers::new(types.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_type_that_never_came_is_told_once_after_enough_events_and_when_caught_up() {
        let mut handlers = of(&["OrderPlaced", "OrderPlaecd", "Odd\"One"]);
        handlers.came(&[event("OrderPlaced")]);
        handlers.handled(999);
        assert_eq!(handlers.caught_up(), None, "too few events");
        handlers.handled(1);
        let told = Uncalled { types: r#""Odd\"One", "OrderPlaecd""#.to_owned(), handled: 1_000 };
        assert_eq!(handlers.caught_up(), Some(told));
        handlers.handled(5_000);
        assert_eq!(handlers.caught_up(), None, "once");
    }

    #[test]
    fn nothing_is_told_where_each_type_came() {
        let mut handlers = of(&["OrderPlaced", "OrderPaid"]);
        handlers.handled(5_000);
        handlers.came(&[event("OrderPaid"), event("OrderPlaced"), event("Other")]);
        assert_eq!(handlers.caught_up(), None);
    }

    #[test]
    fn it_is_written_down_once_for_each_shard_and_owner_and_again_when_a_type_has_come() {
        let mut handlers = of(&["OrderPlaced", "OrderPlaecd"]);
        let held = |shards: &[(u32, i64)]| shards.iter().copied().collect::<BTreeMap<_, _>>();
        let both = vec!["OrderPlaced".to_owned(), "OrderPlaecd".to_owned()];
        assert_eq!(handlers.unnoted(&held(&[(0, 3), (1, 7)])), None, "too few events");
        handlers.handled(1_000);
        assert_eq!(handlers.unnoted(&held(&[(0, 3), (1, 7)])), Some((both, [0, 1].into())));
        assert_eq!(handlers.unnoted(&held(&[(0, 3), (1, 7)])), None, "it is there");
        let (_, shards) = handlers.unnoted(&held(&[(0, 5), (1, 7), (2, 1)])).unwrap();
        assert_eq!(shards, [0, 2].into(), "taken since");
        assert!(!handlers.is_outdated());
        handlers.came(&[event("OrderPlaced")]);
        assert!(handlers.is_outdated());
        let (types, shards) = handlers.unnoted(&held(&[(0, 5), (2, 1)])).unwrap();
        assert_eq!((types, shards), (vec!["OrderPlaecd".to_owned()], [0, 2].into()));
        handlers.came(&[event("OrderPlaecd")]);
        assert_eq!(
            handlers.unnoted(&held(&[(0, 5)])),
            Some((Vec::new(), [0].into())),
            "none is left, and that is said"
        );
        assert_eq!(handlers.unnoted(&held(&[(0, 6)])), None);
    }

    #[test]
    fn a_note_names_as_many_types_as_fit_and_begins_with_the_fence() {
        let long = "x".repeat(1_500);
        let mut handlers = of(&["A\"", &long, &format!("{long}2"), "y"]);
        handlers.handled(1_000);
        let (types, _) = handlers.unnoted(&[(0, 1)].into()).unwrap();
        assert_eq!(types, ["A\"", &long, "y"]);
        assert_eq!(note(12, &types[..1]), r#"12 ["A\""]"#);
    }
}
