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

/// What stands between `//` and the path of a URL. Parts that are empty are absent.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Authority {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// An IPv6 address without its brackets.
    pub(super) host: Option<String>,
    /// Still unread.
    pub(super) port: Option<String>,
}

/// Reads `user:password@host:port`. Returns what is wrong with it in words that repeat none of it.
pub(super) fn authority(text: &str) -> Result<Authority, String> {
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    let (credentials, place) = text.rsplit_once('@').map_or((None, text), |(one, place)| (Some(one), place));
    let (user, password) = credentials.map_or(("", ""), |both| both.split_once(':').unwrap_or((both, "")));
    let (host, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or("an IPv6 address has no closing ]")?;
            match port.strip_prefix(':') {
                None if !port.is_empty() => return Err("only a colon and the port may follow the ]".to_owned()),
                port => (host, port.unwrap_or_default()),
            }
        }
        // An IPv6 address without brackets has no port.
        None => place.split_once(':').filter(|(_, port)| !port.contains(':')).unwrap_or((place, "")),
    };
    Ok(Authority {
        user: filled(percent_decoded_text(user)?),
        password: filled(percent_decoded_text(password)?),
        host: filled(host.to_owned()),
        port: filled(port.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_of_a_url_has_up_to_four_parts() {
        let read = |text: &str| {
            let Authority { user, password, host, port } = authority(text).unwrap();
            [user, password, host, port].map(Option::unwrap_or_default).join("|")
        };
        for (text, parts) in [
            ("", "|||"),
            ("host", "||host|"),
            ("host:80", "||host|80"),
            ("u:p%40s@s@host:80", "u|p@s@s|host|80"),
            ("u@[::1]", "u||::1|"),
            (":p@[::1]:80", "|p|::1|80"),
            ("::1", "||::1|"),
        ] {
            assert_eq!(read(text), parts, "{text}");
        }
        for text in ["u:hun%ter2@host", "[::1", "[::1]hunter2", "u:%00@host"] {
            assert!(!authority(text).unwrap_err().contains("hunter2"), "{text}");
        }
    }
}
