//! Which handlers of the built-in projector no event has come for: what the owners of all shards have written down, taken together. Pure.

use std::collections::BTreeSet;

/// The types in the note of a shard's owner: its fence, a blank, and a JSON list. `None` where there is no note, and where it is of an earlier owner: what
/// this one has had is not known.
pub(super) fn of_shard(note: Option<&str>, fence: Option<&str>) -> Option<BTreeSet<String>> {
    let (of, types) = note?.split_once(' ')?;
    (of == fence?).then(|| of_list(types)).flatten()
}

/// The types in a JSON list.
pub(super) fn of_list(types: &str) -> Option<BTreeSet<String>> {
    serde_json::from_str(types).ok()
}

/// The types that no owner has had an event of: none where one of them is not known to have had none.
pub(super) fn by_all(shards: impl IntoIterator<Item = Option<BTreeSet<String>>>) -> Vec<String> {
    let all = shards.into_iter().reduce(|one, other| Some(&one? & &other?));
    all.flatten().into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_owner_of_a_shard_has_had_is_told() {
        let of = |notes: &[(&str, &str)]| by_all(notes.iter().map(|(note, fence)| of_shard(Some(note), Some(fence))));
        assert_eq!(of(&[(r#"3 ["A","B"]"#, "3"), (r#"12 ["B","C"]"#, "12")]), ["B"]);
        assert!(of(&[(r#"3 ["A"]"#, "3"), ("12 []", "12")]).is_empty(), "another worker had it");
        assert!(of(&[(r#"3 ["A"]"#, "3"), (r#"11 ["A"]"#, "12")]).is_empty(), "the shard has another owner since");
        assert!(of(&[(r#"3 ["A"]"#, "3"), ("3 nonsense", "3")]).is_empty());
        assert!(by_all([of_shard(Some(r#"3 ["A"]"#), Some("3")), of_shard(None, Some("3"))]).is_empty());
        assert!(by_all([]).is_empty());
    }
}
