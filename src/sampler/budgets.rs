//! Who shares the connections of a read store, and what each may have of them. No IO.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    lag::{Claim, fair_shares},
    measure::RunKey,
};

/// The claims on every read store.
#[derive(Default)]
pub(super) struct Budgets {
    stores: HashMap<Arc<str>, Store>,
    place: HashMap<RunKey, Arc<str>>,
}

#[derive(Default)]
struct Store {
    claims: BTreeMap<RunKey, Claim>,
    /// By the number of connections to share, which may differ from one projection to the other: each is bound by its own. Computed when asked
    /// for, gone when a claim changes.
    shares: HashMap<u32, HashMap<RunKey, u32>>,
}

impl Budgets {
    /// Takes note of what a projection would like to have of the read store `store`.
    pub(super) fn claim(&mut self, key: &RunKey, store: &Arc<str>, claim: Claim) {
        if self.place.get(key).is_some_and(|before| before != store) {
            self.forget(key);
        }
        let there = self.stores.entry(Arc::clone(store)).or_default();
        if there.claims.insert(key.clone(), claim) != Some(claim) {
            there.shares.clear();
            self.place.insert(key.clone(), Arc::clone(store));
        }
    }

    /// It is gone.
    pub(super) fn forget(&mut self, key: &RunKey) {
        let Some(store) = self.place.remove(key) else { return };
        let Some(there) = self.stores.get_mut(&store) else { return };
        there.claims.remove(key);
        there.shares.clear();
        if there.claims.is_empty() {
            self.stores.remove(&store);
        }
    }

    /// How many workers it may have, if all on its read store take at most `connections` together.
    pub(super) fn share(&mut self, key: &RunKey, connections: u32) -> Option<u32> {
        let there = self.stores.get_mut(self.place.get(key)?)?;
        let Store { claims, shares } = there;
        let shares = shares.entry(connections).or_insert_with(|| {
            let all: Vec<Claim> = claims.values().copied().collect();
            claims.keys().cloned().zip(fair_shares(connections, &all)).collect()
        });
        shares.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> RunKey {
        RunKey::unversioned("shop", name)
    }

    fn wants(wanted: u32) -> Claim {
        Claim { wanted, running: 0, per_worker: 1 }
    }

    #[test]
    fn projections_share_their_store_and_no_other() {
        let (mut budgets, reads, other): (_, Arc<str>, Arc<str>) = (Budgets::default(), "reads".into(), "other".into());
        budgets.claim(&key("a"), &reads, wants(9));
        budgets.claim(&key("b"), &reads, wants(9));
        budgets.claim(&key("c"), &other, wants(9));
        assert_eq!(budgets.share(&key("a"), 10), Some(5));
        assert_eq!(budgets.share(&key("c"), 10), Some(9));
        assert_eq!(budgets.share(&key("a"), 100), Some(9), "each is bound by its own number");
        budgets.claim(&key("b"), &reads, wants(2));
        assert_eq!(budgets.share(&key("a"), 10), Some(8), "what one leaves the other gets");
        budgets.claim(&key("b"), &other, wants(2));
        assert_eq!(budgets.share(&key("a"), 10), Some(9), "moved away");
        // Two runs of one projection have a claim each.
        let second = RunKey { version: Some("v2".into()), ..key("a") };
        budgets.claim(&second, &reads, wants(9));
        assert_eq!([&key("a"), &second].map(|run| budgets.share(run, 10)), [Some(5), Some(5)]);
        budgets.forget(&second);
        assert_eq!(budgets.share(&key("a"), 10), Some(9));
        budgets.forget(&key("c"));
        assert_eq!(budgets.share(&key("c"), 10), None);
    }
}
