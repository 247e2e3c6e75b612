//! A request's path, read strictly: each segment is decoded by itself, so that no encoding makes one segment two.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// A longer path is refused unread.
const LONGEST_PATH: usize = 2 * 1024;
/// No name in Kubernetes is longer. What is remembered of requests is bounded by it.
const LONGEST_SEGMENT: usize = 253;

/// Everything but what a segment may hold as it is.
const NOT_PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'*').remove(b':');

/// Reads the segments of a path. A slash at the end counts as an empty segment.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn segments(path: &str) -> Result<Vec<Cow<'_, str>>, &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("it is too long");
    }
    // Neither the authority of CONNECT nor the asterisk of OPTIONS is a path.
    let path = path.strip_prefix('/').ok_or("it does not begin with a slash")?;
    path.split('/').map(segment).collect()
}

fn segment(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    let decoded = decode(encoded)?;
    match decoded.as_ref() {
        text if text.chars().any(char::is_control) => Err("it holds a control character"),
        "." | ".." => Err("it goes up or nowhere"),
        text if text.contains('/') => Err("a segment holds a slash"),
        text if text.len() > LONGEST_SEGMENT => Err("a name in it is longer than 253 bytes"),
        _ => Ok(decoded),
    }
}

/// The path of these segments, in a spelling that every server reads alike; without empty segments at the end.
pub(super) fn join(segments: &[&str]) -> String {
    let end = segments.iter().rposition(|segment| !segment.is_empty()).map_or(0, |last| last + 1);
    segments[..end].iter().map(|segment| format!("/{}", utf8_percent_encode(segment, NOT_PLAIN))).collect()
}

/// Decodes `%xx`, each of which must be complete.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn decode(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    let mut rest = encoded.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let complete = rest.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        if !complete {
            return Err("a percent sign is not followed by two hexadecimal digits");
        }
        rest = &rest[at + 3..];
    }
    percent_decode_str(encoded).decode_utf8().map_err(|_| "it is not UTF-8")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tricks_with_encodings_are_refused() {
        for path in [
            "/apis/%2e%2e/x",
            "/apis/..",
            "/a%2fb",
            "/a%00",
            "/a%zz",
            "/a%2",
            "/a%ff",
            "",
            "*",
            "db:5432",
            &"/a".repeat(20_000),
            &"/a".repeat(1_100),
            &format!("/{}", "a".repeat(254)),
        ] {
            assert!(segments(path).is_err(), "{path:.40}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(text in "\\PC{0,80}", encoded in "(/|%[0-9a-f]{2}|[a-z]){0,40}") {
            let _ = (segments(&text), segments(&encoded));
        }

        #[test]
        fn a_segment_comes_out_as_it_went_in(names in proptest::collection::vec("[a-z*%/. é]{1,8}", 1..6)) {
            let encoded: String = names.iter().map(|name| {
                format!("/{}", percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC))
            }).collect();
            match segments(&encoded) {
                Ok(read) => {
                    prop_assert_eq!(&read, &names);
                    let parts: Vec<&str> = names.iter().map(String::as_str).collect();
                    // A path that the operator has written is read back unchanged.
                    let written = join(&parts);
                    prop_assert_eq!(segments(&written).unwrap(), names);
                }
                Err(_) => prop_assert!(names.iter().any(|name| name.contains('/') || name == "." || name == "..")),
            }
        }
    }
}
