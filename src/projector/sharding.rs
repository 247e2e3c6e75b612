//! How the events of a source are divided into shards, and whether the checkpoints in a read store are of that division. Pure.

use std::sync::Arc;

use super::error::ProjectorError;

/// How events are divided into shards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Sharding {
    /// By the hash of their stream.
    Hashed {
        /// Into so many: their number never changes.
        shards: u32,
        /// The position after which the first event comes.
        start: i64,
    },
    /// Into the parts that the source itself has, such as partitions. More may come.
    Parts(Vec<Part>),
}

/// A part of a source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Part {
    /// Its name, which stays the same.
    pub(super) name: Arc<str>,
    /// What tells it from another of the same name that was made later; absent where the source does not say.
    pub(super) identity: Option<Arc<str>>,
    /// The position after which its first event comes.
    pub(super) start: i64,
}

/// A part as a read store keeps it with its checkpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct KeptPart {
    pub(super) name: Arc<str>,
    pub(super) identity: Option<Arc<str>>,
}

/// Which parts have no checkpoint yet. `kept` are those that have one.
///
/// # Errors
/// A checkpoint is of a part that was made again since, or that the source does not have.
pub(super) fn without_checkpoint<'a>(
    projection: &str,
    kept: &[KeptPart],
    parts: &'a [Part],
) -> Result<Vec<&'a Part>, ProjectorError> {
    let of = |name: &str| parts.iter().find(|part| *part.name == *name);
    let replaced = kept.iter().find(|one| {
        let found = of(&one.name).and_then(|part| part.identity.as_ref());
        found.zip(one.identity.as_ref()).is_some_and(|(found, kept)| found != kept)
    });
    if let Some(KeptPart { name, .. }) = replaced {
        return Err(ProjectorError::PartReplaced { projection: projection.to_owned(), part: name.to_string() });
    }
    if let Some(KeptPart { name, .. }) = kept.iter().find(|one| of(&one.name).is_none()) {
        return Err(ProjectorError::PartGone { projection: projection.to_owned(), part: name.to_string() });
    }
    Ok(parts.iter().filter(|part| kept.iter().all(|one| one.name != part.name)).collect())
}

/// For a read model that knows by an event's position whether a document has it: an event's stream may move to a part that is added (as keys do when a topic
/// gets more partitions), where positions begin at 0 again, and what it writes would be taken for done.
///
/// # Errors
/// There are checkpoints, and parts that have none.
pub(super) fn none_added(projection: &str, kept: &[KeptPart], new: &[&Part]) -> Result<(), ProjectorError> {
    match new.first().filter(|_| !kept.is_empty()) {
        None => Ok(()),
        Some(part) => Err(ProjectorError::PartAdded { projection: projection.to_owned(), part: part.name.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, identity: Option<&str>) -> Part {
        Part { name: name.into(), identity: identity.map(Arc::from), start: 0 }
    }

    fn kept(name: &str, identity: Option<&str>) -> KeptPart {
        KeptPart { name: name.into(), identity: identity.map(Arc::from) }
    }

    #[test]
    fn parts_that_are_added_get_checkpoints_and_no_other_part_is_taken_for_one_that_was_there() {
        let parts = [part("a-0", Some("x")), part("a-1", Some("x")), part("b-0", None)];
        let names = |kept: &[KeptPart]| {
            let found = without_checkpoint("shop/a", kept, &parts);
            found.map(|parts| parts.iter().map(|part| part.name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["a-0", "a-1", "b-0"]);
        assert_eq!(names(&[kept("b-0", Some("y")), kept("a-0", None)]).unwrap(), ["a-1"]);
        let added = |kept: &[KeptPart], new: &[&Part]| none_added("shop/a", kept, new);
        assert!(added(&[], &[&parts[0]]).is_ok() && added(&[kept("a-0", None)], &[]).is_ok());
        let refused = added(&[kept("a-0", None)], &[&parts[1]]).unwrap_err();
        assert!(refused.is_final() && refused.to_string().contains("a-1"), "{refused}");
        let replaced = names(&[kept("a-0", Some("x")), kept("a-1", Some("z"))]).unwrap_err();
        assert!(replaced.is_final() && replaced.to_string().contains("a-1"), "{replaced}");
        let gone = names(&[kept("a-2", Some("x"))]).unwrap_err();
        assert!(gone.is_final() && gone.to_string().contains("a-2"), "{gone}");
    }
}
