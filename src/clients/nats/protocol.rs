//! The protocol of NATS clients: writes requests, and decodes what the server sends with bounds on what it may take.

/// So much of the end of a payload is kept that is not kept whole.
pub(super) const TAIL: usize = 1 << 10;
/// Lines are no longer than this. The longest that a server writes is INFO, which lists the servers of a cluster.
const LONGEST_LINE: usize = 64 << 10;

/// What messages may take, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Headers and payload of one message are kept whole up to this length. Of longer ones (messages come with their bodies) only the end is kept.
    pub whole: usize,
    /// What all messages of one connection's round trip may take of memory; of those that come later only the end is kept.
    pub kept: usize,
    /// What one message may take of the network. A longer one is not read.
    pub received: u64,
}

/// For questions, whose answers are short.
impl Default for Bounds {
    fn default() -> Self {
        Self { whole: 64 << 10, kept: 32 << 20, received: 32 << 20 }
    }
}

/// What a message carries.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Payload {
    /// All of it.
    Whole(Vec<u8>),
    /// The last bytes of a longer one.
    Tail(Vec<u8>),
}

/// A message that the server delivered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Message {
    pub(super) subject: String,
    /// Where an answer is to be sent to.
    pub(super) reply: Option<String>,
    /// As they were sent; empty where the message is not kept whole.
    pub(super) headers: Vec<u8>,
    pub(super) payload: Payload,
    /// The bytes of headers and payload as they were sent.
    pub(super) length: usize,
}

impl Message {
    /// The status in the headers with its description, such as 503: the subject that was asked has no listener.
    pub(super) fn status(&self) -> Option<(u16, &str)> {
        let first = std::str::from_utf8(&self.headers).ok()?.lines().next()?.strip_prefix("NATS/1.0")?.trim();
        let (code, description) = first.split_once(' ').unwrap_or((first, ""));
        Some((code.parse().ok()?, description))
    }
}

/// What the server sends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Incoming {
    /// What the server says of itself, as JSON.
    Info(String),
    /// Wants a PONG.
    Ping,
    Pong,
    /// A refusal, without its quotation marks.
    Error(String),
    Message(Message),
}

/// Why a connection cannot be read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Malformed {
    /// This is not the protocol.
    NotNats,
    /// A payload is larger than any that makes sense.
    TooLarge,
}

/// Appends a request: a message with the subject that the answer is to be sent to.
pub(super) fn publish(subject: &str, reply: &str, body: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len()).as_bytes());
}

/// Appends a message that nothing answers.
pub(super) fn tell(subject: &str, body: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("PUB {subject} {}\r\n{body}\r\n", body.len()).as_bytes());
}

/// Whether a text can be a subject: anything else would end the line that names it.
pub(super) fn is_subject(text: &str) -> bool {
    !text.is_empty() && text.len() <= 1_024 && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// A message whose payload is still coming in.
#[derive(Debug)]
struct Open {
    subject: String,
    reply: Option<String>,
    headers: usize,
    length: usize,
    kept: Vec<u8>,
    /// Keep everything, or only the end.
    whole: bool,
    /// Bytes to come, the line's end included.
    left: u64,
}

/// Takes bytes as they come in. Never takes memory for what was only announced.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    bounds: Bounds,
    line: Vec<u8>,
    open: Option<Open>,
    kept: usize,
}

impl Decoder {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// The memory of a new round trip begins.
    pub(super) fn begin(&mut self) {
        self.kept = 0;
    }

    /// Takes some bytes. Returns how many of them, at least one, and what they complete.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Incoming>), Malformed> {
        if self.open.is_some() {
            return self.read_payload(bytes);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        if self.line.len() + used > LONGEST_LINE {
            return Err(Malformed::NotNats);
        }
        self.line.extend_from_slice(&bytes[..used]);
        // What is no verb is told at once: another protocol may send nothing more.
        if !VERBS.iter().any(|verb| self.line.iter().zip(verb.as_bytes()).all(|(a, b)| a.eq_ignore_ascii_case(b))) {
            return Err(Malformed::NotNats);
        }
        if end.is_none() {
            return Ok((used, None));
        }
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| Malformed::NotNats)?.trim();
        Ok((used, self.read_line(line)?))
    }

    fn read_line(&mut self, line: &str) -> Result<Option<Incoming>, Malformed> {
        let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let rest = rest.trim();
        Ok(match verb.to_ascii_uppercase().as_str() {
            "INFO" => Some(Incoming::Info(rest.to_owned())),
            "PING" => Some(Incoming::Ping),
            "PONG" => Some(Incoming::Pong),
            "+OK" => None,
            "-ERR" => Some(Incoming::Error(rest.trim_matches('\'').to_owned())),
            "MSG" | "HMSG" => {
                self.open = Some(self.announced(verb, rest)?);
                None
            }
            _ => return Err(Malformed::NotNats),
        })
    }

    /// `MSG subject sid [reply] length`, or `HMSG subject sid [reply] length-of-headers length`.
    fn announced(&self, verb: &str, rest: &str) -> Result<Open, Malformed> {
        let words: Vec<&str> = rest.split_ascii_whitespace().collect();
        let has_headers = verb.eq_ignore_ascii_case("HMSG");
        let least = if has_headers { 4 } else { 3 };
        let number = |text: &str| text.parse::<u64>().map_err(|_| Malformed::NotNats);
        let [subject, .., length] = words.as_slice() else { return Err(Malformed::NotNats) };
        if !(least..=least + 1).contains(&words.len()) {
            return Err(Malformed::NotNats);
        }
        let reply = (words.len() > least).then(|| words[2].to_owned());
        let length = number(length)?;
        let headers = if has_headers { number(words[words.len() - 2])? } else { 0 };
        if headers > length {
            return Err(Malformed::NotNats);
        }
        let Bounds { whole, kept, received } = self.bounds;
        if length > received {
            return Err(Malformed::TooLarge);
        }
        let length_here = usize::try_from(length).map_err(|_| Malformed::TooLarge)?;
        let whole = length_here <= whole && self.kept.saturating_add(length_here) <= kept;
        // The end of the headers is lost with the beginning.
        let headers = if whole { usize::try_from(headers).map_err(|_| Malformed::TooLarge)? } else { 0 };
        let subject = (*subject).to_owned();
        Ok(Open { subject, reply, headers, length: length_here, kept: Vec::new(), whole, left: length + 2 })
    }

    fn read_payload(&mut self, bytes: &[u8]) -> Result<(usize, Option<Incoming>), Malformed> {
        let Some(open) = self.open.as_mut() else { return Err(Malformed::NotNats) };
        let used = usize::try_from(open.left).unwrap_or(usize::MAX).min(bytes.len());
        open.kept.extend_from_slice(&bytes[..used]);
        open.left -= u64::try_from(used).unwrap_or(u64::MAX).min(open.left);
        if !open.whole && open.kept.len() > TAIL + 2 {
            open.kept.drain(..open.kept.len() - TAIL - 2);
        }
        if open.left > 0 {
            return Ok((used, None));
        }
        let Some(Open { subject, reply, headers, length, mut kept, whole, left: _ }) = self.open.take() else {
            return Err(Malformed::NotNats);
        };
        if !kept.ends_with(b"\r\n") {
            return Err(Malformed::NotNats);
        }
        kept.truncate(kept.len() - 2);
        self.kept += kept.len();
        let (headers, payload) = if whole {
            let payload = kept.split_off(headers);
            (kept, Payload::Whole(payload))
        } else {
            (Vec::new(), Payload::Tail(kept))
        };
        Ok((used, Some(Incoming::Message(Message { subject, reply, headers, payload, length }))))
    }
}

const VERBS: [&str; 7] = ["INFO ", "PING", "PONG", "+OK", "-ERR", "MSG ", "HMSG "];

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> Result<Vec<Incoming>, Malformed> {
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut at = 0;
            while at < piece.len() {
                let (used, incoming) = decoder.read(&piece[at..])?;
                at += used;
                found.extend(incoming);
            }
        }
        Ok(found)
    }

    #[test]
    fn what_a_server_sends_is_read_in_pieces_of_any_size() {
        let bytes = b"INFO {\"version\":\"2.9.10\"}\r\n+OK\r\nping\r\nMSG _INBOX.a.1 1 5\r\nhello\r\nHMSG _INBOX.a.2 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\nMSG a 1 reply 2\r\n\r\n\r\n-ERR 'Authorization Violation'\r\nPONG\r\n";
        let message = |subject: &str, reply: Option<&str>, headers: &str, payload: &[u8]| Message {
            subject: subject.to_owned(),
            reply: reply.map(str::to_owned),
            headers: headers.as_bytes().to_vec(),
            payload: Payload::Whole(payload.to_vec()),
            length: headers.len() + payload.len(),
        };
        let refused = message("_INBOX.a.2", None, "NATS/1.0 503\r\n\r\n", b"");
        assert_eq!(refused.status(), Some((503, "")));
        let expected = vec![
            Incoming::Info("{\"version\":\"2.9.10\"}".to_owned()),
            Incoming::Ping,
            Incoming::Message(message("_INBOX.a.1", None, "", b"hello")),
            Incoming::Message(refused),
            Incoming::Message(message("a", Some("reply"), "", b"\r\n")),
            Incoming::Error("Authorization Violation".to_owned()),
            Incoming::Pong,
        ];
        for piece in [1, 2, 3, 7, 1_000] {
            assert_eq!(all(&mut Decoder::default(), bytes, piece), Ok(expected.clone()), "{piece}");
        }
    }

    #[test]
    fn of_a_long_payload_only_the_end_is_kept() {
        let length = 5 << 20;
        let mut bytes = format!("MSG a 1 {length}\r\n").into_bytes();
        bytes.extend(std::iter::repeat_n(b'x', length - 3));
        bytes.extend_from_slice(b"end\r\nPING\r\n");
        let mut decoder = Decoder::default();
        let found = all(&mut decoder, &bytes, 4_096).unwrap();
        let Incoming::Message(Message { payload: Payload::Tail(tail), .. }) = &found[0] else { panic!("{found:?}") };
        assert!(tail.len() == TAIL && tail.ends_with(b"xend"));
        assert_eq!(found[1], Incoming::Ping);
        assert!(decoder.kept <= TAIL);
    }

    #[test]
    fn a_status_has_a_code_and_perhaps_a_description() {
        let message = |headers: &str| Message {
            subject: String::new(),
            reply: None,
            headers: headers.as_bytes().to_vec(),
            payload: Payload::Whole(Vec::new()),
            length: headers.len(),
        };
        let found = message("NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 5\r\n\r\n");
        assert_eq!(found.status(), Some((409, "Message Size Exceeds MaxBytes")));
        assert_eq!(message("NATS/1.0\r\ntype: Placed\r\n\r\n").status(), None);
        assert_eq!(message("").status(), None);
    }

    #[test]
    fn lengths_are_checked_before_anything_is_kept_for_them() {
        for (bytes, expected) in [
            ("MSG a 1 99999999999999\r\n", Malformed::TooLarge),
            ("MSG a 1 18446744073709551615\r\n", Malformed::TooLarge),
            ("MSG a 1 99999999999999999999999\r\n", Malformed::NotNats),
            ("MSG a 1 -1\r\n", Malformed::NotNats),
            ("MSG a\r\n", Malformed::NotNats),
            ("MSG a 1 b c 3\r\n", Malformed::NotNats),
            ("HMSG a 1 9 3\r\n", Malformed::NotNats),
            ("HMSG a 1 3\r\n", Malformed::NotNats),
            ("MSG a 1 3\r\nabcdef", Malformed::NotNats),
            ("HTTP/1.1 400 Bad Request\r\n", Malformed::NotNats),
            ("\r\n", Malformed::NotNats),
            ("INFO \u{0}", Malformed::NotNats),
        ] {
            let found = all(&mut Decoder::default(), bytes.as_bytes(), 64);
            if bytes.starts_with("INFO") {
                assert_eq!(found, Ok(Vec::new()), "a line that may go on");
            } else {
                assert_eq!(found, Err(expected), "{bytes}");
            }
        }
        let endless = [b"INFO ".to_vec(), vec![b' '; LONGEST_LINE]].concat();
        assert_eq!(all(&mut Decoder::default(), &endless, 4_096), Err(Malformed::NotNats));
    }

    #[test]
    fn what_would_end_a_line_is_no_subject() {
        assert!(is_subject("$JS.API.CONSUMER.INFO.orders.list"));
        for text in ["", "a b", "a\r\nPUB b 0", "a\tb", "a\u{a0}b", &"x".repeat(2_000)] {
            assert!(!is_subject(text), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = all(&mut Decoder::default(), &[b"MSG a 1 4\r\n".as_slice(), &bytes].concat(), 5);
            let _ = all(&mut Decoder::default(), &bytes, 3);
        }
    }
}
