//! Whether an object must be declared (again); and, against a mocked API server, what is written and what is not.

use http::Method;
use serde_json::Map;

use super::*;
use crate::{
    controller::mock_api::{Server, failure},
    measure::RunKey,
};

fn owner() -> Owner {
    Owner { run: RunKey::unversioned("shop", "orders"), uid: "u-1".to_owned() }
}

fn desired(cpu: &str) -> Desired {
    Desired::new(Part::Deployment, &owner(), Map::from_iter([("spec".to_owned(), json!({ "cpu": cpu }))]))
}

fn live(desired: &Desired, version: &str, change: impl FnOnce(&mut Value)) -> LiveObject {
    let mut body = desired.body.clone();
    body["metadata"]["resourceVersion"] = json!(version);
    change(&mut body);
    LiveObject::from_object(&serde_json::from_value(body).unwrap())
}

fn memo(desired: &Desired, live: &LiveObject) -> Memo {
    let seen = fingerprint(&restrict(&live.parsed(), &comparable(desired)));
    Memo { hash: desired.hash.clone(), resource_version: live.resource_version.clone(), seen }
}

#[test]
fn what_is_there_as_declared_is_not_declared_again_even_after_a_restart() {
    let wanted = desired("50m");
    assert!(!needs_apply(&wanted, &live(&wanted, "1", |_| {}), None));
    let status_only = live(&wanted, "2", |body| body["status"] = json!({ "x": 1 }));
    assert!(!needs_apply(&wanted, &status_only, None));
    let with_theirs = live(&wanted, "3", |body| body["spec"]["theirs"] = json!(1));
    assert!(!needs_apply(&wanted, &with_theirs, None));
}

#[test]
fn a_changed_declaration_and_a_changed_object_are_declared_again() {
    let wanted = desired("50m");
    assert!(needs_apply(&desired("60m"), &live(&wanted, "1", |_| {}), None));
    assert!(needs_apply(&wanted, &live(&wanted, "1", |body| body["spec"]["cpu"] = json!("1")), None));
    let first = memo(&wanted, &live(&wanted, "1", |_| {}));
    assert!(needs_apply(&wanted, &live(&wanted, "2", |body| body["spec"]["cpu"] = json!("1")), Some(&first)));
    let unlabelled = live(&wanted, "2", |body| body["metadata"]["labels"] = json!({}));
    assert!(needs_apply(&wanted, &unlabelled, Some(&first)));
}

#[test]
fn a_field_that_is_not_declared_any_more_is_taken_back() {
    let spec = |spec| Desired::new(Part::Deployment, &owner(), Map::from_iter([("spec".to_owned(), spec)]));
    let before = spec(json!({ "cpu": "50m", "nodeName": "n" }));
    // Everything that is wanted is there, and something else that we once wanted, too.
    assert!(needs_apply(&spec(json!({ "cpu": "50m" })), &live(&before, "1", |_| {}), None));
}

#[test]
fn a_value_that_the_server_writes_differently_is_declared_once() {
    let wanted = desired("0.05");
    let rewritten = |version: &str| live(&wanted, version, |body| body["spec"]["cpu"] = json!("50m"));
    assert!(needs_apply(&wanted, &rewritten("1"), None));
    let first = memo(&wanted, &rewritten("1"));
    assert!(!needs_apply(&wanted, &rewritten("1"), Some(&first)));
    assert!(!needs_apply(&wanted, &rewritten("2"), Some(&first)));
}

/// As the API server keeps what was declared.
fn kept(body: &Value) -> Value {
    let mut kept = body.clone();
    kept["metadata"]["uid"] = json!("d-1");
    kept["metadata"]["resourceVersion"] = json!("5");
    kept
}

fn one_deployment() -> Plan {
    Plan { desired: vec![desired("50m")], scale: ScalePlan::Leave }
}

/// Carries the plan out while `play` answers, with what `index` knows.
async fn carried_out(
    client: Client,
    index: &LiveIndex,
    plan: &Plan,
    play: impl Future<Output = ()>,
) -> Result<(), Unapplied> {
    let apply = async {
        let applier = Applier::new(client, index.clone());
        applier.apply(&owner(), plan, &ScaleTarget::Own, &mut Memos::new()).await
    };
    tokio::join!(apply, play).0
}

/// The Projection's metadata, as a fresh read tells them.
fn metadata(uid: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "orders", "namespace": "shop", "uid": uid},
    });
    change(&mut object);
    object
}

#[tokio::test]
async fn what_is_missing_is_made_once_the_projection_was_read_and_is_there() {
    let (mut server, client) = Server::mocked();
    let index = LiveIndex::default();
    let play = async {
        server.answers(Method::GET, 404, |_| failure(404, "NotFound")).await;
        let (path, _) = server.answers(Method::GET, 200, |_| metadata("u-1", |_| {})).await;
        assert!(path.ends_with("/namespaces/shop/projections/orders"), "{path}");
        let (path, body) = server.answers(Method::PATCH, 201, kept).await;
        assert!(path.ends_with("/namespaces/shop/deployments/orders"), "{path}");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u-1");
        server.is_asked_no_more().await;
    };
    carried_out(client, &index, &one_deployment(), play).await.unwrap();
    assert!(index.get(Part::Deployment, "shop", "orders").is_some());
}

#[tokio::test]
async fn nothing_is_made_for_a_projection_that_is_going_gone_or_another_one() {
    let going = |object: &mut Value| object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (code, answer) in
        [(404, failure(404, "NotFound")), (200, metadata("u-2", |_| {})), (200, metadata("u-1", going))]
    {
        let (mut server, client) = Server::mocked();
        let play = async {
            server.answers(Method::GET, 404, |_| failure(404, "NotFound")).await;
            server.answers(Method::GET, code, |_| answer).await;
            server.is_asked_no_more().await;
        };
        let made = carried_out(client, &LiveIndex::default(), &one_deployment(), play).await;
        assert!(matches!(made, Err(Unapplied::OwnerGone)), "{made:?}");
    }
}

#[tokio::test]
async fn an_object_of_another_owner_is_left_as_it_is() {
    for (owners, predecessor) in [
        (json!([]), false),
        (
            json!([{"apiVersion": "apps/v1", "kind": "Other", "name": "orders", "uid": "o-1", "controller": true}]),
            false,
        ),
        (
            json!([{"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders", "uid": "u-0", "controller": true}]),
            true,
        ),
    ] {
        let (mut server, client) = Server::mocked();
        let theirs = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "t-1", "resourceVersion": "3", "ownerReferences": owners},
            "spec": {"replicas": 3},
        });
        let play = async {
            server.answers(Method::GET, 200, |_| theirs).await;
            server.is_asked_no_more().await;
        };
        match carried_out(client, &LiveIndex::default(), &one_deployment(), play).await {
            Err(Unapplied::Predecessor(Part::Deployment)) => assert!(predecessor),
            Err(Unapplied::Problem(problem)) => assert_eq!((problem.reason, predecessor), (Reason::NotOwned, false)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_not_wanted_any_more_is_deleted_as_it_was_seen_and_not_otherwise() {
    for (code, stays) in [(200, false), (404, false), (409, true)] {
        let (mut server, client) = Server::mocked();
        let index = LiveIndex::default();
        let wanted = desired("50m");
        let seen = live(&wanted, "7", |body| body["metadata"]["uid"] = json!("d-1"));
        index.watched(Part::Deployment, "shop", "orders", seen);
        let answer = if code == 200 {
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})
        } else {
            failure(code, "x")
        };
        let play = async {
            let (path, body) = server.answers(Method::DELETE, code, |_| answer).await;
            assert!(path.ends_with("/deployments/orders"), "{path}");
            assert_eq!(body["preconditions"], json!({"uid": "d-1", "resourceVersion": "7"}));
            server.is_asked_no_more().await;
        };
        let nothing = Plan { desired: Vec::new(), scale: ScalePlan::Leave };
        let deleted = carried_out(client, &index, &nothing, play).await;
        assert_eq!(deleted.is_err(), stays, "{code}: {deleted:?}");
        assert_eq!(index.get(Part::Deployment, "shop", "orders").is_some(), stays, "{code}");
    }
}
