//! What a batch makes of documents: each is written once, as it is after the last event that changes it, with that event's position as its version.
//! Pure.
//!
//! A version says that all events up to that position have been done to the document, since all events that write it are of one stream, and a
//! stream is handled in its order. So an event up to the version that is found changes nothing, and neither does a write that the server refuses for its
//! version.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
};

use super::{
    super::super::event::Event,
    json_merge::{add, merge},
    operations::{Action, Filled, Key},
};

/// An operation of an event of the batch.
#[derive(Debug)]
pub(super) struct Change {
    /// The event's index in the batch.
    pub(super) event: usize,
    pub(super) filled: Filled,
}

/// A document as it was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    Missing,
    There { version: i64, source: String },
}

/// What is to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Write {
    pub(super) key: Key,
    /// The position of the last event that changes it.
    pub(super) version: i64,
    /// Absent where it is deleted.
    pub(super) document: Option<String>,
    /// Which events of the batch it shows, first first.
    pub(super) events: Vec<usize>,
    /// The last operation, for messages.
    pub(super) by: (usize, &'static str),
    pub(super) index_is_constant: bool,
}

/// An event that cannot be done: its index in the batch, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Unfit {
    pub(super) event: usize,
    pub(super) message: String,
}

/// The documents that must be read before, with the first event that asks for each: those that are changed in part before they are written as a whole.
pub(super) fn to_read(changes: &[Change]) -> Vec<(&Key, usize)> {
    let (mut seen, mut asked) = (HashSet::new(), Vec::new());
    for Change { event, filled } in changes {
        if seen.insert(&filled.key) && matches!(filled.action, Action::Update { .. }) {
            asked.push((&filled.key, *event));
        }
    }
    asked
}

/// Which shard changes a document in part, of those that this worker has seen: events of two must not. Remembers a part of them.
#[derive(Debug, Default)]
pub(super) struct Shards {
    of: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Shards {
    /// More are not remembered, of 16 bytes each.
    const MOST: usize = 50_000;

    fn of(&self, key: &Key) -> Option<u32> {
        self.of.get(&self.hasher.hash_one(key)).copied()
    }

    fn note(&mut self, key: &Key, shard: u32) {
        if self.of.len() >= Self::MOST {
            self.of.clear();
        }
        self.of.insert(self.hasher.hash_one(key), shard);
    }
}

/// What is known of a document.
struct State {
    /// Its JSON, where it is there.
    document: Option<String>,
    /// Events up to this position are done.
    done_to: i64,
    shard: u32,
    is_updated: bool,
    write: Option<Write>,
}

/// What the operations make of the documents, in the order in which these come first.
///
/// # Errors
/// The first event that cannot be done.
pub(super) fn fold(
    events: &[Event],
    changes: &[Change],
    found: &HashMap<Key, Found>,
    shards: &mut Shards,
) -> Result<Vec<Write>, Unfit> {
    let (mut states, mut order): (BTreeMap<&Key, State>, Vec<&Key>) = (BTreeMap::new(), Vec::new());
    for Change { event: index, filled } in changes {
        let Some(event) = events.get(*index) else { continue };
        let Filled { number, key, index_is_constant, version, action } = filled;
        let is_of_message = version.is_some();
        let version = version.unwrap_or(event.position);
        let unfit =
            |why: String| Unfit { event: *index, message: format!("operation {number} ({}): {why}", action.name()) };
        let state = states.entry(key).or_insert_with(|| {
            order.push(key);
            let (document, done_to) = match found.get(key) {
                Some(Found::There { version, source }) => (Some(source.clone()), *version),
                Some(Found::Missing) | None => (None, i64::MIN),
            };
            let updated_by = shards.of(key);
            let shard = updated_by.unwrap_or(event.shard);
            State { document, done_to, shard, is_updated: updated_by.is_some(), write: None }
        });
        let is_update = matches!(action, Action::Update { .. });
        if state.shard != event.shard && (is_update || state.is_updated) {
            return Err(unfit("another stream writes the same document. An event that changes a part of it builds on those before it, so that all that write it must be of one stream: choose an id for each stream, or set spec.scaling.ordering to Strict".to_owned()));
        }
        if is_update && !state.is_updated {
            state.is_updated = true;
            shards.note(key, event.shard);
        }
        // Messages come in any order. Operations of one event follow one another.
        let other = state.write.as_ref().filter(|write| is_of_message && write.events.last() != Some(index));
        if version <= state.done_to || other.is_some_and(|write| version <= write.version) {
            continue;
        }
        match action {
            Action::Index(document) => state.document = Some(document.clone()),
            Action::Delete => state.document = None,
            Action::Update { doc, add, upsert } => match (&state.document, upsert) {
                (Some(document), _) => {
                    state.document = Some(changed(document, doc.as_deref(), add).map_err(unfit)?);
                }
                (None, Some(upsert)) => state.document = Some(upsert.clone()),
                (None, None) => continue,
            },
        }
        let mut all = state.write.take().map(|write| write.events).unwrap_or_default();
        if all.last() != Some(index) {
            all.push(*index);
        }
        state.write = Some(Write {
            key: key.clone(),
            version,
            document: None,
            events: all,
            by: (*number, action.name()),
            index_is_constant: *index_is_constant,
        });
    }
    let written = order.into_iter().filter_map(|key| {
        let State { document, write, .. } = states.remove(key)?;
        write.map(|write| Write { document, ..write })
    });
    Ok(written.collect())
}

fn changed(document: &str, doc: Option<&str>, numbers: &[(String, String)]) -> Result<String, String> {
    let merged = doc.map(|doc| merge(document, doc).ok_or("the document is no object")).transpose()?;
    let mut all = merged.unwrap_or_else(|| document.to_owned());
    for (field, number) in numbers {
        let path: Vec<String> = field.split('.').map(str::to_owned).collect();
        all = add(&all, &path, number).map_err(|why| format!("nothing can be added to {field}: {why}"))?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, shard: u32) -> Event {
        Event {
            position,
            since: position,
            before: position - 1,
            shown_position: position,
            behind_parked: None,
            shard,
            event_type: "T".to_owned(),
            stream: None,
            recorded_at: None,
            data: None,
        }
    }

    fn key(id: &str) -> Key {
        Key { index: "orders".to_owned(), id: id.to_owned() }
    }

    fn change(event: usize, id: &str, action: Action) -> Change {
        Change { event, filled: Filled { number: 1, key: key(id), index_is_constant: true, version: None, action } }
    }

    fn versioned(event: usize, version: i64, action: Action) -> Change {
        let mut change = change(event, "a", action);
        change.filled.version = Some(version);
        change
    }

    fn index(json: &str) -> Action {
        Action::Index(json.to_owned())
    }

    fn update(doc: &str, upsert: Option<&str>) -> Action {
        Action::Update { doc: Some(doc.to_owned()), add: Vec::new(), upsert: upsert.map(str::to_owned) }
    }

    fn count(upsert: Option<&str>) -> Action {
        Action::Update { doc: None, add: vec![("n".to_owned(), "1".to_owned())], upsert: upsert.map(str::to_owned) }
    }

    fn there(version: i64, source: &str) -> HashMap<Key, Found> {
        HashMap::from([(key("a"), Found::There { version, source: source.to_owned() })])
    }

    /// Version and document of each write.
    fn folded(events: &[Event], changes: &[Change], found: &HashMap<Key, Found>) -> Vec<(i64, Option<String>)> {
        fold(events, changes, found, &mut Shards::default())
            .unwrap()
            .into_iter()
            .map(|write| (write.version, write.document))
            .collect()
    }

    #[test]
    fn a_document_is_written_once_as_the_last_event_leaves_it() {
        let events: Vec<Event> = (1..=5).map(|position| event(position, 0)).collect();
        let changes = [
            change(0, "a", index(r#"{"n":1}"#)),
            change(1, "b", index("{}")),
            change(2, "a", count(None)),
            change(2, "a", update(r#"{"x":true}"#, None)),
            change(3, "b", Action::Delete),
            change(4, "c", update("{}", None)),
        ];
        let writes = fold(&events, &changes, &HashMap::new(), &mut Shards::default()).unwrap();
        assert_eq!(writes.len(), 2, "an update of what is not there writes nothing");
        assert_eq!((writes[0].version, writes[0].document.as_deref()), (3, Some(r#"{"n":2,"x":true}"#)));
        assert_eq!(writes[0].events, [0, 2]);
        assert_eq!((writes[1].version, &writes[1].document), (4, &None));
        assert_eq!(to_read(&changes), [(&key("c"), 4)], "a and b are written as a whole first");
    }

    #[test]
    fn an_event_that_is_done_changes_nothing() {
        let events: Vec<Event> = (5..=8).map(|position| event(position, 0)).collect();
        let changes: Vec<Change> = (0..4).map(|at| change(at, "a", count(Some(r#"{"n":1}"#)))).collect();
        assert_eq!(folded(&events, &changes, &there(6, r#"{"n":7}"#)), [(8, Some(r#"{"n":9}"#.to_owned()))]);
        assert_eq!(folded(&events, &changes, &there(8, r#"{"n":7}"#)), []);
        assert_eq!(folded(&events, &changes, &there(900, r#"{"n":7}"#)), []);
        let missing = HashMap::from([(key("a"), Found::Missing)]);
        assert_eq!(folded(&events, &changes, &missing), [(8, Some(r#"{"n":4}"#.to_owned()))]);
    }

    #[test]
    fn of_messages_the_one_with_the_highest_version_counts_in_whatever_order_they_come() {
        let events = [event(0, 0), event(0, 0), event(0, 0), event(0, 0)];
        let changes = [
            versioned(0, 4, index(r#"{"n":4}"#)),
            versioned(1, 7, index(r#"{"n":7}"#)),
            versioned(2, 5, Action::Delete),
            versioned(3, 7, index(r#"{"n":0}"#)),
        ];
        assert_eq!(folded(&events, &changes, &HashMap::new()), [(7, Some(r#"{"n":7}"#.to_owned()))]);
        let twice = [versioned(0, 4, Action::Delete), versioned(0, 4, index("{}"))];
        assert_eq!(folded(&events, &twice, &HashMap::new()), [(4, Some("{}".to_owned()))], "of one message the last");
    }

    #[test]
    fn two_streams_may_write_a_document_as_a_whole_and_not_in_part() {
        let events = [event(1, 0), event(2, 1)];
        let whole = [change(0, "a", index("{}")), change(1, "a", index("{}"))];
        assert_eq!(folded(&events, &whole, &HashMap::new()).len(), 1);
        for (first, second) in [(index("{}"), count(None)), (count(None), index("{}")), (count(None), count(None))] {
            let changes = [change(0, "a", first), change(1, "a", second)];
            let unfit = fold(&events, &changes, &HashMap::new(), &mut Shards::default()).unwrap_err();
            assert!(unfit.event == 1 && unfit.message.contains("another stream"), "{unfit:?}");
        }
    }

    #[test]
    fn which_stream_changes_a_document_in_part_is_remembered_from_batch_to_batch() {
        let mut shards = Shards::default();
        let (one, other) = ([event(1, 0)], [event(2, 1)]);
        fold(&one, &[change(0, "a", count(None))], &HashMap::new(), &mut shards).unwrap();
        let unfit = fold(&other, &[change(0, "a", index("{}"))], &HashMap::new(), &mut shards).unwrap_err();
        assert_eq!(unfit.event, 0);
        fold(&one, &[change(0, "a", Action::Delete)], &HashMap::new(), &mut shards).unwrap();
    }

    #[test]
    fn what_cannot_be_added_is_told_of_its_event() {
        let events = [event(1, 0), event(2, 0)];
        let changes = [change(0, "a", index(r#"{"n":"text"}"#)), change(1, "a", count(None))];
        let unfit = fold(&events, &changes, &HashMap::new(), &mut Shards::default()).unwrap_err();
        assert!(unfit.event == 1 && unfit.message.contains("nothing can be added to n"), "{unfit:?}");
        assert!(!unfit.message.contains("text"), "{unfit:?}");
    }
}
