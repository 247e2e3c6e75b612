//! JSON with a bound on what it takes in memory: `[0,0,…]` as a [`Value`] takes sixteen times its size, and a Projection may name any server. Pure.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why there is no value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unread {
    /// It is no JSON.
    NoJson,
    /// It holds more values than may be kept.
    TooManyValues,
}

/// Reads JSON of at most so many values; an object or array counts as one besides what is in it.
pub(super) fn read(json: &[u8], most: usize) -> Result<Value, Unread> {
    let left = Cell::new(most + 1);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    match Bounded(&left).deserialize(&mut deserializer) {
        Ok(value) if deserializer.end().is_ok() => Ok(value),
        Err(_) if left.get() == 0 => Err(Unread::TooManyValues),
        _ => Err(Unread::NoJson),
    }
}

/// One value; how many more may be kept, and one besides: at zero there was one too many.
struct Bounded<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.set(self.0.get().saturating_sub(1));
        if self.0.get() == 0 {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = all.next_element_seed(Bounded(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = all.next_key::<String>()? {
            fields.insert(name, all.next_value_seed(Bounded(self.0))?);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_within_the_bound_is_read_as_it_is() {
        let all = json!({"a": [null, true, -1, 18_446_744_073_709_551_615_u64, 1.5, "x\n"], "b": {"c": {}}});
        assert_eq!(read(all.to_string().as_bytes(), 10), Ok(all.clone()));
        assert_eq!(read(all.to_string().as_bytes(), 9), Err(Unread::TooManyValues));
    }

    #[test]
    fn what_is_beyond_it_is_not_kept_and_what_is_no_json_is_told_apart() {
        for (beginning, one) in [("[0", ",0"), ("{\"\":0", ",\"\":0"), ("[[]", ",[]"), ("[{\"a\":[", "{},")] {
            // Without an end: it is not read as far.
            let endless = format!("{beginning}{}", one.repeat(1 << 20));
            assert_eq!(read(endless.as_bytes(), 1_000), Err(Unread::TooManyValues), "{beginning}");
        }
        for other in ["", "<html>", "[0,", "{\"a\"}", "0 0", &"[".repeat(100_000)] {
            assert_eq!(read(other.as_bytes(), 1_000), Err(Unread::NoJson));
        }
    }
}
