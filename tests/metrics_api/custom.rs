//! `custom.metrics.k8s.io`: metrics of objects, as the autoscaler's client asks for them in either version.

use projectionist::metrics_api::{Attributes, Offer, ResourceAttributes};
use serde_json::{Value, json};

use crate::harness::{AS_ANN, Server};

const V1BETA1: &str = "/apis/custom.metrics.k8s.io/v1beta1";
const V1BETA2: &str = "/apis/custom.metrics.k8s.io/v1beta2";

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().filter_map(|item| item["describedObject"]["name"].as_str()).collect()
}

#[tokio::test]
async fn an_object_by_name_has_exactly_one_value_in_the_form_of_its_version() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let object = json!({"kind": "Thing", "namespace": "shop", "name": "second", "apiVersion": "example.org/v1"});
    // As the controller manager asks.
    let accept = &[("Accept", "application/vnd.kubernetes.protobuf, */*")];
    let path = "namespaces/shop/things.example.org/second/rate?metricLabelSelector=";
    let (code, body, headers) = client.get(&format!("{V1BETA2}/{path}"), accept).await;
    assert_eq!((code, &headers["content-type"]), (200, &http::HeaderValue::from_static("application/json")));
    assert_eq!(
        body,
        json!({
            "kind": "MetricValueList",
            "apiVersion": "custom.metrics.k8s.io/v1beta2",
            "metadata": {},
            "items": [{
                "describedObject": object,
                "metric": {"name": "rate", "selector": null},
                "timestamp": "1970-01-01T00:00:00Z",
                "windowSeconds": 10,
                "value": "2",
            }],
        })
    );
    let (code, body, _) = client.get(&format!("{V1BETA1}/{path}"), accept).await;
    assert_eq!(code, 200);
    assert_eq!(
        body["items"],
        json!([{
            "describedObject": object,
            "metricName": "rate",
            "timestamp": "1970-01-01T00:00:00Z",
            "window": 10,
            "value": "2",
            "selector": null,
        }])
    );
}

#[tokio::test]
async fn objects_are_selected_by_their_labels_and_by_those_of_the_metric() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    for version in [V1BETA1, V1BETA2] {
        for (path, expected) in [
            ("*/lag", vec!["first", "second", "third"]),
            ("%2A/lag", vec!["first", "second", "third"]),
            ("*/lag?labelSelector=tier%3Dgold", vec!["first", "second"]),
            ("*/lag?labelSelector=tier%20in%20(tin,lead)", vec!["third"]),
            ("*/lag?metricLabelSelector=thing%3Dsecond", vec!["second"]),
            ("*/lag?labelSelector=tier%3Dgold&metricLabelSelector=thing%21%3Dsecond", vec!["first"]),
            ("third/lag?metricLabelSelector=thing%3Dthird", vec!["third"]),
        ] {
            let (code, body, _) =
                client.get(&format!("{version}/namespaces/shop/things.example.org/{path}"), &[]).await;
            assert_eq!((code, names(&body)), (200, expected), "{path}");
        }
    }
    let selected = format!("{V1BETA2}/namespaces/shop/things.example.org/*/lag?metricLabelSelector=thing%3Dfirst");
    let (_, body, _) = client.get(&selected, &[]).await;
    assert_eq!(body["items"][0]["metric"], json!({"name": "lag", "selector": {"matchLabels": {"thing": "first"}}}));
}

#[tokio::test]
async fn a_list_that_would_lack_one_is_an_error_with_the_reason() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let things = format!("{V1BETA2}/namespaces/shop/things.example.org");
    for path in ["*/hidden", "first/hidden", "*/hidden?labelSelector=tier"] {
        let (code, body, headers) = client.get(&format!("{things}/{path}"), &[]).await;
        assert_eq!((code, body["reason"].as_str()), (503, Some("ServiceUnavailable")), "{path}");
        assert_eq!(body["message"], "hidden of first is unknown: the database does not answer", "{path}");
        assert!(body["items"].is_null() && !headers.contains_key("retry-after"), "{path}");
    }
    let (code, body, _) = client.get(&format!("{things}/*/hidden?labelSelector=tier%3Dtin"), &[]).await;
    assert_eq!((code, names(&body)), (200, vec!["third"]), "the unknown ones are not asked for");
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_what_cannot_be_read_is_a_bad_request() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    for version in [V1BETA1, V1BETA2] {
        for (path, code, says) in [
            ("/blah", 404, "nothing at"),
            ("/nodes/foo", 404, "nothing at"),
            ("/nodes/foo/lag", 404, "nothing at"),
            ("/things.example.org/first/lag", 404, "nothing at"),
            ("/namespaces/shop", 404, "nothing at"),
            ("/namespaces/shop/metrics/lag", 404, "nothing at"),
            ("/namespaces/shop/things.example.org/first", 404, "nothing at"),
            ("/namespaces/shop/things.example.org//lag", 404, "nothing at"),
            ("/namespaces/shop/pods/bar", 404, "nothing at"),
            ("/namespaces/shop/pods/bar/lag", 404, "\"pods\" are not served here"),
            ("/namespaces/shop/things/first/lag", 404, "\"things\" are not served here"),
            (
                "/namespaces/shop/things.example.org/first/unknown",
                404,
                "no metric \"unknown\": there are lag, rate, hidden",
            ),
            ("/namespaces/shop/things.example.org/missing/lag", 404, "no such thing"),
            ("/namespaces/elsewhere/things.example.org/first/lag", 404, "no such thing"),
            ("/namespaces/elsewhere/things.example.org/*/lag", 404, "no such thing"),
            ("/namespaces/shop/things.example.org/*/lag?labelSelector=tier%3Dlead", 404, "no such thing"),
            ("/namespaces/shop/things.example.org/*/lag?labelSelector=%3D", 400, "labelSelector"),
            ("/namespaces/shop/things.example.org/*/lag?metricLabelSelector=a%20b", 400, "metricLabelSelector"),
            ("/namespaces/shop/things.example.org/*/lag?metricLabelSelector=%zz", 400, "percent sign"),
            ("/namespaces/shop/things.example.org/*/lag?fieldSelector=metadata.name%3Dfirst", 400, "fields"),
            ("/namespaces/shop/things.example.org%2Ffirst/first/lag", 400, "slash"),
            ("/namespaces/shop/things.example.org/%2e%2e/lag", 400, "goes up"),
        ] {
            let (status, body, _) = client.get(&format!("{version}{path}"), &[]).await;
            assert_eq!((status, body["kind"].as_str()), (code, Some("Status")), "{path}");
            assert!(body["message"].as_str().unwrap().contains(says), "{path}: {body}");
        }
    }
    let (code, _, _) =
        client.get("/apis/custom.metrics.k8s.io/v1beta3/namespaces/shop/things.example.org/first/lag", &[]).await;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn access_is_asked_for_the_object_and_its_metric_as_the_api_server_does() {
    let server = Server::start().await;
    let mut proxy = server.connect(Some(server.front.client("front-proxy-client"))).await;
    let attributes = |name: &str, subresource: &str| {
        Attributes::Resource(ResourceAttributes {
            group: "custom.metrics.k8s.io".to_owned(),
            version: "v1beta2".to_owned(),
            namespace: "shop".to_owned(),
            resource: "things.example.org".to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        })
    };
    for name in ["first", "*"] {
        let path = format!("{V1BETA2}/namespaces/shop/things.example.org/{name}/lag?labelSelector=");
        assert_eq!(proxy.get(&path, AS_ANN).await.0, 200);
        let wanted = server.cluster.wanted.lock().unwrap().last().cloned().unwrap();
        assert_eq!((wanted.verb(), wanted), ("get", attributes(name, "lag")));
        let (code, body, _) = proxy.get(&path, &[("X-Remote-User", "bob")]).await;
        assert_eq!(code, 403);
        assert_eq!(
            body["message"],
            "forbidden: User \"bob\" cannot get resource \"things.example.org/lag\" in API group \"custom.metrics.k8s.io\" in the namespace \"shop\": no role"
        );
    }
    proxy.get(&format!("{V1BETA2}/"), AS_ANN).await;
    let wanted = server.cluster.wanted.lock().unwrap().last().cloned().unwrap();
    assert_eq!(wanted, Attributes::Path(format!("{V1BETA2}/")));
}

#[tokio::test]
async fn a_group_that_is_not_offered_is_not_there() {
    let server = Server::offering(Offer { external: true, objects: None }).await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    for path in [
        "/apis/custom.metrics.k8s.io".to_owned(),
        V1BETA2.to_owned(),
        format!("/openapi/v3{V1BETA2}"),
        format!("{V1BETA2}/namespaces/shop/things.example.org/first/lag"),
    ] {
        assert_eq!(client.get(&path, &[]).await.0, 404, "{path}");
    }
    assert_eq!(client.get(crate::harness::METRIC, &[]).await.0, 200);
}
