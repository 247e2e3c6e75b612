//! OpenAPI documents, generated from the wire types: what `kubectl explain` reads, and what the aggregator would otherwise complain
//! of for ever. Made once, from the [`Offer`].

use http::HeaderMap;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    custom_v1beta1, custom_v1beta2,
    discovery::EXTERNAL_METRICS,
    external_v1beta1::ExternalMetricValueList,
    object_values,
    offer::{ApiVersion, Offer},
    reply::{Answer, Document, fingerprint},
};

/// The documents.
#[derive(Clone, Debug)]
pub(super) struct OpenApi {
    v2: Document,
    v3: Document,
    v3_groups: Vec<(ApiVersion, Document)>,
}

impl OpenApi {
    pub(super) fn new(offer: &Offer) -> Self {
        let versions = offer.versions();
        let mut paths = Map::new();
        let mut v3_groups = Vec::new();
        for version in &versions {
            let document = v3(*version, offer);
            let path = format!("apis/{}", version.group_version());
            let url = format!("/openapi/v3/{path}?hash={}", fingerprint(&document.to_string()));
            paths.insert(path, json!({"serverRelativeURL": url}));
            v3_groups.push((*version, Document::json(&document)));
        }
        Self { v2: Document::json(&v2(&versions, offer)), v3: Document::json(&json!({"paths": paths})), v3_groups }
    }

    /// `/openapi/v2`
    pub(super) fn v2(&self, request: &HeaderMap) -> Answer {
        self.v2.answer(request)
    }

    /// `/openapi/v3`
    pub(super) fn v3(&self, request: &HeaderMap) -> Answer {
        self.v3.answer(request)
    }

    /// `/openapi/v3/apis/<group>/<version>`, if it is offered.
    pub(super) fn v3_group(&self, version: ApiVersion, request: &HeaderMap) -> Option<Answer> {
        self.v3_groups.iter().find(|(offered, _)| *offered == version).map(|(_, document)| document.answer(request))
    }
}

fn info() -> Value {
    json!({"title": "Projectionist", "version": env!("CARGO_PKG_VERSION")})
}

fn v2(versions: &[ApiVersion], offer: &Offer) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for version in versions {
        let schemas = Schemas::of(*version, "/definitions");
        for operation in operations(*version, offer) {
            let parameter = |(name, place): (&str, &str)| json!({"name": name, "in": place, "required": place == "path", "type": "string"});
            let mut get = operation.common(*version, parameter);
            get["consumes"] = json!(["*/*"]);
            get["produces"] = json!(["application/json"]);
            get["schemes"] = json!(["https"]);
            get["responses"] = json!({"200": {"description": "OK", "schema": schemas.root}});
            paths.insert(operation.path, json!({"get": get}));
        }
        definitions.extend(schemas.all.into_iter().map(|(name, mut schema)| {
            without_null(&mut schema);
            (name, schema)
        }));
    }
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions})
}

fn v3(version: ApiVersion, offer: &Offer) -> Value {
    let schemas = Schemas::of(version, "/components/schemas");
    let mut paths = Map::new();
    for operation in operations(version, offer) {
        let parameter = |(name, place): (&str, &str)| json!({"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}});
        let mut get = operation.common(version, parameter);
        let content = json!({"application/json": {"schema": schemas.root}});
        get["responses"] = json!({"200": {"description": "OK", "content": content}});
        paths.insert(operation.path, json!({"get": get}));
    }
    json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas.all}})
}

/// One path that can be read.
struct Operation {
    path: String,
    id: String,
    description: String,
    action: &'static str,
    /// Name and place.
    parameters: Vec<(&'static str, &'static str)>,
}

impl Operation {
    fn common(&self, version: ApiVersion, parameter: impl Fn((&'static str, &'static str)) -> Value) -> Value {
        json!({
            "operationId": self.id,
            "description": self.description,
            "tags": [tag(version)],
            "parameters": self.parameters.iter().copied().map(parameter).collect::<Vec<_>>(),
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": group_version_kind(version),
        })
    }
}

fn operations(version: ApiVersion, offer: &Offer) -> Vec<Operation> {
    let root = format!("/apis/{}/namespaces/{{namespace}}", version.group_version());
    let (family, suffix) = (camel_case(version.group()), camel_case(version.version()));
    match (version, &offer.objects) {
        (ApiVersion::ExternalV1Beta1, _) => {
            let list =
                |segment: &str, id: &str, description: &str, parameters: &[(&'static str, &'static str)]| Operation {
                    path: format!("{root}/{segment}"),
                    id: format!("list{family}{suffix}Namespaced{id}"),
                    description: description.to_owned(),
                    action: "list",
                    parameters: [&[("namespace", "path")], parameters, &[("labelSelector", "query")]].concat(),
                };
            vec![
                list("{metric}", "Metric", "The values of an external metric", &[("metric", "path")]),
                // The resource of discovery, under whose path tools look its type up.
                list(EXTERNAL_METRICS, "ExternalMetrics", "Stands for every external metric: none has this name", &[]),
            ]
        }
        (ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2, Some(measured)) => {
            let of_metric = |metric: &String| Operation {
                path: format!("{root}/{}/{{name}}/{metric}", measured.resource),
                id: format!("read{family}{suffix}Namespaced{}{}", measured.kind, camel_case(metric)),
                description: format!(
                    "{metric} of one {}, or with the name * of all that labelSelector selects",
                    measured.kind
                ),
                action: "get",
                parameters: vec![
                    ("namespace", "path"),
                    ("name", "path"),
                    ("labelSelector", "query"),
                    ("metricLabelSelector", "query"),
                ],
            };
            measured.metrics.iter().map(of_metric).collect()
        }
        (ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2, None) => Vec::new(),
    }
}

/// The schemas of a version's types.
struct Schemas {
    /// A reference to the list.
    root: Value,
    all: Map<String, Value>,
}

impl Schemas {
    /// With references to `place` of the document.
    fn of(version: ApiVersion, place: &'static str) -> Self {
        match version {
            ApiVersion::ExternalV1Beta1 => Self::of_type::<ExternalMetricValueList<'_>>(version, place),
            ApiVersion::CustomV1Beta1 => Self::of_type::<custom_v1beta1::MetricValueList<'_>>(version, place),
            ApiVersion::CustomV1Beta2 => Self::of_type::<custom_v1beta2::MetricValueList<'_>>(version, place),
        }
    }

    fn of_type<T: JsonSchema>(version: ApiVersion, place: &'static str) -> Self {
        let settings = SchemaSettings::openapi3().for_serialize().with(|settings| {
            settings.definitions_path = place.into();
        });
        let mut generator = SchemaGenerator::new(settings);
        let root = generator.subschema_for::<T>().to_value();
        let mut all = generator.take_definitions(true);
        if let Some(list) = all.get_mut(T::schema_name().as_ref()) {
            list["x-kubernetes-group-version-kind"] = json!([group_version_kind(version)]);
        }
        Self { root, all }
    }
}

fn group_version_kind(version: ApiVersion) -> Value {
    let kind = match version {
        ApiVersion::ExternalV1Beta1 => ExternalMetricValueList::KIND,
        ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2 => object_values::KIND,
    };
    json!({"group": version.group(), "version": version.version(), "kind": kind})
}

/// As the API server tags its own: `customMetrics_v1beta2`.
fn tag(version: ApiVersion) -> String {
    let family = camel_case(version.group());
    let (first, rest) = family.split_at(1);
    format!("{}{rest}_{}", first.to_lowercase(), version.version())
}

/// `CustomMetrics` of `custom.metrics.k8s.io`, `ArrivalRate` of `arrival_rate`.
fn camel_case(text: &str) -> String {
    let words = text.trim_end_matches(".k8s.io").split(['.', '_', '-']);
    words.map(|word| word.get(..1).unwrap_or_default().to_uppercase() + word.get(1..).unwrap_or_default()).collect()
}

/// Swagger 2 has no word for what may be null: it becomes optional.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let properties = fields.get_mut("properties").and_then(Value::as_object_mut);
            let can_be_null = |(name, property): (&String, &mut Value)| {
                let nullable = property.as_object_mut()?.remove("nullable")?;
                (nullable == true).then(|| name.clone())
            };
            let nullable: Vec<String> = properties.into_iter().flatten().filter_map(can_be_null).collect();
            if let Some(Value::Array(required)) = fields.get_mut("required") {
                required.retain(|name| !nullable.iter().any(|nullable| name == nullable.as_str()));
            }
            fields.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics_api::offer::MeasuredKind;

    fn offer() -> Offer {
        let kind = MeasuredKind {
            kind: "Thing".to_owned(),
            api_version: "example.org/v1".to_owned(),
            resource: "things.example.org".to_owned(),
            metrics: vec!["lag".to_owned(), "arrival_rate".to_owned()],
        };
        Offer { external: true, objects: Some(kind) }
    }

    /// Every text under a key, anywhere.
    fn found<'a>(value: &'a Value, key: &str, into: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                into.extend(fields.get(key).and_then(Value::as_str));
                fields.values().for_each(|value| found(value, key, into));
            }
            Value::Array(items) => items.iter().for_each(|value| found(value, key, into)),
            _ => {}
        }
    }

    fn documents() -> Vec<Value> {
        let offer = offer();
        let v3 = offer.versions().into_iter().map(|version| v3(version, &offer));
        v3.chain([v2(&offer.versions(), &offer)]).collect()
    }

    #[test]
    fn every_reference_leads_somewhere_and_no_operation_is_named_twice() {
        for document in documents() {
            let (mut references, mut ids) = (Vec::new(), Vec::new());
            found(&document, "$ref", &mut references);
            found(&document, "operationId", &mut ids);
            assert!(!references.is_empty() && !ids.is_empty(), "{document}");
            for reference in references {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} of {document}");
            }
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
        }
    }

    #[test]
    fn every_parameter_of_a_path_is_declared() {
        for document in documents() {
            for (path, operations) in document["paths"].as_object().unwrap() {
                let declared = operations["get"]["parameters"].as_array().unwrap();
                let declared: BTreeSet<&str> =
                    declared.iter().filter(|it| it["in"] == "path").filter_map(|it| it["name"].as_str()).collect();
                let used: BTreeSet<&str> =
                    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
                assert_eq!(declared, used, "{path}");
            }
        }
    }

    #[test]
    fn what_may_be_null_is_nullable_in_the_new_form_and_optional_in_the_old_one() {
        let name = "io.k8s.metrics.pkg.apis.custom_metrics.v1beta2.MetricIdentifier";
        let new = &v3(ApiVersion::CustomV1Beta2, &offer())["components"]["schemas"][name];
        assert_eq!(
            (&new["properties"]["selector"]["nullable"], &new["required"]),
            (&json!(true), &json!(["name", "selector"]))
        );
        let old = &v2(&offer().versions(), &offer())["definitions"][name];
        assert_eq!((&old["properties"]["selector"]["nullable"], &old["required"]), (&Value::Null, &json!(["name"])));
    }

    #[test]
    fn a_type_is_found_by_its_kind_as_kubectl_looks_for_it() {
        let document = v3(ApiVersion::ExternalV1Beta1, &offer());
        let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/externalmetrics";
        let wanted = &document["paths"][path]["get"]["x-kubernetes-group-version-kind"];
        assert_eq!(wanted["kind"], "ExternalMetricValueList");
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let holds = |schema: &&Value| {
            schema["x-kubernetes-group-version-kind"].as_array().is_some_and(|all| all.contains(wanted))
        };
        assert_eq!(schemas.values().filter(holds).count(), 1);
    }

    #[test]
    fn only_what_is_offered_is_described() {
        let only_external = Offer { external: true, objects: None };
        let documents = OpenApi::new(&only_external);
        let none = HeaderMap::new();
        assert!(documents.v3_group(ApiVersion::CustomV1Beta2, &none).is_none());
        for answer in [documents.v2(&none), documents.v3(&none)] {
            let text = String::from_utf8_lossy(answer.body()).into_owned();
            assert!(text.contains("external.metrics") && !text.contains("custom.metrics"), "{text}");
        }
    }
}
