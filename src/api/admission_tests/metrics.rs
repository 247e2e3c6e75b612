//! Metrics that say what waits.

use super::*;

#[test]
fn queries_tell_what_waits_or_a_value_with_its_target() {
    let prometheus = |query: &str| {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"prometheus": {"connection": {"url": "http://prometheus:9090"}, query: "sum(x)"}},
                "lag": {"target": "5s"},
                "scaling": {},
            },
        })
    };
    let secret = json!({"name": "p"});
    let mut value = prometheus("value");
    assert!(admit(prometheus("pending")).is_ok());
    let found = admit(value.clone()).unwrap_err();
    assert!(found[0].to_string().starts_with("spec.lag.value is required with"), "{found:?}");
    for target in [json!({"target": 0.2}), json!({"target": 1}), json!({"averageTarget": 100})] {
        value["spec"]["lag"]["value"] = target;
        assert!(admit(value.clone()).is_ok());
    }
    value["spec"]["scaling"]["minWorkers"] = json!(0);
    assert!(admit(value.clone()).is_ok());
    value["spec"]["lag"]["value"] = json!({"target": 0.2});
    let found = admit(value.clone()).unwrap_err();
    assert!(found[0].to_string().starts_with("spec.scaling.minWorkers must be at least 1 with"), "{found:?}");
    let source = "/spec/source/prometheus";
    for (query, pointer, name, value, expected) in [
        (
            "pending",
            "/spec",
            "checkpoint",
            json!({"readStore": {}}),
            "spec.checkpoint must be absent with spec.source.prom",
        ),
        ("pending", source, "value", json!("x"), "spec.source.prometheus must have exactly one of"),
        ("pending", source, "pending", json!(""), "spec.source.prometheus.pending"),
        ("pending", source, "tenant", json!("a b"), "spec.source.prometheus.tenant"),
        ("value", source, "staleness", json!("x"), "spec.source.prometheus: staleness and arrived"),
        ("pending", "/spec/lag", "value", json!({"target": 1}), "spec.lag.value is required with"),
        ("value", "/spec/lag", "value", json!({}), "spec.lag.value must have exactly one of"),
        (
            "value",
            "/spec/lag",
            "value",
            json!({"target": 1, "averageTarget": 1}),
            "spec.lag.value must have exactly one",
        ),
        ("value", "/spec/lag", "value", json!({"target": 0}), "spec.lag.value.target must be at least"),
        ("value", "/spec/lag", "value", json!({"target": -1.5}), "spec.lag.value.target must be at least"),
        ("pending", &format!("{source}/connection"), "secretRef", secret, "spec.source.prometheus.connection"),
        (
            "pending",
            &format!("{source}/connection"),
            "url",
            json!("http://u:p@host"),
            "spec.source.prometheus.connection.url",
        ),
        (
            "pending",
            &format!("{source}/connection"),
            "url",
            json!("file:///etc"),
            "spec.source.prometheus.connection.url",
        ),
    ] {
        let found = refusals_with(prometheus(query), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn metrics_of_a_page_are_named_one_by_one() {
    let scrape = |what: &str, change: Value| {
        let mut source = json!({"connection": {"url": "http://exporter:9100/metrics"}, what: {"metric": "orders"}});
        for (field, value) in change.as_object().unwrap() {
            source[field] = value.clone();
        }
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {"source": {"scrape": source}, "lag": {"target": "5s"}},
        })
    };
    assert!(admit(scrape("pending", json!({}))).is_ok());
    let whole = json!({"metric": "a:b_total", "labels": {"queue": "a,b"}, "aggregate": "Max"});
    assert!(admit(scrape("pending", json!({"staleness": whole, "arrived": whole}))).is_ok());
    let mut value = scrape("value", json!({}));
    let found = admit(value.clone()).unwrap_err();
    assert!(found[0].to_string().starts_with("spec.lag.value is required with"), "{found:?}");
    value["spec"]["lag"]["value"] = json!({"averageTarget": 100});
    assert!(admit(value).is_ok());
    let mut checkpoint = scrape("pending", json!({}));
    checkpoint["spec"]["checkpoint"] = json!({"readStore": {}});
    for (object, expected) in [
        (checkpoint, "spec.checkpoint must be absent with spec.source.scrape"),
        (scrape("pending", json!({"value": {"metric": "x"}})), "spec.source.scrape must have exactly one of"),
        (scrape("value", json!({"staleness": {"metric": "x"}})), "spec.source.scrape: staleness and arrived"),
        (scrape("pending", json!({"pending": {"metric": "a b"}})), "spec.source.scrape.pending.metric"),
        (scrape("pending", json!({"pending": {"metric": ""}})), "spec.source.scrape.pending.metric"),
        (scrape("pending", json!({"pending": {}})), "spec.source.scrape.pending.metric"),
        (scrape("pending", json!({"pending": {"metric": "x", "aggregate": "Min"}})), "spec.source.scrape.pending.agg"),
        (scrape("pending", json!({"connection": {"url": "http://u:p@host/"}})), "spec.source.scrape.connection.url"),
        (scrape("pending", json!({"connection": {}})), "spec.source.scrape.connection"),
        (scrape("pending", json!({"pods": {"port": 80}})), "spec.source.scrape must have exactly one of connection"),
    ] {
        let found = admit(object).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
    }
}
