//! Requests at a fixed rate, whether or not earlier ones have come back, and how long each took.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

/// Latencies of one load.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn merged(parts: Vec<Self>) -> Self {
        Self::of(parts.into_iter().flat_map(|part| part.0).collect())
    }
}

/// Sends `rate` requests a second for `length`. A latency counts from when the request was due, so that a stall shows in full.
pub(crate) async fn run<F>(rate: u32, length: Duration, request: impl Fn(usize) -> F) -> Result<Latencies>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for index in 0.. {
        let due = started + Duration::from_secs(1) * u32::try_from(index)? / rate;
        if due.duration_since(started) >= length {
            break;
        }
        tokio::time::sleep_until(due).await;
        let request = request(index);
        requests.spawn(async move {
            request.await?;
            Ok::<_, anyhow::Error>(due.elapsed())
        });
    }
    let mut all = Vec::new();
    while let Some(done) = requests.join_next().await {
        all.push(done??);
    }
    ensure!(!all.is_empty(), "no request was sent");
    Ok(Latencies::of(all))
}
