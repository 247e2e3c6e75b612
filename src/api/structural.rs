//! Holds an object against a structural schema, as the API server does: types, bounds, patterns, required fields, and fields that are not known.
//! Rules in CEL are [`super::admission`]'s.

use regex::Regex;
use serde_json::{Map, Value};

/// One thing that the API server would refuse.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Refusal {
    /// The field's path, such as `spec.scaling.maxWorkers`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// Removes what is null and may not be: the API server takes it for absent.
pub(super) fn prune(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| !field.is_null() || field_schema(schema, name).is_none_or(nullable));
            for (name, field) in fields {
                if let Some(schema) = field_schema(schema, name) {
                    prune(schema, field);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| prune(schema, item));
            }
        }
        _ => {}
    }
}

/// Everything in `value` that the schema refuses. `path` is the value's own.
pub(super) fn refusals(schema: &Value, value: &Value, path: &str) -> Vec<Refusal> {
    let mut found = Vec::new();
    check(schema, value, path, &mut found);
    found
}

fn nullable(schema: &Value) -> bool {
    is(schema, "nullable")
}

fn is(schema: &Value, flag: &str) -> bool {
    schema.get(flag).and_then(Value::as_bool) == Some(true)
}

fn field_schema<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let named = schema.get("properties").and_then(|properties| properties.get(name));
    named.or_else(|| schema.get("additionalProperties").filter(|schema| schema.is_object()))
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<Refusal>) {
    if value.is_null() && nullable(schema) {
        return;
    }
    let mut refuse = |problem: String| found.push(Refusal { field: path.to_owned(), problem });
    if let Err(expected) = of_type(schema, value) {
        return refuse(format!("must be {expected}, and is {}", shown(value)));
    }
    let allowed = schema.get("enum").and_then(Value::as_array);
    if let Some(allowed) = allowed.filter(|allowed| !allowed.contains(value)) {
        let words: Vec<String> = allowed.iter().filter(|one| !one.is_null()).map(shown).collect();
        refuse(format!("must be {}, and is {}", words.join(" or "), shown(value)));
    }
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(number) = value.as_f64() {
        if let Some(least) = bound("minimum").filter(|least| number < *least) {
            refuse(format!("must be at least {least}, and is {}", shown(value)));
        }
        if let Some(most) = bound("maximum").filter(|most| number > *most) {
            refuse(format!("must be at most {most}, and is {}", shown(value)));
        }
    }
    if let Some(text) = value.as_str()
        && let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
    {
        refuse(format!("must match {pattern}, and is {}", shown(value)));
    }
    let (count, what) = match value {
        Value::String(text) => (text.chars().count(), ("minLength", "maxLength", "characters")),
        Value::Array(items) => (items.len(), ("minItems", "maxItems", "items")),
        Value::Object(fields) => (fields.len(), ("minProperties", "maxProperties", "entries")),
        _ => (0, ("", "", "")),
    };
    let limit = |name: &str| schema.get(name).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
    if let Some(least) = limit(what.0).filter(|least| count < *least) {
        refuse(format!("must have at least {least} {}, and has {count}", what.2));
    }
    if let Some(most) = limit(what.1).filter(|most| count > *most) {
        refuse(format!("must have at most {most} {}, and has {count}", what.2));
    }
    match value {
        Value::Object(fields) => of_object(schema, fields, path, found),
        Value::Array(items) => {
            let schemas = schema.get("items").into_iter().cycle();
            for (index, (item, schema)) in items.iter().zip(schemas).enumerate() {
                check(schema, item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// What it must be, where it is not.
fn of_type(schema: &Value, value: &Value) -> Result<(), &'static str> {
    if is(schema, "x-kubernetes-int-or-string") {
        return (value.is_string() || value.is_i64() || value.is_u64()).then_some(()).ok_or("a whole number or a text");
    }
    let (right, expected) = match schema.get("type").and_then(Value::as_str) {
        Some("object") => (value.is_object(), "an object"),
        Some("array") => (value.is_array(), "a list"),
        Some("string") => (value.is_string(), "a text"),
        Some("boolean") => (value.is_boolean(), "true or false"),
        Some("number") => (value.is_number(), "a number"),
        Some("integer") => {
            let short = schema.get("format").and_then(Value::as_str) == Some("int32");
            let fits = value.as_i64().is_some_and(|number| !short || i32::try_from(number).is_ok());
            (fits, if value.is_i64() || value.is_u64() { "a whole number of 32 bits" } else { "a whole number" })
        }
        _ => (true, ""),
    };
    right.then_some(()).ok_or(expected)
}

fn of_object(schema: &Value, fields: &Map<String, Value>, path: &str, found: &mut Vec<Refusal>) {
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for name in required.filter(|name| !fields.contains_key(*name)) {
        found.push(Refusal { field: join(path, name), problem: "is required".to_owned() });
    }
    let known = schema.get("properties").and_then(Value::as_object);
    let free = is(schema, "x-kubernetes-preserve-unknown-fields")
        || schema.get("additionalProperties").is_some_and(|other| *other != Value::Bool(false))
        || known.is_none();
    for (name, field) in fields {
        match field_schema(schema, name) {
            Some(schema) => check(schema, field, &join(path, name), found),
            None if free => {}
            None => {
                let problem = match known.and_then(|known| nearest(name, known.keys())) {
                    Some(near) => format!("is no field there: {near} is meant?"),
                    None => "is no field there".to_owned(),
                };
                found.push(Refusal { field: join(path, name), problem });
            }
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The field that is most alike, if one is.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let alike = |other: &&String| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    known.filter(|other| alike(other) > 0.85).max_by(|a, b| alike(a).total_cmp(&alike(b)))
}

/// As it was written, but not all of a long one.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(60).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refuses_what_a_structural_schema_refuses() {
        let schema = json!({
            "type": "object", "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[a-z]+$"},
                "count": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 9, "nullable": true},
                "kind": {"type": "string", "enum": ["A", "B"]},
                "either": {"x-kubernetes-int-or-string": true},
                "list": {"type": "array", "minItems": 1, "items": {"type": "number"}},
                "map": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "boolean"}},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        });
        let good = json!({"name": "abc", "count": null, "kind": "A", "either": "x", "list": [1.5], "map": {"x": true}, "any": {"y": 1}});
        assert_eq!(refusals(&schema, &good, "spec"), []);
        for (field, value, expected) in [
            ("count", json!(0), "spec.count must be at least 1, and is 0"),
            ("count", json!(10), "spec.count must be at most 9, and is 10"),
            ("count", json!(60.5), "spec.count must be a whole number, and is 60.5"),
            ("count", json!(3_000_000_000_u64), "spec.count must be a whole number of 32 bits, and is 3000000000"),
            ("count", json!("7"), "spec.count must be a whole number, and is \"7\""),
            ("kind", json!("C"), "spec.kind must be \"A\" or \"B\", and is \"C\""),
            ("either", json!(1.5), "spec.either must be a whole number or a text, and is 1.5"),
            ("list", json!([]), "spec.list must have at least 1 items, and has 0"),
            ("list", json!([1, "x"]), "spec.list[1] must be a number, and is \"x\""),
            ("map", json!({"x": 1}), "spec.map.x must be true or false, and is 1"),
            ("map", json!({"x": true, "y": true}), "spec.map must have at most 1 entries, and has 2"),
            ("name", json!("Abc"), "spec.name must match ^[a-z]+$, and is \"Abc\""),
            ("name", json!("a"), "spec.name must have at least 2 characters, and has 1"),
            ("conut", json!(1), "spec.conut is no field there: count is meant?"),
            ("zzz", json!(1), "spec.zzz is no field there"),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let found: Vec<String> = refusals(&schema, &bad, "spec").iter().map(ToString::to_string).collect();
            assert_eq!(found, [expected]);
        }
        let mut without = good;
        without.as_object_mut().unwrap().remove("name");
        assert_eq!(refusals(&schema, &without, "spec")[0].to_string(), "spec.name is required");
    }

    #[test]
    fn a_null_that_may_not_be_counts_as_absent() {
        let schema = json!({"properties": {"a": {"type": "integer"}, "b": {"nullable": true}, "c": {"items": {"properties": {"d": {}}}}}});
        let mut value = json!({"a": null, "b": null, "c": [{"d": null}]});
        prune(&schema, &mut value);
        assert_eq!(value, json!({"b": null, "c": [{}]}));
    }
}
