//! Fields of AMQP 0-9-1: numbers, texts, tables, and the properties of a message. Pure.
//!
//! Lengths on the wire are believed only as far as there are bytes: nothing is allocated by them.

/// Tables within tables are no deeper than this.
const DEEPEST: usize = 16;

/// Reads fields one after another. Each is none where the bytes end before it does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn octet(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn short(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn long_long(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A text of up to 255 bytes.
    pub(super) fn short_text(&mut self) -> Option<&'a [u8]> {
        let length = self.octet()?;
        self.take(length.into())
    }

    /// A text, or a table, with a length of four bytes.
    pub(super) fn long_text(&mut self) -> Option<&'a [u8]> {
        let length = self.long()?;
        self.take(usize::try_from(length).ok()?)
    }

    /// The texts, numbers and truth values of a table, as text.
    pub(super) fn table(&mut self) -> Option<Vec<(String, Vec<u8>)>> {
        let mut fields = Fields(self.long_text()?);
        let mut found = Vec::new();
        while !fields.0.is_empty() {
            let name = String::from_utf8_lossy(fields.short_text()?).into_owned();
            if let Some(value) = fields.value(0)? {
                found.push((name, value));
            }
        }
        Some(found)
    }

    /// The next value of a table, as text; none inside where it has no place in a text. None outside where it is malformed.
    fn value(&mut self, depth: usize) -> Option<Option<Vec<u8>>> {
        fn text(number: impl Into<i128>) -> Option<Vec<u8>> {
            Some(number.into().to_string().into_bytes())
        }
        Some(match self.octet()? {
            b't' => Some((self.octet()? != 0).to_string().into_bytes()),
            b'b' => text(i8::from_be_bytes(self.array()?)),
            b'B' => text(self.octet()?),
            b's' => text(i16::from_be_bytes(self.array()?)),
            b'u' => text(self.short()?),
            b'I' => text(i32::from_be_bytes(self.array()?)),
            b'i' => text(self.long()?),
            b'l' => text(i64::from_be_bytes(self.array()?)),
            b'T' => text(self.long_long()?),
            b'S' | b'x' => Some(self.long_text()?.to_vec()),
            b'f' => self.take(4).map(|_| None)?,
            b'd' => self.take(8).map(|_| None)?,
            b'D' => self.take(5).map(|_| None)?,
            b'V' => None,
            // Looked through, so that what makes no sense is found.
            b'A' if depth < DEEPEST => {
                let mut items = Fields(self.long_text()?);
                while !items.0.is_empty() {
                    items.value(depth + 1)?;
                }
                None
            }
            b'F' if depth < DEEPEST => {
                let mut fields = Fields(self.long_text()?);
                while !fields.0.is_empty() {
                    fields.short_text()?;
                    fields.value(depth + 1)?;
                }
                None
            }
            _ => return None,
        })
    }
}

/// A text of up to 255 bytes, with its length. The spec bounds names of queues and virtual hosts at 255 characters; what is longer the server does not know.
pub(super) fn short_text(text: &str, into: &mut Vec<u8>) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    into.push(length);
    into.extend(&text.as_bytes()[..length.into()]);
}

/// A text, or a table, with its length.
pub(super) fn long_text(bytes: &[u8], into: &mut Vec<u8>) {
    into.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    into.extend(bytes);
}

/// What a message says of itself beside its body.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Properties {
    /// The media type of the body.
    pub content_type: Option<Vec<u8>>,
    /// Texts, numbers and truth values among the headers, as text.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What names the message, where the publisher says so.
    pub message_id: Option<Vec<u8>>,
    /// When it was made, in seconds since 1970, where the publisher says so.
    pub timestamp: Option<u64>,
    /// The kind of message, where the publisher says so.
    pub type_: Option<Vec<u8>>,
}

impl Properties {
    /// Reads the properties in a message's header: flags of those that are there, and the properties in their order. None where they make no sense.
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let flags = fields.short()?;
        // The last bit says that more flags follow; no property has one there.
        if flags & 1 == 1 {
            return None;
        }
        let has = |place: u16| flags & (1 << place) != 0;
        let mut properties = Self::default();
        let text = |fields: &mut Fields<'_>| fields.short_text().map(<[u8]>::to_vec);
        if has(15) {
            properties.content_type = Some(text(fields)?);
        }
        if has(14) {
            // The content's encoding.
            fields.short_text()?;
        }
        if has(13) {
            properties.headers = fields.table()?;
        }
        // Delivery mode and priority.
        for _ in [12, 11].into_iter().filter(|place| has(*place)) {
            fields.octet()?;
        }
        // Correlation, the queue for an answer, and when the message expires.
        for _ in [10, 9, 8].into_iter().filter(|place| has(*place)) {
            fields.short_text()?;
        }
        if has(7) {
            properties.message_id = Some(text(fields)?);
        }
        if has(6) {
            properties.timestamp = Some(fields.long_long()?);
        }
        if has(5) {
            properties.type_ = Some(text(fields)?);
        }
        // User, application and cluster, which nothing asks for, follow.
        Some(properties)
    }

    /// The last header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// About so many bytes of memory are taken.
    pub(super) fn bytes(&self) -> usize {
        let texts = [&self.content_type, &self.message_id, &self.type_].into_iter().flatten().map(Vec::len);
        let headers = self.headers.iter().map(|header| size_of_val(header) + header.0.len() + header.1.len());
        size_of::<Self>() + texts.sum::<usize>() + headers.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut inside = Vec::new();
        for (name, value) in fields {
            short_text(name, &mut inside);
            inside.extend(*value);
        }
        let mut whole = Vec::new();
        long_text(&inside, &mut whole);
        whole
    }

    #[test]
    fn texts_and_numbers_of_a_table_are_read_as_text_and_the_rest_is_passed_over() {
        let nested = [b"F".as_slice(), &table(&[("deep", b"t\x01")])].concat();
        let bytes = table(&[
            ("text", b"S\0\0\0\x02hi"),
            ("nested", &nested),
            ("number", &[b"l".as_slice(), &(-7_i64).to_be_bytes()].concat()),
            ("true", b"t\x01"),
            ("list", b"A\0\0\0\x02t\x00"),
            ("none", b"V"),
            ("float", b"d\0\0\0\0\0\0\0\0"),
        ]);
        let read = Fields::new(&bytes).table().unwrap();
        let expected = [("text", "hi"), ("number", "-7"), ("true", "true")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(read, expected);
    }

    #[test]
    fn what_claims_more_than_there_is_or_nests_without_end_is_malformed() {
        for bytes in [
            b"\xff\xff\xff\xff".to_vec(),
            table(&[("a", b"S\xff\xff\xff\xffhi")]),
            table(&[("a", b"?")]),
            [b"\0\0\0\x01".as_slice(), b"\x05"].concat(),
        ] {
            assert_eq!(Fields::new(&bytes).table(), None, "{bytes:?}");
        }
        let deep = (0..100).fold(b"V".to_vec(), |value, _| [b"F".as_slice(), &table(&[("a", &value)])].concat());
        assert_eq!(Fields::new(&table(&[("a", &deep)])).table(), None);
    }

    #[test]
    fn properties_are_read_in_the_order_of_their_flags() {
        let mut bytes = 0b1011_1111_1110_0000_u16.to_be_bytes().to_vec();
        short_text("application/json", &mut bytes);
        bytes.extend(table(&[("stream", b"S\0\0\0\x03o-1")]));
        bytes.extend([2, 0]);
        for text in ["correlation", "reply", "60000", "m-1"] {
            short_text(text, &mut bytes);
        }
        bytes.extend(1_700_000_000_u64.to_be_bytes());
        short_text("placed", &mut bytes);
        let read = Properties::read(&mut Fields::new(&bytes)).unwrap();
        assert_eq!(read.content_type.as_deref(), Some(b"application/json".as_slice()));
        assert_eq!(read.header("stream"), Some(b"o-1".as_slice()));
        assert_eq!(read.message_id.as_deref(), Some(b"m-1".as_slice()));
        assert_eq!((read.timestamp, read.type_.as_deref()), (Some(1_700_000_000), Some(b"placed".as_slice())));
        assert_eq!(Properties::read(&mut Fields::new(&bytes[..bytes.len() - 1])), None, "cut");
        assert_eq!(Properties::read(&mut Fields::new(&[0, 0])), Some(Properties::default()));
    }
}
