//! What the parts of the operator share, and the channels by which they tell each other.

use std::sync::Arc;

use kube::{
    Client,
    runtime::reflector::{self, Store, store::Writer},
};
use tokio::sync::{mpsc, watch};

use crate::{
    api::Projection,
    controller::{ExistingWorkloads, LiveIndex, SpecsOfWatches},
    leader_required::Following,
    measure::ProjectionKey,
    metrics_api::{ClientAuthorities, serving::ServingCertificate},
    platform::{registration::Unserved, shutdown::Shutdown},
    read_stores::OpenStores,
    read_your_writes::Waiters,
    runs::Runs,
    snapshot::SharedSnapshot,
};

/// Changes that the sampler may have reported and the controller not yet taken; the sampler waits with more.
const UNTAKEN_CHANGES: usize = 1_024;

/// What several parts use.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) identity: String,
    pub(super) projections: Store<Projection>,
    pub(super) runs: Runs,
    /// The read stores of runs, as the sampler opens them.
    pub(super) read_stores: OpenStores,
    pub(super) index: LiveIndex,
    pub(super) existing: Arc<ExistingWorkloads>,
    pub(super) snapshot: SharedSnapshot,
    /// Those who wait for a read model.
    pub(super) waiters: Waiters,
    /// This replica leads.
    pub(super) leading: watch::Receiver<bool>,
    pub(super) following: watch::Receiver<Following>,
    pub(super) unserved: watch::Receiver<Option<Unserved>>,
    pub(super) shutdown: Shutdown,
}

/// The ends of channels that one part each gets; [`Shared`] holds those that several read.
pub(super) struct Channels {
    pub(super) projections: Writer<Projection>,
    pub(super) triggers_tx: mpsc::UnboundedSender<ProjectionKey>,
    pub(super) triggers_rx: mpsc::UnboundedReceiver<ProjectionKey>,
    pub(super) changes_tx: mpsc::Sender<ProjectionKey>,
    pub(super) changes_rx: mpsc::Receiver<ProjectionKey>,
    pub(super) first_round_tx: watch::Sender<bool>,
    pub(super) first_round_rx: watch::Receiver<bool>,
    pub(super) certificate_tx: watch::Sender<Option<Arc<ServingCertificate>>>,
    pub(super) certificate_rx: watch::Receiver<Option<Arc<ServingCertificate>>>,
    pub(super) authorities_tx: watch::Sender<Arc<ClientAuthorities>>,
    pub(super) authorities_rx: watch::Receiver<Arc<ClientAuthorities>>,
    pub(super) leading_tx: watch::Sender<bool>,
    pub(super) following_tx: watch::Sender<Following>,
    pub(super) unserved_tx: watch::Sender<Option<Unserved>>,
}

/// What is shared, and how the parts tell each other.
pub(super) fn share(
    client: Client,
    identity: String,
    unserved: Option<Unserved>,
    shutdown: Shutdown,
) -> (Shared, Channels) {
    let (projections, projections_writer) = reflector::store::<Projection>();
    let (triggers_tx, triggers_rx) = mpsc::unbounded_channel();
    let (changes_tx, changes_rx) = mpsc::channel(UNTAKEN_CHANGES);
    let (first_round_tx, first_round_rx) = watch::channel(false);
    let (certificate_tx, certificate_rx) = watch::channel(None);
    let (authorities_tx, authorities_rx) = watch::channel(Arc::new(ClientAuthorities::default()));
    let (leading_tx, leading) = watch::channel(false);
    let (following_tx, following) = watch::channel(Following::default());
    let (unserved_tx, unserved) = watch::channel(unserved);
    let existing = Arc::new(ExistingWorkloads::new(client.clone(), triggers_tx.clone()));
    let (index, snapshot) = (LiveIndex::default(), SharedSnapshot::default());
    let runs = Runs::new(projections.clone(), Arc::new(SpecsOfWatches(index.clone())));
    let shared = Shared {
        client,
        identity,
        projections,
        runs,
        read_stores: OpenStores::default(),
        index,
        existing,
        snapshot,
        waiters: Waiters::default(),
        leading,
        following,
        unserved,
        shutdown,
    };
    let channels = Channels {
        projections: projections_writer,
        triggers_tx,
        triggers_rx,
        changes_tx,
        changes_rx,
        first_round_tx,
        first_round_rx,
        certificate_tx,
        certificate_rx,
        authorities_tx,
        authorities_rx,
        leading_tx,
        following_tx,
        unserved_tx,
    };
    (shared, channels)
}
