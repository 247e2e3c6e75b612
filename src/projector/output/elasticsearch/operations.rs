//! One operation of a handler: as it is written, and as an event fills it.

use serde_json::{Map, Value};

use super::{
    super::super::{
        event::Event,
        json_template::JsonTemplate,
        template::{DataPath, Missing, Template, TemplateError},
    },
    json_merge::is_number,
};
use crate::api::DocumentOperation;

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
/// An operation as it is written.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) index: Template,
    pub(super) id: Template,
    pub(super) version: Option<Template>,
    pub(super) action: ActionTemplate,
}

/// What is done with a document, as it is written.
#[derive(Clone, Debug)]
pub(super) enum ActionTemplate {
    Index(JsonTemplate),
    Update { doc: Option<JsonTemplate>, add: Vec<(String, Number)>, upsert: Option<JsonTemplate> },
    Delete,
}

/// What is added.
#[derive(Clone, Debug)]
pub(super) enum Number {
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

impl ActionTemplate {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Index(_) => "index",
            Self::Update { .. } => "update",
            Self::Delete => "delete",
        }
    }
}

impl Operation {
    /// Reads the operation that is the `number`-th of its handler.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub(super) fn parse(
        number: usize,
        operation: &DocumentOperation,
        state_index: &str,
    ) -> Result<Self, DocumentError> {
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
        Ok(Self { index: text(index)?, id: text(id)?, version: version.map(text).transpose()?, action })
    }

    /// The paths in the event's body that it asks for.
    pub(super) fn paths(&self) -> Vec<&DataPath> {
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
    pub(super) fn fill(
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
