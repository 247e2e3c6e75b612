//! Workloads that are there already (`spec.projector.existing`): each is watched by name, for as long as a Projection names it.
//!
//! They do not carry the operator's label, so the watches of the operator's own objects do not see them; and watching all workloads of a cluster in
//! order to see a few would cost too much.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::mpsc;

use super::live::LiveObject;
use crate::{api::ExistingKind, measure::ProjectionKey, platform::errors::log_interrupted_watch};

/// How the API server calls a kind of workload.
pub fn api_resource(kind: ExistingKind) -> ApiResource {
    let plural = match kind {
        ExistingKind::Deployment => "deployments",
        ExistingKind::StatefulSet => "statefulsets",
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("apps", "v1", kind.as_str()), plural)
}

/// What is known of a workload.
#[derive(Clone, Debug)]
pub enum WorkloadState {
    /// The watch has only begun.
    NotYet,
    /// There is none of this name.
    Missing,
    /// As it is.
    Found(Arc<LiveObject>),
}

struct Watched {
    kind: ExistingKind,
    name: String,
    state: Arc<Mutex<WorkloadState>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watches, at most one for each Projection.
pub struct ExistingWorkloads {
    client: Client,
    triggers: mpsc::UnboundedSender<ProjectionKey>,
    watched: Mutex<HashMap<ProjectionKey, Watched>>,
}

impl ExistingWorkloads {
    /// Reports through `triggers` whose workload changed.
    pub fn new(client: Client, triggers: mpsc::UnboundedSender<ProjectionKey>) -> Self {
        Self { client, triggers, watched: Mutex::default() }
    }

    /// What is known of the workload that a Projection names; starts to watch it at the first look.
    pub fn look(&self, projection: &ProjectionKey, kind: ExistingKind, name: &str) -> WorkloadState {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let same = watched.get(projection).filter(|watched| watched.kind == kind && watched.name == name);
        if let Some(watched) = same {
            return watched.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        let state = Arc::new(Mutex::new(WorkloadState::NotYet));
        let api = Api::namespaced_with(self.client.clone(), &projection.namespace, &api_resource(kind));
        let follow = follow(api, name.to_owned(), Arc::clone(&state), projection.clone(), self.triggers.clone());
        let task = tokio::spawn(follow).abort_handle();
        watched.insert(projection.clone(), Watched { kind, name: name.to_owned(), state, task });
        WorkloadState::NotYet
    }

    /// The workload that is watched for a Projection, where it is there.
    pub fn watched(&self, projection: &ProjectionKey) -> Option<Arc<LiveObject>> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let look = watched.get(projection)?.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match look {
            WorkloadState::Found(live) => Some(live),
            WorkloadState::NotYet | WorkloadState::Missing => None,
        }
    }

    /// The Projection names none any more.
    pub fn forget(&self, projection: &ProjectionKey) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(projection);
    }

    /// Ends all watches.
    pub fn clear(&self) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn follow(
    api: Api<DynamicObject>,
    name: String,
    state: Arc<Mutex<WorkloadState>>,
    projection: ProjectionKey,
    triggers: mpsc::UnboundedSender<ProjectionKey>,
) {
    // Not `watch_object`: for a dynamic type it would need the type at hand.
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    let mut listed = false;
    while let Some(event) = events.next().await {
        let look = match event {
            Ok(watcher::Event::Init) => {
                listed = false;
                continue;
            }
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                listed = true;
                WorkloadState::Found(Arc::new(LiveObject::from_object(&object)))
            }
            Ok(watcher::Event::InitDone) if listed => continue,
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => WorkloadState::Missing,
            Err(error) => {
                log_interrupted_watch(&format!("the workload {}/{name}", projection.namespace), &error);
                continue;
            }
        };
        *state.lock().unwrap_or_else(PoisonError::into_inner) = look;
        if triggers.send(projection.clone()).is_err() {
            return;
        }
    }
}
