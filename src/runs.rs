//! The runs of all Projections, each as a Projection of its own with the spec that it was made with. Reads only: the Projections come from their watch, the specs
//! of older versions from where they are stored.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::runtime::reflector::{ObjectRef, Store, store::WriterDropped};

use crate::{
    api::Projection,
    measure::{ProjectionKey, RunKey},
    resolve::{comes_back_changed, described_run, described_version, has_runs, run_of, stored_run},
};

/// The spec that a run was made with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredSpec {
    /// The version that the run builds.
    pub version: Arc<str>,
    /// The UID of the Projection.
    pub uid: Arc<str>,
    /// The spec, as JSON.
    pub spec: Arc<str>,
}

/// Where the specs of runs are stored.
pub trait StoredSpecs: Send + Sync + 'static {
    /// Those of this Projection, and of its namesakes.
    fn of(&self, projection: &ProjectionKey) -> Vec<StoredSpec>;

    /// All.
    fn all(&self) -> HashMap<ProjectionKey, Vec<StoredSpec>>;
}

/// Where none are stored.
struct NothingStored;

impl StoredSpecs for NothingStored {
    fn of(&self, _: &ProjectionKey) -> Vec<StoredSpec> {
        Vec::new()
    }

    fn all(&self) -> HashMap<ProjectionKey, Vec<StoredSpec>> {
        HashMap::new()
    }
}

/// The runs. Clones share it.
#[derive(Clone)]
pub struct Runs {
    projections: Store<Projection>,
    stored: Arc<dyn StoredSpecs>,
    /// Those of Projections with several, by run: a run that did not change is the same Projection again.
    made: Arc<Mutex<HashMap<RunKey, Made>>>,
}

/// A run that was made, and what from.
struct Made {
    of: Arc<Projection>,
    stored: Option<Arc<str>>,
    run: Arc<Projection>,
}

impl From<Store<Projection>> for Runs {
    /// Of Projections of whose older versions nothing is stored.
    fn from(projections: Store<Projection>) -> Self {
        Self::new(projections, Arc::new(NothingStored))
    }
}

impl Runs {
    /// Of these Projections.
    pub fn new(projections: Store<Projection>, stored: Arc<dyn StoredSpecs>) -> Self {
        Self { projections, stored, made: Arc::default() }
    }

    /// Waits until the Projections have been listed.
    ///
    /// # Errors
    /// When their watch ended before.
    pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
        self.projections.wait_until_ready().await
    }

    /// All runs of all Projections.
    pub fn all(&self) -> Vec<Arc<Projection>> {
        let projections = self.projections.state();
        if !projections.iter().any(|projection| has_runs(projection)) {
            self.made().clear();
            return projections;
        }
        let mut stored = self.stored.all();
        let mut all = Vec::with_capacity(projections.len());
        let mut there: HashSet<ProjectionKey> = HashSet::new();
        for projection in projections {
            if has_runs(&projection) {
                let key = ProjectionKey::of(&projection);
                all.extend(self.make(&projection, stored.remove(&key).unwrap_or_default()));
                there.insert(key);
            } else {
                all.push(projection);
            }
        }
        self.made().retain(|key, _| there.contains(&key.projection));
        all
    }

    /// The runs of this Projection.
    pub fn of(&self, projection: &Arc<Projection>) -> Vec<Arc<Projection>> {
        if !has_runs(projection) {
            return vec![Arc::clone(projection)];
        }
        self.make(projection, self.stored.of(&ProjectionKey::of(projection)))
    }

    /// One run.
    pub fn get(&self, run: &RunKey) -> Option<Arc<Projection>> {
        let projection = self.projection(&run.projection)?;
        if let Some(made) = self.made().get(run).filter(|made| Arc::ptr_eq(&made.of, &projection)) {
            return Some(Arc::clone(&made.run));
        }
        self.of(&projection).into_iter().find(|one| run_of(one) == *run)
    }

    /// The run of a Projection that serves readers.
    pub fn serving(&self, key: &ProjectionKey) -> Option<Arc<Projection>> {
        let projection = self.projection(key)?;
        let serving = run_of(&projection);
        self.of(&projection).into_iter().find(|one| run_of(one) == serving)
    }

    /// A Projection as it is written.
    pub fn projection(&self, key: &ProjectionKey) -> Option<Arc<Projection>> {
        self.projections.get(&ObjectRef::new(&key.name).within(&key.namespace))
    }

    fn made(&self) -> MutexGuard<'_, HashMap<RunKey, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run that the spec describes, and those of other versions by their stored specs.
    fn make(&self, projection: &Arc<Projection>, stored: Vec<StoredSpec>) -> Vec<Arc<Projection>> {
        let uid = projection.metadata.uid.as_deref().unwrap_or_default();
        let key = ProjectionKey::of(projection);
        let mut made = self.made();
        let mut runs: HashMap<RunKey, Made> = HashMap::new();
        let mut add = |version: &str, stored: Option<Arc<str>>, new: &dyn Fn() -> Option<Arc<Projection>>| {
            let run = RunKey { projection: key.clone(), version: Some(version.into()) };
            let before = made.get(&run).filter(|made| Arc::ptr_eq(&made.of, projection) && made.stored == stored);
            if let Some(it) = before.map(|made| Arc::clone(&made.run)).or_else(new) {
                runs.insert(run, Made { of: Arc::clone(projection), stored, run: it });
            }
        };
        let described = described_version(projection);
        let kept = |it: &&StoredSpec| *it.uid == *uid && Some(&*it.version) == described;
        let described =
            described.filter(|_| !stored.iter().filter(kept).any(|it| comes_back_changed(projection, &it.spec)));
        if let Some(version) = described {
            add(version, None, &|| described_run(projection));
        }
        for StoredSpec { version, uid: of, spec } in stored {
            if *of == *uid && Some(&*version) != described {
                add(&version, Some(Arc::clone(&spec)), &|| stored_run(projection, &version, &spec));
            }
        }
        made.retain(|run, _| run.projection != key);
        let mut all: Vec<(RunKey, Arc<Projection>)> =
            runs.iter().map(|(run, made)| (run.clone(), Arc::clone(&made.run))).collect();
        made.extend(runs);
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all.into_iter().map(|(_, run)| run).collect()
    }
}
