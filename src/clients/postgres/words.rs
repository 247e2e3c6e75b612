//! Which of a server's messages may be repeated in logs, conditions and Events, and what replaces the others.
//!
//! Events may hold personal data, and PostgreSQL quotes what it cannot use: `invalid input syntax for type integer: "…"`. Details, hints and
//! contexts quote whole rows and are never repeated. The message itself is repeated only where it speaks of statements, names and
//! the server; for the rest stand the SQLSTATE, its name in PostgreSQL's manual, and the names of table, column and constraint.

use tokio_postgres::error::{DbError, ErrorPosition, Severity, SqlState};

use super::sqlstate::condition_name;

/// Server messages are cut here, so that a hostile server cannot fill a status.
const LONGEST: usize = 300;
/// The server's routine that raises errors whose message, code and names the author of a function chose: `raise` of PL/pgSQL.
const RAISED: &str = "exec_stmt_raise";
/// Where the server finds that a prepared statement no longer fits its tables.
const STALE_PLAN: &str = "RevalidateCachedQuery";

/// Classes whose messages name objects of the schema, or the state of server and session, and never a value: connection, cardinality,
/// constraints (the values are in the detail), transaction state, statement names, authorization, catalog and schema names, rollback,
/// resources, object state, operator intervention, system errors.
const SPEAKING_OF_NAMES: [&str; 13] = ["08", "21", "23", "25", "26", "28", "3D", "3F", "40", "53", "55", "57", "58"];

/// The server's own message, if it cannot quote a value.
pub fn repeatable(answer: &DbError) -> Option<String> {
    let fatal = matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
    let in_the_text = matches!(answer.position(), Some(ErrorPosition::Original(_)));
    may_be_repeated(answer.code(), answer.routine(), fatal, in_the_text).then(|| shortened(answer.message()))
}

/// What replaces the server's message.
pub fn named(answer: &DbError) -> String {
    let mut named = condition_name(answer.code().code()).to_owned();
    if answer.routine() != Some(RAISED) {
        let names = [
            ("table", answer.table()),
            ("column", answer.column()),
            ("type", answer.datatype()),
            ("constraint", answer.constraint()),
        ];
        for (kind, name) in names {
            if let Some(name) = name {
                named.push_str(&format!(", {kind} {}", shortened(name)));
            }
        }
    }
    named
}

/// True when a prepared statement no longer fits its tables, as far as the server shows: it has to be prepared again.
pub fn is_stale_plan(answer: &DbError) -> bool {
    *answer.code() == SqlState::FEATURE_NOT_SUPPORTED && answer.routine().is_none_or(|routine| routine == STALE_PLAN)
}

fn may_be_repeated(code: &SqlState, routine: Option<&str>, fatal: bool, in_the_text: bool) -> bool {
    if routine == Some(RAISED) {
        return false;
    }
    // What ends a session is about the session. And a place in the statement's text comes with errors of that text, which holds no value: those
    // are bound apart from it.
    fatal
        || in_the_text
        || routine == Some(STALE_PLAN)
        || SPEAKING_OF_NAMES.iter().any(|class| code.code().starts_with(class))
        || [
            SqlState::INSUFFICIENT_PRIVILEGE,
            // Said of `on conflict`, only once the statement runs.
            SqlState::INVALID_COLUMN_REFERENCE,
            SqlState::DATA_CORRUPTED,
            SqlState::INDEX_CORRUPTED,
        ]
        .contains(code)
}

/// Shortens a text to a bounded length, in one line.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    if text.chars().count() > LONGEST {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_quote_a_value_is_not_repeated() {
        for code in ["22P02", "22007", "22012", "P0001", "42P01", "42601", "0A000", "XX000", "38000", "54000", "99999"]
        {
            let code = SqlState::from_code(code);
            assert!(!may_be_repeated(&code, Some("pg_strtoint64_safe"), false, false), "{code:?}");
            assert!(may_be_repeated(&code, Some("parserOpenTable"), false, true), "{code:?}: about the text");
            assert!(may_be_repeated(&code, None, true, false), "{code:?}: about the session");
        }
    }

    #[test]
    fn what_speaks_of_names_is_repeated_unless_a_function_chose_the_words() {
        for code in ["23505", "23502", "40P01", "42501", "42P10", "53300", "55P03", "57014", "21000", "XX001"] {
            let code = SqlState::from_code(code);
            assert!(may_be_repeated(&code, Some("_bt_check_unique"), false, false), "{code:?}");
            assert!(!may_be_repeated(&code, Some(RAISED), false, false), "{code:?}");
        }
        assert!(may_be_repeated(&SqlState::FEATURE_NOT_SUPPORTED, Some(STALE_PLAN), false, false));
    }

    #[test]
    fn a_talkative_server_is_cut_short() {
        assert_eq!(shortened(&"x".repeat(10_000)).chars().count(), LONGEST + 1);
        assert_eq!(shortened("a\nb"), "ab");
    }
}
