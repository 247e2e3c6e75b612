//! Indices that stand for those of the handlers while these are tried: made like the real ones, and removed in the end.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::{
    super::{super::error::ProjectorError, DryRunError},
    patience::Patience,
    refusals::Outcome,
    requests::Failed,
    state::State,
};
use crate::names::search_state;

/// Settings of an index that say what documents may hold, or that its mapping needs.
const COPIED: [&str; 4] = ["analysis", "mapping", "similarity", "knn"];
/// What the user must be allowed to do with indices of these names.
const RIGHTS: &str = r#"grant the user in the Secret, in addition, {"names": ["*-dry-run-*"], "privileges": ["read", "index", "delete", "create_index", "delete_index", "view_index_metadata"]}, and view_index_metadata on the real indices"#;
const MAKING: &str = "read store: making the indices to try the handlers in";
const REMOVING: &str = "read store: removing the indices that the handlers were tried in";

/// The indices.
pub(super) struct Scratch {
    suffix: String,
    /// Those that are there, or may be.
    made: BTreeSet<String>,
}

/// What a real index says of the one that stands for it.
#[derive(Debug, Eq, PartialEq)]
struct Copied {
    /// What it is made with.
    body: Value,
    /// What is not the same there, for people.
    note: Option<String>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { suffix: format!("{}{:08x}", search_state::DRY_RUN, rand::random::<u32>()), made: BTreeSet::new() }
    }

    /// What the names of the indices end with.
    pub(super) fn suffix(&self) -> &str {
        &self.suffix
    }

    /// Makes the index that stands for the real one, if it is not there yet. Returns what is to be told of it.
    pub(super) async fn make(&mut self, state: &mut State, scratch: &str) -> Result<Option<String>, DryRunError> {
        let real = scratch.strip_suffix(&self.suffix).unwrap_or(scratch);
        if self.made.contains(scratch) {
            return Ok(None);
        }
        let Copied { body, note } = match described(state, real).await {
            Ok(description) => copied(real, &description)?,
            Err(Failed::Refused(Outcome::NoIndex(_))) => missing(real),
            Err(failed) => return Err(refused(state, real, failed)),
        };
        self.made.insert(scratch.to_owned());
        let mut patience = Patience::default();
        while let Err(failed) = state.requests().create_index(scratch, &body).await {
            match (failed, patience.pause()) {
                (Failed::Refused(Outcome::Busy(_)), Some(pause)) => sleep(pause).await,
                (failed, _) => {
                    if matches!(failed, Failed::Refused(Outcome::Forbidden(_) | Outcome::Event(_))) {
                        self.made.remove(scratch);
                    }
                    return Err(refused(state, scratch, failed));
                }
            }
        }
        // By an alias, readers would find what is tried.
        let made = described(state, scratch).await.map_err(|failed| refused(state, scratch, failed))?;
        let aliases = made.get(scratch).and_then(|index| index.get("aliases")).and_then(Value::as_object);
        match aliases.and_then(|aliases| aliases.keys().next()) {
            None => Ok(note),
            Some(alias) => Err(DryRunError::Store(state.failed(
                MAKING,
                format!(
                    "an index template gives {scratch} the alias {alias}, by which readers would find what is tried: use a server for tests, or take the alias out of the template meanwhile"
                ),
            ))),
        }
    }

    /// Removes all of them.
    pub(super) async fn remove(&mut self, state: &mut State) -> Result<(), ProjectorError> {
        let mut left = Vec::new();
        let mut patience = Patience::default();
        while let Some(index) = self.made.first().cloned() {
            let failed = match state.requests().delete_index(&index).await {
                Ok(()) => None,
                Err(Failed::Refused(Outcome::Busy(why))) => match patience.pause() {
                    Some(pause) => {
                        sleep(pause).await;
                        continue;
                    }
                    None => Some(why),
                },
                Err(Failed::Refused(Outcome::Forbidden(_))) => Some(RIGHTS.to_owned()),
                Err(failed) => match state.told(REMOVING, failed) {
                    ProjectorError::Store { message, .. } => Some(message),
                    other => Some(other.to_string()),
                },
            };
            self.made.remove(&index);
            left.extend(failed.map(|why| (index, why)));
        }
        let Some((_, why)) = left.first() else { return Ok(()) };
        let deletes: Vec<String> = left.iter().map(|(index, _)| format!("DELETE /{index}")).collect();
        Err(state.failed(REMOVING, format!("{why}. Remove what is left: {}", deletes.join(", "))))
    }
}

/// What the server says of an index.
async fn described(state: &mut State, index: &str) -> Result<Value, Failed> {
    let mut patience = Patience::default();
    loop {
        match (state.requests().describe_index(index).await, patience.pause()) {
            (Err(Failed::Refused(Outcome::Busy(_))), Some(pause)) => sleep(pause).await,
            (described, _) => return described,
        }
    }
}

/// Why an index cannot be looked at or made.
fn refused(state: &State, index: &str, failed: Failed) -> DryRunError {
    match failed {
        Failed::Refused(Outcome::Event(why)) => DryRunError::Event(format!("index {index}: {why}")),
        Failed::Refused(Outcome::Forbidden(why)) => {
            DryRunError::Store(state.failed(MAKING, format!("index {index}: {why}. For a dry run {RIGHTS}")))
        }
        failed => DryRunError::Store(state.told(MAKING, failed)),
    }
}

/// What an index is made with that stands for one that is not there.
fn missing(real: &str) -> Copied {
    Copied {
        body: settings(Map::new()),
        note: Some(format!("index {real} is not there: its fields are mapped as they come")),
    }
}

/// What an index is made with that stands for the one, or the alias, of this description.
fn copied(real: &str, description: &Value) -> Result<Copied, DryRunError> {
    let ambiguous = || {
        DryRunError::Event(format!(
            "index {real}: it is an alias that leads to several indices, and none of them is the one to write to"
        ))
    };
    let all: Vec<&Value> = description.as_object().into_iter().flat_map(Map::values).collect();
    let is_written = |index: &&&Value| index["aliases"][real]["is_write_index"] == true;
    let index = match all[..] {
        [] => return Ok(missing(real)),
        [index] => index,
        _ => all.iter().find(is_written).copied().ok_or_else(ambiguous)?,
    };
    let before = &index["settings"]["index"];
    let same = COPIED.iter().filter_map(|name| Some(((*name).to_owned(), before.get(name)?.clone())));
    let mut body = settings(same.collect());
    body["mappings"] = index["mappings"].clone();
    let pipeline = ["default_pipeline", "final_pipeline"].iter().find_map(|name| before[*name].as_str());
    let note = pipeline
        .filter(|name| *name != "_none")
        .map(|name| format!("index {real} has an ingest pipeline, {name}, which is not run here"));
    Ok(Copied { body, note })
}

/// Out of the way of readers who ask for indices by a pattern. A pipeline might lead elsewhere.
fn settings(mut index: Map<String, Value>) -> Value {
    let own = json!({
        "number_of_shards": 1, "number_of_replicas": 0, "hidden": true, "default_pipeline": "_none", "final_pipeline": "_none",
    });
    index.extend(own.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    json!({ "settings": { "index": index } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_made_as_the_real_one_is_but_for_what_belongs_to_its_place() {
        let real = json!({"orders-1": {
            "aliases": {"orders": {}},
            "mappings": {"properties": {"total": {"type": "long"}}},
            "settings": {"index": {"number_of_shards": "9", "uuid": "x", "analysis": {"analyzer": {}}, "default_pipeline": "clean"}},
        }});
        let Copied { body, note } = copied("orders", &real).unwrap();
        let index = &body["settings"]["index"];
        assert_eq!(body["mappings"], real["orders-1"]["mappings"]);
        assert_eq!((&index["number_of_shards"], &index["analysis"]), (&json!(1), &json!({"analyzer": {}})));
        assert!(index.get("uuid").is_none() && index["hidden"] == true && index["default_pipeline"] == "_none");
        assert!(note.unwrap().contains("clean"));
    }

    #[test]
    fn of_several_indices_behind_an_alias_the_one_that_is_written_counts() {
        let index = |written: bool, kind: &str| json!({"aliases": {"orders": {"is_write_index": written}}, "mappings": {"kind": kind}, "settings": {}});
        let both = json!({"a": index(false, "old"), "b": index(true, "new")});
        assert_eq!(copied("orders", &both).unwrap().body["mappings"]["kind"], "new");
        let none = json!({"a": index(false, "old"), "b": index(false, "new")});
        assert!(matches!(copied("orders", &none), Err(DryRunError::Event(why)) if why.contains("several indices")));
        assert!(copied("orders", &json!({})).unwrap().note.unwrap().contains("not there"));
    }
}
