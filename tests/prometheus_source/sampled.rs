//! The whole way from a Projection and its Secret to an observation.

use projectionist::{api::Reason, snapshot::Observation};
use serde_json::{Value, json};
use test_cluster::{Prometheus, PrometheusOptions};

use crate::{
    harness::{server, target},
    sampler::Running,
};

#[tokio::test]
async fn projections_are_measured_by_url_or_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    let options = PrometheusOptions { web: crate::access::USERS.to_owned(), ..PrometheusOptions::default() };
    let own = Prometheus::with(target(), &options).unwrap();
    let (url, guarded) = (server().url(), own.url());
    let mut sampler = Running::start();
    let set = |sampler: &Running, password: &str| {
        sampler.secret("prometheus", &json!({ "url": guarded, "username": "shop", "password": password }));
    };
    set(&sampler, "hunter2-old");
    let source =
        |connection: Value, query: &str, text: &str| json!({ "prometheus": { "connection": connection, query: text } });
    let (by_url, by_secret) = (json!({ "url": url }), json!({ "secretRef": { "name": "prometheus" } }));
    let lag = json!({ "target": "5s" });
    sampler.declare_spec("pending", &json!({ "source": source(by_url.clone(), "pending", "4 + 1"), "lag": lag }));
    let value = json!({ "target": "5s", "value": { "averageTarget": 100 } });
    sampler.declare_spec("value", &json!({ "source": source(by_url.clone(), "value", "250"), "lag": value }));
    sampler.declare_spec("guarded", &json!({ "source": source(by_secret, "pending", "6"), "lag": lag }));
    sampler.declare_spec(
        "nowhere",
        &json!({ "source": source(json!({ "url": "http://nowhere.invalid" }), "pending", "6"), "lag": lag }),
    );
    sampler.declare_spec("twice", &json!({ "source": source(by_url, "pending", "sum("), "lag": lag }));
    sampler.wait_pending("pending", 5).await;
    let three = |seen: &Observation| {
        let measured = seen.measured.as_ref().filter(|_| seen.failure.is_none());
        measured.is_some_and(|it| it.assessment.required.workers == 3 && it.assessment.counted().is_none())
    };
    sampler.wait("3 workers of 100 each", "value", three).await;
    let refused = sampler.wait_unknown("guarded", Reason::AuthenticationFailed).await;
    assert!(refused.message.starts_with(&own.url()), "{}", refused.message);
    sampler.wait_unknown("nowhere", Reason::HostNotFound).await;
    sampler.wait_unknown("twice", Reason::InvalidSpec).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("guarded", 6).await;
}
