//! Changes to JSON as text, so that numbers keep all their digits: merging objects and adding numbers. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::value::RawValue;

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// `base` with the fields of `patch` in place of its own; where both hold an object these are merged. As the update API of Elasticsearch does it.
/// `None` where one of them is no object.
pub(super) fn merge(base: &str, patch: &str) -> Option<String> {
    let (mut base, patch): (BTreeMap<Cow<'_, str>, Cow<'_, str>>, Fields<'_>) = (texts(base)?, fields(patch)?);
    for (name, value) in patch {
        let merged = base.get(&name).and_then(|old| merge(old, value.get()));
        base.insert(name, merged.map_or_else(|| Cow::from(value.get()), Cow::from));
    }
    Some(write(&base))
}

/// `base` with `number` added to the field at `path`, which is taken for zero where it is missing or null.
///
/// # Errors
/// What is wrong, without anything that the document or the event holds.
pub(super) fn add(base: &str, path: &[String], number: &str) -> Result<String, &'static str> {
    const NO_NUMBER: &str = "it is no number in the document";
    let mut all = texts(base).ok_or("one of the fields that lead there is no object in the document")?;
    let Some((first, rest)) = path.split_first() else { return Err(NO_NUMBER) };
    let old = all.get(first.as_str()).filter(|old| old.trim() != "null");
    let new = if rest.is_empty() {
        let sum = old.map_or_else(|| Ok(number.to_owned()), |old| sum(old, number).ok_or(NO_NUMBER));
        sum?
    } else {
        add(old.map_or("{}", |old| old.as_ref()), rest, number)?
    };
    all.insert(Cow::from(first.as_str()), Cow::from(new));
    Ok(write(&all))
}

/// Whether a JSON value is a number.
pub(super) fn is_number(json: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(json).is_ok()
}

fn fields(json: &str) -> Option<Fields<'_>> {
    serde_json::from_str(json).ok()
}

fn texts(json: &str) -> Option<BTreeMap<Cow<'_, str>, Cow<'_, str>>> {
    Some(fields(json)?.into_iter().map(|(name, value)| (name, Cow::from(value.get()))).collect())
}

fn write(fields: &BTreeMap<Cow<'_, str>, Cow<'_, str>>) -> String {
    let written = fields.iter().map(|(name, value)| format!("{}:{value}", serde_json::Value::from(name.as_ref())));
    format!("{{{}}}", written.collect::<Vec<_>>().join(","))
}

/// The sum of two numbers in JSON: exact where both are decimals of up to 38 digits, else as floating point adds them.
fn sum(one: &str, other: &str) -> Option<String> {
    let (one, other) = (one.trim(), other.trim());
    if !is_number(one) || !is_number(other) {
        return None;
    }
    let exact = || {
        let ((a, a_scale), (b, b_scale)) = (decimal(one)?, decimal(other)?);
        let scale = a_scale.max(b_scale);
        let raised = |number: i128, by: u32| number.checked_mul(10_i128.checked_pow(by)?);
        let sum = raised(a, scale - a_scale)?.checked_add(raised(b, scale - b_scale)?)?;
        Some(point(sum, scale))
    };
    exact().or_else(|| {
        let sum = one.parse::<f64>().ok()? + other.parse::<f64>().ok()?;
        serde_json::Number::from_f64(sum).map(|sum| sum.to_string())
    })
}

/// Digits without the point, and how many of them stand behind it. `None` with an exponent, or too many digits.
fn decimal(number: &str) -> Option<(i128, u32)> {
    let (whole, behind) = number.split_once('.').unwrap_or((number, ""));
    Some((format!("{whole}{behind}").parse().ok()?, u32::try_from(behind.len()).ok()?))
}

fn point(number: i128, scale: u32) -> String {
    let digits = number.unsigned_abs().to_string();
    let sign = if number < 0 { "-" } else { "" };
    let scale = scale as usize;
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, behind) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{behind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_merged_and_everything_else_is_replaced() {
        for (base, patch, expected) in [
            (r#"{"a":1,"b":2}"#, r#"{"b":3}"#, r#"{"a":1,"b":3}"#),
            (r#"{"a":{"x":1.10,"y":[1]}}"#, r#"{"a":{"y":[2],"z":null}}"#, r#"{"a":{"x":1.10,"y":[2],"z":null}}"#),
            (r#"{"a":{"x":1}}"#, r#"{"a":5}"#, r#"{"a":5}"#),
            (r#"{"a":5}"#, r#"{"a":{"x":1}}"#, r#"{"a":{"x":1}}"#),
            (r#"{"a\"b":1}"#, r#"{"c":"}"}"#, r#"{"a\"b":1,"c":"}"}"#),
        ] {
            assert_eq!(merge(base, patch).as_deref(), Some(expected));
        }
        assert_eq!(merge("[]", "{}"), None);
    }

    #[test]
    fn numbers_are_added_with_all_their_digits() {
        let path = |path: &str| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        for (base, at, number, expected) in [
            (r#"{"n":1}"#, "n", "2", r#"{"n":3}"#),
            (r#"{"n":0.1}"#, "n", "0.2", r#"{"n":0.3}"#),
            (r#"{"n":0.05}"#, "n", "-0.10", r#"{"n":-0.05}"#),
            (r#"{"n":12345678901234567890.10}"#, "n", "0.05", r#"{"n":12345678901234567890.15}"#),
            (r#"{"n":1e2}"#, "n", "1", r#"{"n":101.0}"#),
            (r#"{"n":null}"#, "n", "2", r#"{"n":2}"#),
            ("{}", "a.b", "2", r#"{"a":{"b":2}}"#),
            (r#"{"a":{"b":1,"c":"x"}}"#, "a.b", "2", r#"{"a":{"b":3,"c":"x"}}"#),
        ] {
            assert_eq!(add(base, &path(at), number).as_deref(), Ok(expected), "{base}");
        }
        for (base, at) in [(r#"{"n":"x"}"#, "n"), (r#"{"n":1}"#, "n.a"), (r#"{"n":{}}"#, "n")] {
            assert!(add(base, &path(at), "1").is_err(), "{base}");
        }
    }
}
