//! A size in bytes, as Kubernetes writes one: a whole number, or one with a suffix such as `Mi`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The suffixes and what they stand for.
const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// A size in bytes. Written as it was given, so that nothing seems to have changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ByteSize {
    bytes: u64,
    written: String,
}

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// A text is no size.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is no size in bytes: write a whole number such as 1048576, or one with k, M, G, T, Ki, Mi, Gi or Ti such as 1Mi"
)]
pub struct NotAByteSize(String);

impl FromStr for ByteSize {
    type Err = NotAByteSize;

    fn from_str(text: &str) -> Result<Self, NotAByteSize> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let unit = if suffix.is_empty() {
            Some(1)
        } else {
            UNITS.iter().find(|(name, _)| *name == suffix).map(|(_, unit)| *unit)
        };
        let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
        bytes.map(|bytes| Self { bytes, written: text.to_owned() }).ok_or_else(|| NotAByteSize(text.to_owned()))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.written.parse::<u64>() {
            Ok(number) => serializer.serialize_u64(number),
            Err(_) => serializer.serialize_str(&self.written),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(u64),
            String(String),
        }
        match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(bytes) => Ok(Self { bytes, written: bytes.to_string() }),
            IntOrString::String(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 0,
            "pattern": "^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$",
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them_and_written_as_they_were() {
        for (text, bytes) in [("1048576", 1 << 20), ("1Mi", 1 << 20), ("64Ki", 65_536), ("2M", 2_000_000), ("0", 0)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string()), (bytes, text.to_owned()));
        }
        for text in ["", "Mi", "1.5Mi", "-1", "1 Mi", "1mi", "99999999999Ti"] {
            assert!(text.parse::<ByteSize>().unwrap_err().to_string().contains("no size in bytes"), "{text}");
        }
        let read: ByteSize = serde_json::from_str("1024").unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), "1024");
        let read: ByteSize = serde_json::from_str("\"1Mi\"").unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"1Mi\"");
    }
}
