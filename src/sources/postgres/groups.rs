//! Which consumers of an event store are asked for in one statement: groups of bounded size, so that a statement ends in time however many there are, and so that
//! one whose statement does not end makes unknown only those with it. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::stores::StoreKey;
use crate::resolve::StoreConsumer;

/// The group of each consumer. It stays in its group, where it is remembered what was seen of it.
#[derive(Debug, Default)]
pub(super) struct Groups {
    placed: HashMap<Arc<StoreConsumer>, usize>,
}

impl Groups {
    /// From now on there are these. New ones fill the groups that have room.
    pub(super) fn follow(&mut self, consumers: &[&Arc<StoreConsumer>]) {
        let wanted: HashSet<&Arc<StoreConsumer>> = consumers.iter().copied().collect();
        self.placed.retain(|consumer, _| wanted.contains(consumer));
        let mut sizes: HashMap<StoreKey, Vec<usize>> = HashMap::new();
        for (consumer, group) in &self.placed {
            let sizes = sizes.entry(StoreKey::of(consumer)).or_default();
            sizes.resize(sizes.len().max(group + 1), 0);
            sizes[*group] += 1;
        }
        for consumer in consumers {
            if self.placed.contains_key(*consumer) {
                continue;
            }
            let key = StoreKey::of(consumer);
            let most = key.most_at_once();
            let sizes = sizes.entry(key).or_default();
            let group = sizes.iter().position(|size| *size < most).unwrap_or(sizes.len());
            sizes.resize(sizes.len().max(group + 1), 0);
            sizes[group] += 1;
            self.placed.insert(Arc::clone(consumer), group);
        }
    }

    /// The group of a consumer that is followed.
    pub(super) fn of(&self, consumer: &Arc<StoreConsumer>) -> usize {
        self.placed.get(consumer).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumers(schema: &str, numbers: std::ops::Range<u32>) -> Vec<Arc<StoreConsumer>> {
        let one = |n| serde_json::json!({"schema": schema, "projection": format!("p{n}"), "entityType": "Cart"});
        numbers.map(|n| Arc::new(StoreConsumer::Akka(serde_json::from_value(one(n)).unwrap()))).collect()
    }

    fn follow(groups: &mut Groups, consumers: &[Arc<StoreConsumer>]) {
        groups.follow(&consumers.iter().collect::<Vec<_>>());
    }

    /// How many are in each group.
    fn sizes(groups: &Groups, consumers: &[Arc<StoreConsumer>]) -> Vec<usize> {
        let mut sizes = Vec::new();
        for group in consumers.iter().map(|consumer| groups.of(consumer)) {
            sizes.resize(sizes.len().max(group + 1), 0);
            sizes[group] += 1;
        }
        sizes
    }

    #[test]
    fn no_group_is_larger_than_a_statement_serves_and_each_store_has_its_own() {
        let (mut groups, all) = (Groups::default(), consumers("a", 0..120));
        let other = consumers("b", 0..3);
        follow(&mut groups, &[all.clone(), other.clone()].concat());
        assert_eq!((sizes(&groups, &all), sizes(&groups, &other)), (vec![50, 50, 20], vec![3]));
    }

    #[test]
    fn who_stays_keeps_the_group_and_new_ones_fill_those_with_room() {
        let (mut groups, all) = (Groups::default(), consumers("a", 0..120));
        follow(&mut groups, &all);
        let left = all[10..].to_vec();
        let before: Vec<usize> = left.iter().map(|one| groups.of(one)).collect();
        follow(&mut groups, &left);
        assert_eq!(sizes(&groups, &left), [40, 50, 20]);
        let more = [consumers("a", 200..230), left.clone(), left.clone()].concat();
        follow(&mut groups, &more);
        assert_eq!(left.iter().map(|one| groups.of(one)).collect::<Vec<_>>(), before);
        assert_eq!(sizes(&groups, &more[..140]), [50, 50, 40]);
    }
}
