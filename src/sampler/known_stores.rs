//! What is known of read stores, and which Projections are to be told of a change. No IO.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use super::strain::StrainWatch;
use crate::{
    api::ReadStoreStatus,
    lag::Strain,
    measure::{MeasureError, RunKey},
    snapshot::StoreObservations,
    store_health::{Polled, StoreId, StoreName, StoreObservation},
};

/// What there is to tell of read stores.
#[derive(Debug)]
pub(super) enum StoreReport {
    /// From now on these are all, and this is which each Projection has.
    Placed { stores: HashMap<StoreId, StoreName>, of: HashMap<RunKey, StoreId> },
    /// A store was asked.
    Polled { id: StoreId, polled: Polled },
}

/// What is known of the stores, and of which of them changes are to be told. No IO.
#[derive(Default)]
pub(super) struct KnownStores {
    of: HashMap<RunKey, StoreId>,
    observations: Arc<StoreObservations>,
    /// What was told last.
    told: HashMap<StoreId, (ReadStoreStatus, Option<MeasureError>)>,
    strains: HashMap<StoreId, StrainWatch>,
}

impl KnownStores {
    /// Which store a Projection has.
    pub(super) fn of(&self, key: &RunKey) -> Option<StoreId> {
        self.of.get(key).copied()
    }

    /// What the store of a Projection has refused lately.
    pub(super) fn strain(&self, key: &RunKey, now: Instant) -> Option<Strain> {
        self.strains.get(self.of.get(key)?)?.now(now)
    }

    /// What is known of each.
    pub(super) fn observations(&self) -> &Arc<StoreObservations> {
        &self.observations
    }

    /// Takes a report in, and returns the Projections that have another store, or whose store has changed in a way that people should know.
    pub(super) fn take(&mut self, report: StoreReport, now: Instant) -> BTreeSet<RunKey> {
        match report {
            StoreReport::Placed { stores, of } => {
                let known = Arc::make_mut(&mut self.observations);
                known.retain(|id, _| stores.contains_key(id));
                self.told.retain(|id, _| stores.contains_key(id));
                self.strains.retain(|id, _| stores.contains_key(id));
                for (id, name) in stores {
                    known.entry(id).or_insert_with(|| Arc::new(StoreObservation { name, newest: None, strain: None }));
                }
                let before = std::mem::replace(&mut self.of, of);
                let moved = self.of.iter().filter(|(key, id)| before.get(key) != Some(id)).map(|(key, _)| key);
                let gone = before.keys().filter(|key| !self.of.contains_key(key));
                moved.chain(gone).cloned().collect()
            }
            StoreReport::Polled { id, polled } => {
                let Some(known) = Arc::make_mut(&mut self.observations).get_mut(&id) else { return BTreeSet::new() };
                let failure = polled.result.as_ref().err().cloned();
                let watch = self.strains.entry(id).or_default();
                match &polled.result {
                    Ok(sample) => watch.take(sample, now),
                    Err(why) => watch.fail(why.reason, now),
                }
                let seen = Arc::make_mut(known);
                (seen.newest, seen.strain) = (Some(polled), watch.now(now));
                let status = known.status(now);
                if self.told.get(&id).is_some_and(|(told, why)| status.settled(told) == *told && *why == failure) {
                    return BTreeSet::new();
                }
                self.told.insert(id, (status, failure));
                self.of.iter().filter(|(_, of)| **of == id).map(|(key, _)| key.clone()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::{ReadStoreRefusal, Reason},
        store_health::StoreSample,
    };

    fn key(name: &str) -> RunKey {
        RunKey::unversioned("shop", name)
    }

    fn placed(of: &[(&str, u64)]) -> StoreReport {
        let name = |id: u64| StoreName { kind: "redis", server: format!("db-{id}").into(), user: "".into() };
        StoreReport::Placed {
            stores: of.iter().map(|(_, id)| (StoreId(*id), name(*id))).collect(),
            of: of.iter().map(|(projection, id)| (key(projection), StoreId(*id))).collect(),
        }
    }

    fn polled(id: u64, result: Result<StoreSample, MeasureError>, now: Instant) -> StoreReport {
        let polled = Polled { result, taken: jiff::Timestamp::UNIX_EPOCH, valid_until: now + Duration::from_secs(5) };
        StoreReport::Polled { id: StoreId(id), polled }
    }

    #[test]
    fn a_strain_is_that_of_the_stores_projections_and_gone_with_it() {
        let (mut known, now) = (KnownStores::default(), Instant::now());
        known.take(placed(&[("a", 1), ("b", 2)]), now);
        for (refused, told) in [(3, BTreeSet::from([key("a")])), (3, BTreeSet::new()), (4, BTreeSet::from([key("a")]))]
        {
            let sample = StoreSample { rejected_connections: Some(refused), ..StoreSample::default() };
            assert_eq!(known.take(polled(1, Ok(sample), now), now), told, "{refused}: that it refuses is news");
        }
        let refuses = |known: &KnownStores| known.observations()[&StoreId(1)].status(now).refuses;
        assert_eq!(refuses(&known), Some(ReadStoreRefusal::Connections));
        let strains = |known: &KnownStores| [known.strain(&key("a"), now), known.strain(&key("b"), now)];
        assert_eq!(strains(&known), [Some(Strain::Connections), None]);
        known.take(placed(&[("a", 2), ("b", 2)]), now);
        assert_eq!(strains(&known), [None, None], "it has moved to another");
    }

    fn answers(millis: u64) -> Result<StoreSample, MeasureError> {
        Ok(StoreSample { latency: Duration::from_millis(millis), ..StoreSample::default() })
    }

    #[test]
    fn only_news_of_a_store_is_told_and_only_to_its_projections() {
        let (mut known, now) = (KnownStores::default(), Instant::now());
        let keys = |names: &[&str]| names.iter().map(|name| key(name)).collect::<BTreeSet<_>>();
        assert_eq!(known.take(placed(&[("a", 1), ("b", 1), ("c", 2)]), now), keys(&["a", "b", "c"]));
        assert_eq!(known.take(polled(1, answers(1), now), now), keys(&["a", "b"]));
        assert_eq!(known.take(polled(1, answers(9), now), now), keys(&[]), "noise");
        let refused = || Err(MeasureError { reason: Reason::ConnectionRefused, message: "refused".to_owned() });
        assert_eq!(known.take(polled(1, refused(), now), now), keys(&["a", "b"]));
        assert_eq!(known.take(polled(1, refused(), now), now), keys(&[]), "said already");
        assert_eq!(known.take(polled(1, answers(1), now), now), keys(&["a", "b"]));
        assert_eq!(known.take(placed(&[("a", 1), ("b", 2)]), now), keys(&["b", "c"]), "moved, gone");
        assert_eq!(known.take(placed(&[("b", 2)]), now), keys(&["a"]));
        assert_eq!(known.take(polled(1, refused(), now), now), keys(&[]), "a late answer of a store that is gone");
        assert_eq!(known.observations().len(), 1);
    }
}
