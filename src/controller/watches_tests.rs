//! Watches against a mocked API server: lists, changes, an end that asks for a new list, and objects that cannot be read.

use std::{sync::Arc, time::Duration};

use kube::runtime::reflector;
use serde_json::{Value, json};

use super::*;
use crate::controller::mock_api::{Answer, Asked, Server};

const DEADLINE: Duration = Duration::from_secs(30);

fn projection(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": version, "generation": 1},
        "spec": {
            "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
            "lag": {"target": "5s"},
        },
    })
}

/// One that no version of the operator can read.
fn unreadable(name: &str, version: &str) -> Value {
    let mut object = projection(name, version);
    object["spec"]["lag"]["target"] = json!({"seconds": 5});
    object
}

fn deployment(name: &str) -> Value {
    let owner = json!({"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": name, "uid": name, "controller": true});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("d-{name}"), "resourceVersion": "5", "ownerReferences": [owner]},
        "spec": {"replicas": 2}, "status": {"readyReplicas": 2},
    })
}

fn list(kind: &str, items: &[Value]) -> Answer {
    let list = json!({"apiVersion": "v1", "kind": format!("{kind}List"), "metadata": {"resourceVersion": "10"}, "items": items});
    Answer::Object(200, list)
}

fn expired() -> Value {
    json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old resource version"}})
}

/// What the lists and the watches are answered, one after the other; further watches wait.
fn script(mut lists: Vec<Answer>, mut watches: Vec<Answer>) -> impl FnMut(&Asked) -> Answer {
    (lists, watches) = (lists.into_iter().rev().collect(), watches.into_iter().rev().collect());
    move |asked| match asked.uri.contains("watch=true") {
        true => watches.pop().unwrap_or(Answer::Never),
        false => lists.pop().unwrap_or(Answer::Never),
    }
}

/// Waits until this holds.
async fn until(holds: impl Fn() -> bool) {
    let holds = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, holds).await.expect("it never came to that");
}

/// Follows Projections until `holds` does; returns the names of those that are known then, and of those to reconcile, in order.
async fn followed(
    answer: impl FnMut(&Asked) -> Answer,
    holds: impl Fn(&Store<Projection>) -> bool,
) -> (Vec<Arc<Projection>>, Vec<String>) {
    let (mut server, client) = Server::mocked();
    let (store, writer) = reflector::store::<Projection>();
    let (changed, _changed) = watch::channel(0);
    let (trigger, mut triggers) = mpsc::unbounded_channel();
    let (synced, is_synced) = watch::channel(false);
    let follow = tokio::spawn(follow_projections(client, vec![None], writer, changed, trigger, synced));
    server.during(until(|| *is_synced.borrow() && holds(&store)), answer).await;
    follow.abort();
    let mut triggered = Vec::new();
    while let Ok(key) = triggers.try_recv() {
        triggered.push(key.name.to_string());
    }
    let mut known = store.state();
    known.sort_by_key(|projection| projection.name_any());
    (known, triggered)
}

fn names_of(known: &[Arc<Projection>]) -> Vec<String> {
    known.iter().map(|projection| projection.name_any()).collect()
}

#[tokio::test]
async fn after_a_watch_that_is_too_old_the_new_list_shows_what_has_vanished_meanwhile() {
    let lists = vec![
        list("Projection", &[projection("billing", "1"), projection("orders", "2")]),
        list("Projection", &[projection("billing", "1")]),
    ];
    let answer = script(lists, vec![Answer::Events(vec![expired()])]);
    let (known, triggered) = followed(answer, |store| store.len() == 1).await;
    assert_eq!(names_of(&known), ["billing"]);
    assert_eq!(triggered, ["billing", "orders", "orders"], "what did not change is not reconciled again");
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stops_no_other_and_a_known_one_stays_as_it_was() {
    let modified = |object: Value| json!({"type": "MODIFIED", "object": object});
    let mut longer = projection("orders", "4");
    (longer["spec"]["lag"]["target"], longer["metadata"]["generation"]) = (json!("9s"), json!(2));
    let lists = vec![list("Projection", &[unreadable("billing", "1"), projection("orders", "2")])];
    let watches = vec![Answer::Events(vec![modified(unreadable("orders", "3")), modified(longer)])];
    let target = |store: &Store<Projection>| store.state().first().map(|one| one.spec.lag.target.0);
    let (known, triggered) =
        followed(script(lists, watches), |store| target(store) == Some(Duration::from_secs(9))).await;
    assert_eq!(names_of(&known), ["orders"]);
    assert_eq!(triggered, ["orders", "orders"], "not for the change that could not be read");
}

#[tokio::test]
async fn a_list_keeps_what_is_known_of_an_object_that_cannot_be_read_any_more() {
    let lists = vec![
        list("Projection", &[projection("billing", "1"), projection("orders", "2")]),
        list("Projection", &[unreadable("orders", "3")]),
    ];
    let answer = script(lists, vec![Answer::Events(vec![expired()])]);
    let (known, _) = followed(answer, |store| store.len() == 1).await;
    assert_eq!(names_of(&known), ["orders"]);
    assert_eq!(known[0].spec.lag.target.0, Duration::from_secs(5));
}

#[tokio::test]
async fn a_workload_that_vanished_while_its_watch_was_interrupted_is_noticed_and_its_projection_reconciled() {
    let (mut server, client) = Server::mocked();
    let index = LiveIndex::default();
    let (trigger, mut triggers) = mpsc::unbounded_channel();
    let (synced, _is_synced) = watch::channel(false);
    let part = Part::Deployment;
    let follow = tokio::spawn(follow_part(client, vec![None], part, index.clone(), trigger, synced));
    let lists = vec![
        list("Deployment", &[deployment("billing"), deployment("orders")]),
        list("Deployment", &[deployment("billing")]),
    ];
    let mut seen = Vec::new();
    let gone = async {
        while seen.len() < 3 {
            seen.extend(triggers.recv().await.map(|key| key.name.to_string()));
        }
    };
    let answer = script(lists, vec![Answer::Events(vec![expired()])]);
    server.during(tokio::time::timeout(DEADLINE, gone), answer).await.0.expect("three rounds are asked for");
    follow.abort();
    assert_eq!(seen, ["billing", "orders", "orders"]);
    assert!(index.get(part, "shop", "orders").is_none());
    assert_eq!(index.get(part, "shop", "billing").unwrap().workers.ready, 2);
}

#[tokio::test]
async fn annotations_that_change_what_is_done_are_looked_at_and_no_others() {
    let modified = |object: Value| json!({"type": "MODIFIED", "object": object});
    let annotated = |version: &str, annotations: Value| {
        let mut object = projection("orders", version);
        object["metadata"]["annotations"] = annotations;
        object
    };
    for name in [SUSPEND_ANNOTATION, PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION] {
        // Set, and removed again.
        let heeded = annotated("4", json!({"team": "shop", name: "true"}));
        let removed = annotated("5", json!({"team": "shop", "seen": "removed"}));
        let changes = vec![modified(annotated("3", json!({"team": "shop"}))), modified(heeded), modified(removed)];
        let answer = script(vec![list("Projection", &[projection("orders", "2")])], vec![Answer::Events(changes)]);
        let is_removed =
            |store: &Store<Projection>| store.state().first().is_some_and(|one| one.annotations().contains_key("seen"));
        let (_, triggered) = followed(answer, is_removed).await;
        assert_eq!(triggered, ["orders", "orders", "orders"], "{name}: for the list and for two changes of three");
    }
}
