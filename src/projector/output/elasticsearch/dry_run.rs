//! Does the operations of handlers in indices of their own, as workers do them; or fills and shows them where no server is named.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{
    super::{
        super::{
            config::{Input, KurrentDbInput, PostgresInput, ProjectorConfig},
            error::ProjectorError,
            event::Event,
        },
        Done, DryRun, DryRunError,
    },
    Documents,
    documents::{ReadModelWriter, most_bytes_of_one_event},
    noted::{Fate, Noted, shortened},
    operations::{Action, Filled, Key},
    requests::Read,
    scratch::Scratch,
    state::State,
};
use crate::clients::elasticsearch::ConnectionSettings;

/// So many documents are shown that are left in the end,
const MOST_LEFT: usize = 20;
/// and so many letters of each.
const LONGEST_LEFT: usize = 500;
/// Of those documents so many bytes are read.
const MOST_READ: usize = 16 << 20;
const READING: &str = "read store: reading the documents that are left";

/// Operations that are tried.
pub(in crate::projector) struct SearchDryRun {
    documents: Documents,
    most_bytes: usize,
    server: Option<Server>,
}

/// Where they are done.
struct Server {
    state: State,
    writer: ReadModelWriter,
    scratch: Scratch,
    /// The documents that are there.
    left: BTreeSet<Key>,
    /// A number for each stream, where workers may handle two at the same time.
    streams: Option<BTreeMap<String, u32>>,
}

impl SearchDryRun {
    /// Of these handlers, in indices of their own on the server that is named, if one is.
    pub(in crate::projector) fn new(
        config: &ProjectorConfig,
        documents: Documents,
        settings: Option<&ConnectionSettings>,
    ) -> Self {
        let most_bytes = most_bytes_of_one_event(config.max_event_bytes);
        let Some(settings) = settings else { return Self { documents, most_bytes, server: None } };
        let scratch = Scratch::new();
        let documents = documents.with_suffix(scratch.suffix());
        let has_shards = match &config.input {
            Input::Postgres(PostgresInput { shards, .. }) | Input::KurrentDb(KurrentDbInput { shards, .. }) => {
                *shards > 1
            }
            // Which streams share a partition is not known here, and messages of a queue have no order.
            Input::Kafka(_) | Input::Queue(_) => false,
        };
        let server = Server {
            state: State::to_try(settings, documents.state_index(), &config.projection),
            writer: ReadModelWriter::new(documents.clone(), config.max_event_bytes),
            scratch,
            left: BTreeSet::new(),
            streams: has_shards.then(BTreeMap::new),
        };
        Self { documents, most_bytes, server: Some(server) }
    }
}

impl Server {
    /// Does the operations of an event as a worker does. Returns lines about it: what is to be told of the indices, and what became of each document.
    async fn run(&mut self, event: &Event, operations: &[Filled]) -> Result<Vec<String>, DryRunError> {
        let mut lines = Vec::new();
        for Filled { key, .. } in operations {
            lines.extend(self.scratch.make(&mut self.state, &key.index).await?);
        }
        let event = Event { shard: self.shard_of(event), ..event.clone() };
        let written = self.writer.write(&mut self.state, &[event], &|| true).await;
        // Of what was sent again, the last counts.
        let mut fates = BTreeMap::new();
        for Noted { index, id, fate } in self.state.requests().take_noted() {
            let key = Key { index, id };
            match fate {
                Fate::Written { .. } => drop(self.left.insert(key.clone())),
                Fate::Deleted { .. } => drop(self.left.remove(&key)),
                Fate::Kept | Fate::Refused(_) => {}
            }
            fates.insert(key, fate);
        }
        if let Err(error) = written {
            let words = fates.into_values().find_map(|fate| match fate {
                Fate::Refused(words) => Some(format!(". The server's words: {words}")),
                Fate::Written { .. } | Fate::Deleted { .. } | Fate::Kept => None,
            });
            return Err(match error.into() {
                DryRunError::Event(message) => DryRunError::Event(message + &words.unwrap_or_default()),
                store => store,
            });
        }
        let mut told = BTreeSet::new();
        for key in operations.iter().map(|operation| &operation.key).filter(|key| told.insert(*key)) {
            lines.push(format!("-> {}: {}", self.named(key), became(fates.get(key))));
        }
        Ok(lines)
    }

    /// Another one for each stream, so that what is told of two streams that change one document is told here as well.
    fn shard_of(&mut self, event: &Event) -> u32 {
        let (Some(streams), Some(stream)) = (&mut self.streams, &event.stream) else { return 0 };
        let next = u32::try_from(streams.len()).unwrap_or(u32::MAX).saturating_add(1);
        *streams.entry(stream.clone()).or_insert(next)
    }

    /// The document as handlers name it.
    fn named(&self, Key { index, id }: &Key) -> String {
        let real = index.strip_suffix(self.scratch.suffix()).unwrap_or(index);
        format!("{} {}", json!(real), json!(id))
    }

    /// What the documents that are there hold.
    async fn tell_left(&mut self) -> Result<Vec<String>, DryRunError> {
        let first: Vec<&Key> = self.left.iter().take(MOST_LEFT).collect();
        let keys: Vec<(&str, &str)> = first.iter().map(|key| (key.index.as_str(), key.id.as_str())).collect();
        let read = self.state.requests().read(&keys, MOST_READ).await;
        let read = read.map_err(|failed| DryRunError::Store(self.state.told(READING, failed)))?;
        let mut lines = vec![match self.left.len() {
            1 => "1 document is there in the end:".to_owned(),
            count => format!("{count} documents are there in the end{}", if count > 0 { ":" } else { "" }),
        }];
        for (key, read) in first.into_iter().zip(read) {
            let held = match read {
                Read::Found(document) => document.source.map_or_else(String::new, |source| one_line(source.get())),
                _ => "(cannot be read)".to_owned(),
            };
            lines.push(format!("    {} {}", self.named(key), shortened(&held, LONGEST_LEFT)));
        }
        if self.left.len() > MOST_LEFT {
            lines.push(format!("    … and {} more", self.left.len() - MOST_LEFT));
        }
        Ok(lines)
    }
}

/// What became of a document.
fn became(fate: Option<&Fate>) -> String {
    match fate {
        Some(Fate::Written { result, version }) => {
            format!("{result}{}", version.map_or_else(String::new, |version| format!(", version {version}")))
        }
        Some(Fate::Deleted { was_there: true }) => "deleted".to_owned(),
        Some(Fate::Deleted { was_there: false }) => "it was not there".to_owned(),
        Some(Fate::Kept) => "not written, since its version is as high or higher".to_owned(),
        Some(Fate::Refused(words)) => format!("refused: {words}"),
        None => "nothing to write".to_owned(),
    }
}

impl DryRun for SearchDryRun {
    async fn handle(&mut self, event: &Event) -> Result<Option<Done>, DryRunError> {
        let mut filled = self.documents.of(event, self.most_bytes).map_err(DryRunError::Event)?;
        if filled.is_empty() {
            return Ok(None);
        }
        let became = match &mut self.server {
            Some(server) => server.run(event, &filled).await?,
            None => Vec::new(),
        };
        let suffix = self.server.as_ref().map_or("", |server| server.scratch.suffix());
        for Filled { key, .. } in &mut filled {
            key.index.truncate(key.index.len() - suffix.len());
        }
        let summary = if filled.len() == 1 { "1 operation".to_owned() } else { format!("{} operations", filled.len()) };
        Ok(Some(Done { summary, lines: filled.iter().map(shown).chain(became).collect() }))
    }

    async fn finish(&mut self) -> Result<Vec<String>, DryRunError> {
        match &mut self.server {
            Some(server) => server.tell_left().await,
            None => Ok(Vec::new()),
        }
    }

    async fn remove(&mut self) -> Result<(), ProjectorError> {
        match &mut self.server {
            Some(Server { state, scratch, .. }) => scratch.remove(state).await,
            None => Ok(()),
        }
    }
}

fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// One line, whatever the event holds.
fn shown(Filled { key, version, action, .. }: &Filled) -> String {
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
    use super::*;

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
