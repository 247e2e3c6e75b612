//! RESP2, the protocol of Redis: writes commands, and decodes replies with bounds on what they may take.

/// What replies may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Texts of up to so many bytes are kept. Longer ones (bodies of events) are skipped, and only their length is told.
    pub text: usize,
    /// Bytes that one reply may take of memory; what lies beyond is skipped.
    pub reply: usize,
    /// Bytes that all replies of one round trip may take of memory; those that come later are skipped.
    pub replies: usize,
    /// Bytes that one reply may take of the network. Beyond it the connection is of no more use.
    pub received: u64,
}

impl Default for Bounds {
    /// Of one who looks at numbers and names, and at no bodies.
    fn default() -> Self {
        Self { text: 4_096, reply: 4 << 20, replies: 32 << 20, received: 32 << 20 }
    }
}

/// Lines (lengths, numbers, errors) are no longer than this.
const LONGEST_LINE: usize = 4_096;
/// Arrays in arrays; what is asked for has four.
const DEEPEST: usize = 8;

/// One reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// There is no such thing.
    Nil,
    /// A number.
    Integer(i64),
    /// A text of at most 4,096 bytes, unless the client was given other bounds.
    Text(Vec<u8>),
    /// A longer text, of which only the length is known.
    LongText(u64),
    /// Several replies.
    Array(Vec<Reply>),
    /// The server refused the command.
    Error(String),
    /// The reply was larger than 4 MiB (or the client's bounds) even without its long texts, or those before it had taken 32 MiB, and was skipped.
    Oversized,
}

impl Reply {
    /// The text, if it is a short one and UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The replies in it, if it is an array.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The number, if it is one that is not negative.
    pub fn as_count(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The value of `name` in an array of names and values.
    pub fn field(&self, name: &str) -> Option<&Self> {
        let mut pairs = self.as_array()?.chunks_exact(2);
        pairs.find(|pair| pair[0].as_str() == Some(name)).map(|pair| &pair[1])
    }
}

/// Why a connection cannot be read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Malformed {
    /// This is not the protocol.
    NotRedis,
    /// A reply is larger than any that makes sense.
    TooLarge,
}

/// Appends a command in the form of the protocol.
pub(super) fn encode(parts: &[Vec<u8>], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// An array that is being read.
struct Frame {
    items: Vec<Reply>,
    left: u64,
}

/// What comes next.
enum Expecting {
    Line,
    Text { text: Vec<u8>, length: u64, left: u64 },
    EndOfText { reply: Reply, seen: usize },
}

/// Decodes replies from pieces of whatever size.
pub(super) struct Decoder {
    bounds: Bounds,
    frames: Vec<Frame>,
    expecting: Expecting,
    line: Vec<u8>,
    kept: usize,
    kept_before: usize,
    received: u64,
    oversized: bool,
}

impl Decoder {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            frames: Vec::new(),
            expecting: Expecting::Line,
            line: Vec::new(),
            kept: 0,
            kept_before: 0,
            received: 0,
            oversized: false,
        }
    }

    /// Reads from the beginning of `bytes` until one reply is complete, or to the end. Returns how much was read, and the reply.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let (used, done) = self.step(&bytes[at..])?;
            at += used;
            self.received += used as u64;
            if self.received > self.bounds.received {
                return Err(Malformed::TooLarge);
            }
            if let Some(reply) = done.and_then(|reply| self.place(reply)) {
                let reply = if self.oversized { Reply::Oversized } else { reply };
                self.kept_before += if self.oversized { size_of::<Reply>() } else { self.kept };
                (self.kept, self.received, self.oversized) = (0, 0, false);
                return Ok((at, Some(reply)));
            }
        }
        Ok((at, None))
    }

    /// One line, or as much of a text as there is. Returns how many bytes it took, and what is complete now.
    fn step(&mut self, bytes: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        match std::mem::replace(&mut self.expecting, Expecting::Line) {
            Expecting::Line => {
                let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                let used = end.unwrap_or(bytes.len());
                if self.line.len() + used > LONGEST_LINE {
                    return Err(Malformed::NotRedis);
                }
                self.line.extend_from_slice(&bytes[..used]);
                if end.is_none() {
                    // What is no Redis need not end its lines.
                    return if b"+-:$*".contains(&self.line[0]) { Ok((used, None)) } else { Err(Malformed::NotRedis) };
                }
                let line = std::mem::take(&mut self.line);
                Ok((used, self.line_read(&line)?))
            }
            Expecting::Text { mut text, length, left } => {
                let used = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let room = if length > self.bounds.text as u64 { 0 } else { used };
                text.extend_from_slice(&bytes[..room]);
                let left = left - used as u64;
                self.expecting = if left > 0 {
                    Expecting::Text { text, length, left }
                } else {
                    let reply =
                        if length > self.bounds.text as u64 { Reply::LongText(length) } else { Reply::Text(text) };
                    Expecting::EndOfText { reply, seen: 0 }
                };
                Ok((used, None))
            }
            Expecting::EndOfText { reply, seen } => {
                if bytes[0] != b"\r\n"[seen] {
                    return Err(Malformed::NotRedis);
                }
                if seen == 1 {
                    return Ok((1, Some(reply)));
                }
                self.expecting = Expecting::EndOfText { reply, seen: 1 };
                Ok((1, None))
            }
        }
    }

    /// What a whole line says; a text or an array that begins with it is not complete.
    fn line_read(&mut self, line: &[u8]) -> Result<Option<Reply>, Malformed> {
        let line = line.strip_suffix(b"\r\n").ok_or(Malformed::NotRedis)?;
        let (kind, rest) = line.split_first().ok_or(Malformed::NotRedis)?;
        let number = || -> Result<i64, Malformed> {
            std::str::from_utf8(rest).ok().and_then(|text| text.parse().ok()).ok_or(Malformed::NotRedis)
        };
        match kind {
            b'+' => Ok(Some(match rest {
                rest if rest.len() > self.bounds.text => Reply::LongText(rest.len() as u64),
                rest => Reply::Text(rest.to_vec()),
            })),
            b'-' => Ok(Some(Reply::Error(String::from_utf8_lossy(rest).into_owned()))),
            b':' => Ok(Some(Reply::Integer(number()?))),
            b'$' => match number()? {
                -1 => Ok(Some(Reply::Nil)),
                length => {
                    let length = u64::try_from(length).map_err(|_| Malformed::NotRedis)?;
                    if length > self.bounds.received {
                        return Err(Malformed::TooLarge);
                    }
                    self.expecting = if length == 0 {
                        Expecting::EndOfText { reply: Reply::Text(Vec::new()), seen: 0 }
                    } else {
                        Expecting::Text { text: Vec::new(), length, left: length }
                    };
                    Ok(None)
                }
            },
            b'*' => match number()? {
                -1 => Ok(Some(Reply::Nil)),
                0 => Ok(Some(Reply::Array(Vec::new()))),
                length => {
                    let left = u64::try_from(length).map_err(|_| Malformed::NotRedis)?;
                    if self.frames.len() == DEEPEST {
                        return Err(Malformed::NotRedis);
                    }
                    // Nothing is reserved: the length is only what the server says.
                    self.frames.push(Frame { items: Vec::new(), left });
                    Ok(None)
                }
            },
            _ => Err(Malformed::NotRedis),
        }
    }

    /// Puts a complete reply where it belongs; returns the outermost once that is complete.
    fn place(&mut self, mut reply: Reply) -> Option<Reply> {
        loop {
            self.kept += size_of::<Reply>()
                + match &reply {
                    Reply::Text(text) => text.len(),
                    Reply::Error(text) => text.len(),
                    _ => 0,
                };
            self.oversized |= self.kept > self.bounds.reply.min(self.bounds.replies.saturating_sub(self.kept_before));
            let Some(frame) = self.frames.last_mut() else { return Some(reply) };
            if self.oversized {
                frame.items = Vec::new();
            } else {
                frame.items.push(reply);
            }
            frame.left -= 1;
            if frame.left > 0 {
                return None;
            }
            reply = Reply::Array(self.frames.pop().map(|frame| frame.items).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST_TEXT: usize = 4_096;

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Reply>, Malformed> {
        let mut decoder = Decoder::new(Bounds::default());
        let mut replies = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut at = 0;
            while at < piece.len() {
                let (used, reply) = decoder.read(&piece[at..])?;
                at += used;
                replies.extend(reply);
            }
        }
        Ok(replies)
    }

    fn written(reply: &Reply, out: &mut Vec<u8>) {
        match reply {
            Reply::Nil => out.extend(b"$-1\r\n"),
            Reply::Integer(number) => out.extend(format!(":{number}\r\n").bytes()),
            Reply::Text(text) => {
                out.extend(format!("${}\r\n", text.len()).bytes());
                out.extend(text);
                out.extend(b"\r\n");
            }
            Reply::LongText(length) => {
                out.extend(format!("${length}\r\n").bytes());
                out.extend(vec![b'x'; usize::try_from(*length).unwrap()]);
                out.extend(b"\r\n");
            }
            Reply::Array(items) => {
                out.extend(format!("*{}\r\n", items.len()).bytes());
                items.iter().for_each(|item| written(item, out));
            }
            Reply::Error(text) => out.extend(format!("-{text}\r\n").bytes()),
            Reply::Oversized => unreachable!("nothing is written as such"),
        }
    }

    fn replies() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::Nil),
            any::<i64>().prop_map(Reply::Integer),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Reply::Text),
            (LONGEST_TEXT as u64 + 1..LONGEST_TEXT as u64 + 50).prop_map(Reply::LongText),
            "[A-Z]{1,9} [a-z ]{0,20}".prop_map(Reply::Error),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Reply::Array))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            all in prop::collection::vec(replies(), 1..5),
            piece in 1_usize..50,
        ) {
            let mut bytes = Vec::new();
            all.iter().for_each(|reply| written(reply, &mut bytes));
            prop_assert_eq!(decode(&bytes, piece), Ok(all));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..9) {
            let _ = decode(&bytes, piece);
        }

        #[test]
        fn whatever_looks_like_the_protocol_is_read_or_refused(text in "([+:$*-][0-9-]{0,3}\r\n){0,30}") {
            let _ = decode(text.as_bytes(), 7);
        }
    }

    #[test]
    fn what_is_no_redis_is_refused_at_once() {
        for bytes in
            ["HTTP/1.1 400 Bad Request\r\n", "SSH-2.0-OpenSSH", "\r\n", "$x\r\n", "$-2\r\n", "$3\r\nabcd\r\n", "+OK\n"]
        {
            assert_eq!(decode(bytes.as_bytes(), 5), Err(Malformed::NotRedis), "{bytes}");
        }
        assert_eq!(decode(&vec![b'+'; 5_000], 100), Err(Malformed::NotRedis));
        assert_eq!(decode("*1\r\n".repeat(9).as_bytes(), 4), Err(Malformed::NotRedis));
    }

    #[test]
    fn a_length_is_no_promise_to_keep_memory_for() {
        assert_eq!(decode(b"*9223372036854775807\r\n:1\r\n", 8), Ok(Vec::new()));
        assert_eq!(decode(b"$9223372036854775807\r\n", 8), Err(Malformed::TooLarge));
    }

    #[test]
    fn a_reply_that_is_too_large_to_keep_is_skipped_and_the_next_one_is_read() {
        let mut bytes = b"*200000\r\n".to_vec();
        bytes.extend(b":1\r\n".repeat(200_000));
        bytes.extend(b":2\r\n");
        assert_eq!(decode(&bytes, 65_536), Ok(vec![Reply::Oversized, Reply::Integer(2)]));
        let large = format!("*100000\r\n{}", ":1\r\n".repeat(100_000)).repeat(12);
        let read = decode(large.as_bytes(), 65_536).unwrap();
        let kept = read.iter().filter(|reply| **reply != Reply::Oversized).count();
        assert_eq!((read.len(), kept), (12, 10), "together they are bounded, too");
        let mut decoder = Decoder::new(Bounds::default());
        assert_eq!(decoder.read(b"*9223372036854775807\r\n").unwrap().1, None);
        let piece = b":1\r\n".repeat(1 << 16);
        let read = (0..200).find_map(|_| decoder.read(&piece).err());
        assert_eq!(read, Some(Malformed::TooLarge), "an endless array ends the connection");
    }
}
