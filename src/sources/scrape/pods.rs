//! The pages of a workload's own pods: one request a poll for each pod, whatever the number of metrics.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{sync::watch, time::Instant};

use super::{
    Question,
    crew::{Counter, PodPage, of_all},
    series,
};
use crate::{
    addresses::AddressRules,
    api::{Aggregate, Reason},
    clients::scrape::{Client, PodPages, Series},
    lag::Sample,
    measure::MeasureError,
    resolve::{AskedMetric, Numbers},
    sources::{
        BatchProbe,
        numbers::{Gauge, Reading},
    },
    worker_pods::{SeenPods, WorkerPod},
};

/// A larger page of a pod is given up, in bytes: many are read at once.
pub const LARGEST_POD_PAGE: usize = 1 << 20;
/// Pods that are asked at the same time.
const AT_ONCE: usize = 16;
/// The most time that one pod gets, so that one that hangs leaves time for the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the pods of one workload.
pub struct PodsProbe {
    pages: PodPages,
    pods: watch::Receiver<SeenPods>,
    addresses: Arc<AddressRules>,
    /// By the pod's UID.
    clients: HashMap<Arc<str>, Client>,
    memories: HashMap<Question, Memory>,
    started: std::time::Instant,
}

/// What is remembered of one question.
#[derive(Default)]
struct Memory {
    gauge: Gauge,
    arrived: Counter,
}

impl PodsProbe {
    /// Not connected yet. `pods`: those that are there; `addresses`: which may be asked; `started`: where the clock of samples begins.
    pub fn new(
        pages: PodPages,
        pods: watch::Receiver<SeenPods>,
        addresses: Arc<AddressRules>,
        started: std::time::Instant,
    ) -> Self {
        Self { pages, pods, addresses, clients: HashMap::new(), memories: HashMap::new(), started }
    }

    /// The pages of all pods.
    async fn read(&mut self, pods: &[WorkerPod], questions: &[&Question], by: Instant) -> Vec<PodPage> {
        let there: HashSet<&Arc<str>> = pods.iter().map(|pod| &pod.uid).collect();
        self.clients.retain(|uid, _| there.contains(uid));
        let asked = pods.iter().map(|pod| (pod.clone(), self.client(pod)));
        let asked: Vec<_> = asked.collect();
        let by_pod = |(pod, client): (WorkerPod, Result<Client, MeasureError>)| async move {
            let mut client = match client {
                Ok(client) => client,
                Err(unknown) => return (PodPage { pod, page: Err(unknown) }, None),
            };
            let page = self::page(&mut client, questions, by.min(Instant::now() + PATIENCE)).await;
            (PodPage { pod, page }, Some(client))
        };
        let read: Vec<_> = futures::stream::iter(asked).map(by_pod).buffer_unordered(AT_ONCE).collect().await;
        let mut pages = Vec::with_capacity(read.len());
        for (page, client) in read {
            self.clients.extend(client.map(|client| (Arc::clone(&page.pod.uid), client)));
            pages.push(page);
        }
        // The same pod is named first each time.
        pages.sort_by(|a, b| a.pod.name.cmp(&b.pod.name));
        pages
    }

    /// What asks this pod: with the connection of the last poll, where it is still at that address.
    fn client(&mut self, pod: &WorkerPod) -> Result<Client, MeasureError> {
        let address = pod.address.ok_or_else(|| MeasureError {
            reason: Reason::HostNotFound,
            message: "it has no address yet".to_owned(),
        })?;
        let settings = self.pages.of_pod(address)?;
        let kept = self.clients.remove(&pod.uid).filter(|client| *client.settings() == settings);
        let new = || Client::new(settings, Arc::clone(&self.addresses)).up_to(LARGEST_POD_PAGE);
        Ok(kept.unwrap_or_else(new))
    }
}

/// Not woken. A page tells only who asks.
impl BatchProbe for PodsProbe {
    type Question = Question;

    async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let pods = self.pods.borrow().clone();
        let pages = match pods {
            Ok(pods) => Ok(self.read(&pods, questions, by).await),
            Err(unknown) => Err(unknown),
        };
        self.memories.retain(|question, _| questions.contains(&question));
        let (at, now) = (self.started.elapsed(), jiff::Timestamp::now().as_millisecond());
        let mut taken: HashMap<&Question, Result<Sample, MeasureError>> = HashMap::new();
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            let sample = taken.entry(question).or_insert_with(|| {
                let pages = pages.as_ref().map_err(Clone::clone)?;
                self.memories.entry((*question).clone()).or_default().take(question, pages, at, now)
            });
            answers.push(sample.clone().map_err(|unknown| unknown.about(&self.pages)));
        }
        answers
    }
}

async fn page(client: &mut Client, questions: &[&Question], by: Instant) -> Result<Vec<Series>, MeasureError> {
    client.page(by).await.and_then(|page| series(&page, questions))
}

impl Memory {
    fn take(&mut self, question: &Question, pages: &[PodPage], at: Duration, now: i64) -> Result<Sample, MeasureError> {
        let mut total = None;
        if let Numbers::Lag { arrived: Some(arrived), .. } = question {
            let all = of_all(arrived, pages, now).and_then(|told| told.number(Aggregate::Sum));
            all.map_err(|unknown| unknown.about("arrived"))?;
            total = Some((arrived, self.arrived.take(arrived, pages, now)));
        }
        let number = |asked: &AskedMetric| match total {
            Some((arrived, total)) if std::ptr::eq(arrived, asked) => Ok(total),
            _ => of_all(asked, pages, now).and_then(|told| told.number(asked.aggregate)),
        };
        self.gauge.take(Reading::of(question, number)?, at)
    }
}
