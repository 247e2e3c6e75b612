//! Counters of the nodes of a cluster as one that only grows. Pure.
//!
//! A sum would fall when a node is away and rise again when it is back, as if all that it ever counted had happened since. So each node's growth is added up. What
//! a node counted before it was first seen counts only where the whole cluster is seen for the first time.

use std::collections::HashMap;

/// The same counters of each node.
#[derive(Debug)]
pub(super) struct NodeCounters<const N: usize> {
    nodes: HashMap<String, [Option<u64>; N]>,
    /// Absent while no node has told it.
    totals: [Option<u64>; N],
    has_begun: bool,
}

impl<const N: usize> Default for NodeCounters<N> {
    fn default() -> Self {
        Self { nodes: HashMap::new(), totals: [None; N], has_begun: false }
    }
}

impl<const N: usize> NodeCounters<N> {
    /// Takes in what those nodes told that answered, and returns the totals. `away`: nodes that did not answer, which are remembered.
    pub(super) fn take(&mut self, told: &[(&str, [Option<u64>; N])], away: &[&str]) -> [Option<u64>; N] {
        for (node, counters) in told {
            let before = self.nodes.get(*node).copied();
            for (place, now) in counters.iter().enumerate() {
                let Some(now) = *now else { continue };
                let grew = match before.map(|before| before[place]) {
                    Some(Some(before)) => now.saturating_sub(before),
                    Some(None) => 0,
                    None if self.has_begun => 0,
                    None => now,
                };
                let total = self.totals[place].get_or_insert(0);
                *total = total.saturating_add(grew);
            }
        }
        for (node, counters) in told {
            let remembered = self.nodes.entry((*node).to_owned()).or_insert([None; N]);
            for (remembered, now) in remembered.iter_mut().zip(counters) {
                *remembered = now.or(*remembered);
            }
        }
        let is_there = |node: &str| told.iter().any(|(told, _)| *told == node) || away.contains(&node);
        self.nodes.retain(|node, _| is_there(node));
        self.has_begun |= !told.is_empty();
        self.totals
    }

    /// One more of the counter at this place, which no node told.
    pub(super) fn add(&mut self, place: usize) {
        if let Some(total) = self.totals.get_mut(place) {
            *total = Some(total.unwrap_or(0).saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_only_grow_whatever_nodes_come_and_go() {
        let mut counters = NodeCounters::<1>::default();
        let mut take = |told: &[(&str, u64)], away: &[&str]| {
            let told: Vec<_> = told.iter().map(|(node, count)| (*node, [Some(*count)])).collect();
            counters.take(&told, away)[0]
        };
        assert_eq!(take(&[], &["a"]), None, "none has told it");
        assert_eq!(take(&[("a", 5), ("b", 7)], &[]), Some(12), "what there is when the cluster is first seen");
        assert_eq!(take(&[("b", 8)], &["a"]), Some(13), "one is away");
        assert_eq!(take(&[("a", 6), ("b", 8)], &[]), Some(14), "what it counted meanwhile");
        assert_eq!(take(&[("a", 6), ("b", 8), ("c", 900)], &[]), Some(14), "a new one, or one whose replica took over");
        assert_eq!(take(&[("a", 2), ("b", 8), ("c", 901)], &[]), Some(15), "one was restarted");
        assert_eq!(take(&[("a", 3)], &[]), Some(16));
        assert_eq!(take(&[("a", 3), ("b", 20)], &[]), Some(16), "it left the cluster and came back");
    }

    #[test]
    fn what_a_node_does_not_tell_is_not_counted_as_none() {
        let mut counters = NodeCounters::<2>::default();
        assert_eq!(counters.take(&[("a", [Some(1), None])], &[]), [Some(1), None]);
        assert_eq!(counters.take(&[("a", [None, Some(4)])], &[]), [Some(1), Some(0)]);
        assert_eq!(counters.take(&[("a", [Some(3), Some(5)])], &[]), [Some(3), Some(1)]);
        counters.add(1);
        assert_eq!(counters.take(&[], &["a"]), [Some(3), Some(2)]);
    }
}
