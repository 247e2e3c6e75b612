//! The whole way from a Projection and its Secret to an observation.

use projectionist::{api::Reason, lag::ValueTarget, snapshot::Observation};
use serde_json::{Value, json};
use test_cluster::{Prometheus, PrometheusOptions};

use crate::{
    certificates::{Authority, Files, authority, signed},
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
    let whole = json!({ "target": "5s", "value": { "target": 0.2 } });
    sampler.declare_spec("latency", &json!({ "source": source(by_url.clone(), "value", "0.4"), "lag": whole }));
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
    // Of the whole, and not for each worker.
    let above = |seen: &Observation| {
        let value = seen.measured.as_ref().and_then(|it| it.assessment.value);
        value.is_some_and(|it| it.target == ValueTarget::Whole(0.2) && (it.value - 0.4).abs() < 1e-9 && !it.within)
    };
    sampler.wait("a latency above its target", "latency", above).await;
    let refused = sampler.wait_unknown("guarded", Reason::AuthenticationFailed).await;
    assert!(refused.message.starts_with(&own.url()), "{}", refused.message);
    sampler.wait_unknown("nowhere", Reason::HostNotFound).await;
    sampler.wait_unknown("twice", Reason::InvalidSpec).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("guarded", 6).await;
}

#[tokio::test]
async fn a_rotated_authority_and_a_rotated_client_certificate_take_effect_without_a_restart() {
    let (old, new) = (authority(), authority());
    let files = Files::signed(&old);
    let own = crate::access::with_tls(&files);
    let mut sampler = Running::start();
    let show = |sampler: &Running, by: &Authority| {
        let (certificate, key) = signed(by, "projectionist");
        sampler.secret("me", &json!({ "tls.crt": certificate, "tls.key": key }));
    };
    let believe = |sampler: &Running, in_: &Authority| sampler.secret("authority", &json!({ "ca.crt": in_.pem() }));
    believe(&sampler, &old);
    show(&sampler, &old);
    let connection = json!({
        "url": own.url().replace("http://127.0.0.1", "https://localhost"),
        "caSecretRef": { "name": "authority" },
        "clientCertificateSecretRef": { "name": "me" },
    });
    sampler.declare("guarded", &json!({ "prometheus": { "connection": connection, "pending": "6" } }));
    sampler.wait_pending("guarded", 6).await;
    files.renew(&new);
    // What is open stays open, until an answer does not come.
    own.pause();
    sampler.wait_unknown("guarded", Reason::TimedOut).await;
    own.resume();
    sampler.wait_unknown("guarded", Reason::TlsFailed).await;
    // Either alone does not suffice: the server is not believed, or does not believe us.
    believe(&sampler, &new);
    show(&sampler, &new);
    sampler.wait_pending("guarded", 6).await;
}
