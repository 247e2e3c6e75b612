//! Durations as people write them in Kubernetes objects: `30s`, `1m30s`, `500ms`, `2h`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A non-negative span of time in the notation of Go's `time.ParseDuration`, limited to whole `h`, `m`, `s` and `ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write it as 30s, 1m30s, 500ms or 2h")]
pub struct ParseDurationError {
    text: String,
}

/// The notation, as the API server checks it. The operator's parser accepts exactly this language.
const PATTERN: &str = "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?([0-9]{1,8}ms)?$";

impl FromStr for HumanDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseDurationError { text: text.to_owned() };
        let mut rest = text;
        let mut total = Duration::ZERO;
        let mut largest_unit_left = 4;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, tail) = tail.split_at(letters);
            let (rank, most_digits, milliseconds) = match unit {
                "h" => (3, 6, 3_600_000),
                "m" => (2, 6, 60_000),
                "s" => (1, 8, 1_000),
                "ms" => (0, 8, 1),
                _ => return Err(invalid()),
            };
            if rank >= largest_unit_left || digits == 0 || digits > most_digits {
                return Err(invalid());
            }
            largest_unit_left = rank;
            let count: u64 = number.parse().map_err(|_| invalid())?;
            total += Duration::from_millis(count * milliseconds);
            rest = tail;
        }
        if text.is_empty() { Err(invalid()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.as_millis();
        let (hours, minutes, seconds, milliseconds) =
            (all / 3_600_000, all / 60_000 % 60, all / 1_000 % 60, all % 1_000);
        if all == 0 {
            return f.write_str("0s");
        }
        for (count, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s"), (milliseconds, "ms")] {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("self != '' && self.matches('{PATTERN}')"),
                "message": "must be a duration such as 30s, 1m30s, 500ms or 2h",
            }],
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
    fn reads_what_people_write_and_prints_it_back() {
        for (text, milliseconds) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("2h", 7_200_000), ("1h5s1ms", 3_605_001)]
        {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.0.as_millis(), milliseconds, "{text}");
            assert_eq!(duration.to_string(), text);
        }
        assert_eq!("90s".parse::<HumanDuration>().unwrap().to_string(), "1m30s");
        assert_eq!("0s".parse::<HumanDuration>().unwrap().to_string(), "0s");
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in ["", "30", "s", "-1s", "1.5s", "1s1m", "1s1s", "1d", " 1s", "1s ", "999999999s", "1µs"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text:?} was accepted");
        }
    }
}
