//! What the API offers, in each form in which the aggregator and `kubectl` ask for it.

use http::{HeaderMap, HeaderValue, header};
use serde_json::json;

use super::{
    GROUP, VERSION,
    reply::{Answer, Document},
};

/// The aggregator takes the aggregated form only with exactly this content type, and falls back to the older forms otherwise.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The resource that stands for all external metrics, since their names are not resources known beforehand.
const RESOURCE: &str = "externalmetrics";
const KIND: &str = "ExternalMetricValueList";

/// The documents.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    aggregated: Document,
    groups: Document,
    group: Document,
    resources: Document,
}

impl Discovery {
    pub(super) fn new() -> Self {
        let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
        let group = json!({"name": GROUP, "versions": [version], "preferredVersion": version});
        let mut of_one = group.clone();
        if let Some(fields) = of_one.as_object_mut() {
            fields.insert("kind".to_owned(), json!("APIGroup"));
            fields.insert("apiVersion".to_owned(), json!("v1"));
        }
        Self {
            aggregated: Document::with_type(&aggregated(), HeaderValue::from_static(AGGREGATED)),
            groups: Document::json(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})),
            group: Document::json(&of_one),
            resources: Document::json(&json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": format!("{GROUP}/{VERSION}"),
                "resources": [{"name": RESOURCE, "singularName": "", "namespaced": true, "kind": KIND, "verbs": ["get"]}],
            })),
        }
    }

    /// `/apis`, aggregated for who asks for that.
    pub(super) fn groups(&self, request: &HeaderMap) -> Answer {
        if asks_for_aggregated(request) { self.aggregated.answer(request) } else { self.groups.answer(request) }
    }

    /// `/apis/<group>`
    pub(super) fn group(&self, request: &HeaderMap) -> Answer {
        self.group.answer(request)
    }

    /// `/apis/<group>/<version>`
    pub(super) fn resources(&self, request: &HeaderMap) -> Answer {
        self.resources.answer(request)
    }
}

fn aggregated() -> serde_json::Value {
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [{
            "metadata": {"name": GROUP},
            "versions": [{
                "version": VERSION,
                "freshness": "Current",
                "resources": [{
                    "resource": RESOURCE,
                    "responseKind": {"group": "", "version": "", "kind": KIND},
                    "scope": "Namespaced",
                    "singularResource": "",
                    "verbs": ["get"],
                }],
            }],
        }],
    })
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

    fn asked(accept: &str, etag: Option<&HeaderValue>) -> Answer {
        let mut request = HeaderMap::new();
        request.insert(header::ACCEPT, accept.parse().unwrap());
        if let Some(etag) = etag {
            request.insert(header::IF_NONE_MATCH, etag.clone());
        }
        Discovery::new().groups(&request)
    }

    #[test]
    fn the_aggregator_gets_the_aggregated_form_with_its_exact_type_and_then_304() {
        let accept = format!(
            "{AGGREGATED},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        );
        let answer = asked(&accept, None);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], AGGREGATED);
        let etag = answer.headers()[header::ETAG].clone();
        let again = asked(&accept, Some(&etag));
        assert_eq!((again.status(), again.body().len()), (StatusCode::NOT_MODIFIED, 0));
    }

    #[test]
    fn others_get_the_older_form() {
        for accept in
            ["application/json", "*/*", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"]
        {
            let answer = asked(accept, None);
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
            assert!(String::from_utf8_lossy(answer.body()).contains("APIGroupList"));
        }
    }
}
