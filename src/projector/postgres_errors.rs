//! What the errors of a PostgreSQL server mean to a worker, whether it reads from it or writes to it.

use tokio_postgres::{Error, error::SqlState};

use crate::clients::postgres::{classify, is_stale_plan, named, repeatable};

/// The database's own words with its code, or where they might quote an event or a row, what kind of error it is and how to read them.
pub(super) fn database_message(error: &Error) -> String {
    let Some(answer) = error.as_db_error() else { return classify(error).1 };
    let code = answer.code().code();
    match repeatable(answer) {
        Some(mut words) => {
            if let Some(constraint) = answer.constraint().filter(|name| !words.contains(name)) {
                words.push_str(&format!(", constraint {constraint}"));
            }
            format!("{words} (SQLSTATE {code})")
        }
        None => format!(
            "{} (SQLSTATE {code}; the database's words may quote values and are left out: to read them, run the SQL by hand in psql with the same values)",
            named(answer)
        ),
    }
}

/// What to do after a failed statement of a handler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// Another transaction got in the way: the same again may succeed at once.
    Contention,
    /// The statement does not suit the event.
    Handler,
    /// The connection, the server or a prepared statement can no longer be used.
    Connection,
}

/// What caused a failure.
pub(super) fn failure(error: &Error) -> Failure {
    let Some(answer) = error.as_db_error() else { return Failure::Connection };
    let code = answer.code();
    match code.code() {
        c if c.starts_with("40") => Failure::Contention,
        c if c.starts_with("08") || c.starts_with("53") || c.starts_with("57P") || c.starts_with("58") => {
            Failure::Connection
        }
        _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION
            || *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
            // A user altered a table while the worker ran. Other errors with that code, such as a unit that `date_trunc` does not know, are an
            // event's.
            || is_stale_plan(answer) =>
        {
            Failure::Connection
        }
        _ => Failure::Handler,
    }
}

/// True when a statement that reads events may have failed because of what stands in one of the rows, so that it is worth finding out which.
pub(super) fn may_be_a_row(error: &Error) -> bool {
    // Data exceptions, functions that raise, limits of the program, and corrupted or otherwise unexpected data.
    let code = error.code().map(SqlState::code).unwrap_or_default();
    ["22", "38", "39", "54", "P0", "XX"].iter().any(|class| code.starts_with(class))
}

/// The code of a failure that lasts and is the event's own: a handler that suits other events fails on this one each time. Failures that may pass (a lock, a
/// limit, a server that stops) and those of the handler or the schema, which every event would meet, are not.
pub(super) fn fault_of_the_event(error: &Error) -> Option<&str> {
    error.as_db_error().map(|answer| answer.code().code()).filter(|code| is_of_the_event(code))
}

/// Source: appendix A of PostgreSQL's manual, "PostgreSQL Error Codes". Class 22 are data exceptions, class 23 violations of integrity constraints, and P0001 is
/// what `raise exception` says.
fn is_of_the_event(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23") || code == "P0001"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lasts_and_is_the_events_own_is_its_fault() {
        for (code, expected) in [
            ("22012", true),  // division by zero
            ("22P02", true),  // a text that is no number
            ("22001", true),  // too long
            ("23502", true),  // not null
            ("23505", true),  // unique
            ("23514", true),  // check
            ("23P01", true),  // exclusion
            ("P0001", true),  // raise exception
            ("08006", false), // connection failure
            ("25006", false), // read only
            ("40001", false), // serialization failure
            ("40P01", false), // deadlock
            ("42501", false), // insufficient privilege
            ("42703", false), // undefined column
            ("42P01", false), // undefined table
            ("53100", false), // disk full
            ("53300", false), // too many connections
            ("54000", false), // program limit exceeded
            ("55P03", false), // lock not available
            ("57014", false), // query canceled
            ("57P01", false), // admin shutdown
            ("58030", false), // I/O error
            ("P0002", false), // no data found
            ("XX001", false), // data corrupted
            ("", false),
        ] {
            assert_eq!(is_of_the_event(code), expected, "{code}");
        }
    }
}
