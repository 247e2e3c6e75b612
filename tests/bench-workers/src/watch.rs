//! Looks at all cells twice a second: what their scale asks for, how many workers are ready, and what the Projections say.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectList},
};
use projectionist::api::{Projection, ProjectionStatus};
use tokio::time::{Instant, interval};

use crate::{NAMESPACE, score::Scale};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The list of pods is long, and what is asked of it does not hurry.
const PODS_EVERY: Duration = Duration::from_secs(5);

/// One look at a cell.
#[derive(Clone, Debug)]
pub struct Seen {
    at: Instant,
    replicas: i32,
    ready: i32,
    status: Option<ProjectionStatus>,
}

#[derive(Debug, Default)]
struct All {
    cells: BTreeMap<String, Vec<Seen>>,
    /// Seconds from creation to Ready, by pod.
    started: BTreeMap<String, f64>,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Watched(Arc<Mutex<All>>);

impl Watched {
    /// Looks until the process ends.
    pub fn begin(client: Client) -> Self {
        let watched = Self::default();
        tokio::spawn({
            let watched = watched.clone();
            async move {
                let mut ticks = interval(LOOK_EVERY);
                let mut pods_at = Instant::now();
                loop {
                    ticks.tick().await;
                    // One that fails is made up for by the next.
                    let _ = watched.look(&client).await;
                    if pods_at.elapsed() >= PODS_EVERY {
                        let _ = watched.look_at_pods(&client).await;
                        pods_at = Instant::now();
                    }
                }
            }
        });
        watched
    }

    async fn look(&self, client: &Client) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
        let projections: Api<Projection> = Api::namespaced(client.clone(), NAMESPACE);
        let all = ListParams::default();
        let (deployments, projections) = futures::try_join!(deployments.list(&all), projections.list(&all))?;
        let at = Instant::now();
        let mut status: BTreeMap<String, ProjectionStatus> = projections
            .into_iter()
            .filter_map(|projection| Some((projection.name_any(), projection.status?)))
            .collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for deployment in deployments {
            let name = deployment.name_any();
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
            let seen = Seen { at, replicas, ready, status: status.remove(&name) };
            all.cells.entry(name).or_default().push(seen);
        }
        Ok(())
    }

    async fn look_at_pods(&self, client: &Client) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let pods: ObjectList<Pod> = pods.list(&ListParams::default()).await?;
        let started = pods.into_iter().filter_map(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref()?.0;
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
            let took = ready.last_transition_time.as_ref()?.0.duration_since(created).as_secs_f64();
            Some((pod.name_any(), took))
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).started.extend(started);
        Ok(())
    }

    /// How many workers of a cell are ready.
    pub fn ready(&self, cell: &str) -> Option<i32> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.cells.get(cell)?.last().map(|seen| seen.ready)
    }

    /// A cell's scale since `began`.
    pub fn scales(&self, cell: &str, began: Instant) -> Vec<Scale> {
        let looks = self.looks(cell);
        let before = looks.iter().rev().find(|seen| seen.at <= began);
        let first = before.map(|seen| Scale { at: Duration::ZERO, replicas: seen.replicas, ready: count(seen.ready) });
        let later = looks.iter().filter(|seen| seen.at > began);
        let scale = |seen: &Seen| Scale { at: seen.at - began, replicas: seen.replicas, ready: count(seen.ready) };
        first.into_iter().chain(later.map(scale)).collect()
    }

    /// What its Projection said since `began`: seconds, pending, staleness, required workers, events a worker and second, the sentence.
    pub fn statuses(&self, cell: &str, began: Instant) -> Vec<(f64, ProjectionStatus)> {
        let looks = self.looks(cell).into_iter().filter(|seen| seen.at >= began);
        looks.filter_map(|seen| Some(((seen.at - began).as_secs_f64(), seen.status?))).collect()
    }

    fn looks(&self, cell: &str) -> Vec<Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cells.get(cell).cloned().unwrap_or_default()
    }

    /// From a cell's pods' creation until they were ready, on average; API times are whole seconds.
    pub fn start_up(&self, cell: &str) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = format!("{cell}-");
        let of_it: Vec<f64> =
            all.started.iter().filter(|(pod, _)| pod.starts_with(&prefix)).map(|(_, took)| *took).collect();
        let mean = of_it.iter().sum::<f64>() / f64::from(u32::try_from(of_it.len()).ok()?);
        Duration::try_from_secs_f64(mean).ok()
    }
}

fn count(ready: i32) -> u32 {
    u32::try_from(ready).unwrap_or(0)
}
