//! Pages of metrics: Prometheus's own, one of a test's, and what is no page.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use projectionist::{
    api::{Aggregate, Reason},
    clients::scrape::LARGEST_PAGE,
    lag::{CheckpointState, Sample},
    measure::MeasureError,
    resolve::{AskedMetric, Numbers},
    snapshot::Observation,
    sources::{
        BatchProbe as _,
        scrape::{Question, ScrapeProbe},
    },
    store_health::StoreObservation,
};
use serde_json::{Value, json};
use test_cluster::{Prometheus, PrometheusOptions, Redis};
use tokio::time::Instant;

use crate::{
    harness::{DEADLINE, Says, exactly, fake, http, server, set, settings, target},
    sampler::{Running, loopback},
};

const OPEN: &str = "application/openmetrics-text; version=1.0.0";
const SUM: Option<Aggregate> = Some(Aggregate::Sum);

fn metric(name: &str, labels: &[(&str, &str)], aggregate: Option<Aggregate>) -> AskedMetric {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let single = aggregate.is_none();
    AskedMetric { name: name.to_owned(), labels, single, aggregate: aggregate.unwrap_or(Aggregate::Sum) }
}

fn value(name: &str, labels: &[(&str, &str)]) -> Question {
    Numbers::Value(metric(name, labels, None))
}

fn pending(metric: AskedMetric) -> Question {
    Numbers::Lag { pending: metric, staleness: None, arrived: None }
}

fn probe(url: &str) -> ScrapeProbe {
    ScrapeProbe::new(settings(&[("url", url)]), loopback(), std::time::Instant::now())
}

async fn ask(probe: &mut ScrapeProbe, question: &Question, time: Duration) -> Result<Sample, MeasureError> {
    probe.answer(&[question], Instant::now() + time).await.pop().unwrap()
}

/// The URL of the page that the tests' server shows.
fn shared_page() -> String {
    format!("http://{}/metrics", target())
}

#[tokio::test]
async fn the_page_of_a_real_server_is_read() {
    let mut probe = probe(&format!("{}/metrics", server().url()));
    let build = ask(&mut probe, &value("prometheus_build_info", &[]), DEADLINE).await.unwrap();
    assert_eq!(build.value, Some(1.0), "its labels hold commas and slashes");
    let bucket = value("prometheus_tsdb_compaction_duration_seconds_bucket", &[("le", "+Inf")]);
    assert!(ask(&mut probe, &bucket, DEADLINE).await.unwrap().value.is_some(), "a bucket of a histogram");
    let buckets = "prometheus_tsdb_compaction_duration_seconds_bucket";
    let several = ask(&mut probe, &value(buckets, &[]), DEADLINE).await.unwrap_err();
    assert_eq!(several.reason, Reason::InvalidAnswer);
    assert!(several.message.contains(&format!("series of {buckets}, and one number is needed")), "{}", several.message);
    let summed = Numbers::Value(metric(buckets, &[], SUM));
    assert!(ask(&mut probe, &summed, DEADLINE).await.unwrap().value.is_some());
    let none = ask(&mut probe, &value("nothing_of_that_name", &[]), DEADLINE).await.unwrap_err();
    assert!(none.message.contains("value: the page has no series of nothing_of_that_name"), "{}", none.message);
    assert!(none.message.starts_with(&server().url()), "{}", none.message);
}

#[tokio::test]
async fn what_waits_is_summed_and_one_request_answers_for_all() {
    for (series, value) in
        [("scraped_pending{q=\"a,b\"}", "3"), ("scraped_pending{q=\"}\"}", "4"), ("scraped_seconds", "9.5")]
    {
        set(series, Some(value));
    }
    let mut probe = probe(&shared_page());
    let staleness = Some(metric("scraped_seconds", &[], None));
    let all = Numbers::Lag { pending: metric("scraped_pending", &[], SUM), staleness, arrived: None };
    let one = pending(metric("scraped_pending", &[("q", "}")], None));
    let missing = pending(metric("scraped_missing", &[], SUM));
    let answers = probe.answer(&[&all, &one, &missing, &all], Instant::now() + DEADLINE).await;
    let told = |index: usize| answers[index].as_ref().unwrap();
    assert_eq!((told(0).pending, told(0).staleness), (exactly(7), Some(Duration::from_millis(9_500))));
    assert_eq!((told(1).pending, told(1).staleness), (exactly(4), None));
    assert!(answers[2].is_err(), "one that is missing concerns only its own Projection");
    set("scraped_pending{q=\"a,b\"}", Some("0"));
    let less = ask(&mut probe, &all, DEADLINE).await.unwrap();
    assert_eq!(less.pending, exactly(4));
    assert!(matches!(less.checkpoint, CheckpointState::Handled(3)), "a fall was handled: {:?}", less.checkpoint);
    let body = "scraped_pending 1\n";
    let (url, counts) = fake(Says::Once(http("200 OK", "text/plain", body))).await;
    let mut probe = self::probe(&url);
    let questions: Vec<_> = (0..1_000).map(|n| pending(metric("scraped_pending", &[], [None, SUM][n % 2]))).collect();
    for polls in 1..4 {
        let answers = probe.answer(&questions.iter().collect::<Vec<_>>(), Instant::now() + DEADLINE).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(counts.requests.load(Ordering::Relaxed), polls, "one request a poll for 1,000 Projections");
    }
    assert_eq!(counts.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn whatever_is_no_page_is_unknown_with_its_reason() {
    const SHORT: Duration = Duration::from_millis(500);
    let question = value("orders", &[]);
    let page = |body: &str| Says::Once(http("200 OK", "text/plain", body));
    let closed = |body: &str| Says::AndHangsUp(format!("HTTP/1.0 200 OK\r\n\r\n{body}").into_bytes());
    let whole = http("200 OK", "text/plain", "orders 1\n");
    let cut = whole[..whole.len() - 4].to_vec();
    for (what, says, reason) in [
        ("hangs", Says::Nothing, Reason::TimedOut),
        ("hangs in the body", Says::Once(cut.clone()), Reason::TimedOut),
        ("hangs up", Says::AndHangsUp(Vec::new()), Reason::SourceFailed),
        ("cut in the body", Says::AndHangsUp(cut), Reason::SourceFailed),
        ("a byte now and then", Says::Dripping(whole.clone()), Reason::TimedOut),
        ("cut in a line, of unknown length", closed("orders 1"), Reason::InvalidAnswer),
        ("cut behind a line, of unknown length", closed("orders 1\n"), Reason::InvalidAnswer),
        ("without its last line feed", page("orders 1"), Reason::InvalidAnswer),
        ("OpenMetrics without its end", Says::Once(http("200 OK", OPEN, "orders 1\n")), Reason::InvalidAnswer),
        ("garbage", Says::ForEver(b"garbage hunter2 \r\n".to_vec()), Reason::InvalidAnswer),
        ("headers without end", Says::ForEver(b"HTTP/1.1 200 OK\r\n".to_vec()), Reason::InvalidAnswer),
        ("HTML", Says::Once(http("200 OK", "text/html", "orders 1\n")), Reason::InvalidAnswer),
        ("HTML that says nothing of it", page("<html>hunter2</html>"), Reason::InvalidAnswer),
        ("JSON", page("{\"orders\": \"hunter2\"}"), Reason::InvalidAnswer),
        (
            "the binary format",
            Says::Once(http("200 OK", "application/vnd.google.protobuf; encoding=delimited", "hunter2")),
            Reason::InvalidAnswer,
        ),
        ("empty", page(""), Reason::InvalidAnswer),
        (
            "not UTF-8",
            Says::Once(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\norders \xff\n".to_vec()),
            Reason::InvalidAnswer,
        ),
        ("a bad line", page("orders 1\nhunter2\n"), Reason::InvalidAnswer),
        ("twice", page("orders 1\norders 1\n"), Reason::InvalidAnswer),
        ("long ago", page("orders 1 1000\n"), Reason::InvalidAnswer),
        ("no page", Says::Once(http("404 Not Found", "text/plain", "hunter2")), Reason::InvalidAnswer),
        (
            "a redirection",
            Says::Once(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec()),
            Reason::InvalidAnswer,
        ),
        ("wants a login", Says::Once(http("401 Unauthorized", "text/plain", "hunter2")), Reason::AuthenticationFailed),
        ("forbids", Says::Once(http("403 Forbidden", "text/plain", "hunter2")), Reason::PermissionDenied),
        ("unavailable", Says::Once(http("503 Service Unavailable", "text/plain", "hunter2")), Reason::SourceFailed),
    ] {
        let (url, _) = fake(says).await;
        let unknown = ask(&mut probe(&url), &question, SHORT).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(
            !unknown.message.contains("hunter2") && unknown.message.starts_with(&url),
            "{what}: {}",
            unknown.message
        );
    }
    for (what, says) in [
        ("the fake itself", Says::Once(whole)),
        ("of unknown length, with an end", closed("orders 1\n# EOF\n")),
        ("OpenMetrics", Says::Once(http("200 OK", OPEN, "orders 1\n# EOF\n"))),
        ("OpenMetrics, whose last line feed may be left out", Says::Once(http("200 OK", OPEN, "orders 1\n# EOF"))),
    ] {
        let (url, _) = fake(says).await;
        assert_eq!(ask(&mut probe(&url), &question, DEADLINE).await.unwrap().value, Some(1.0), "{what}");
    }
    let away = ask(&mut probe("http://127.0.0.1:1/metrics"), &question, DEADLINE).await.unwrap_err();
    assert_eq!(away.reason, Reason::ConnectionRefused, "{}", away.message);
}

#[tokio::test]
async fn an_endless_page_ends_the_connection_and_a_huge_one_is_not_taken_in() {
    let question = value("orders", &[]);
    let mut endless = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n".to_vec();
    endless.resize(256 << 10, b'\n');
    let (url, counts) = fake(Says::ForEver(endless)).await;
    let unknown = ask(&mut probe(&url), &question, DEADLINE).await.unwrap_err();
    assert!(unknown.message.contains("larger than 4 MiB"), "{}", unknown.message);
    assert!(counts.bytes.load(Ordering::Relaxed) < 8 * LARGEST_PAGE);
    let huge = b"HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775807\r\n\r\norders 1\n".to_vec();
    let (url, _) = fake(Says::Once(huge)).await;
    let unknown = ask(&mut probe(&url), &question, Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::TimedOut, "{}", unknown.message);
}

#[tokio::test]
async fn a_refused_address_is_not_connected_to_and_a_redirection_carries_no_token() {
    let question = value("orders", &[]);
    let (elsewhere, counts) = fake(Says::Once(http("200 OK", "text/plain", "orders 1\n"))).await;
    let redirection = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {elsewhere}/\r\ncontent-length: 0\r\n\r\n");
    let (url, redirecting) = fake(Says::Once(redirection.into_bytes())).await;
    let with_token = settings(&[("url", &format!("{url}/a/metrics?module=x")), ("token", "hunter2")]);
    let mut probe = ScrapeProbe::new(with_token, loopback(), std::time::Instant::now());
    let followed = ask(&mut probe, &question, DEADLINE).await.unwrap_err();
    assert!(followed.message.contains("not followed") && !followed.message.contains("hunter2"), "{}", followed.message);
    let request = redirecting.last.lock().unwrap().clone();
    assert!(request.starts_with("GET /a/metrics?module=x HTTP/1.1"), "{request}");
    for header in ["authorization: Bearer hunter2\r\n", "accept: text/plain;version=0.0.4"] {
        assert!(request.contains(header), "{request}");
    }
    for url in
        [elsewhere.clone(), elsewhere.replace("127.0.0.1", "localhost"), "http://169.254.169.254/metrics".to_owned()]
    {
        let mut refused = ScrapeProbe::new(settings(&[("url", &url)]), Arc::default(), std::time::Instant::now());
        let refused = ask(&mut refused, &question, DEADLINE).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AddressRefused, "{url}: {}", refused.message);
    }
    assert_eq!(counts.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn projections_are_measured_by_a_page_and_a_rotated_password_takes_effect_without_a_restart() {
    set("whole_way_pending", Some("5"));
    set("whole_way_value", Some("250"));
    let options = PrometheusOptions { web: crate::access::USERS.to_owned(), ..PrometheusOptions::default() };
    let own = Prometheus::with(target(), &options).unwrap();
    let guarded = format!("{}/metrics", own.url());
    let mut sampler = Running::start();
    let login = |sampler: &Running, password: &str| {
        sampler.secret("exporter", &json!({ "url": guarded, "username": "shop", "password": password }));
    };
    login(&sampler, "hunter2-old");
    let source = |connection: Value, what: &str, name: &str| json!({ "scrape": { "connection": connection, what: { "metric": name } } });
    let (by_url, by_secret) = (json!({ "url": shared_page() }), json!({ "secretRef": { "name": "exporter" } }));
    let lag = json!({ "target": "5s" });
    let by_page = source(by_url.clone(), "pending", "whole_way_pending");
    sampler.declare_spec("scraped", &json!({ "source": by_page, "lag": lag }));
    let average = json!({ "target": "5s", "value": { "averageTarget": 100 } });
    let value = source(by_url.clone(), "value", "whole_way_value");
    sampler.declare_spec("scraped-value", &json!({ "source": value, "lag": average }));
    let build = source(by_secret, "pending", "prometheus_build_info");
    sampler.declare_spec("guarded-page", &json!({ "source": build, "lag": lag }));
    let missing = source(by_url, "pending", "whole_way_missing");
    sampler.declare_spec("missing", &json!({ "source": missing, "lag": lag }));
    sampler.wait_pending("scraped", 5).await;
    let three = |seen: &Observation| {
        let measured = seen.measured.as_ref().filter(|_| seen.failure.is_none());
        measured.is_some_and(|it| it.assessment.required.workers == 3 && it.assessment.counted().is_none())
    };
    sampler.wait("3 workers of 100 each", "scraped-value", three).await;
    sampler.wait_unknown("missing", Reason::InvalidAnswer).await;
    let refused = sampler.wait_unknown("guarded-page", Reason::AuthenticationFailed).await;
    assert!(refused.message.starts_with(&guarded), "{}", refused.message);
    login(&sampler, "hunter2");
    sampler.wait_pending("guarded-page", 1).await;
    set("whole_way_pending", Some("9"));
    sampler.wait_pending("scraped", 9).await;
}

#[tokio::test]
async fn a_read_store_that_refuses_writes_gets_no_more_workers() {
    let store = Redis::with("maxmemory-policy noeviction").unwrap();
    set("strained_value", Some("200"));
    let mut sampler = Running::start();
    sampler.secret("redis", &json!({ "url": store.url() }));
    let value = json!({ "connection": { "url": shared_page() }, "value": { "metric": "strained_value" } });
    let spec = json!({
        "source": { "scrape": value },
        "readStore": { "redis": { "connection": { "secretRef": { "name": "redis" } } } },
        "lag": { "target": "5s", "value": { "averageTarget": 100 } },
    });
    sampler.declare_spec("strained", &spec);
    let asks = |workers: u32, because: &'static str| {
        move |seen: &Observation| {
            let required = seen.measured.as_ref().map(|measured| &measured.assessment.required);
            required.is_some_and(|it| it.workers == workers && it.reason.contains(because))
        }
    };
    sampler.wait("2 workers of 100 each", "strained", asks(2, "the value 200")).await;
    sampler.wait_store("asked", "strained", |store| store.current(std::time::Instant::now()).is_ok()).await;
    assert!(store.run("CONFIG SET maxmemory 1").is_ok());
    let write = || async { Ok::<_, anyhow::Error>(format!("{:?}", store.run("SET a b"))) };
    test_cluster::eventually_is(DEADLINE, "a write is refused", |answer| answer.contains("OOM"), write).await.unwrap();
    // Seen at the next look at the store.
    let refused = jiff::Timestamp::now();
    let looked_at = |store: &StoreObservation| store.newest.as_ref().is_some_and(|polled| polled.taken > refused);
    sampler.wait_store("asked again", "strained", looked_at).await;
    let said = asks(2, "no more workers while the read store refuses writes for want of room");
    set("strained_value", Some("900"));
    let braked = |seen: &Observation| {
        // Refused again and again, as by workers that try again.
        let _ = store.run("SET a b");
        said(seen)
    };
    sampler.wait("no more workers", "strained", braked).await;
    // Fewer are asked for as ever.
    set("strained_value", Some("100"));
    sampler.wait("1 worker", "strained", asks(1, "the value 100")).await;
}
