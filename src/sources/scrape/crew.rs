//! One number of what all pods of a workload say. A pod that should tell and does not makes the number unknown, and never smaller. Pure.

use std::{collections::HashMap, sync::Arc};

use super::number::{SeriesByName, Told};
use crate::{
    api::{Aggregate, Reason},
    clients::scrape::Series,
    measure::MeasureError,
    resolve::AskedMetric,
    worker_pods::{PodStage, WorkerPod},
};

/// What one pod says, or why its page could not be read.
pub(super) struct PodPage {
    /// The pod.
    pub(super) pod: WorkerPod,
    /// What its page says of each metric that is asked for.
    pub(super) told: Result<HashMap<AskedMetric, Result<Told, MeasureError>>, MeasureError>,
}

impl PodPage {
    /// What it says of a metric; absent where it need not say anything: it has not been ready yet and holds nothing, or it is on its way out and
    /// does not serve its page any more.
    fn told(&self, asked: &AskedMetric) -> Option<Result<Told, MeasureError>> {
        let told = match &self.told {
            Ok(told) => told.get(asked).cloned().unwrap_or_else(|| Err(not_asked())),
            Err(unknown) => Err(unknown.clone()),
        };
        match (told, self.pod.stage) {
            (Ok(told), _) => Some(Ok(told)),
            (Err(unknown), PodStage::Working) => Some(Err(unknown.about(format!("pod {}", self.pod.name)))),
            (Err(_), PodStage::Starting | PodStage::Ending) => None,
        }
    }
}

fn not_asked() -> MeasureError {
    MeasureError { reason: Reason::NotMeasuredYet, message: "it has not been looked at yet".to_owned() }
}

/// What one page says of all metrics that are asked for. `now`: milliseconds since 1970.
pub(super) fn told_of_each<'a>(
    asked: impl Iterator<Item = &'a AskedMetric>,
    page: &[Series],
    now: i64,
) -> HashMap<AskedMetric, Result<Told, MeasureError>> {
    let page = SeriesByName::of(page);
    asked.map(|asked| (asked.clone(), Told::by_page(asked, &page, now))).collect()
}

/// What all pods say of a metric.
///
/// # Errors
/// What the first pod that should tell does not, or that there is none that tells anything.
pub(super) fn of_all(asked: &AskedMetric, pods: &[PodPage]) -> Result<Told, MeasureError> {
    let told: Vec<Told> = pods.iter().filter_map(|pod| pod.told(asked)).collect::<Result<_, _>>()?;
    told.into_iter().reduce(Told::with).ok_or_else(|| MeasureError {
        reason: Reason::NoWorkerReady,
        message: "no pod shows its page yet: without a worker that tells, what waits is unknown, and not zero"
            .to_owned(),
    })
}

/// A counter over pods that come, go and begin again: it only grows.
#[derive(Debug, Default)]
pub(super) struct Counter {
    /// By the pod's UID: what it counted when it was read last; none for one that worked at the first look already and has not been read since, whose first
    /// count is of a time before anybody looked.
    last: HashMap<Arc<str>, Option<f64>>,
    total: f64,
    begun: bool,
}

impl Counter {
    /// Takes in what each pod counts now, and returns what has been counted since the first look. A pod that was not there at the first look has counted
    /// since it began; one that counts less than before has begun again.
    pub(super) fn take(&mut self, asked: &AskedMetric, pods: &[PodPage]) -> f64 {
        let mut seen = HashMap::new();
        for pod in pods {
            let uid = &pod.pod.uid;
            let count = pod.told(asked).and_then(Result::ok).and_then(|told| told.number(Aggregate::Sum).ok());
            let Some(count) = count else {
                // It may tell again: what it counts meanwhile is not lost.
                let worked_before = !self.begun && pod.pod.stage != PodStage::Starting;
                seen.extend(self.last.remove_entry(uid).or_else(|| worked_before.then(|| (Arc::clone(uid), None))));
                continue;
            };
            let came = match self.last.get(uid) {
                Some(Some(before)) if count >= *before => count - before,
                Some(None) => 0.0,
                None if !self.begun => 0.0,
                Some(Some(_)) | None => count.max(0.0),
            };
            self.total = (self.total + came).min(f64::MAX);
            seen.insert(Arc::clone(uid), Some(count));
        }
        self.last = seen;
        self.begun = true;
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::scrape::parse;

    fn asked() -> AskedMetric {
        let (name, labels) = ("waiting".to_owned(), std::collections::BTreeMap::new());
        AskedMetric { name, labels, single: true, aggregate: Aggregate::Sum }
    }

    /// A pod with this stage and page; none: it cannot be read.
    fn pod(name: &str, stage: PodStage, page: Option<&str>) -> PodPage {
        let away = MeasureError { reason: Reason::ConnectionRefused, message: "away".to_owned() };
        PodPage {
            pod: WorkerPod { name: name.into(), uid: name.into(), address: None, stage },
            told: page.map(|page| told_of_each([&asked()].into_iter(), &parse(page, |_| true).unwrap(), 0)).ok_or(away),
        }
    }

    fn sum(pods: &[PodPage]) -> Result<f64, MeasureError> {
        of_all(&asked(), pods).and_then(|told| told.number(Aggregate::Sum))
    }

    #[test]
    fn pods_are_summed_and_a_worker_that_cannot_be_read_makes_the_sum_unknown() {
        use PodStage::{Ending, Starting, Working};
        let (a, b) = (|| pod("a", Working, Some("waiting 3\n")), || pod("b", Working, Some("waiting 4\n")));
        assert_eq!(sum(&[a(), b()]), Ok(7.0));
        let max = of_all(&asked(), &[a(), b()]).unwrap().number(Aggregate::Max).unwrap();
        assert!((max - 4.0).abs() < f64::EPSILON);
        for page in [None, Some("other 1\n"), Some("waiting NaN\n"), Some("waiting{q=\"1\"} 1\nwaiting{q=\"2\"} 1\n")] {
            let unknown = sum(&[a(), pod("c", Working, page)]).unwrap_err();
            assert!(unknown.message.starts_with("pod c: "), "{}", unknown.message);
        }
        assert_eq!(sum(&[a(), pod("c", Starting, None)]), Ok(3.0), "it has not been ready yet and holds nothing");
        assert_eq!(sum(&[a(), pod("c", Starting, Some("other 1\n"))]), Ok(3.0));
        assert_eq!(sum(&[a(), pod("c", Ending, None)]), Ok(3.0), "it serves no page any more");
        assert_eq!(sum(&[a(), pod("c", Ending, Some("waiting 5\n"))]), Ok(8.0), "it still works off what it holds");
    }

    #[test]
    fn no_pod_is_not_zero() {
        for pods in [&[][..], &[pod("a", PodStage::Starting, None)], &[pod("a", PodStage::Ending, None)]] {
            assert_eq!(sum(pods).unwrap_err().reason, Reason::NoWorkerReady);
        }
    }

    #[test]
    fn a_counter_goes_on_when_pods_come_go_and_begin_again() {
        use PodStage::{Ending, Working};
        let mut counter = Counter::default();
        let mut take = |pods: &[(&str, PodStage, Option<&str>)]| {
            let pods: Vec<_> = pods.iter().map(|(name, stage, page)| pod(name, *stage, *page)).collect();
            counter.take(&asked(), &pods)
        };
        let totals = [
            take(&[("a", Working, Some("waiting 100\n"))]),
            take(&[("a", Working, Some("waiting 110\n")), ("b", Working, Some("waiting 5\n"))]),
            take(&[("a", Ending, None), ("b", Working, Some("waiting 6\n"))]),
            take(&[("a", Ending, Some("waiting 112\n")), ("b", Working, Some("waiting 2\n"))]),
            take(&[("b", Working, Some("waiting 2\n"))]),
        ];
        let mut late = Counter::default();
        let mut first_unread = |a: Option<&str>, b: Option<&str>| {
            late.take(&asked(), &[pod("a", Working, a), pod("b", PodStage::Starting, b)])
        };
        let lates = [
            first_unread(None, None),
            first_unread(None, Some("waiting 3\n")),
            first_unread(Some("waiting 1000\n"), Some("waiting 3\n")),
            first_unread(Some("waiting 1002\n"), Some("waiting 4\n")),
        ];
        assert_eq!(
            lates.map(|total| format!("{total}")),
            ["0", "3", "3", "6"],
            "what was counted before the first look is not counted"
        );
        let huge = |count| pod("b", Working, Some(count));
        let mut overflowing = Counter::default();
        let counted: Vec<f64> = ["waiting 0\n", "waiting 1e308\n", "waiting 0\n", "waiting 1e308\n", "waiting 1\n"]
            .into_iter()
            .map(|count| overflowing.take(&asked(), &[huge(count)]))
            .collect();
        assert!(counted.iter().all(|total| total.is_finite()), "{counted:?}");
        assert_eq!(totals.map(|total| format!("{total}")), ["0", "15", "16", "20", "20"]);
    }
}
