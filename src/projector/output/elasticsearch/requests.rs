//! The two requests that workers make: many documents read as they are now (`_mget`), and many written (`_bulk`). Neither waits for a refresh.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::time::Instant;

use super::{
    noted::{self, Noted},
    refusals::{Outcome, ServerError, meaning, of_request},
};
use crate::{
    addresses::AddressRules,
    clients::elasticsearch::{Client, ConnectionSettings, JSON, LINES, is_too_large},
};

/// For one request, with the connection where there is none.
const DEADLINE: Duration = Duration::from_secs(30);
/// An answer to `_bulk` is given up beyond this, in bytes: there are less than 300 for each item.
const LARGEST_BULK_ANSWER: usize = 16 << 20;
/// A description of an index is given up beyond this, in bytes.
const LARGEST_DESCRIPTION: usize = 16 << 20;

/// A connection to the server.
pub(super) struct Requests {
    client: Client,
    settings: ConnectionSettings,
    /// Where handlers are tried: what became of the documents.
    noted: Option<Vec<Noted>>,
}

/// A document as it is now.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) version: i64,
    pub(super) cas: Cas,
    /// Absent where the index keeps none.
    pub(super) source: Option<Box<RawValue>>,
}

/// What tells whether a document is still as it was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Cas {
    seq_no: i64,
    primary_term: i64,
}

/// What came of reading a document.
#[derive(Debug)]
pub(super) enum Read {
    Found(Document),
    Missing,
    /// There is no such index.
    NoIndex,
    Refused(Outcome),
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The answer has more bytes than were allowed.
    TooLarge,
    /// What the server's refusal of the whole request means; neither [`Outcome::Done`] nor [`Outcome::Superseded`].
    Refused(Outcome),
}

/// Under which condition a document is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    /// No later version is there.
    Version(i64),
    /// There is none.
    New,
    /// It is as it was read.
    Unchanged(Cas),
}

/// What came of writing one document.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) outcome: Outcome,
    /// Where it was written.
    pub(super) cas: Option<Cas>,
}

/// Appends what writes a document, or deletes it where that is absent, to a bulk request.
pub(super) fn append(lines: &mut String, (index, id): (&str, &str), condition: Condition, document: Option<&str>) {
    let mut about = json!({ "_index": index, "_id": id });
    let fields: &[(&str, Value)] = match condition {
        Condition::Version(version) => &[("version", version.into()), ("version_type", "external".into())],
        Condition::New => &[],
        Condition::Unchanged(Cas { seq_no, primary_term }) => {
            &[("if_seq_no", seq_no.into()), ("if_primary_term", primary_term.into())]
        }
    };
    for (name, value) in fields {
        about[*name] = value.clone();
    }
    let action = match (document, condition) {
        (None, _) => "delete",
        (Some(_), Condition::New) => "create",
        (Some(_), _) => "index",
    };
    let _ = writeln!(lines, "{}", json!({ action: about }));
    if let Some(document) = document {
        // An end of a line in JSON can only stand between values.
        lines.extend(document.chars().map(|letter| if matches!(letter, '\n' | '\r') { ' ' } else { letter }));
        lines.push('\n');
    }
}

impl Requests {
    /// Not connected yet.
    pub(super) fn new(settings: &ConnectionSettings) -> Self {
        let client = Client::new(settings.clone(), Arc::new(AddressRules::everywhere()));
        Self { client, settings: settings.clone(), noted: None }
    }

    /// The same, and notes what becomes of each document, with the server's words.
    pub(super) fn noting(self) -> Self {
        Self { noted: Some(Vec::new()), ..self }
    }

    /// What was noted since the last time.
    pub(super) fn take_noted(&mut self) -> Vec<Noted> {
        self.noted.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The same on a connection of its own.
    pub(super) fn another(&self) -> Self {
        Self::new(&self.settings)
    }

    /// Where.
    pub(super) fn at(&self) -> String {
        self.settings.to_string()
    }

    async fn send(
        &mut self,
        (method, path): (Method, String),
        body: Option<(&'static str, Bytes)>,
        largest: usize,
    ) -> Result<(StatusCode, Bytes), Failed> {
        let answer = self.client.send(method, path, body, largest, Instant::now() + DEADLINE).await;
        answer.map_err(|error| {
            if is_too_large(&error) { Failed::TooLarge } else { Failed::Refused(Outcome::Server(error.message)) }
        })
    }

    /// Reads documents by index and id as they are now, in the order in which they are asked for.
    ///
    /// # Errors
    /// Where there is no answer, or one of more than `largest` bytes.
    pub(super) async fn read(&mut self, documents: &[(&str, &str)], largest: usize) -> Result<Vec<Read>, Failed> {
        // The server refuses to be asked for nothing.
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        let docs = documents.iter().map(|(index, id)| json!({ "_index": index, "_id": id }));
        let body = Bytes::from(json!({ "docs": docs.collect::<Vec<_>>() }).to_string());
        let (status, body) = self.send((Method::POST, "/_mget".to_owned()), Some((JSON, body)), largest).await?;
        refused(of_request(status, &body))?;
        let answer: MgetAnswer = serde_json::from_slice(&body).map_err(|_| nonsense())?;
        if answer.docs.len() != documents.len() {
            return Err(nonsense());
        }
        Ok(answer.docs.into_iter().map(MgetDocument::into_read).collect())
    }

    /// Sends what [`append`] has made of so many documents.
    ///
    /// # Errors
    /// Where there is no answer.
    pub(super) async fn write(&mut self, lines: String, count: usize) -> Result<Vec<Written>, Failed> {
        let wanted = ["status", "_seq_no", "_primary_term", "error.type", "error.caused_by.type"];
        let more = if self.noted.is_some() { noted::FIELDS.as_slice() } else { &[] };
        let wanted: Vec<String> = wanted.iter().chain(more).map(|field| format!("items.*.{field}")).collect();
        let path = format!("/_bulk?filter_path={}", wanted.join(","));
        let (status, body) =
            self.send((Method::POST, path), Some((LINES, Bytes::from(lines))), LARGEST_BULK_ANSWER).await?;
        refused(of_request(status, &body))?;
        if let Some(noted) = &mut self.noted {
            noted.extend(noted::read(&body));
        }
        let answer: BulkAnswer = serde_json::from_slice(&body).map_err(|_| nonsense())?;
        let items = answer.items.into_iter().map(|item| item.into_values().next().ok_or_else(nonsense));
        let items: Vec<BulkItem> = items.collect::<Result<_, _>>()?;
        if items.len() != count {
            return Err(nonsense());
        }
        Ok(items.into_iter().map(BulkItem::into_written).collect())
    }

    /// Makes an index where there is none.
    ///
    /// # Errors
    /// What the server says.
    pub(super) async fn create_index(&mut self, index: &str, settings: &Value) -> Result<(), Failed> {
        let body = Some((JSON, Bytes::from(settings.to_string())));
        let (status, body) = self.send((Method::PUT, path_of(index)), body, 1 << 20).await?;
        let is_there = serde_json::from_slice::<Value>(&body).is_ok_and(|answer| {
            answer.pointer("/error/type").is_some_and(|kind| kind == "resource_already_exists_exception")
        });
        if is_there { Ok(()) } else { refused(of_request(status, &body)) }
    }

    /// Settings, mappings and aliases of the index of this name, or of those that an alias leads to: an object with a field for each of them.
    ///
    /// # Errors
    /// What the server says, [`Outcome::NoIndex`] where there is none.
    pub(super) async fn describe_index(&mut self, index: &str) -> Result<Value, Failed> {
        let path = format!("{}?expand_wildcards=none", path_of(index));
        let (status, body) = self.send((Method::GET, path), None, LARGEST_DESCRIPTION).await?;
        refused(of_request(status, &body))?;
        serde_json::from_slice(&body).map_err(|_| nonsense())
    }

    /// Deletes an index, where there is one.
    ///
    /// # Errors
    /// What the server says.
    pub(super) async fn delete_index(&mut self, index: &str) -> Result<(), Failed> {
        let path = format!("{}?ignore_unavailable=true", path_of(index));
        let (status, body) = self.send((Method::DELETE, path), None, 1 << 20).await?;
        refused(of_request(status, &body))
    }
}

fn path_of(index: &str) -> String {
    format!("/{}", percent_encoding::utf8_percent_encode(index, percent_encoding::NON_ALPHANUMERIC))
}

fn refused(outcome: Outcome) -> Result<(), Failed> {
    match outcome {
        Outcome::Done => Ok(()),
        other => Err(Failed::Refused(other)),
    }
}

fn nonsense() -> Failed {
    Failed::Refused(Outcome::Server(
        "the answer makes no sense for this request: does something between worker and server change it?".to_owned(),
    ))
}

#[derive(Deserialize)]
struct MgetAnswer {
    docs: Vec<MgetDocument>,
}

#[derive(Deserialize)]
struct MgetDocument {
    #[serde(default)]
    found: bool,
    #[serde(default, rename = "_version")]
    version: i64,
    #[serde(default, rename = "_seq_no")]
    seq_no: i64,
    #[serde(default, rename = "_primary_term")]
    primary_term: i64,
    #[serde(default, rename = "_source")]
    source: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<ServerError>,
}

impl MgetDocument {
    fn into_read(self) -> Read {
        let Self { found, version, seq_no, primary_term, source, error } = self;
        match error {
            Some(error) => match meaning(error.status(), Some(&error)) {
                Outcome::NoIndex(_) => Read::NoIndex,
                other => Read::Refused(other),
            },
            None if found => Read::Found(Document { version, cas: Cas { seq_no, primary_term }, source }),
            None => Read::Missing,
        }
    }
}

#[derive(Deserialize)]
struct BulkAnswer {
    #[serde(default)]
    items: Vec<std::collections::BTreeMap<String, BulkItem>>,
}

#[derive(Deserialize)]
struct BulkItem {
    status: u16,
    #[serde(default, rename = "_seq_no")]
    seq_no: Option<i64>,
    #[serde(default, rename = "_primary_term")]
    primary_term: Option<i64>,
    #[serde(default)]
    error: Option<ServerError>,
}

impl BulkItem {
    fn into_written(self) -> Written {
        let Self { status, seq_no, primary_term, error } = self;
        let cas = seq_no.zip(primary_term).map(|(seq_no, primary_term)| Cas { seq_no, primary_term });
        Written { outcome: meaning(status, error.as_ref()), cas }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_one_line_whatever_stands_between_its_values() {
        let mut lines = String::new();
        append(&mut lines, ("orders", "a\"b"), Condition::Version(7), Some("{\"a\":\n1}\r"));
        append(&mut lines, ("orders", "c"), Condition::Version(i64::MAX), None);
        append(&mut lines, ("state", "d"), Condition::New, Some("{}"));
        append(&mut lines, ("state", "e"), Condition::Unchanged(Cas { seq_no: 3, primary_term: 1 }), Some("{}"));
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(
            lines,
            [
                r#"{"index":{"_id":"a\"b","_index":"orders","version":7,"version_type":"external"}}"#,
                "{\"a\": 1} ",
                r#"{"delete":{"_id":"c","_index":"orders","version":9223372036854775807,"version_type":"external"}}"#,
                r#"{"create":{"_id":"d","_index":"state"}}"#,
                "{}",
                r#"{"index":{"_id":"e","_index":"state","if_primary_term":1,"if_seq_no":3}}"#,
                "{}",
            ]
        );
    }
}
