//! What the API offers, in each form in which the aggregator and `kubectl` ask for it. Made from the [`Offer`] and from the other metrics that
//! another adapter has, and made again when those change.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::{
    delegate::{DelegatedResource, Listed},
    external_v1beta1::ExternalMetricValueList,
    object_values,
    offer::{ApiVersion, MeasuredKind, Offer},
    reply::{Answer, Document},
};

/// The aggregator takes the aggregated form only with exactly this content type, and falls back to the older forms otherwise.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The resource that stands for all external metrics, since their names are not resources known beforehand.
pub(super) const EXTERNAL_METRICS: &str = "externalmetrics";

/// The documents.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    aggregated: Document,
    groups: Document,
    group: Vec<(&'static str, Document)>,
    resources: Vec<(ApiVersion, Document)>,
}

impl Discovery {
    pub(super) fn new(offer: &Offer, listed: &Listed) -> Self {
        let versions = offer.versions();
        let groups = groups(&versions);
        let all: Vec<Value> = groups.iter().map(|(group, versions)| api_group(group, versions)).collect();
        let aggregated: Vec<Value> =
            groups.iter().map(|(group, versions)| aggregated_group(group, versions, offer, listed)).collect();
        let aggregated = json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": aggregated,
        });
        let alone = |(group, versions): &(&'static str, Vec<ApiVersion>)| {
            let mut document = api_group(group, versions);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            (*group, Document::json(&document))
        };
        let list = |version: ApiVersion| {
            json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": version.group_version(),
                "resources": resources(version, offer, listed),
            })
        };
        Self {
            aggregated: Document::with_type(&aggregated, HeaderValue::from_static(AGGREGATED)),
            groups: Document::json(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})),
            group: groups.iter().map(alone).collect(),
            resources: versions.into_iter().map(|version| (version, Document::json(&list(version)))).collect(),
        }
    }

    /// `/apis`, aggregated where the caller asks for that.
    pub(super) fn groups(&self, request: &HeaderMap) -> Answer {
        if asks_for_aggregated(request) { self.aggregated.answer(request) } else { self.groups.answer(request) }
    }

    /// `/apis/<group>`, if it is offered.
    pub(super) fn group(&self, group: &str, request: &HeaderMap) -> Option<Answer> {
        self.group.iter().find(|(name, _)| *name == group).map(|(_, document)| document.answer(request))
    }

    /// `/apis/<group>/<version>`, if it is offered.
    pub(super) fn resources(&self, version: ApiVersion, request: &HeaderMap) -> Option<Answer> {
        self.resources.iter().find(|(offered, _)| *offered == version).map(|(_, document)| document.answer(request))
    }
}

/// The versions by group, in their order.
fn groups(versions: &[ApiVersion]) -> Vec<(&'static str, Vec<ApiVersion>)> {
    let mut groups: Vec<(&'static str, Vec<ApiVersion>)> = Vec::new();
    for version in versions {
        match groups.iter_mut().find(|(group, _)| *group == version.group()) {
            Some((_, of_it)) => of_it.push(*version),
            None => groups.push((version.group(), vec![*version])),
        }
    }
    groups
}

fn api_group(group: &str, versions: &[ApiVersion]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": version.group_version(), "version": version.version()}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

/// The resources of a version as APIResources: metrics of objects are subresources of theirs.
fn resources(version: ApiVersion, offer: &Offer, listed: &Listed) -> Vec<Value> {
    let resource = |name: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind_of(version), "verbs": ["get"]});
    let ours = match (version, &offer.objects) {
        (ApiVersion::ExternalV1Beta1, _) => vec![resource(EXTERNAL_METRICS, true)],
        (ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2, Some(MeasuredKind { resource: of, metrics, .. })) => {
            metrics.iter().map(|metric| resource(&format!("{of}/{metric}"), true)).collect()
        }
        (ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2, None) => Vec::new(),
    };
    let others = others(version, listed).map(|other| resource(&other.name, other.namespaced));
    ours.into_iter().chain(others).collect()
}

fn kind_of(version: ApiVersion) -> &'static str {
    match version {
        ApiVersion::ExternalV1Beta1 => ExternalMetricValueList::KIND,
        ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2 => object_values::KIND,
    }
}

/// The metrics of a version that another adapter has and the operator has not.
fn others(version: ApiVersion, listed: &Listed) -> impl Iterator<Item = &DelegatedResource> {
    listed.get(&version).into_iter().flatten().filter(|other| other.name != EXTERNAL_METRICS)
}

fn aggregated_group(group: &str, versions: &[ApiVersion], offer: &Offer, listed: &Listed) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            json!({
                "version": version.version(),
                "freshness": "Current",
                "resources": aggregated_resources(*version, offer, listed),
            })
        })
        .collect();
    json!({"metadata": {"name": group}, "versions": versions})
}

fn aggregated_resources(version: ApiVersion, offer: &Offer, listed: &Listed) -> Vec<Value> {
    let kind = json!({"group": "", "version": "", "kind": kind_of(version)});
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    if version == ApiVersion::ExternalV1Beta1 {
        let resource = |name: &str, namespaced: bool| json!({"resource": name, "responseKind": kind, "scope": scope(namespaced), "singularResource": "", "verbs": ["get"]});
        let others = others(version, listed).map(|other| resource(&other.name, other.namespaced));
        return std::iter::once(resource(EXTERNAL_METRICS, true)).chain(others).collect();
    }
    // The objects themselves are not served here: a parent without kind and verbs only carries its metrics, as the API
    // server writes it for subresources whose parent is elsewhere.
    let parent = |name: &str, namespaced: bool, metrics: &[&str]| {
        let metric = |metric: &&str| json!({"subresource": metric, "responseKind": kind, "verbs": ["get"]});
        json!({
            "resource": name,
            "responseKind": {"group": "", "version": "", "kind": ""},
            "scope": scope(namespaced),
            "singularResource": "",
            "verbs": [],
            "subresources": metrics.iter().map(metric).collect::<Vec<_>>(),
        })
    };
    let ours = offer.objects.iter().map(|kind| {
        let metrics: Vec<&str> = kind.metrics.iter().map(String::as_str).collect();
        parent(&kind.resource, true, &metrics)
    });
    // Metrics of one parent are of one scope: what contradicts the first is left out of this form.
    let mut parents: BTreeMap<&str, (bool, Vec<&str>)> = BTreeMap::new();
    for other in others(version, listed) {
        let Some((of, metric)) = other.name.split_once('/') else { continue };
        let (namespaced, metrics) = parents.entry(of).or_insert((other.namespaced, Vec::new()));
        if *namespaced == other.namespaced {
            metrics.push(metric);
        }
    }
    ours.chain(parents.iter().map(|(of, (namespaced, metrics))| parent(of, *namespaced, metrics))).collect()
}

fn asks_for_aggregated(request: &HeaderMap) -> bool {
    let accepted = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|media| {
        let has = |wanted: &str| media.split(';').any(|part| part.trim() == wanted);
        has("application/json") && has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn offer(external: bool, objects: bool) -> Offer {
        let kind = MeasuredKind {
            kind: "Thing".to_owned(),
            api_version: "example.org/v1".to_owned(),
            resource: "things.example.org".to_owned(),
            metrics: vec!["lag".to_owned(), "rate".to_owned()],
        };
        Offer { external, objects: objects.then_some(kind) }
    }

    fn asked(offer: &Offer, accept: &str, etag: Option<&HeaderValue>) -> Answer {
        let mut request = HeaderMap::new();
        request.insert(header::ACCEPT, accept.parse().unwrap());
        if let Some(etag) = etag {
            request.insert(header::IF_NONE_MATCH, etag.clone());
        }
        Discovery::new(offer, &Listed::new()).groups(&request)
    }

    fn json_of(answer: &Answer) -> Value {
        serde_json::from_slice(answer.body()).unwrap()
    }

    #[test]
    fn the_aggregator_gets_the_aggregated_form_with_its_exact_type_and_then_304() {
        let accept = format!(
            "{AGGREGATED},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        );
        let answer = asked(&offer(true, true), &accept, None);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], AGGREGATED);
        let etag = answer.headers()[header::ETAG].clone();
        let again = asked(&offer(true, true), &accept, Some(&etag));
        assert_eq!((again.status(), again.body().len()), (StatusCode::NOT_MODIFIED, 0));
        let other = asked(&offer(true, false), &accept, Some(&etag));
        assert_eq!(other.status(), StatusCode::OK, "what changed has another tag");
    }

    #[test]
    fn others_get_the_older_form() {
        for accept in
            ["application/json", "*/*", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"]
        {
            let answer = asked(&offer(true, true), accept, None);
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
            assert_eq!(json_of(&answer)["kind"], "APIGroupList");
        }
    }

    #[test]
    fn metrics_of_objects_are_subresources_in_every_form() {
        let discovery = Discovery::new(&offer(true, true), &Listed::new());
        let none = HeaderMap::new();
        for version in [ApiVersion::CustomV1Beta1, ApiVersion::CustomV1Beta2] {
            let list = json_of(&discovery.resources(version, &none).unwrap());
            assert_eq!(list["groupVersion"], version.group_version());
            let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "MetricValueList", "verbs": ["get"]});
            assert_eq!(
                list["resources"],
                json!([resource("things.example.org/lag"), resource("things.example.org/rate")])
            );
        }
        let group = json_of(&discovery.group("custom.metrics.k8s.io", &none).unwrap());
        assert_eq!(group["preferredVersion"]["groupVersion"], "custom.metrics.k8s.io/v1beta2");
        assert_eq!(group["versions"][1]["version"], "v1beta1");
        let aggregated = json_of(&asked(&offer(true, true), AGGREGATED, None));
        let names: Vec<&str> = aggregated["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| item["metadata"]["name"].as_str())
            .collect();
        assert_eq!(names, ["external.metrics.k8s.io", "custom.metrics.k8s.io"]);
        let custom = &aggregated["items"][1]["versions"];
        assert_eq!((&custom[0]["version"], &custom[1]["version"]), (&json!("v1beta2"), &json!("v1beta1")));
        let metric = |name: &str| json!({"subresource": name, "responseKind": {"group": "", "version": "", "kind": "MetricValueList"}, "verbs": ["get"]});
        assert_eq!(
            custom[0]["resources"],
            json!([{
                "resource": "things.example.org",
                "responseKind": {"group": "", "version": "", "kind": ""},
                "scope": "Namespaced",
                "singularResource": "",
                "verbs": [],
                "subresources": [metric("lag"), metric("rate")],
            }])
        );
    }

    #[test]
    fn what_is_not_offered_is_in_no_form_and_no_list_is_empty() {
        let none = HeaderMap::new();
        for (external, objects) in [(true, true), (true, false), (false, true), (false, false)] {
            let offer = offer(external, objects);
            let discovery = Discovery::new(&offer, &Listed::new());
            for (version, offered) in [
                (ApiVersion::ExternalV1Beta1, external),
                (ApiVersion::CustomV1Beta1, objects),
                (ApiVersion::CustomV1Beta2, objects),
            ] {
                assert_eq!(discovery.group(version.group(), &none).is_some(), offered);
                let list = discovery.resources(version, &none);
                assert_eq!(list.is_some(), offered);
                assert!(list.is_none_or(|list| !json_of(&list)["resources"].as_array().unwrap().is_empty()));
                for accept in ["*/*", AGGREGATED] {
                    let all = asked(&offer, accept, None);
                    assert_eq!(String::from_utf8_lossy(all.body()).contains(version.group()), offered, "{accept}");
                }
            }
        }
    }

    #[test]
    fn what_another_adapter_has_is_beside_ours_in_every_form() {
        let resource = |name: &str, namespaced| DelegatedResource { name: name.to_owned(), namespaced };
        let listed = Listed::from([
            (ApiVersion::ExternalV1Beta1, vec![resource("externalmetrics", true), resource("s0-kafka", true)]),
            (
                ApiVersion::CustomV1Beta2,
                vec![
                    resource("nodes/load", false),
                    resource("pods/load", true),
                    resource("pods/odd", false),
                    resource("pods/requests", true),
                ],
            ),
        ]);
        let discovery = Discovery::new(&offer(true, true), &listed);
        let none = HeaderMap::new();
        let names = |version| {
            let list = json_of(&discovery.resources(version, &none).unwrap());
            let name = |resource: &Value| resource["name"].as_str().unwrap().to_owned();
            list["resources"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(ApiVersion::ExternalV1Beta1), ["externalmetrics", "s0-kafka"]);
        let ours = ["things.example.org/lag", "things.example.org/rate"];
        assert_eq!(names(ApiVersion::CustomV1Beta1), ours, "it has nothing in this version");
        assert_eq!(names(ApiVersion::CustomV1Beta2)[..2], ours);
        assert_eq!(names(ApiVersion::CustomV1Beta2)[2..], ["nodes/load", "pods/load", "pods/odd", "pods/requests"]);

        let mut accept = HeaderMap::new();
        accept.insert(header::ACCEPT, HeaderValue::from_static(AGGREGATED));
        let answer = discovery.groups(&accept);
        let all = json_of(&answer);
        let external = &all["items"][0]["versions"][0]["resources"];
        assert_eq!(
            (&external[0]["resource"], &external[1]["resource"]),
            (&json!("externalmetrics"), &json!("s0-kafka"))
        );
        let custom = all["items"][1]["versions"][0]["resources"].as_array().unwrap();
        let parents: Vec<_> = custom.iter().map(|parent| (&parent["resource"], &parent["scope"])).collect();
        let namespaced = json!("Namespaced");
        assert_eq!(
            parents,
            [
                (&json!("things.example.org"), &namespaced),
                (&json!("nodes"), &json!("Cluster")),
                (&json!("pods"), &namespaced)
            ]
        );
        let of_pods: Vec<_> =
            custom[2]["subresources"].as_array().unwrap().iter().map(|it| &it["subresource"]).collect();
        assert_eq!(of_pods, ["load", "requests"], "one parent has one scope");
        let before = asked(&offer(true, true), AGGREGATED, None);
        assert_ne!(before.headers()[header::ETAG], answer.headers()[header::ETAG], "the aggregator notices");
    }
}
