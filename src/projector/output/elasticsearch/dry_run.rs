//! Handlers tried without a server: operations are filled and shown, and none is sent.

use serde_json::json;

use super::{
    super::{super::event::Event, Done, DryRun, DryRunError},
    Documents,
    documents::most_bytes_of_one_event,
    operations::{Action, Filled},
};

/// Operations that are shown and not done.
pub(in crate::projector) struct SearchDryRun {
    documents: Documents,
    most_bytes: usize,
}

impl SearchDryRun {
    /// Of these handlers, for events of so many bytes at most.
    pub(in crate::projector) fn new(documents: Documents, max_event_bytes: u64) -> Self {
        Self { documents, most_bytes: most_bytes_of_one_event(max_event_bytes) }
    }
}

impl DryRun for SearchDryRun {
    async fn handle(&mut self, event: &Event) -> Result<Option<Done>, DryRunError> {
        let filled = self.documents.of(event, self.most_bytes).map_err(DryRunError::Event)?;
        if filled.is_empty() {
            return Ok(None);
        }
        let summary = if filled.len() == 1 { "1 operation".to_owned() } else { format!("{} operations", filled.len()) };
        Ok(Some(Done { summary, lines: filled.iter().map(shown).collect() }))
    }

    async fn finish(&mut self) -> Result<(), DryRunError> {
        Ok(())
    }
}

/// One line, whatever the event holds.
fn shown(Filled { key, version, action, .. }: &Filled) -> String {
    let one_line = |json: &str| json.replace(['\n', '\r'], " ");
    let mut line = format!("{} {} {}", action.name(), json!(key.index), json!(key.id));
    if let Some(version) = version {
        line.push_str(&format!(" version {version}"));
    }
    match action {
        Action::Delete => {}
        Action::Index(document) => line.push_str(&format!(" {}", one_line(document))),
        Action::Update { doc, add, upsert } => {
            if let Some(doc) = doc {
                line.push_str(&format!(" doc {}", one_line(doc)));
            }
            for (field, number) in add {
                line.push_str(&format!(" add {} {number}", json!(field)));
            }
            if let Some(upsert) = upsert {
                line.push_str(&format!(" upsert {}", one_line(upsert)));
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{super::operations::Key, *};

    #[test]
    fn an_operation_is_one_line_whatever_it_holds() {
        let key = Key { index: "orders".to_owned(), id: "a\nb".to_owned() };
        let action = Action::Update {
            doc: Some("{\"a\":\n1}".to_owned()),
            add: vec![("n".to_owned(), "2".to_owned())],
            upsert: Some("{}".to_owned()),
        };
        let filled = Filled { number: 1, key, index_is_constant: true, version: None, action };
        assert_eq!(shown(&filled), r#"update "orders" "a\nb" doc {"a": 1} add "n" 2 upsert {}"#);
    }
}
