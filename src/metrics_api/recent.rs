//! A bounded map of what was used recently, so that a flood of keys takes bounded memory and forgets those that were not used for longest.

use std::{collections::HashMap, hash::Hash};

/// Two generations, of which the older is dropped when the newer is full: no entry has to be searched for to make room, and a flood of new keys does
/// not keep the newest from being remembered.
#[derive(Debug)]
pub(super) struct RecentMap<K, V> {
    most: usize,
    newer: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K: Eq + Hash, V> RecentMap<K, V> {
    /// Holds at most so many entries, and at least the half of them that was used last.
    pub(super) fn new(most: usize) -> Self {
        Self { most, newer: HashMap::new(), older: HashMap::new() }
    }

    /// The value of this key. Does not count as use.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.newer.get(key).or_else(|| self.older.get(key))
    }

    /// Replaces the value of this key.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.make_room(&key);
        self.newer.insert(key, value);
    }

    /// The value of this key, or `new` where there is none.
    pub(super) fn get_or_insert_with(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        let known = self.older.remove(&key);
        self.make_room(&key);
        self.newer.entry(key).or_insert_with(|| known.unwrap_or_else(new))
    }

    fn make_room(&mut self, key: &K) {
        if self.newer.len() >= self.most / 2 && !self.newer.contains_key(key) {
            self.older = std::mem::take(&mut self.newer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_keys_is_bounded_and_pushes_out_neither_the_newest_nor_what_is_used() {
        let mut recent = RecentMap::new(8);
        recent.insert(0, "used");
        for key in 1..100 {
            recent.insert(key, "new");
            assert_eq!(recent.get(&key), Some(&"new"));
            assert_eq!(*recent.get_or_insert_with(0, || "forgotten"), "used", "after {key} others");
            assert!(recent.newer.len() + recent.older.len() <= 8);
        }
        assert_eq!(recent.get(&1), None);
    }

    #[test]
    fn the_newest_value_of_a_key_counts() {
        let mut recent = RecentMap::new(4);
        for value in 0..10 {
            recent.insert("key", value);
            recent.insert(["a", "b", "c"][value % 3], value);
            assert_eq!(recent.get(&"key"), Some(&value));
        }
    }
}
