//! What stands for the version of a read model in the names of its places. Pure.

use std::borrow::Cow;

use crate::{
    api::{DocumentOperation, ProjectionSpec, ReadStore, RolloutStrategy},
    names::run_name,
    projector::written_by,
};

/// Stands for the version.
pub(super) const PLACEHOLDER: &str = "{version}";

impl ProjectionSpec {
    /// Whether each version is built by a run of its own.
    pub(super) fn has_runs(&self) -> bool {
        let is_beside = self.rollout.as_ref().is_some_and(|rollout| rollout.strategy == RolloutStrategy::BlueGreen);
        is_beside && self.version.is_some()
    }

    /// The version by which the places and the state of its workers are named, in a read store without schemas: where each version has a run of its own.
    pub(super) fn version_in_names(&self) -> Option<&str> {
        let has_schemas = self.read_store.as_ref().is_none_or(|store| store.postgres.is_some());
        self.version.as_deref().filter(|_| self.has_runs() && !has_schemas)
    }

    /// How the workers of the built-in projector call the run that they work for in the read store. `projection`: `namespace/name`.
    pub(super) fn name_in_read_store(&self, projection: String) -> String {
        match self.version_in_names() {
            Some(version) => run_name::of(&projection, version),
            None => projection,
        }
    }
}

/// The spec with its version in place of each `{version}`; as it is where there is nothing to replace.
pub(super) fn filled(spec: &ProjectionSpec) -> Cow<'_, ProjectionSpec> {
    let mut filled = Cow::Borrowed(spec);
    if let (Some(version), Some(ReadStore { postgres: Some(store), .. })) = (&spec.version, &spec.read_store)
        && let Some(schema) = store.schema.as_ref().filter(|schema| schema.contains(PLACEHOLDER))
        && let Some(ReadStore { postgres: Some(store), .. }) = &mut filled.to_mut().read_store
    {
        store.schema = Some(schema.replace(PLACEHOLDER, version));
    }
    if let Some(version) = spec.version_in_names() {
        fill(filled.to_mut(), version);
    }
    filled
}

fn fill(spec: &mut ProjectionSpec, version: &str) {
    let in_name = |name: &mut String| *name = name.replace(PLACEHOLDER, version);
    let in_template = |template: &mut String| *template = fill_template(template, version);
    if let Some(builtin) = spec.projector.as_mut().and_then(|projector| projector.builtin.as_mut()) {
        if let Some(redis) = &mut builtin.redis {
            redis.handlers.values_mut().flatten().flatten().for_each(in_template);
        }
        if let Some(search) = &mut builtin.elasticsearch {
            in_name(&mut search.state_index);
            search.handlers.values_mut().flatten().map(DocumentOperation::index_mut).for_each(in_template);
        }
    }
    if let Some(checkpoint) = &mut spec.checkpoint {
        if let Some(redis) = &mut checkpoint.redis {
            in_name(&mut redis.key);
        }
        if let Some(document) = &mut checkpoint.elasticsearch {
            in_name(&mut document.index);
            document.id.as_mut().map(in_name);
        }
    }
}

/// A part of a template of a handler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Piece<'a> {
    /// As it is written, with doubled braces.
    Text(&'a str),
    Version,
    /// What comes from an event, with its braces.
    Place(&'a str),
}

/// What is no template ends with a text: it is refused elsewhere.
fn pieces(template: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest) = (Vec::new(), template);
    while !rest.is_empty() {
        let length = if rest.starts_with("{{") || rest.starts_with("}}") {
            2
        } else if rest.starts_with('{') {
            rest.find('}').map_or(rest.len(), |end| end + 1)
        } else {
            rest.find(['{', '}']).unwrap_or(rest.len()).max(1)
        };
        let (piece, after) = rest.split_at(length);
        pieces.push(match piece {
            PLACEHOLDER => Piece::Version,
            place if place.starts_with('{') && place.ends_with('}') => Piece::Place(place),
            text => Piece::Text(text),
        });
        rest = after;
    }
    pieces
}

fn fill_template(template: &str, version: &str) -> String {
    let text = pieces(template).into_iter().map(|piece| match piece {
        Piece::Version => version,
        Piece::Text(text) | Piece::Place(text) => text,
    });
    text.collect()
}

/// Holds where no two versions can write to one place, and every place that is named by the version has one.
///
/// # Errors
/// The field, and what is wrong with it. The API server cannot see this: its rules would cost too much for so many handlers.
pub(super) fn check(spec: &ProjectionSpec) -> Result<(), (String, String)> {
    let is_by_version = spec.version_in_names().is_some();
    let builtin = spec.projector.as_ref().and_then(|projector| projector.builtin.as_ref());
    let redis = builtin.and_then(|builtin| builtin.redis.as_ref());
    for (event_type, commands) in redis.iter().flat_map(|redis| &redis.handlers) {
        let field = || format!("spec.projector.builtin.redis.handlers[{event_type}]");
        for (number, words) in (1..).zip(commands) {
            let at = |why: String| format!("cannot be run: in command {number} {why}");
            if !is_by_version && let Some(word) = words.iter().find(|word| holds_version(word)) {
                return Err((field(), at(without_runs(word))));
            }
            let problem = written_by(words).iter().filter(|_| is_by_version).find_map(|key| mixes("key", key));
            problem.map_or(Ok(()), |problem| Err((field(), at(problem))))?;
        }
    }
    let search = builtin.and_then(|builtin| builtin.elasticsearch.as_ref());
    for (event_type, operations) in search.iter().flat_map(|search| &search.handlers) {
        let field = || format!("spec.projector.builtin.elasticsearch.handlers[{event_type}]");
        for (number, index) in (1..).zip(operations.iter().map(DocumentOperation::index)) {
            let at = |why: String| format!("cannot be run: in operation {number} {why}");
            if !is_by_version && holds_version(index) {
                return Err((field(), at(without_runs(index))));
            }
            let problem = mixes("index", index).filter(|_| is_by_version);
            problem.map_or(Ok(()), |problem| Err((field(), at(problem))))?;
        }
    }
    if let Some(search) = search.filter(|search| !is_by_version && search.state_index.contains(PLACEHOLDER)) {
        let field = "spec.projector.builtin.elasticsearch.stateIndex".to_owned();
        return Err((field, format!("cannot be used: in it {}", without_runs(&search.state_index))));
    }
    if !is_by_version {
        return Ok(());
    }
    leads_somewhere(spec)?;
    has_own_checkpoint(spec)
}

fn holds_version(template: &str) -> bool {
    pieces(template).contains(&Piece::Version)
}

fn without_runs(text: &str) -> String {
    format!(
        "{text:?} holds {{version}}, which stands for the version with spec.rollout.strategy BlueGreen only, where each version has workers of its own: set that and spec.version, or leave it out"
    )
}

/// Why two versions would write to one place of this name, where they would.
fn mixes(what: &str, template: &str) -> Option<String> {
    let pieces = pieces(template);
    let first = pieces.iter().position(|piece| matches!(piece, Piece::Place(_))).unwrap_or(pieces.len());
    let (constant, rest) = pieces.split_at(first);
    match constant {
        // v1 with 0 is v10.
        [.., Piece::Version] if !rest.is_empty() => Some(format!(
            "the {what} {template:?} must have something between {{version}} and what comes from an event, such as a colon or a dash: else one version could write what another one does"
        )),
        constant if constant.contains(&Piece::Version) => None,
        _ => Some(format!(
            "the {what} {template:?} must hold {{version}}, in front of what comes from an event: with spec.rollout.strategy BlueGreen versions are built side by side, and all of them would write there"
        )),
    }
}

/// An alias would lead to an index that no version has.
fn leads_somewhere(spec: &ProjectionSpec) -> Result<(), (String, String)> {
    let builtin = spec.projector.as_ref().and_then(|projector| projector.builtin.as_ref());
    let Some(search) = builtin.and_then(|builtin| builtin.elasticsearch.as_ref()) else { return Ok(()) };
    let writes = |operation: &DocumentOperation, index: &str| {
        let pieces = pieces(operation.index());
        let constant: String = pieces
            .iter()
            .map_while(|piece| match piece {
                Piece::Text(text) => Some(*text),
                Piece::Version => Some(PLACEHOLDER),
                Piece::Place(_) => None,
            })
            .collect();
        let all = !pieces.iter().any(|piece| matches!(piece, Piece::Place(_)));
        !matches!(operation, DocumentOperation::Delete { .. })
            && if all { constant == index } else { index.starts_with(&constant) }
    };
    let aliases = spec.rollout.iter().filter_map(|rollout| rollout.switch.as_ref());
    for (number, alias) in aliases.flat_map(|switch| &switch.elasticsearch_aliases).enumerate() {
        if !search.handlers.values().flatten().any(|operation| writes(operation, &alias.index)) {
            let field = format!("spec.rollout.switch.elasticsearchAliases[{number}].index");
            let problem = format!(
                "must be an index that a handler of spec.projector.builtin.elasticsearch writes to: none writes to {}, so that alias {} would lead readers to nothing",
                alias.index, alias.alias
            );
            return Err((field, problem));
        }
    }
    Ok(())
}

/// Workers of the team's own would take the checkpoint of one version for that of another.
fn has_own_checkpoint(spec: &ProjectionSpec) -> Result<(), (String, String)> {
    let Some(checkpoint) = &spec.checkpoint else { return Ok(()) };
    let (field, is_own) = match (&checkpoint.redis, &checkpoint.elasticsearch) {
        (Some(redis), _) => ("spec.checkpoint.redis.key", redis.key.contains(PLACEHOLDER)),
        (None, Some(document)) => {
            let id = document.id.as_deref().unwrap_or_default();
            let is_own = document.index.contains(PLACEHOLDER) || id.contains(PLACEHOLDER);
            ("spec.checkpoint.elasticsearch.id", is_own)
        }
        (None, None) => return Ok(()),
    };
    if is_own {
        return Ok(());
    }
    let problem = "must hold {version} with spec.rollout.strategy BlueGreen: each version has a checkpoint of its own";
    Err((field.to_owned(), problem.to_owned()))
}

#[cfg(test)]
#[path = "versions_tests.rs"]
mod tests;
