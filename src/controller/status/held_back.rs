//! The condition `HeldBack`: which open transaction keeps committed events from being read, and what to do about it. Pure.

use super::condition_state::{ConditionState, duration, remarkable, unknown};
use crate::{
    api::{ConditionStatus, Reason},
    controller::known::Known,
    lag::{BlockingWriter, SessionInfo},
};

/// Whether an open transaction keeps committed events from being read, and which.
pub(super) fn held_back(known: &Known<'_>) -> ConditionState {
    let measured = match &known.measured {
        Err(why) => return unknown(why),
        Ok(measured) => measured,
    };
    match measured.sample.held_by() {
        Some(writer) => remarkable(
            Reason::HeldBackByTransaction,
            format!(
                "events{} may not be read before a transaction has ended that may still commit an earlier one: {}",
                measured.sample.head_text().map_or_else(String::new, |(_, safe)| format!(" after position {safe}")),
                transaction(writer)
            ),
        ),
        None => ConditionState {
            status: ConditionStatus::False,
            reason: Reason::AsExpected,
            message: "no event is held back by an open transaction for long".to_owned(),
        },
    }
}

/// Which transaction, what is known of it, and what to do about it. Never the text of its statement.
fn transaction(writer: &BlockingWriter) -> String {
    let BlockingWriter { pid, open_for, holds_for, session } = writer;
    let SessionInfo { application, statement, idle, prepared } = session;
    let mut known = Vec::new();
    if let Some(application) = application {
        known.push(format!("application {application:?}"));
    }
    match (statement, idle) {
        (Some(statement), true) => known.push(format!("idle in transaction after {statement}")),
        (None, true) => known.push("idle in transaction".to_owned()),
        (Some(statement), false) => known.push(format!("runs {statement}")),
        (None, false) => {}
    }
    // Longer than this it has been open in any case.
    known.push(format!("open for {}", duration(open_for.unwrap_or_default().max(*holds_for))));
    let known = known.join(", ");
    match (pid, prepared) {
        (Some(pid), _) => {
            format!("server process {pid} ({known}); if it hangs, end it with select pg_terminate_backend({pid})")
        }
        (None, Some(name)) => {
            let name = name.replace('\'', "''");
            format!(
                "the prepared transaction '{name}' ({known}); end it with commit prepared or rollback prepared '{name}'"
            )
        }
        (None, None) => format!("a prepared transaction ({known}): see pg_prepared_xacts"),
    }
}
