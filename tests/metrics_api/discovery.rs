//! What the aggregator asks before anybody reads a metric: discovery and OpenAPI, in the forms that it takes.

use serde_json::{Value, json};

use crate::harness::{Connection, Server};

/// As the aggregator asks `/apis`.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
const VERSIONS: [&str; 3] =
    ["external.metrics.k8s.io/v1beta1", "custom.metrics.k8s.io/v1beta2", "custom.metrics.k8s.io/v1beta1"];

async fn document(client: &mut Connection, path: &str, accept: &str) -> Value {
    let (code, body, headers) = client.get(path, &[("Accept", accept)]).await;
    assert_eq!(code, 200, "{path}");
    let etag = headers["etag"].to_str().unwrap().to_owned();
    let again = client.send("GET", path, &[("Accept", accept), ("If-None-Match", &etag)]).await;
    assert_eq!((again.status().as_u16(), again.body().len()), (304, 0), "{path}");
    assert_eq!(client.send("GET", path, &[("Accept", accept), ("If-None-Match", "\"other\"")]).await.status(), 200);
    body
}

/// A resource's name and kind, with subresources as in the older form, out of the aggregated form as its client reads it.
fn flat(version: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all = Vec::new();
    for resource in version["resources"].as_array().unwrap() {
        let name = text(&resource["resource"]);
        assert_eq!(resource["scope"], "Namespaced");
        assert!(resource["verbs"].is_array() && resource["responseKind"]["group"].is_string());
        if resource["responseKind"]["kind"] != "" {
            all.push((name.clone(), text(&resource["responseKind"]["kind"])));
        }
        for of_it in resource["subresources"].as_array().into_iter().flatten() {
            assert_eq!(of_it["verbs"], json!(["get"]));
            all.push((format!("{name}/{}", text(&of_it["subresource"])), text(&of_it["responseKind"]["kind"])));
        }
    }
    all
}

#[tokio::test]
async fn both_forms_of_discovery_tell_the_same() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let (_, _, headers) = client.get("/apis", &[("Accept", AGGREGATED)]).await;
    assert_eq!(headers["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    assert_eq!(headers["vary"], "Accept");
    let aggregated = document(&mut client, "/apis", AGGREGATED).await;
    assert_eq!(
        (&aggregated["kind"], &aggregated["apiVersion"]),
        (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2"))
    );
    let groups = document(&mut client, "/apis", "application/json").await;
    assert_eq!(groups["kind"], "APIGroupList");
    let mut seen = Vec::new();
    for (group, new) in groups["groups"].as_array().unwrap().iter().zip(aggregated["items"].as_array().unwrap()) {
        let name = group["name"].as_str().unwrap();
        assert_eq!(new["metadata"]["name"], name);
        let alone = document(&mut client, &format!("/apis/{name}"), "application/json").await;
        assert_eq!((&alone["kind"], &alone["versions"]), (&json!("APIGroup"), &group["versions"]));
        assert_eq!(group["preferredVersion"], group["versions"][0]);
        for (version, new) in group["versions"].as_array().unwrap().iter().zip(new["versions"].as_array().unwrap()) {
            let group_version = version["groupVersion"].as_str().unwrap();
            assert_eq!((&new["version"], &new["freshness"]), (&version["version"], &json!("Current")));
            let list = document(&mut client, &format!("/apis/{group_version}"), "application/json").await;
            assert_eq!((&list["kind"], &list["groupVersion"]), (&json!("APIResourceList"), &json!(group_version)));
            let resources = list["resources"].as_array().unwrap();
            assert!(
                !resources.is_empty()
                    && resources.iter().all(|it| it["namespaced"] == true && it["verbs"] == json!(["get"]))
            );
            let older: Vec<(String, String)> = resources
                .iter()
                .map(|it| (it["name"].as_str().unwrap().to_owned(), it["kind"].as_str().unwrap().to_owned()))
                .collect();
            assert_eq!(older, flat(new), "{group_version}");
            seen.push(group_version.to_owned());
        }
    }
    assert_eq!(seen, VERSIONS);
}

#[tokio::test]
async fn openapi_describes_every_version_and_what_is_answered_fits_it() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let v2 = document(&mut client, "/openapi/v2", "application/json").await;
    assert_eq!(v2["swagger"], "2.0");
    let index = document(&mut client, "/openapi/v3", "*/*").await;
    assert_eq!(index["paths"].as_object().unwrap().len(), VERSIONS.len());
    for version in VERSIONS {
        let url = index["paths"][format!("apis/{version}")]["serverRelativeURL"].as_str().unwrap();
        let v3 = document(&mut client, url, "application/json").await;
        for (template, path) in v3["paths"].as_object().unwrap() {
            assert!(template.starts_with(&format!("/apis/{version}/namespaces/{{namespace}}/")), "{template}");
            assert_eq!(v2["paths"][template]["get"]["operationId"], path["get"]["operationId"]);
            let example = template.replace("{namespace}", "shop").replace("{name}", "third").replace("{metric}", "lag");
            if example.ends_with("/externalmetrics") {
                continue;
            }
            let (code, body, _) = client.get(&example, &[]).await;
            assert_eq!(code, 200, "{example}");
            let schema = &path["get"]["responses"]["200"]["content"]["application/json"]["schema"];
            fits(&v3, schema, &body, &example);
        }
    }
}

/// True to the part of JSON Schema that our documents use.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#'));
        return fits(document, target.unwrap_or_else(|| panic!("{reference} leads nowhere")), value, at);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fits(document, part, value, at);
    }
    if value.is_null() {
        return assert_eq!(schema["nullable"], true, "{at}");
    }
    match schema["type"].as_str() {
        Some("object") => {
            let empty = serde_json::Map::new();
            let properties = schema["properties"].as_object().unwrap_or(&empty);
            for (name, value) in value.as_object().unwrap_or_else(|| panic!("{at} is no object")) {
                let of_it = properties.get(name).unwrap_or(&schema["additionalProperties"]);
                assert!(of_it.is_object(), "{at}.{name} is not described by {schema}");
                fits(document, of_it, value, &format!("{at}.{name}"));
            }
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(value.get(required.as_str().unwrap()).is_some(), "{at} lacks {required}");
            }
        }
        Some("array") => {
            for item in value.as_array().unwrap_or_else(|| panic!("{at} is no array")) {
                fits(document, &schema["items"], item, at);
            }
        }
        Some("string") => assert!(value.is_string(), "{at} is no string"),
        None if schema["allOf"].is_array() => {}
        Some("integer") => assert!(value.is_i64(), "{at} is no integer"),
        other => panic!("{at}: the type {other:?} of {schema}"),
    }
}
