//! Who shares the connections of a read store, and what each may have of them. No IO.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    lag::{Claim, fair_shares},
    measure::RunKey,
};

/// What a projection was told that it may have may still be acted on for so long after it was told less: an autoscaler has just read it, or another replica
/// still serves it. Two of an autoscaler's usual periods.
const ACTED_ON_WITHIN: Duration = Duration::from_secs(30);

/// The claims on every read store.
#[derive(Default)]
pub(super) struct Budgets {
    stores: HashMap<Arc<str>, Store>,
    place: HashMap<RunKey, Arc<str>>,
}

#[derive(Default)]
struct Store {
    /// What runs counts as running, and what a projection was told and may still act on.
    claims: BTreeMap<RunKey, Claim>,
    told: HashMap<RunKey, Told>,
    /// By the number of connections to share, which may differ from one projection to the other: each is bound by its own. Computed when asked
    /// for, gone when a claim changes.
    shares: HashMap<u32, HashMap<RunKey, u32>>,
}

/// A share, and until when it may be acted on.
#[derive(Clone, Copy)]
struct Told {
    workers: u32,
    until: Instant,
}

impl Budgets {
    /// Takes note of what a projection would like to have of the read store `store`.
    pub(super) fn claim(&mut self, key: &RunKey, store: &Arc<str>, claim: Claim, now: Instant) {
        if self.place.get(key).is_some_and(|before| before != store) {
            self.forget(key);
        }
        let there = self.stores.entry(Arc::clone(store)).or_default();
        let told = there.told.get(key).filter(|told| now < told.until).map_or(0, |told| told.workers);
        let claim = Claim { running: claim.running.max(told), ..claim };
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
        there.told.remove(key);
        there.shares.clear();
        if there.claims.is_empty() {
            self.stores.remove(&store);
        }
    }

    /// How many workers it may have, if all on its read store take at most `connections` together. It is told so, and may act on it.
    pub(super) fn share(&mut self, key: &RunKey, connections: u32, now: Instant) -> Option<u32> {
        let Store { claims, told, shares } = self.stores.get_mut(self.place.get(key)?)?;
        let by_key = shares.entry(connections).or_insert_with(|| {
            let all: Vec<Claim> = claims.values().copied().collect();
            claims.keys().cloned().zip(fair_shares(connections, &all)).collect()
        });
        let share = by_key.get(key).copied()?;
        if told.get(key).is_none_or(|told| told.workers <= share || told.until <= now) {
            told.insert(key.clone(), Told { workers: share, until: now + ACTED_ON_WITHIN });
        }
        if let Some(claim) = claims.get_mut(key).filter(|claim| claim.running < share) {
            claim.running = share;
            shares.clear();
        }
        Some(share)
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
        let now = Instant::now();
        budgets.claim(&key("a"), &reads, wants(9), now);
        budgets.claim(&key("b"), &reads, wants(9), now);
        budgets.claim(&key("c"), &other, wants(9), now);
        assert_eq!(budgets.share(&key("a"), 10, now), Some(5));
        assert_eq!(budgets.share(&key("c"), 10, now), Some(9));
        assert_eq!(budgets.share(&key("a"), 100, now), Some(9), "each is bound by its own number");
        budgets.claim(&key("b"), &reads, wants(2), now);
        assert_eq!(budgets.share(&key("a"), 10, now), Some(8), "what one leaves the other gets");
        budgets.claim(&key("b"), &other, wants(2), now);
        assert_eq!(budgets.share(&key("a"), 10, now), Some(9), "moved away");
        budgets.forget(&key("c"));
        assert_eq!(budgets.share(&key("c"), 10, now), None);
    }

    #[test]
    fn two_runs_of_one_projection_have_a_claim_each() {
        let (mut budgets, reads): (_, Arc<str>) = (Budgets::default(), "reads".into());
        let now = Instant::now();
        let second = RunKey { version: Some("v2".into()), ..key("a") };
        for run in [&key("a"), &second] {
            budgets.claim(run, &reads, wants(9), now);
        }
        assert_eq!([&key("a"), &second].map(|run| budgets.share(run, 10, now)), [Some(5), Some(5)]);
        budgets.forget(&second);
        assert_eq!(budgets.share(&key("a"), 10, now), Some(9));
    }

    #[test]
    fn what_a_projection_was_told_it_may_have_is_given_to_no_other_while_it_may_act_on_it() {
        for (has_acted, expected) in [(false, 2), (true, 1)] {
            let (mut budgets, reads): (_, Arc<str>) = (Budgets::default(), "reads".into());
            let now = Instant::now();
            let of = |running| Claim { running, ..wants(9) };
            budgets.claim(&key("a"), &reads, Claim { running: 1, ..wants(1) }, now);
            budgets.claim(&key("b"), &reads, of(1), now);
            assert_eq!(budgets.share(&key("b"), 3, now), Some(2));
            // The first wants as much now, and is the first to get what is left.
            budgets.claim(&key("a"), &reads, of(1), now);
            assert_eq!(budgets.share(&key("a"), 3, now), Some(1), "a worker of the other may be about to start");
            budgets.claim(&key("b"), &reads, of(1), now);
            assert_eq!(budgets.share(&key("b"), 3, now), Some(1), "it is told less now");
            assert_eq!(budgets.share(&key("a"), 3, now), Some(1), "and may have read the number before");
            let later = now + ACTED_ON_WITHIN;
            budgets.claim(&key("b"), &reads, of(if has_acted { 2 } else { 1 }), later);
            assert_eq!(budgets.share(&key("a"), 3, later), Some(expected));
        }
    }
}
