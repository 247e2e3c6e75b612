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

/// So much of a secret in a row is taken for a part of it: servers cut what they quote.
const PART: usize = 12;

/// The text without these secrets, also where a part of one is in it.
pub(super) fn without_secrets<'a>(text: &str, secrets: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = text.to_owned();
    for secret in secrets.into_iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
        while let Some((from, until)) = part_of(&text, secret) {
            text.replace_range(from..until, "…");
        }
    }
    text
}

/// Where the first part of the secret is in the text, as far as it goes.
fn part_of(text: &str, secret: &str) -> Option<(usize, usize)> {
    let ends = |from: usize| text[from..].char_indices().map(move |(at, letter)| from + at + letter.len_utf8());
    text.char_indices().find_map(|(from, _)| {
        let until = ends(from).take_while(|until| secret.contains(&text[from..*until])).last()?;
        (until - from >= PART).then_some((from, until))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_repeated_and_no_part_of_one() {
        let token = "0123456789abcdefghijklmnopqrstuvwxyzäöü";
        let cut = format!("unknown command 'HELLO', with args beginning with: 'AUTH' 'default' '{}", &token[..20]);
        let said = without_secrets(&cut, [token]);
        assert_eq!(said, "unknown command 'HELLO', with args beginning with: 'AUTH' 'default' '…");
        assert_eq!(without_secrets(&format!("wrong: {token}!"), [token]), "wrong: …!");
        assert_eq!(without_secrets("it ends in uvwxyzäöü, said pass", [token, "pass", ""]), "it ends in …, said …");
        assert_eq!(without_secrets("01234567890", [token]), "01234567890", "too short to be told from other text");
        assert_eq!(without_secrets("nothing", []), "nothing");
    }
}
