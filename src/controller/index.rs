//! The index of the objects made for Projections. Watches feed it; reconciling reads it, so that a round that changes nothing asks the
//! API server nothing.
//!
//! The watch decides what exists. The answer to this replica's own write is taken in as well, so that the next round does not repeat the write, but
//! only until the watch shows the object: an answer may arrive after the watch has reported the object's deletion, and must not bring it back. Clocks
//! come in as arguments.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use super::{live::LiveObject, parts::Part};

/// An answer that the watch has not confirmed within this time is checked by a read.
pub const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// Deletions are remembered for this long. No answer arrives later: a round ends before.
const REMEMBER_DELETED: Duration = Duration::from_secs(180);

/// Kind, namespace and name.
type Address = (Part, String, String);

#[derive(Debug)]
struct Entry {
    live: Arc<LiveObject>,
    /// When the API server answered this replica's write with this object, while the watch has not shown it yet.
    unconfirmed: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<Address, Entry>,
    /// UIDs of deleted objects, and when their deletion was seen.
    deleted: HashMap<String, Instant>,
}

/// All live objects that carry the operator's label. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LiveIndex(Arc<RwLock<State>>);

impl LiveIndex {
    /// One object.
    pub fn get(&self, part: Part, namespace: &str, name: &str) -> Option<Arc<LiveObject>> {
        self.read().objects.get(&address(part, namespace, name)).map(|entry| Arc::clone(&entry.live))
    }

    /// How long the watch has failed to show an object that an answer described; `None` where the watch has shown it, or there is none.
    pub fn unconfirmed_for(&self, part: Part, namespace: &str, name: &str, now: Instant) -> Option<Duration> {
        let state = self.read();
        let answered = state.objects.get(&address(part, namespace, name))?.unconfirmed?;
        Some(now.saturating_duration_since(answered))
    }

    /// Takes in what the watch says. Returns whether anything that matters changed.
    pub fn watched(&self, part: Part, namespace: &str, name: &str, live: LiveObject) -> bool {
        let mut state = self.write();
        if state.deleted.contains_key(&live.uid) {
            return false;
        }
        let address = address(part, namespace, name);
        let before = state.objects.get(&address);
        // The watch lags behind this replica's own write, and will show it.
        if before.is_some_and(|before| before.unconfirmed.is_some() && live.is_older_than(&before.live)) {
            return false;
        }
        let changed = before.is_none_or(|before| !before.live.looks_like(&live));
        state.objects.insert(address, Entry { live: Arc::new(live), unconfirmed: None });
        changed
    }

    /// Takes in the API server's answer to a read or write of this replica at `now`, unless the watch knows a newer state.
    pub fn answered(&self, part: Part, namespace: &str, name: &str, live: LiveObject, now: Instant) {
        let mut state = self.write();
        if state.deleted.contains_key(&live.uid) {
            return;
        }
        let address = address(part, namespace, name);
        let before = state.objects.get(&address).map(|entry| (&entry.live, entry.unconfirmed.is_some()));
        let known = before.is_some_and(|(before, unconfirmed)| {
            let same = before.uid == live.uid && before.resource_version == live.resource_version;
            live.is_older_than(before) || (same && !unconfirmed)
        });
        if !known {
            state.objects.insert(address, Entry { live: Arc::new(live), unconfirmed: Some(now) });
        }
    }

    /// Takes in that the object with this UID is gone, as of `now`; a namesake that came since stays.
    pub fn deleted(&self, part: Part, namespace: &str, name: &str, uid: &str, now: Instant) {
        let mut state = self.write();
        state.bury(uid, now);
        let address = address(part, namespace, name);
        if state.objects.get(&address).is_some_and(|entry| entry.live.uid == uid) {
            state.objects.remove(&address);
        }
    }

    /// After a complete list of one kind in one namespace (or in all) at `now`: forgets what was not in it, and returns that.
    pub fn retain(
        &self,
        part: Part,
        namespace: Option<&str>,
        listed: &HashSet<(String, String)>,
        now: Instant,
    ) -> Vec<Arc<LiveObject>> {
        let mut state = self.write();
        let mut gone: Vec<Arc<LiveObject>> = Vec::new();
        state.objects.retain(|(kind, space, name), entry| {
            let concerned = *kind == part && namespace.is_none_or(|namespace| namespace == space);
            // Written while the list was on its way: the watch or a read will show it.
            let keep = !concerned || entry.unconfirmed.is_some() || listed.contains(&(space.clone(), name.clone()));
            if !keep {
                gone.push(Arc::clone(&entry.live));
            }
            keep
        });
        for live in &gone {
            state.bury(&live.uid, now);
        }
        gone
    }

    /// What each object of one kind tells of the Projection that it was made for, where it tells anything.
    pub fn tell<T>(&self, part: Part, told: impl Fn(&LiveObject) -> Option<T>) -> Vec<T> {
        let state = self.read();
        state
            .objects
            .iter()
            .filter(|((kind, ..), _)| *kind == part)
            .filter_map(|(_, entry)| told(&entry.live))
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bury(&mut self, uid: &str, now: Instant) {
        self.deleted.retain(|_, seen| now.saturating_duration_since(*seen) < REMEMBER_DELETED);
        self.deleted.insert(uid.to_owned(), now);
    }
}

fn address(part: Part, namespace: &str, name: &str) -> Address {
    (part, namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PART: Part = Part::Deployment;

    fn live(uid: &str, version: &str, ready: i32) -> LiveObject {
        LiveObject::from_object(
            &serde_json::from_value(json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "orders", "namespace": "shop", "uid": uid, "resourceVersion": version},
                "spec": {"replicas": 2}, "status": {"readyReplicas": ready},
            }))
            .unwrap(),
        )
    }

    fn watched(index: &LiveIndex, uid: &str, version: &str, ready: i32) -> bool {
        index.watched(PART, "shop", "orders", live(uid, version, ready))
    }

    fn answered(index: &LiveIndex, uid: &str, version: &str, now: Instant) {
        index.answered(PART, "shop", "orders", live(uid, version, 2), now);
    }

    fn there(index: &LiveIndex) -> Option<(String, String)> {
        let live = index.get(PART, "shop", "orders")?;
        Some((live.uid.clone(), live.resource_version.clone()))
    }

    fn is(uid: &str, version: &str) -> Option<(String, String)> {
        Some((uid.to_owned(), version.to_owned()))
    }

    #[test]
    fn an_answer_after_the_deletion_does_not_bring_the_object_back() {
        let (index, now) = (LiveIndex::default(), Instant::now());
        watched(&index, "a", "10", 2);
        index.deleted(PART, "shop", "orders", "a", now);
        answered(&index, "a", "11", now + Duration::from_secs(10));
        assert_eq!(there(&index), None);
        assert!(!watched(&index, "a", "11", 2), "nor does an update that was on its way");
        assert!(watched(&index, "b", "20", 2), "a namesake is another object");
        index.deleted(PART, "shop", "orders", "a", now);
        assert_eq!(there(&index), is("b", "20"));
        answered(&index, "c", "15", now);
        assert_eq!(there(&index), is("b", "20"), "an answer from before the namesake");
    }

    #[test]
    fn an_answer_after_a_list_without_the_object_does_not_bring_it_back() {
        let (index, now) = (LiveIndex::default(), Instant::now());
        watched(&index, "a", "10", 2);
        assert!(index.retain(PART, Some("elsewhere"), &HashSet::new(), now).is_empty());
        assert_eq!(index.retain(PART, None, &HashSet::new(), now).len(), 1);
        answered(&index, "a", "11", now);
        assert_eq!(there(&index), None);
    }

    #[test]
    fn what_only_an_answer_said_is_to_be_confirmed() {
        let (index, now) = (LiveIndex::default(), Instant::now());
        let age = |after| index.unconfirmed_for(PART, "shop", "orders", now + Duration::from_secs(after));
        answered(&index, "a", "10", now);
        assert_eq!(age(11), Some(Duration::from_secs(11)));
        assert!(!watched(&index, "a", "9", 0), "the watch lags behind");
        assert_eq!((there(&index), age(1)), (is("a", "10"), Some(Duration::from_secs(1))));
        assert!(index.retain(PART, None, &HashSet::new(), now).is_empty(), "a list from before the write");
        assert!(!watched(&index, "a", "10", 2), "as answered");
        assert_eq!(age(1), None);
        answered(&index, "a", "10", now);
        assert_eq!(age(1), None, "a write that changed nothing");
        assert!(watched(&index, "a", "12", 1));
        answered(&index, "a", "11", now);
        assert_eq!(there(&index), is("a", "12"), "an answer that the watch has overtaken");
    }
}
