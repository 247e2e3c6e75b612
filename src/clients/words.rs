//! What a failure on the way to a server means: a reason for machines and a sentence for people.

use std::io;

use crate::{api::Reason, measure::MeasureError};

/// So much of the server's own words is repeated.
const LONGEST_REPEATED: usize = 200;

/// What a failure on the way to the server means.
pub(super) fn by_io(error: &io::Error) -> MeasureError {
    let text = error.to_string();
    if text.contains("lookup address") || text.contains("resolve any addresses") {
        return no_address();
    }
    let (reason, message) = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => (
            Reason::ConnectionRefused,
            "nothing listens at the address: is the server up, and do host and port in the Secret and the network policies fit?"
                .to_owned(),
        ),
        io::ErrorKind::TimedOut => (Reason::TimedOut, "the server did not answer in time".to_owned()),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => (Reason::SourceFailed, "the connection broke".to_owned()),
        _ => (Reason::SourceFailed, shortened(&text)),
    };
    MeasureError { reason, message }
}

/// What it means that a name leads nowhere.
pub(super) fn no_address() -> MeasureError {
    MeasureError {
        reason: Reason::HostNotFound,
        message: "the host name has no address: correct it in the Secret, or the DNS".to_owned(),
    }
}

/// The text without control characters, cut where it is long.
pub(super) fn shortened(text: &str) -> String {
    let printable = text.chars().filter(|letter| !letter.is_control());
    let mut kept: String = printable.clone().take(LONGEST_REPEATED).collect();
    if printable.count() > LONGEST_REPEATED {
        kept.push('…');
    }
    kept
}
