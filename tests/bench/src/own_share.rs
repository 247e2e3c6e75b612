//! Our own share of a read, as each replica measures it: from a request to its answer, without TLS, HTTP and the network.

use std::fmt;

use anyhow::Result;

use crate::{fixtures::Fixtures, operator_pages};

const BUCKET: &str = "projectionist_metrics_api_request_duration_seconds_bucket{le=\"";

/// Of how many requests it was at most so many seconds, by bound; the last bound is infinite.
#[derive(Debug, Default)]
pub(crate) struct OwnShare(Vec<(f64, u64)>);

impl OwnShare {
    /// Of all replicas since they started.
    pub(crate) async fn of_all(fixtures: &Fixtures<'_>) -> Result<Self> {
        let mut all = Self::default();
        for page in operator_pages::all(&fixtures.client).await? {
            all.add(&page)?;
        }
        anyhow::ensure!(!all.0.is_empty(), "no replica tells how long its requests took");
        Ok(all)
    }

    fn add(&mut self, page: &str) -> Result<()> {
        let buckets = page.lines().filter_map(|line| line.strip_prefix(BUCKET)?.split_once("\"} "));
        for (index, (bound, count)) in buckets.enumerate() {
            let (bound, count) = (bound.parse()?, count.parse()?);
            match self.0.get_mut(index) {
                Some((_, sum)) => *sum += count,
                None => self.0.push((bound, count)),
            }
        }
        Ok(())
    }

    /// Of the requests between two looks.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = before.0.iter().map(|(_, count)| *count);
        Self(self.0.iter().zip(earlier).map(|((bound, count), earlier)| (*bound, count - earlier)).collect())
    }

    /// The lowest bound that holds for so many of a hundred.
    fn percentile(&self, percent: u64) -> f64 {
        let all = self.0.last().map_or(0, |(_, count)| *count);
        let enough = self.0.iter().find(|(_, count)| count * 100 >= all * percent);
        enough.map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

impl fmt::Display for OwnShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.last().map_or(0, |(_, count)| *count);
        let [p50, p99] = [50, 99].map(|percent| self.percentile(percent) * 1e3);
        write!(f, "p50 at most {p50:.3} ms, p99 at most {p99:.3} ms, of {all} requests")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::runtime::reflector;
    use projectionist::{
        metrics::{ControllerMetrics, Metrics},
        metrics_api::ApiMetrics,
        sampler::SamplerMetrics,
        snapshot::SharedSnapshot,
    };

    use super::*;

    #[test]
    fn what_the_operators_own_page_says_is_read_and_only_what_is_new_counts() -> Result<()> {
        let api = ApiMetrics::default();
        let (projections, _) = reflector::store();
        let sampler = Arc::new(SamplerMetrics::default());
        let metrics =
            Metrics::new(&ControllerMetrics::default(), &api, sampler, SharedSnapshot::default(), projections);
        let share = |replicas: usize| -> Result<OwnShare> {
            let mut all = OwnShare::default();
            for _ in 0..replicas {
                all.add(&metrics.page()?)?;
            }
            Ok(all)
        };
        api.duration.observe(2.0);
        let before = share(2)?;
        for _ in 0..98 {
            api.duration.observe(30e-6);
        }
        for _ in 0..2 {
            api.duration.observe(180e-6);
        }
        let since = share(2)?.since(&before).to_string();
        assert_eq!(since, "p50 at most 0.050 ms, p99 at most 0.200 ms, of 200 requests");
        Ok(())
    }
}
