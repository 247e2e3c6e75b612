//! What a poll costs the server: connections, requests, bytes.

use std::time::Instant;

use projectionist::{
    api::Aggregate,
    lag::Sample,
    measure::MeasureError,
    resolve::{AskedMetric, Numbers},
    sources::{
        BatchProbe as _,
        prometheus::Question,
        scrape::{self, ScrapeProbe},
    },
};

use crate::{
    harness::{DEADLINE, exactly, pending, probe, server, set, settings, target, until_pending},
    relay::{Passed, relay},
    sampler::loopback,
};

/// What a poll has cost, printed; the requests.
struct Meter<'a> {
    passed: &'a Passed,
    requests: usize,
    received: usize,
    began: Instant,
}

impl<'a> Meter<'a> {
    fn begin(passed: &'a Passed) -> Self {
        Self { passed, requests: passed.requests(), received: passed.received(), began: Instant::now() }
    }

    /// Ends a poll in which all Projections were measured.
    fn end(self, what: &str, answers: &[Result<Sample, MeasureError>]) -> usize {
        let took = self.began.elapsed();
        assert!(
            answers.iter().all(|answer| answer.as_ref().is_ok_and(|sample| sample.pending == exactly(7))),
            "{what}"
        );
        let requests = self.passed.requests() - self.requests;
        let received = (self.passed.received() - self.received) >> 10;
        println!("{} projections, {what}: {requests} requests, {received} KiB received, {took:?}", answers.len());
        requests
    }
}

/// `cargo test --test prometheus_source cost -- --nocapture` prints what docs/sources/prometheus.md tells.
#[tokio::test]
async fn projections_share_two_connections_and_a_request_for_each_different_query() {
    set("cost_pending", Some("7"));
    until_pending(&mut probe(&server().url()), &pending("cost_pending"), 7).await;
    for projections in [1_usize, 100, 1_000] {
        for (what, different) in [("the same query", 1), ("a query each", projections)] {
            let (address, passed) = relay(server().address(), "GET /").await;
            let query = |n: usize| pending(&format!("cost_pending + 0 * {}", n % different));
            let questions: Vec<Question> = (0..projections).map(query).collect();
            let questions: Vec<&Question> = questions.iter().collect();
            let mut probe = probe(&format!("http://{address}"));
            for poll in ["the first poll", "a later poll"] {
                let meter = Meter::begin(&passed);
                let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
                assert_eq!(meter.end(&format!("{what}, {poll}"), &answers), different);
            }
            assert!(passed.connections() <= 2, "{}", passed.connections());
        }
    }
}

/// `cargo test --test prometheus_source cost -- --nocapture` prints what docs/sources/scrape.md tells.
#[tokio::test]
async fn projections_share_a_connection_and_a_request_for_a_page() {
    for queue in 0..1_000 {
        set(&format!("cost_page{{queue=\"{queue}\"}}"), Some("7"));
    }
    for projections in [1_usize, 100, 1_000] {
        let (address, passed) = relay(target(), "GET /").await;
        let metric = |queue: usize| AskedMetric {
            name: "cost_page".to_owned(),
            labels: [("queue".to_owned(), queue.to_string())].into(),
            single: true,
            aggregate: Aggregate::Sum,
        };
        let lag = |queue| Numbers::Lag { pending: metric(queue), staleness: None, arrived: None };
        let questions: Vec<scrape::Question> = (0..projections).map(lag).collect();
        let questions: Vec<&scrape::Question> = questions.iter().collect();
        let page = format!("http://{address}/metrics");
        let mut probe = ScrapeProbe::new(settings(&[("url", &page)]), loopback(), Instant::now());
        for poll in ["the first poll", "a later poll"] {
            let meter = Meter::begin(&passed);
            let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
            assert_eq!(meter.end(&format!("a series each of a page of 1,000, {poll}"), &answers), 1);
        }
        assert_eq!(passed.connections(), 1);
    }
    (0..1_000).for_each(|queue| set(&format!("cost_page{{queue=\"{queue}\"}}"), None));
}
