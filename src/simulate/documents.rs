//! Texts of Kubernetes objects: YAML or JSON, one object each.

use serde_json::Value;

/// The one document that a text holds.
///
/// # Errors
/// With line and column, or when there is none or more than one.
pub(super) fn one_document(text: &str) -> Result<Value, String> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('{')
        && let Ok(json) = serde_json::from_str(text)
    {
        return Ok(json);
    }
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    documents.retain(|document| !document.is_null());
    let kinds = || {
        let kind = |document: &Value| document.get("kind").and_then(Value::as_str).unwrap_or("without kind").to_owned();
        documents.iter().map(kind).collect::<Vec<String>>().join(", ")
    };
    match documents.len() {
        0 => Err("is empty".to_owned()),
        1 => Ok(documents.swap_remove(0)),
        several => Err(format!("holds {several} documents ({}), and must hold one: take the others out", kinds())),
    }
}
