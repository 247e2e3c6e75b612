//! What a real server tells in each state.

use projectionist::{
    api::Reason,
    lag::{CheckpointState, Sample},
};
use std::time::Duration;
use tokio::time::Instant;

use crate::harness::{ask, exactly, lag, pending, probe, server, set, until, until_pending, value};

fn moved(sample: &Sample) -> (u64, u64) {
    match sample.checkpoint {
        CheckpointState::Handled(handled) => (sample.arrived, handled),
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_waits_follows_the_metric_and_nothing_is_zero_but_zero() {
    let mut probe = probe(&server().url());
    let question = pending("sum(states_pending)");
    let none = ask(&mut probe, &question).await.unwrap_err();
    assert_eq!(none.reason, Reason::InvalidAnswer);
    assert!(
        none.message.contains("query") || none.message.contains("pending: the query results in nothing"),
        "{}",
        none.message
    );
    set("states_pending{queue=\"a\"}", Some("3"));
    until_pending(&mut probe, &question, 3).await;
    set("states_pending{queue=\"b\"}", Some("4"));
    assert_eq!(moved(&until_pending(&mut probe, &question, 7).await), (4, 0), "a rise came");
    set("states_pending{queue=\"a\"}", Some("0"));
    set("states_pending{queue=\"b\"}", Some("0"));
    let empty = until_pending(&mut probe, &question, 0).await;
    assert_eq!((moved(&empty).1, empty.staleness), (7, Some(Duration::ZERO)), "a fall was handled");
    set("states_pending{queue=\"a\"}", Some("NaN"));
    let unknown = |reason| {
        move |found: &Result<_, projectionist::measure::MeasureError>| {
            found.as_ref().is_err_and(|unknown| unknown.reason == reason)
        }
    };
    let nan = until(&mut probe, &question, "NaN", unknown(Reason::InvalidAnswer)).await.unwrap_err();
    assert!(nan.message.contains("NaN"), "{}", nan.message);
    set("states_pending{queue=\"a\"}", Some("-5"));
    let negative = |found: &Result<_, projectionist::measure::MeasureError>| {
        found.as_ref().is_err_and(|unknown| unknown.message.contains("below zero"))
    };
    until(&mut probe, &question, "below zero", negative).await.unwrap_err();
    for queue in ["a", "b"] {
        set(&format!("states_pending{{queue=\"{queue}\"}}"), None);
    }
    let gone = |found: &Result<_, projectionist::measure::MeasureError>| {
        found.as_ref().is_err_and(|unknown| unknown.message.contains("nothing"))
    };
    until(&mut probe, &question, "a series that ended is unknown at once", gone).await.unwrap_err();
}

#[tokio::test]
async fn the_age_of_the_oldest_and_a_counter_are_asked_for_where_they_are_given() {
    let mut probe = probe(&server().url());
    let question = lag("sum(aged_pending)", Some("max(aged_seconds)"), Some("sum(aged_total)"));
    set("aged_pending", Some("2"));
    set("aged_total", Some("100"));
    let none = |found: &Result<_, projectionist::measure::MeasureError>| {
        found.as_ref().is_err_and(|unknown| unknown.message.contains("staleness: the query results in nothing"))
    };
    until(&mut probe, &question, "an age that is asked for and not told", none).await.unwrap_err();
    set("aged_seconds", Some("90.5"));
    let told = until_pending(&mut probe, &question, 2).await;
    assert_eq!((told.staleness, moved(&told)), (Some(Duration::from_millis(90_500)), (0, 0)));
    set("aged_total", Some("150"));
    let came = |found: &Result<Sample, _>| found.as_ref().is_ok_and(|sample| moved(sample) == (50, 50));
    until(&mut probe, &question, "what came and went between two looks", came).await.unwrap();
    set("aged_seconds", None);
    set("aged_pending", Some("0"));
    let caught_up = until_pending(&mut probe, &question, 0).await;
    assert_eq!(caught_up.staleness, Some(Duration::ZERO), "nothing waits, so that no age is needed");
}

#[tokio::test]
async fn any_number_is_a_value_and_a_query_that_is_none_says_what_to_write_instead() {
    let mut probe = probe(&server().url());
    let told = ask(&mut probe, &value("vector(-2.5) * 2")).await.unwrap();
    assert_eq!((told.value, told.pending), (Some(-5.0), None));
    assert_eq!(ask(&mut probe, &value("1e3")).await.unwrap().value, Some(1_000.0), "a scalar");
    let long = format!("1{}", " + 1".repeat(2_000));
    assert_eq!(ask(&mut probe, &value(&long)).await.unwrap().value, Some(2_001.0), "too long for a URL");
    assert_eq!(ask(&mut probe, &pending("2 * 0.6")).await.unwrap().pending, exactly(2), "part of an event waits");
    for (query, reason, words) in [
        ("sum(", Reason::InvalidSpec, "cannot be read at line 1, character"),
        ("up[5m]", Reason::InvalidAnswer, "range"),
        ("\"hunter2\"", Reason::InvalidAnswer, "text"),
        ("1 / 0", Reason::InvalidAnswer, "infinite"),
        ("0 / 0", Reason::InvalidAnswer, "NaN"),
        ("vector(1) or label_replace(vector(2), \"a\", \"b\", \"\", \"\")", Reason::InvalidAnswer, "2 series"),
        ("nothing_of_that_name", Reason::InvalidAnswer, "nothing"),
        (
            "label_replace(vector(1), \"a\", \"b\", \"\", \"\") + on() group_left() (vector(1) or label_replace(vector(2), \"c\", \"d\", \"\", \"\"))",
            Reason::InvalidSpec,
            "execution",
        ),
    ] {
        let unknown = ask(&mut probe, &value(query)).await.unwrap_err();
        assert_eq!(unknown.reason, reason, "{query}: {}", unknown.message);
        assert!(unknown.message.contains(words), "{query}: {}", unknown.message);
        assert!(unknown.message.starts_with("http://127.0.0.1:"), "{}", unknown.message);
    }
}

/// `cargo test --test prometheus_source cost -- --nocapture` prints what docs/sources/prometheus.md tells.
#[tokio::test]
async fn the_same_query_is_asked_once_and_a_bad_one_concerns_only_its_own_projection() {
    let mut probe = probe(&server().url());
    let (good, bad) = (value("40 + 2"), value("sum("));
    let answers = probe.answer(&[&good, &bad, &good], Instant::now() + Duration::from_secs(60)).await;
    let values: Vec<_> = answers.iter().map(|answer| answer.as_ref().ok().and_then(|sample| sample.value)).collect();
    assert_eq!(values, [Some(42.0), None, Some(42.0)]);
}
