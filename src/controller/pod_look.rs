//! Looks at a workload's pods, only while something is wrong with it: a list now and then, reduced to what is reported. Reads only.
//!
//! There is no watch: a cluster has many pods, and healthy ones have nothing to report.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{Api, Client, api::ListParams, core::Selector};
use tokio::time::timeout;

use super::{
    live::LiveObject,
    status::trouble::{Cause, Diagnosis, Lack, Looked, PodReport, Trouble, diagnose, read_pods},
};
use crate::platform::errors::in_words;

/// The pods of a workload that is not as asked for this long are looked at: pods usually start in less.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// A list that takes longer is given up: the status does not wait for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// The most pods to read: the first ones show enough.
const MOST_PODS: u32 = 100;

/// What is remembered of one workload that is not as asked.
#[derive(Debug, Default)]
pub struct PodMemory {
    /// Since when it is not.
    unsettled: Option<Instant>,
    /// Fewer workers are ready than asked for.
    lack: Option<Lack>,
    looked: Option<Instant>,
    pods: Option<PodReport>,
    /// What keeps workers from running, and since when.
    cause: Option<(Cause, Instant)>,
}

/// Lists pods.
#[derive(Clone)]
pub struct PodLook {
    client: Client,
}

impl PodLook {
    /// Reads with `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// What keeps the workers of this workload from running. `told` is the reason that the status gives now: it need not persist again before it is
    /// reported after a restart of the operator.
    pub async fn look(&self, namespace: &str, live: &LiveObject, told: Option<&str>, memory: &mut PodMemory) -> Looked {
        let counts = live.workers;
        let settled = counts.ready >= counts.desired.unwrap_or(0) && counts.outdated == 0 && live.refused.is_none();
        if settled || counts.desired == Some(0) {
            *memory = PodMemory::default();
            return Looked::default();
        }
        let now = Instant::now();
        let told_before = memory.unsettled.is_none() && told == Some(Cause::NotStarted.reason().as_str());
        memory.lack = Lack::after(memory.lack, counts, told_before, now);
        let since = now - *memory.unsettled.get_or_insert(now);
        if since < FIRST_LOOK && live.refused.is_none() && told.is_none() {
            return Looked { again: Some(FIRST_LOOK - since), ..Looked::default() };
        }
        let every = looks_every(since);
        let due = memory.looked.is_none_or(|looked| looked.elapsed() >= every);
        if due {
            memory.looked = Some(now);
            match self.read(namespace, live).await {
                Ok(pods) => memory.pods = Some(pods),
                Err(why) => tracing::debug!("the pods of {namespace}'s workload could not be read: {why}"),
            }
        }
        let diagnosis = diagnose(counts, live.refused.as_deref(), memory.pods.as_ref());
        let diagnosis = diagnosis.or_else(|| memory.lack.and_then(|lack| lack.diagnose(counts, now)));
        let trouble = diagnosis.map(|Diagnosis { cause, sentence }| {
            let before = memory.cause.filter(|(before, _)| *before == cause);
            let (_, since) = *memory.cause.insert(before.unwrap_or((cause, now)));
            let reason = cause.reason();
            let serious = told == Some(reason.as_str()) || now - since >= cause.grace();
            Trouble { reason, sentence, serious }
        });
        if trouble.is_none() {
            memory.cause = None;
        }
        Looked { trouble, starting: memory.pods.as_ref().map(|pods| pods.starting), again: Some(every) }
    }

    async fn read(&self, namespace: &str, live: &LiveObject) -> Result<PodReport, String> {
        let body = live.parsed();
        let selector = body.pointer("/spec/selector").cloned().ok_or("it has no selector")?;
        let selector: LabelSelector = serde_json::from_value(selector).map_err(|error| error.to_string())?;
        let selector: Selector = selector.try_into().map_err(|_| "its selector cannot be read".to_owned())?;
        // From the API server's cache: what was true a moment ago is good enough.
        let parameters = ListParams::default().labels_from(&selector).match_any().limit(MOST_PODS);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        match timeout(LOOK_TIMEOUT, pods.list(&parameters)).await {
            Ok(Ok(list)) => Ok(read_pods(&list.items, Timestamp::now())),
            Ok(Err(error)) => Err(in_words(&error)),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }
}

/// Seldomer the longer it lasts.
fn looks_every(since: Duration) -> Duration {
    Duration::from_secs(match since.as_secs() {
        0..30 => 3,
        30..300 => 10,
        _ => 30,
    })
}
