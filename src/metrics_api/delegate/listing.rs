//! What an adapter says it has, taken with care: a list that is read whole or not at all, bounded, and only of what can be a metric. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::metrics_api::offer::ApiVersion;

/// The most metrics of an adapter that are listed: every caller's discovery contains them.
const MOST_RESOURCES: usize = 10_000;
/// The longest name, in bytes: RBAC or a path could not hold a longer one.
const LONGEST_NAME: usize = 253;

/// What the adapters have, of each version.
pub(in crate::metrics_api) type Listed = BTreeMap<ApiVersion, Vec<DelegatedResource>>;

/// A metric of another adapter: for `external.metrics.k8s.io` by its name, otherwise `resource/metric`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::metrics_api) struct DelegatedResource {
    /// The name.
    pub(in crate::metrics_api) name: String,
    /// Whether it is of things in namespaces.
    pub(in crate::metrics_api) namespaced: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceList {
    kind: String,
    group_version: String,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    #[serde(default)]
    namespaced: bool,
}

/// Reads an `APIResourceList`; in order of names, each once.
///
/// # Errors
/// Why it is none of this version.
pub(super) fn parse(body: &[u8], version: ApiVersion) -> Result<Vec<DelegatedResource>, String> {
    let list: ResourceList =
        serde_json::from_slice(body).map_err(|_| "its list of metrics cannot be read".to_owned())?;
    let ResourceList { kind, group_version, resources } = list;
    if kind != "APIResourceList" || group_version != version.group_version() {
        return Err(format!("it answers with {kind:.60} of {group_version:.60} instead of a list of metrics"));
    }
    if resources.len() > MOST_RESOURCES {
        return Err(format!("it lists {} metrics: at most {MOST_RESOURCES} are taken on", resources.len()));
    }
    let can_be = |resource: &Resource| match version {
        ApiVersion::ExternalV1Beta1 => is_name(&resource.name),
        ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2 => {
            resource.name.split_once('/').is_some_and(|(of, metric)| is_name(of) && is_name(metric))
        }
    };
    let mut seen = BTreeSet::new();
    let mut taken: Vec<DelegatedResource> = resources
        .into_iter()
        .filter(|resource| can_be(resource) && seen.insert(resource.name.clone()))
        .map(|Resource { name, namespaced }| DelegatedResource { name, namespaced })
        .collect();
    taken.sort();
    Ok(taken)
}

/// Anything that a segment of a path may be.
fn is_name(name: &str) -> bool {
    let fits = (1..=LONGEST_NAME).contains(&name.len()) && !matches!(name, "." | "..");
    fits && !name.contains(['/', '%']) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(version: ApiVersion, names: &[&str]) -> Vec<u8> {
        let resources: Vec<_> =
            names.iter().map(|name| json!({"name": name, "namespaced": true, "verbs": ["get"]})).collect();
        let list = json!({"kind": "APIResourceList", "groupVersion": version.group_version(), "resources": resources});
        list.to_string().into_bytes()
    }

    fn names(version: ApiVersion, body: &[u8]) -> Vec<String> {
        parse(body, version).unwrap().into_iter().map(|resource| resource.name).collect()
    }

    #[test]
    fn takes_on_what_can_be_a_metric_each_once_and_in_order() {
        let external = ApiVersion::ExternalV1Beta1;
        let long = "x".repeat(254);
        let body =
            list(external, &["s1-kafka", "s0-rabbit|mq:x", "s1-kafka", "", "..", "a/b", "a%2fb", "a\u{0}", &long]);
        assert_eq!(names(external, &body), ["s0-rabbit|mq:x", "s1-kafka"]);
        let custom = ApiVersion::CustomV1Beta2;
        let body = list(custom, &["pods/requests", "namespaces/requests", "pods", "/x", "pods/", "a/b/c"]);
        assert_eq!(names(custom, &body), ["namespaces/requests", "pods/requests"]);
        assert!(
            names(external, br#"{"kind":"APIResourceList","groupVersion":"external.metrics.k8s.io/v1beta1"}"#)
                .is_empty()
        );
    }

    #[test]
    fn what_is_no_list_of_this_version_is_refused_whole() {
        let external = ApiVersion::ExternalV1Beta1;
        let many: Vec<String> = (0..=MOST_RESOURCES).map(|number| format!("m{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for body in [
            b"<html>".to_vec(),
            b"{}".to_vec(),
            b"[]".to_vec(),
            list(ApiVersion::CustomV1Beta1, &["pods/x"]),
            br#"{"kind":"Status","groupVersion":"external.metrics.k8s.io/v1beta1"}"#.to_vec(),
            list(external, &many),
        ] {
            assert!(parse(&body, external).is_err(), "{:.60}", String::from_utf8_lossy(&body));
        }
    }
}
