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
    crew::{Counter, PodPage, of_all, told_of_each},
    number::Told,
    series,
};
use crate::{
    addresses::AddressRules,
    api::{Aggregate, Reason},
    clients::scrape::{Client, PodPages},
    lag::Sample,
    measure::MeasureError,
    resolve::{AskedMetric, Numbers},
    sources::{
        BatchProbe,
        numbers::{Gauge, Reading},
    },
    worker_pods::{PodStage, SeenPods, WorkerPod},
};

/// A larger page of a pod is given up, in bytes: many are read at once.
pub const LARGEST_POD_PAGE: usize = 1 << 20;
/// Pods that are asked at the same time.
const AT_ONCE: usize = 16;
/// The most time that one pod gets, so that one that hangs leaves time for the others.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most time of one that is on its way out, or not ready yet: it need not tell anything.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);

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
        let asked = in_turn(pods).into_iter().map(|pod| (pod.clone(), self.client(pod)));
        let asked: Vec<_> = asked.collect();
        let by_pod = |(pod, client): (WorkerPod, Result<Client, MeasureError>)| async move {
            let mut client = match client {
                Ok(client) => client,
                Err(unknown) => return (PodPage { pod, told: Err(unknown) }, None),
            };
            let patience = if pod.stage == PodStage::Working { PATIENCE } else { SHORT_PATIENCE };
            let told = told(&mut client, questions, by.min(Instant::now() + patience)).await;
            (PodPage { pod, told }, Some(client))
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
        let at = self.started.elapsed();
        let mut taken: HashMap<&Question, Result<Sample, MeasureError>> = HashMap::new();
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            let sample = taken.entry(question).or_insert_with(|| {
                let pages = pages.as_ref().map_err(Clone::clone)?;
                self.memories.entry((*question).clone()).or_default().take(question, pages, at)
            });
            answers.push(sample.clone().map_err(|unknown| unknown.about(&self.pages)));
        }
        answers
    }
}

/// In which order the pods are asked: those that must tell come first, so that they have their time whatever the others do.
fn in_turn(pods: &[WorkerPod]) -> Vec<&WorkerPod> {
    let (first, last): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| pod.stage == PodStage::Working);
    first.into_iter().chain(last).collect()
}

/// What one page says. A page takes many times its size in memory, so that only this is kept of it.
async fn told(
    client: &mut Client,
    questions: &[&Question],
    by: Instant,
) -> Result<HashMap<AskedMetric, Result<Told, MeasureError>>, MeasureError> {
    let page = client.page(by).await?;
    let now = jiff::Timestamp::now().as_millisecond();
    let series = series(&page, questions)?;
    Ok(told_of_each(questions.iter().flat_map(|question| question.all()), &series, now))
}

impl Memory {
    fn take(&mut self, question: &Question, pages: &[PodPage], at: Duration) -> Result<Sample, MeasureError> {
        let mut total = None;
        if let Numbers::Lag { arrived: Some(arrived), .. } = question {
            let all = of_all(arrived, pages).and_then(|told| told.number(Aggregate::Sum));
            all.map_err(|unknown| unknown.about("arrived"))?;
            total = Some((arrived, self.arrived.take(arrived, pages)));
        }
        let number = |asked: &AskedMetric| match total {
            Some((arrived, total)) if std::ptr::eq(arrived, asked) => Ok(total),
            _ => of_all(asked, pages).and_then(|told| told.number(asked.aggregate)),
        };
        self.gauge.take(Reading::of(question, number)?, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_must_tell_are_asked_first() {
        use PodStage::{Ending, Starting, Working};
        let pod = |name: &str, stage| WorkerPod { name: name.into(), uid: name.into(), address: None, stage };
        let pods = [pod("a", Ending), pod("b", Working), pod("c", Starting), pod("d", Working)];
        let names: Vec<&str> = in_turn(&pods).into_iter().map(|pod| &*pod.name).collect();
        assert_eq!(names, ["b", "d", "a", "c"]);
    }
}
