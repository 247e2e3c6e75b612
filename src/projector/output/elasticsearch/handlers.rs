//! The operations of each type of event, and how an event fills them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::claims::{Place, Wanted};
use super::{
    super::super::{
        error::ProjectorError,
        event::Event,
        fields_seen::FieldsSeen,
        json_template::JsonTemplate,
        template::{DataPath, Missing, Template, TemplateError},
    },
    json_merge::is_number,
};
use crate::{api::DocumentOperation, projector::config::ElasticsearchOutput};

/// Elasticsearch takes no longer `_id`, in bytes.
const LONGEST_ID: usize = 512;
/// Nor a longer name of an index.
const LONGEST_INDEX: usize = 255;

/// Why an operation cannot be done.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DocumentError {
    /// A handler without operations.
    #[error("it must have at least one operation: [{{index: {{index: orders, id: \"{{stream}}\", document: {{…}}}}}}]")]
    Empty,
    /// An update that changes nothing.
    #[error("operation {0} (update) must have doc or add, or both")]
    NoChange(usize),
    /// What is to be added is no number.
    #[error(
        "operation {number} (update): what is added to {field} must be a number, or a text with a place such as \"{{data.total}}\""
    )]
    NoNumber {
        /// Which operation, counted from 1.
        number: usize,
        /// The field.
        field: String,
    },
    /// It would write where the workers keep how far they have come.
    #[error(
        "operation {number} writes to {index}, which is stateIndex, where the workers keep how far they have come: name another index"
    )]
    StateIndex {
        /// Which operation, counted from 1.
        number: usize,
        /// The index.
        index: String,
    },
    /// Nothing tells whether an operation of a message is done already.
    #[error(
        "operation {number} ({name}): a message of a queue may be delivered again and has no position that tells whether that is so. Let the publisher number the changes of a document, write the whole document with index (or delete), and name the number there, such as version: \"{{data.version}}\"; or keep the read model in PostgreSQL or Redis"
    )]
    NoVersion {
        /// Which operation, counted from 1.
        number: usize,
        /// What it is.
        name: &'static str,
    },
    /// There are two versions.
    #[error("operation {0}: version must be absent where events have positions: those are the documents' versions")]
    TwoVersions(usize),
    /// A text is no template.
    #[error("operation {number}: {source}")]
    Template {
        /// Which operation, counted from 1.
        number: usize,
        /// Why.
        source: TemplateError,
    },
}

/// The handlers, understood.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Documents {
    of_types: BTreeMap<String, Handler>,
    state_index: String,
    shared: bool,
}

/// What is done with events of a type.
#[derive(Clone, Debug)]
struct Handler {
    operations: Vec<Operation>,
    seen: FieldsSeen,
}

#[derive(Clone, Debug)]
struct Operation {
    index: Template,
    id: Template,
    version: Option<Template>,
    action: ActionTemplate,
}

#[derive(Clone, Debug)]
enum ActionTemplate {
    Index(JsonTemplate),
    Update { doc: Option<JsonTemplate>, add: Vec<(String, Number)>, upsert: Option<JsonTemplate> },
    Delete,
}

/// What is added.
#[derive(Clone, Debug)]
enum Number {
    /// As it is written.
    Constant(String),
    /// What the event holds.
    Of(Template),
}

/// Which document.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) index: String,
    pub(super) id: String,
}

/// An operation for an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Filled {
    /// Which operation of the handler, counted from 1.
    pub(super) number: usize,
    pub(super) key: Key,
    /// The handler names the index without the event's help.
    pub(super) index_is_constant: bool,
    /// The document's version, where the message holds it and not the event's position is one.
    pub(super) version: Option<i64>,
    pub(super) action: Action,
}

/// What is done with a document. All of it is JSON.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    Index(String),
    Update { doc: Option<String>, add: Vec<(String, String)>, upsert: Option<String> },
    Delete,
}

impl Action {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Index(_) => "index",
            Self::Update { .. } => "update",
            Self::Delete => "delete",
        }
    }

    /// In bytes.
    fn size(&self) -> usize {
        match self {
            Self::Index(document) => document.len(),
            Self::Update { doc, add, upsert } => {
                let of = |json: &Option<String>| json.as_ref().map_or(0, String::len);
                of(doc) + of(upsert) + add.iter().map(|(_, number)| number.len()).sum::<usize>()
            }
            Self::Delete => 0,
        }
    }
}

impl Filled {
    /// In bytes.
    pub(super) fn size(&self) -> usize {
        self.key.index.len() + self.key.id.len() + self.action.size()
    }
}

impl Documents {
    /// Reads the handlers.
    ///
    /// # Errors
    /// Names the type of event whose handler is wrong, and why.
    pub(in crate::projector) fn parse(output: &ElasticsearchOutput) -> Result<Self, ProjectorError> {
        let parsed = output.handlers.iter().map(|(event_type, operations)| {
            let operations = handler(operations, &output.state_index);
            let operations =
                operations.map_err(|source| ProjectorError::Documents { event_type: event_type.clone(), source })?;
            Ok((event_type.clone(), Handler { operations, seen: FieldsSeen::default() }))
        });
        let of_types = parsed.collect::<Result<_, ProjectorError>>()?;
        Ok(Self { of_types, state_index: output.state_index.clone(), shared: output.shared })
    }

    /// The types of event that have a handler.
    pub(in crate::projector) fn event_types(&self) -> Vec<String> {
        self.of_types.keys().cloned().collect()
    }

    /// The first type of event whose handler asks for the position.
    pub(in crate::projector) fn asks_for_position(&self) -> Option<&str> {
        let asks = |operation: &Operation| {
            let Operation { index, id, version, action } = operation;
            let of_action = match action {
                ActionTemplate::Index(document) => document.asks_for_position(),
                // It is refused for another reason.
                ActionTemplate::Update { .. } | ActionTemplate::Delete => false,
            };
            of_action
                || [Some(index), Some(id), version.as_ref()].into_iter().flatten().any(Template::asks_for_position)
        };
        self.of_types
            .iter()
            .find(|(_, handler)| handler.operations.iter().any(asks))
            .map(|(event_type, _)| event_type.as_str())
    }

    /// Holds where one thing tells of each operation whether it is done: the event's position, or a version in a message, which has no position.
    ///
    /// # Errors
    /// Names the type of event and the operation.
    pub(in crate::projector) fn check_versions(&self, has_positions: bool) -> Result<(), ProjectorError> {
        for (event_type, Handler { operations, .. }) in &self.of_types {
            for (number, operation) in (1..).zip(operations) {
                let source = match (has_positions, &operation.version) {
                    (true, None) | (false, Some(_)) => continue,
                    (true, Some(_)) => DocumentError::TwoVersions(number),
                    (false, None) => DocumentError::NoVersion { number, name: operation.action.name() },
                };
                return Err(ProjectorError::Documents { event_type: event_type.clone(), source });
            }
        }
        Ok(())
    }

    /// What the Projection claims for its workers.
    pub(super) fn wanted(&self, projection: &str) -> Wanted {
        let operations = self.of_types.values().flat_map(|handler| &handler.operations);
        let places = operations.filter_map(|operation| Place::of(&operation.index)).collect();
        Wanted { projection: projection.to_owned(), places, shared: self.shared }
    }

    /// The index with the state of the workers.
    pub(super) fn state_index(&self) -> &str {
        &self.state_index
    }

    /// The operations for an event, which may have so many bytes in all.
    ///
    /// # Errors
    /// Why they cannot be done for this event, without anything of what it holds.
    pub(super) fn of(&self, event: &Event, most_bytes: usize) -> Result<Vec<Filled>, String> {
        let (mut left, mut all) = (most_bytes, Vec::new());
        let Some(Handler { operations, seen }) = self.of_types.get(&event.event_type) else { return Ok(all) };
        let lacks = |missing: Missing| seen.lacks(event, &missing, operations.iter().flat_map(Operation::paths));
        for (number, operation) in (1..).zip(operations) {
            let at = |why: String| format!("operation {number} ({}): {why}", operation.action.name());
            let filled = operation.fill(number, event, left, &lacks).map_err(at)?;
            let filled = filled.ok_or_else(|| at(too_large(most_bytes)))?;
            if filled.key.index == self.state_index {
                return Err(at("it writes to stateIndex, where the checkpoints are".to_owned()));
            }
            left = left.saturating_sub(filled.size());
            all.push(filled);
        }
        seen.had_all();
        Ok(all)
    }
}

fn too_large(most_bytes: usize) -> String {
    format!(
        "with it the documents of this event have more than {most_bytes} bytes, which is 16 MiB and spec.projector.builtin.maxEventBytes: let the handler write less of the event, or raise that and the workers' memory"
    )
}

impl ActionTemplate {
    fn name(&self) -> &'static str {
        match self {
            Self::Index(_) => "index",
            Self::Update { .. } => "update",
            Self::Delete => "delete",
        }
    }
}

impl Operation {
    /// The paths in the event's body that it asks for.
    fn paths(&self) -> Vec<&DataPath> {
        let Self { index, id, version, action } = self;
        let mut all: Vec<&DataPath> =
            [Some(index), Some(id), version.as_ref()].into_iter().flatten().flat_map(Template::paths).collect();
        match action {
            ActionTemplate::Index(document) => all.extend(document.paths()),
            ActionTemplate::Update { doc, add, upsert } => {
                all.extend(doc.iter().chain(upsert).flat_map(JsonTemplate::paths));
                for (_, number) in add {
                    if let Number::Of(template) = number {
                        all.extend(template.paths());
                    }
                }
            }
            ActionTemplate::Delete => {}
        }
        all
    }

    /// `None` where it would have more than so many bytes. `missing` says why an event is refused that lacks something.
    fn fill(
        &self,
        number: usize,
        event: &Event,
        most: usize,
        missing: &dyn Fn(Missing) -> String,
    ) -> Result<Option<Filled>, String> {
        let (Some(index), Some(id)) =
            (self.index.fill_within(event, most).map_err(missing)?, self.id.fill_within(event, most).map_err(missing)?)
        else {
            return Ok(None);
        };
        if id.is_empty() || id.len() > LONGEST_ID {
            return Err(format!("the document's id has {} bytes, and may have 1 to {LONGEST_ID}", id.len()));
        }
        if index.is_empty() || index.len() > LONGEST_INDEX {
            return Err(format!("the name of the index has {} bytes, and may have 1 to {LONGEST_INDEX}", index.len()));
        }
        let document = |template: &JsonTemplate| template.fill_within(event, most).map_err(missing);
        let action = match &self.action {
            ActionTemplate::Delete => Action::Delete,
            ActionTemplate::Index(template) => match document(template)? {
                Some(document) => Action::Index(document),
                None => return Ok(None),
            },
            ActionTemplate::Update { doc, add, upsert } => {
                let part = |template: &Option<JsonTemplate>| match template {
                    None => Ok(Some(None)),
                    Some(template) => document(template).map(|filled| filled.map(Some)),
                };
                let (Some(doc), Some(upsert)) = (part(doc)?, part(upsert)?) else { return Ok(None) };
                let mut numbers = Vec::new();
                for (field, number) in add {
                    let value = match number {
                        Number::Constant(number) => Some(number.clone()),
                        Number::Of(template) => template.fill_json_within(event, most).map_err(missing)?,
                    };
                    let Some(value) = value else { return Ok(None) };
                    if !is_number(&value) {
                        return Err(format!("what it adds to {field} is no number in this event"));
                    }
                    numbers.push((field.clone(), value));
                }
                Action::Update { doc, add: numbers, upsert }
            }
        };
        let version = match &self.version {
            None => None,
            Some(template) => match template.fill_within(event, most).map_err(missing)? {
                None => return Ok(None),
                Some(text) => Some(version_of(&text)?),
            },
        };
        let key = Key { index, id };
        let filled = Filled { number, key, index_is_constant: self.index.is_constant(), version, action };
        Ok(Some(filled).filter(|filled| filled.size() <= most))
    }
}

/// What servers take as an external version.
fn version_of(text: &str) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number: &i64| *number >= 0);
    number.ok_or_else(|| "its version is no whole number from 0 to 2^63 - 1 in this event".to_owned())
}

fn handler(operations: &[DocumentOperation], state_index: &str) -> Result<Vec<Operation>, DocumentError> {
    if operations.is_empty() {
        return Err(DocumentError::Empty);
    }
    (1..).zip(operations).map(|(number, operation)| parse(number, operation, state_index)).collect()
}

fn parse(number: usize, operation: &DocumentOperation, state_index: &str) -> Result<Operation, DocumentError> {
    let wrong = |source| DocumentError::Template { number, source };
    let text = |text: &str| Template::parse(text).map_err(wrong);
    let object = |object: &Map<String, Value>| JsonTemplate::parse(object).map_err(wrong);
    let some = |given: &Option<Map<String, Value>>| given.as_ref().map(object).transpose();
    let (index, id, version, action) = match operation {
        DocumentOperation::Index { index, id, version, document } => {
            (index, id, version.as_deref(), ActionTemplate::Index(object(document)?))
        }
        DocumentOperation::Delete { index, id, version } => (index, id, version.as_deref(), ActionTemplate::Delete),
        DocumentOperation::Update { index, id, doc, add, upsert } => {
            if doc.is_none() && add.is_none() {
                return Err(DocumentError::NoChange(number));
            }
            let numbers = add.iter().flatten().map(|(field, value)| {
                let no_number = || DocumentError::NoNumber { number, field: field.clone() };
                let number = match value {
                    Value::Number(value) => Number::Constant(value.to_string()),
                    Value::String(value) => Number::Of(text(value)?),
                    _ => return Err(no_number()),
                };
                match &number {
                    Number::Of(template) if template.is_constant() => Err(no_number()),
                    _ => Ok((field.clone(), number)),
                }
            });
            let add = numbers.collect::<Result<_, _>>()?;
            (index, id, None, ActionTemplate::Update { doc: some(doc)?, add, upsert: some(upsert)? })
        }
    };
    if index == state_index {
        return Err(DocumentError::StateIndex { number, index: index.clone() });
    }
    Ok(Operation { index: text(index)?, id: text(id)?, version: version.map(text).transpose()?, action })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::projector::event::JsonText;

    fn parse(operations: &Value) -> Result<Documents, String> {
        let operations: Vec<DocumentOperation> = serde_json::from_value(operations.clone()).unwrap();
        let handlers = BTreeMap::from([("Placed".to_owned(), operations)]);
        let output = ElasticsearchOutput { state_index: "state".to_owned(), handlers, shared: false };
        Documents::parse(&output).map_err(|error| error.to_string())
    }

    fn event(data: &str) -> Event {
        Event {
            position: 5,
            since: 5,
            before: 4,
            shown_position: 5,
            behind_parked: None,
            shard: 0,
            event_type: "Placed".to_owned(),
            stream: Some("order-7".to_owned()),
            recorded_at: None,
            data: Some(JsonText(data.to_owned())),
        }
    }

    #[test]
    fn an_event_fills_its_operations_and_what_it_lacks_is_told_by_number() {
        let documents = parse(&json!([
            {"index": {"index": "orders", "id": "{stream}", "document": {"total": "{data.total}"}}},
            {"update": {"index": "c-{data.region}", "id": "{data.who}", "doc": {"last": "{stream}"}, "add": {"orders": 1, "sum.all": "{data.total}"}}},
            {"delete": {"index": "carts", "id": "{data.who}"}},
        ]))
        .unwrap();
        let filled = documents.of(&event(r#"{"total": 1.50, "region": "eu", "who": "ann"}"#), 1_000).unwrap();
        let key = |index: &str, id: &str| Key { index: index.to_owned(), id: id.to_owned() };
        assert_eq!(filled[0].key, key("orders", "order-7"));
        assert_eq!(filled[0].action, Action::Index(r#"{"total":1.50}"#.to_owned()));
        assert_eq!((&filled[1].key, filled[1].index_is_constant), (&key("c-eu", "ann"), false));
        let add = vec![("orders".to_owned(), "1".to_owned()), ("sum.all".to_owned(), "1.50".to_owned())];
        assert_eq!(
            filled[1].action,
            Action::Update { doc: Some(r#"{"last":"order-7"}"#.to_owned()), add, upsert: None }
        );
        assert_eq!((filled[2].number, filled[2].index_is_constant), (3, true));
        for (data, expected) in [
            (r#"{"region": "eu", "who": "ann"}"#, "operation 1 (index): the handler asks for {data.total}"),
            (
                r#"{"total": "x", "region": "eu", "who": "a"}"#,
                "operation 2 (update): what it adds to sum.all is no number",
            ),
            (r#"{"total": 1, "region": "eu", "who": ""}"#, "operation 2 (update): the document's id has 0 bytes"),
        ] {
            let why = documents.of(&event(data), 1_000).unwrap_err();
            assert!(why.starts_with(expected), "{why}");
        }
        let large = documents.of(&event(r#"{"total": 1, "region": "eu", "who": "ann"}"#), 40).unwrap_err();
        assert!(large.contains("operation 2 (update)") && large.contains("maxEventBytes"), "{large}");
    }

    #[test]
    fn what_is_no_operation_is_refused_by_its_number() {
        for (operations, expected) in [
            (json!([]), "at least one operation"),
            (json!([{"update": {"index": "a", "id": "b"}}]), "operation 1 (update) must have doc or add"),
            (json!([{"update": {"index": "a", "id": "b", "add": {"n": "5"}}}]), "what is added to n must be a number"),
            (json!([{"update": {"index": "a", "id": "b", "add": {"n": true}}}]), "what is added to n must be a number"),
            (json!([{"delete": {"index": "state", "id": "b"}}]), "operation 1 writes to state"),
            (json!([{"delete": {"index": "a", "id": "{total}"}}]), "operation 1: \"{total}\" asks for"),
            (json!([{"index": {"index": "a", "id": "b", "document": {"x": ["{"]}}}]), "brace"),
        ] {
            let why = parse(&operations).unwrap_err();
            assert!(why.contains("event type Placed") && why.contains(expected), "{why}");
        }
    }

    #[test]
    fn an_event_never_writes_where_the_checkpoints_are() {
        let documents = parse(&json!([{"delete": {"index": "{data.index}", "id": "b"}}])).unwrap();
        assert!(documents.of(&event(r#"{"index": "state"}"#), 100).unwrap_err().contains("checkpoints"));
        assert!(documents.of(&event(r#"{"index": "other"}"#), 100).is_ok());
    }
}
