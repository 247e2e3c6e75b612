//! What the server says became of the documents of a bulk request, in its own words: for those who try handlers with events of their own, and for no log.

use std::collections::BTreeMap;

use serde::Deserialize;

/// So many letters of the server's words are shown.
const LONGEST_REASON: usize = 500;
/// What is asked for of each document, besides what workers ask for.
pub(super) const FIELDS: [&str; 6] = ["_index", "_id", "_version", "result", "error.reason", "error.caused_by.reason"];

/// What became of a document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Noted {
    pub(super) index: String,
    pub(super) id: String,
    pub(super) fate: Fate,
}

/// Of one write.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// It is there with this version, where the server tells one.
    Written { result: String, version: Option<i64> },
    /// It is there no more, or was not.
    Deleted { was_there: bool },
    /// It has a version that is as high.
    Kept,
    /// In the server's words.
    Refused(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    items: Vec<BTreeMap<String, Item>>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default, rename = "_index")]
    index: String,
    #[serde(default, rename = "_id")]
    id: String,
    #[serde(default, rename = "_version")]
    version: Option<i64>,
    #[serde(default)]
    result: String,
    #[serde(default)]
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    caused_by: Option<Box<Told>>,
}

/// Reads an answer; of what makes no sense nothing is told.
pub(super) fn read(body: &[u8]) -> Vec<Noted> {
    let Ok(Answer { items }) = serde_json::from_slice(body) else { return Vec::new() };
    items.into_iter().flat_map(BTreeMap::into_values).map(Item::into_noted).collect()
}

impl Item {
    fn into_noted(self) -> Noted {
        let Self { index, id, version, result, error } = self;
        let fate = match error {
            Some(error) if error.kind == "version_conflict_engine_exception" => Fate::Kept,
            Some(error) => Fate::Refused(error.words()),
            None if ["deleted", "not_found"].contains(&result.as_str()) => {
                Fate::Deleted { was_there: result == "deleted" }
            }
            None => Fate::Written { result, version },
        };
        Noted { index, id, fate }
    }
}

impl Told {
    /// What it says, and what caused it.
    fn words(self) -> String {
        let cause = self.caused_by.and_then(|cause| cause.reason);
        let all = [self.reason, cause].into_iter().flatten().collect::<Vec<_>>().join("; caused by: ");
        let one_line = all.replace(['\n', '\r'], " ");
        shortened(&one_line, LONGEST_REASON)
    }
}

/// Its first letters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_became_of_each_document_is_read() {
        let answer = json!({"items": [
            {"index": {"_index": "a", "_id": "1", "_version": 3, "result": "created", "status": 201}},
            {"delete": {"_index": "a", "_id": "2", "_version": 4, "result": "not_found", "status": 404}},
            {"index": {"_index": "a", "_id": "3", "status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "r"}}},
            {"index": {"_index": "a", "_id": "4", "status": 400, "error": {"type": "mapper_parsing_exception", "reason": "failed\nto parse", "caused_by": {"type": "x", "reason": "For input"}}}},
        ]});
        let fates: Vec<Fate> = read(answer.to_string().as_bytes()).into_iter().map(|noted| noted.fate).collect();
        assert_eq!(
            fates,
            [
                Fate::Written { result: "created".to_owned(), version: Some(3) },
                Fate::Deleted { was_there: false },
                Fate::Kept,
                Fate::Refused("failed to parse; caused by: For input".to_owned()),
            ]
        );
        assert_eq!(read(b"no json"), []);
    }
}
