//! How many shards a projection has: told as a number, or left to Projectionist.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `Auto`, or the number of shards (1 to 1024).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shards {
    /// The source's own number; for the built-in projector 24, and 1 with `ordering: Strict`.
    #[default]
    Auto,
    /// Exactly this many.
    Count(u32),
}

impl Shards {
    /// The largest number of shards that can be asked for.
    pub const MOST: u32 = 1024;
}

impl Serialize for Shards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("Auto"),
            Self::Count(count) => serializer.serialize_u32(*count),
        }
    }
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Count(u32),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Count(count @ 1..=Self::MOST) => Ok(Self::Count(count)),
            Written::Word(word) if word == "Auto" => Ok(Self::Auto),
            _ => Err(de::Error::custom("shards must be Auto or a number from 1 to 1024")),
        }
    }
}

impl JsonSchema for Shards {
    fn schema_name() -> Cow<'static, str> {
        "Shards".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "x-kubernetes-validations": [{
                "rule": "type(self) == string ? self == 'Auto' : (self >= 1 && self <= 1024)",
                "message": "must be Auto or a number from 1 to 1024",
            }],
        })
    }

    fn inline_schema() -> bool {
        true
    }
}
