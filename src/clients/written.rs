//! Connection settings as people write them into a Secret: what several kinds of servers have in common.

use percent_encoding::percent_decode_str;

use crate::{api::Reason, measure::MeasureError};

/// Settings that cannot be read. `why` repeats nothing of them.
pub(super) fn unreadable(why: &str) -> MeasureError {
    MeasureError {
        reason: Reason::ConnectionStringInvalid,
        message: format!("the connection settings cannot be read: {why}"),
    }
}

/// Decodes a part of a URL. Returns what is wrong with it in words that repeat none of it.
pub(super) fn percent_decoded(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        if !bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err("a % is not followed by two hexadecimal digits: percent-encode a % itself: %25".to_owned());
        }
    }
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "what is percent-encoded is not UTF-8")?;
    Ok(text.into_owned())
}

/// The same, where there may be no NUL in it.
pub(super) fn percent_decoded_text(text: &str) -> Result<String, String> {
    let text = percent_decoded(text)?;
    if text.contains('\0') { Err("it holds a NUL byte (%00)".to_owned()) } else { Ok(text) }
}
