//! Handlers that no event has been for so far, as one worker sees it: a misspelt type of event is a handler that is never called. Pure.

use std::collections::BTreeSet;

use super::event::Event;

/// A worker that has handled fewer events says nothing: a type may be rare.
const ENOUGH_EVENTS: u64 = 1_000;

/// Which handlers a worker has had no event for since it last joined.
#[derive(Clone, Debug, Default)]
pub(super) struct UncalledHandlers {
    uncalled: BTreeSet<String>,
    handled: u64,
    told: bool,
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
        Self { uncalled: types.into_iter().collect(), handled: 0, told: false }
    }

    /// These were read, whether or not each is handled: one may be superseded by another of its batch.
    pub(super) fn came<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) {
        if self.uncalled.is_empty() {
            return;
        }
        for event in events {
            self.uncalled.remove(&event.event_type);
        }
    }

    /// So many are done.
    pub(super) fn handled(&mut self, count: usize) {
        self.handled = self.handled.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
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
}
