//! The latest assessment of every projection, for many readers and one writer.
//!
//! The sampler publishes a whole new [`Snapshot`]; the controller and the metrics API read it without waiting.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    api::Reason,
    lag::{Assessment, Sample},
    measure::{MeasureError, RunKey},
    store_health::{StoreId, StoreObservation},
};

/// A sample together with what was made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What the probe answered.
    pub sample: Sample,
    /// What it means.
    pub assessment: Assessment,
    /// From this moment on it is too old to act on.
    pub valid_until: Instant,
}

/// What is known of one run of a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The projection's UID, so that a namesake created later does not inherit an observation.
    pub uid: Arc<str>,
    /// The generation of the spec that is measured.
    pub generation: i64,
    /// The Projection's labels, for selectors.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The last good measurement, kept while it is valid even if the source fails meanwhile.
    pub measured: Option<Arc<Measured>>,
    /// The workers to ask for while there is no measurement to act on, where the spec wants that (`lag.onUnknown: Fallback`).
    pub fallback: Option<u32>,
    /// The read store that its workers write to; absent where the spec names none, or it is not known yet which it is.
    pub read_store: Option<StoreId>,
    /// Why the newest attempt failed, if it did; also set before the first attempt (`NotMeasuredYet`).
    pub failure: Option<MeasureError>,
}

impl Observation {
    /// The measurement to act on at `now`, or why there is none.
    pub fn current(&self, now: Instant) -> Result<&Measured, MeasureError> {
        match (&self.measured, &self.failure) {
            (Some(measured), _) if now < measured.valid_until => Ok(measured),
            (_, Some(failure)) => Err(failure.clone()),
            (Some(measured), None) => Err(MeasureError {
                reason: Reason::SampleTooOld,
                message: format!(
                    "the last sample was taken at {} and there has been none since: the operator may be overloaded",
                    measured.sample.taken
                ),
            }),
            (None, None) => {
                Err(MeasureError { reason: Reason::NotMeasuredYet, message: "no sample has been taken yet".to_owned() })
            }
        }
    }
}

/// The runs of the projections of one namespace.
pub type Observations = BTreeMap<RunKey, Arc<Observation>>;

/// The read stores that projections name.
pub type StoreObservations = HashMap<StoreId, Arc<StoreObservation>>;

/// What is known of all projections at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By namespace. Maps are shared between snapshots until they change.
    pub namespaces: HashMap<Arc<str>, Arc<Observations>>,
    /// Each once, however many projections share it.
    pub read_stores: Arc<StoreObservations>,
}

impl Snapshot {
    /// One run.
    pub fn get(&self, run: &RunKey) -> Option<&Arc<Observation>> {
        self.namespaces.get(&run.projection.namespace)?.get(run)
    }

    /// The read store of one run.
    pub fn read_store_of(&self, observation: &Observation) -> Option<&Arc<StoreObservation>> {
        self.read_stores.get(&observation.read_store?)
    }
}

/// The cell that holds the newest snapshot. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedSnapshot(Arc<ArcSwap<Snapshot>>);

impl SharedSnapshot {
    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Puts a newer one in its place. Only the sampler does.
    pub fn publish(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

/// How long a sample may be acted on: twice the polling interval, at most a minute, so that one lost poll does not matter and
/// a source that is gone does not look fresh for ever. A floor keeps very short intervals from flapping.
pub fn valid_for(interval: Duration) -> Duration {
    (interval * 2).clamp(Duration::from_secs(5), Duration::from_secs(60))
}
