//! Whether a new version holds the same as the one that readers see: what is compared, and how answers differ. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use crate::{api::TableLocation, measure::RunKey};

/// So many keys are told; of the others only how many there are.
const TOLD: usize = 5;
/// More characters of a key are not told.
const LONGEST_KEY: usize = 60;

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// A run whose read store holds both.
    pub store: RunKey,
    /// The version that readers see.
    pub live: Side,
    /// The one that is to take its place.
    pub candidate: Side,
    /// The user's query.
    pub query: Arc<str>,
    /// Numbers may differ by this share of the larger one.
    pub tolerance: f64,
}

/// One version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Side {
    /// Its name.
    pub version: Arc<str>,
    /// The schema that it is built in.
    pub schema: String,
    /// Where its workers commit how far they have come.
    pub checkpoint: TableLocation,
}

/// What came of comparing two versions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Compared {
    /// They hold the same.
    Same,
    /// They had handled the same events, and do not hold the same: what, for people.
    Differs(String),
    /// There was no moment at which both had handled the same events: how far apart they were, for people.
    NeverAtOnePosition(String),
}

/// Whether a new version holds the same as the one that readers see.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Parity {
    /// They have not been compared yet.
    #[default]
    NotCompared,
    /// It is not known, for this reason.
    Unknown(String),
    /// It does.
    Holds,
    /// It does not.
    Broken {
        /// In what.
        told: String,
        /// It was seen often enough.
        for_good: bool,
    },
}

/// One value of an answer, as the server writes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cell {
    /// As JSON.
    pub text: String,
    /// It is a number.
    pub is_number: bool,
}

/// The answer of one version: by key, the columns. A query without a column `key` has one row, whose key is `None`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer(pub BTreeMap<Option<String>, BTreeMap<String, Cell>>);

/// How two answers differ; `None`: they are the same. Keys and names of columns are told, and no values.
pub fn difference(of: &Comparison, live: &Answer, candidate: &Answer) -> Option<String> {
    let keys: BTreeSet<&Option<String>> = live.0.keys().chain(candidate.0.keys()).collect();
    let all = keys.iter().filter_map(|key| {
        let (old, new) = match (live.0.get(*key), candidate.0.get(*key)) {
            (Some(old), Some(new)) => (old, new),
            (Some(_), None) => return Some((key, format!("only in {}", of.live.version))),
            (None, _) => return Some((key, format!("only in {}", of.candidate.version))),
        };
        let columns: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let differ = columns.into_iter().filter(|column| match (old.get(*column), new.get(*column)) {
            (Some(old), Some(new)) => !same(old, new, of.tolerance),
            _ => true,
        });
        let differ: Vec<String> = differ.map(|column| shortened(column)).collect();
        (!differ.is_empty()).then(|| (key, differ.join(", ")))
    });
    let all: Vec<_> = all.collect();
    if all.is_empty() {
        return None;
    }
    let told = all.iter().take(TOLD).map(|(key, how)| match key {
        Some(key) => format!("{:?} ({how})", shortened(key)),
        None => how.clone(),
    });
    let mut text = told.collect::<Vec<_>>().join(", ");
    if all.len() > TOLD {
        let _ = write!(text, " and {} more", all.len() - TOLD);
    }
    Some(text)
}

fn same(one: &Cell, other: &Cell, tolerance: f64) -> bool {
    if one.text == other.text {
        return true;
    }
    if !one.is_number || !other.is_number {
        return false;
    }
    if plain(&one.text) == plain(&other.text) {
        return true;
    }
    // Exact numbers may have more digits than a float: these decide only how much is tolerated.
    match (one.text.parse::<f64>(), other.text.parse::<f64>()) {
        (Ok(one), Ok(other)) if tolerance > 0.0 => (one - other).abs() <= tolerance * one.abs().max(other.abs()),
        _ => false,
    }
}

/// A decimal number without zeros at its end: 1.50 is 1.5.
fn plain(number: &str) -> &str {
    let plain = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    if plain == "-0" { "0" } else { plain }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(LONGEST_KEY).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Why two checkpoints are not at one position; `None`: they are. Each is a list of shards, if there are several, with their positions. Two versions with other
/// shards have handled the same where all shards of both are at the same position. `bound`: of several rows only the lowest and the highest are known.
pub fn apart(
    (live, shards): (&[i64], Option<&[Arc<str>]>),
    (candidate, its): (&[i64], Option<&[Arc<str>]>),
    bound: bool,
) -> Option<String> {
    if live.is_empty() || candidate.is_empty() {
        return Some("one of them has not committed anything yet".to_owned());
    }
    let first = live[0];
    if live.iter().chain(candidate).all(|position| *position == first) {
        return None;
    }
    if bound || shards != its || live.len() != candidate.len() {
        let ends = |positions: &[i64]| {
            let (least, most) = positions.iter().fold((i64::MAX, i64::MIN), |(a, b), it| (a.min(*it), b.max(*it)));
            if least == most { least.to_string() } else { format!("{least} to {most}") }
        };
        return Some(format!("one was at {}, the other at {}", ends(live), ends(candidate)));
    }
    let different: Vec<usize> = (0..live.len()).filter(|at| live[*at] != candidate[*at]).collect();
    let at = *different.first()?;
    let shard = shards.and_then(|shards| shards.get(at)).filter(|_| live.len() > 1);
    let of = shard.map_or_else(String::new, |shard| {
        format!(" of shard {shard}, one of {} shards that were apart", different.len())
    });
    Some(format!("one was at {}, the other at {}{of}", live[at], candidate[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CheckpointRows;

    fn comparison(tolerance: f64) -> Comparison {
        let side = |version: &str| Side {
            version: version.into(),
            schema: version.to_owned(),
            checkpoint: TableLocation {
                table: "checkpoints".to_owned(),
                name_column: "projection".to_owned(),
                position_column: "position".to_owned(),
                name: "orders".to_owned(),
                rows: CheckpointRows::One,
            },
        };
        Comparison {
            store: RunKey::unversioned("shop", "orders"),
            live: side("v1"),
            candidate: side("v2"),
            query: "".into(),
            tolerance,
        }
    }

    /// A key, and the columns with their values.
    type Row<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)]);

    fn answer(rows: &[Row<'_>]) -> Answer {
        let cell = |text: &str| Cell {
            text: text.to_owned(),
            is_number: text.starts_with(|c: char| c.is_ascii_digit() || c == '-'),
        };
        let columns =
            |columns: &[(&str, &str)]| columns.iter().map(|(name, text)| ((*name).to_owned(), cell(text))).collect();
        Answer(rows.iter().map(|(key, all)| (key.map(str::to_owned), columns(all))).collect())
    }

    #[test]
    fn what_differs_is_told_by_key_and_column_and_never_by_value() {
        let old = answer(&[(Some("a"), &[("n", "1"), ("total", "7")]), (Some("b"), &[("n", "2")]), (Some("c"), &[])]);
        let new = answer(&[(Some("a"), &[("n", "1"), ("total", "8")]), (Some("b"), &[("n", "2")]), (Some("d"), &[])]);
        let of = comparison(0.0);
        let told = difference(&of, &old, &new).unwrap();
        assert_eq!(told, "\"a\" (total), \"c\" (only in v1), \"d\" (only in v2)");
        assert_eq!(difference(&of, &old, &old), None);
        let single = |n: &str| answer(&[(None, &[("orders", n)])]);
        assert_eq!(difference(&of, &single("1"), &single("2")).unwrap(), "orders");
        let without = answer(&[(None, &[])]);
        assert_eq!(difference(&of, &single("1"), &without).unwrap(), "orders", "a column that is not there is no zero");
        let many: Vec<String> = (0..40).map(|n| format!("{n:02}{}", "x".repeat(99))).collect();
        let rows: Vec<Row<'_>> = many.iter().map(|key| (Some(&**key), &[] as &[_])).collect();
        let told = difference(&of, &answer(&rows), &Answer::default()).unwrap();
        assert!(told.ends_with("… (only in v1) and 35 more") || told.ends_with("(only in v1) and 35 more"), "{told}");
        assert!(told.len() < 500, "{told}");
    }

    #[test]
    fn numbers_are_compared_by_what_they_are_worth_within_the_tolerance_and_all_else_exactly() {
        let differ = |tolerance: f64, old: &str, new: &str| {
            let one = |text: &str| answer(&[(Some("k"), &[("v", text)])]);
            difference(&comparison(tolerance), &one(old), &one(new)).is_some()
        };
        for (tolerance, old, new, expected) in [
            (0.0, "1.50", "1.5", false),
            (0.0, "-0.0", "0", false),
            (0.0, "100", "1", true),
            (0.0, "12345678901234567890.12", "12345678901234567890.13", true),
            (0.01, "100", "99", false),
            (0.01, "100", "98.9", true),
            (0.01, "0", "0.001", true),
            (0.5, "\"100\"", "\"99\"", true),
            (0.5, "null", "0", true),
            (0.0, "null", "null", false),
        ] {
            assert_eq!(differ(tolerance, old, new), expected, "{tolerance} {old} {new}");
        }
    }

    #[test]
    fn two_checkpoints_are_at_one_position_where_every_shard_is() {
        let shards: Vec<Arc<str>> = vec!["0".into(), "1".into()];
        let two = Some(&shards[..]);
        for (live, candidate, bound, expected) in [
            ((&[5, 7][..], two), (&[5, 7][..], two), false, None),
            ((&[5, 7], two), (&[5, 9], two), false, Some("7, the other at 9 of shard 1")),
            ((&[5], None), (&[5], None), false, None),
            ((&[5], None), (&[6], None), false, Some("one was at 5, the other at 6")),
            // Sharded otherwise: only where all are at one.
            ((&[5, 5], two), (&[5], None), false, None),
            ((&[5, 6], two), (&[5], None), false, Some("one was at 5 to 6, the other at 5")),
            // The lowest and the highest are not all.
            ((&[5, 7], None), (&[5, 7], None), true, Some("one was at 5 to 7, the other at 5 to 7")),
            ((&[7, 7], None), (&[7, 7], None), true, None),
            ((&[], None), (&[], None), false, Some("has not committed")),
            ((&[5], None), (&[], None), false, Some("has not committed")),
        ] {
            let found = apart(live, candidate, bound);
            let as_expected = match (&found, expected) {
                (None, None) => true,
                (Some(found), Some(expected)) => found.contains(expected),
                _ => false,
            };
            assert!(as_expected, "{live:?} {candidate:?} {bound}: {found:?}");
        }
    }
}
