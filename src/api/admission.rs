//! What the API server makes of a Projection that is created: refused, or taken with the defaults filled in. By the CustomResourceDefinition's own schema
//! and rules, so that what is said without a cluster is what a cluster says.
//!
//! Left to a real server: whether a name is taken, quotas, other webhooks, and rules about a change, which need the object from before.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt as _;
use kube_cel::{ErrorKind, ValidationError, Validator};
use serde_json::{Value, json};

use super::{
    Projection, Shards,
    structural::{Refusal, prune, refusals, shown},
};

fn refusal(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
    Refusal { field: field.into(), problem: problem.into() }
}

/// Takes a Projection as it is written, as the API server would.
///
/// # Errors
/// With everything that it would refuse. Rules in CEL are asked only once the schema finds nothing, as the server does.
pub fn admit(mut object: Value) -> Result<Projection, Vec<Refusal>> {
    let Some(fields) = object.as_object_mut() else {
        let problem = format!("must be an object with apiVersion, kind, metadata and spec, and is {}", shown(&object));
        return Err(vec![refusal("the document", problem)]);
    };
    // What comes from a cluster has one, and the server takes none from others.
    fields.remove("status");
    let mut found = Vec::new();
    let resource = Projection::api_resource();
    for (field, expected) in [("apiVersion", &resource.api_version), ("kind", &resource.kind)] {
        match fields.get(field) {
            Some(Value::String(given)) if given == expected => {}
            Some(other) => found.push(refusal(field, format!("must be {expected}, and is {}", shown(other)))),
            None => found.push(refusal(field, format!("is required: {expected}"))),
        }
    }
    if !found.is_empty() {
        return Err(found);
    }
    for name in fields.keys().filter(|name| !["apiVersion", "kind", "metadata", "spec"].contains(&name.as_str())) {
        found.push(refusal(name, "is no field there: the fields of a Projection are in spec"));
    }
    found.extend(metadata(fields.get("metadata").unwrap_or(&Value::Null)));
    let schema = schema();
    let spec_schema = schema.pointer("/properties/spec").unwrap_or(&Value::Null);
    match fields.get_mut("spec") {
        Some(spec) if !spec.is_null() => {
            prune(spec_schema, spec);
            found.extend(refusals(spec_schema, spec, "spec"));
        }
        _ => found.push(refusal("spec", "is required")),
    }
    if !found.is_empty() {
        return Err(found);
    }
    if let Err(broken) = Validator::new().validate(&schema, &object, None) {
        found.extend(broken.into_vec().iter().filter_map(|error| of_rule(error, &object)));
    }
    if !found.is_empty() {
        return Err(found);
    }
    serde_json::from_value(object).map_err(|error| vec![refusal("the document", format!("cannot be read: {error}"))])
}

/// What the API server would refuse of `spec.scaling.behavior`, wherever it stands: `path` is where.
pub fn refused_behavior(behavior: &Value, path: &str) -> Vec<Refusal> {
    let schema = schema();
    let part = schema.pointer("/properties/spec/properties/scaling/properties/behavior").unwrap_or(&Value::Null);
    refusals(part, behavior, path)
}

/// The first field that was given and not understood.
pub fn unknown_field(given: &Value, understood: &Value, path: &str) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), understood) => {
            given.iter().filter(|(_, value)| !value.is_null()).find_map(|(key, value)| {
                let path = format!("{path}.{key}").trim_start_matches('.').to_owned();
                match understood.get(key) {
                    None if value.as_object().is_some_and(serde_json::Map::is_empty) => None,
                    None => Some(path),
                    Some(understood) => unknown_field(value, understood, &path),
                }
            })
        }
        (Value::Array(given), Value::Array(understood)) => (0..)
            .zip(given.iter().zip(understood))
            .find_map(|(index, (given, understood))| unknown_field(given, understood, &format!("{path}[{index}]"))),
        _ => None,
    }
}

fn schema() -> Value {
    json!(Projection::crd()).pointer("/spec/versions/0/schema/openAPIV3Schema").cloned().unwrap_or(Value::Null)
}

/// The name, and fields that no metadata has.
fn metadata(metadata: &Value) -> Vec<Refusal> {
    let read: ObjectMeta = match serde_json::from_value(metadata.clone()) {
        Ok(read) => read,
        Err(error) => return vec![refusal("metadata", format!("cannot be read: {error}"))],
    };
    let unknown = unknown_field(metadata, &json!(read), "metadata").map(|field| refusal(field, "is no field there"));
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let fits = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        let bytes = name.as_bytes();
        bytes.iter().copied().all(allowed) && end(bytes.first()) && end(bytes.last()) && bytes.len() <= 253
    };
    let name = match read.name.as_deref() {
        None => Some("is required".to_owned()),
        Some(name) if name.split('.').all(fits) => None,
        Some(name) => Some(format!("must be lower-case letters, digits, - and ., and is {name:?}")),
    };
    unknown.into_iter().chain(name.map(|problem| refusal("metadata.name", problem))).collect()
}

/// The messages of our rules name the field, or say what it must be.
fn of_rule(error: &ValidationError, object: &Value) -> Option<Refusal> {
    let field = error.field_path.trim_start_matches('.').to_owned();
    let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
    let value = object.pointer(&pointer);
    if error.kind == ErrorKind::UnsupportedReference && field == SHARDS {
        let problem =
            || format!("must be Auto or a number from 1 to 1024, and is {}", value.map(shown).unwrap_or_default());
        let read = value.is_none_or(|value| serde_json::from_value::<Shards>(value.clone()).is_ok());
        return (!read).then(|| refusal(field, problem()));
    }
    if error.kind != ErrorKind::ValidationFailure {
        let field = if field.is_empty() { "the document".to_owned() } else { field };
        return Some(refusal(field, format!("has a rule that cannot be checked here: {}", error.message)));
    }
    let value = value.filter(|value| !value.is_object() && !value.is_array());
    let is = value.map(|value| format!(", and is {}", shown(value))).unwrap_or_default();
    Some(match error.message.split_once(' ') {
        Some((named, problem)) if named.starts_with("spec") || named.starts_with("metadata") => {
            refusal(named, format!("{problem}{is}"))
        }
        _ => refusal(field, format!("{}{is}", error.message)),
    })
}

/// The one field whose rule in CEL asks for a type, which is not known here: its own reader holds the same rule.
const SHARDS: &str = "spec.scaling.shards";

#[cfg(test)]
#[path = "admission_tests/mod.rs"]
mod tests;
