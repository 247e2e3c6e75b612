//! How the names of projections are compared with a column of any type that can hold them. Pure.
//!
//! The names that are asked for are cast to the column's type, and not the column to text, so that its index is used. A name that the type
//! cannot hold is left out: cast, it would fail the statement, and with it the answers for all other projections.

use crate::clients::postgres::ColumnType;

/// The type of a name column, domains resolved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum NameType {
    Text,
    /// `char(n)`: blanks at the end do not count.
    Padded,
    Uuid,
    /// With its SQL name and bounds.
    Integer(&'static str, i64, i64),
    /// With its SQL name and labels.
    Enum(String, Vec<String>),
}

impl NameType {
    /// `None` for a type whose values cannot be told apart by a name.
    pub(super) fn of(type_: &ColumnType) -> Option<Self> {
        Some(match type_.sql.as_str() {
            "character" => Self::Padded,
            "uuid" => Self::Uuid,
            "smallint" => Self::Integer("smallint", i16::MIN.into(), i16::MAX.into()),
            "integer" => Self::Integer("integer", i32::MIN.into(), i32::MAX.into()),
            "bigint" => Self::Integer("bigint", i64::MIN, i64::MAX),
            _ if type_.is_text() => Self::Text,
            _ if !type_.labels.is_empty() => Self::Enum(type_.sql.clone(), type_.labels.clone()),
            _ => return None,
        })
    }

    /// The SQL for the names that are asked for, an array of text in `$1`.
    pub(super) fn parameter(&self) -> String {
        match self {
            Self::Text | Self::Padded => "$1::text[]".to_owned(),
            Self::Uuid => "$1::text[]::uuid[]".to_owned(),
            Self::Integer(name, ..) => format!("$1::text[]::{name}[]"),
            Self::Enum(name, _) => format!("$1::text[]::{name}[]"),
        }
    }

    /// The name as the column's text shows it; `None` where the type cannot hold it.
    pub(super) fn canonical(&self, name: &str) -> Option<String> {
        match self {
            Self::Text => Some(name.to_owned()),
            Self::Padded => Some(name.trim_end_matches(' ').to_owned()),
            Self::Uuid => uuid(name),
            Self::Integer(_, least, most) => name
                .parse()
                .ok()
                .filter(|number| (least..=most).contains(&number))
                .map(|number: i64| number.to_string()),
            Self::Enum(_, labels) => labels.iter().find(|label| *label == name).cloned(),
        }
    }
}

fn uuid(name: &str) -> Option<String> {
    let plausible = |c: char| c.is_ascii_hexdigit() || c == '-';
    let digits: String = name.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    if digits.len() != 32 || !name.chars().all(plausible) {
        return None;
    }
    let (mut rest, mut groups) = (digits.as_str(), Vec::new());
    for length in [8, 4, 4, 4, 12] {
        let (group, after) = rest.split_at(length);
        groups.push(group);
        rest = after;
    }
    Some(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_as_the_column_shows_it_or_left_out() {
        let id = "6F9619FF8B86D011B42D00C04FC964FF";
        assert_eq!(NameType::Uuid.canonical(id).as_deref(), Some("6f9619ff-8b86-d011-b42d-00c04fc964ff"));
        assert_eq!(NameType::Uuid.canonical("orders"), None);
        let small = NameType::Integer("smallint", i16::MIN.into(), i16::MAX.into());
        let canonical = |name| small.canonical(name);
        assert_eq!((canonical("007").as_deref(), canonical("40000"), canonical("x")), (Some("7"), None, None));
        assert_eq!(NameType::Padded.canonical("a ").as_deref(), Some("a"));
        let kind = NameType::Enum("store.kind".to_owned(), vec!["orders".to_owned()]);
        assert_eq!((kind.canonical("orders").as_deref(), kind.canonical("bills")), (Some("orders"), None));
        assert_eq!(kind.parameter(), "$1::text[]::store.kind[]");
    }
}
