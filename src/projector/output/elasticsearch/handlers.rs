//! The operations of each type of event.

use std::collections::BTreeMap;

use super::super::claims::{Place, Wanted};
use super::{
    super::super::{
        error::ProjectorError,
        event::Event,
        fields_seen::FieldsSeen,
        template::{Missing, Template},
    },
    operations::{ActionTemplate, DocumentError, Filled, Operation},
};
use crate::{api::DocumentOperation, projector::config::ElasticsearchOutput};

/// The handlers, understood.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Documents {
    of_types: BTreeMap<String, Handler>,
    state_index: String,
    shared: bool,
    /// What the names of indices end with that stand for the real ones; empty for workers.
    suffix: String,
}

/// What is done with events of a type.
#[derive(Clone, Debug)]
struct Handler {
    operations: Vec<Operation>,
    seen: FieldsSeen,
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
        Ok(Self { of_types, state_index: output.state_index.clone(), shared: output.shared, suffix: String::new() })
    }

    /// The same with other indices, whose names are the real ones and this.
    pub(super) fn with_suffix(self, suffix: &str) -> Self {
        Self { suffix: suffix.to_owned(), ..self }
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
            let mut filled = filled.ok_or_else(|| at(too_large(most_bytes)))?;
            if filled.key.index == self.state_index {
                return Err(at("it writes to stateIndex, where the checkpoints are".to_owned()));
            }
            left = left.saturating_sub(filled.size());
            filled.key.index.push_str(&self.suffix);
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

fn handler(operations: &[DocumentOperation], state_index: &str) -> Result<Vec<Operation>, DocumentError> {
    if operations.is_empty() {
        return Err(DocumentError::Empty);
    }
    (1..).zip(operations).map(|(number, operation)| Operation::parse(number, operation, state_index)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::operations::{Action, Key},
        *,
    };
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
    fn with_a_suffix_every_index_is_another_one() {
        let operations = json!([{"delete": {"index": "{data.index}", "id": "state"}}]);
        let documents = parse(&operations).unwrap().with_suffix("-dry");
        let key = Key { index: "orders-dry".to_owned(), id: "state".to_owned() };
        assert_eq!(documents.of(&event(r#"{"index": "orders"}"#), 100).unwrap()[0].key, key);
        assert!(documents.of(&event(r#"{"index": "state"}"#), 100).unwrap_err().contains("checkpoints"), "as without");
    }

    #[test]
    fn an_event_never_writes_where_the_checkpoints_are() {
        let documents = parse(&json!([{"delete": {"index": "{data.index}", "id": "b"}}])).unwrap();
        assert!(documents.of(&event(r#"{"index": "state"}"#), 100).unwrap_err().contains("checkpoints"));
        assert!(documents.of(&event(r#"{"index": "other"}"#), 100).is_ok());
    }
}
