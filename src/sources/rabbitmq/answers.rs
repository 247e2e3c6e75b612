//! What the management API says of queues. A number that is missing or no number is unknown, never zero.
//!
//! A vhost's list is read queue by queue, and only those that were asked for are kept, so that a list takes no more memory than its text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The columns that are asked for.
pub(super) const COLUMNS: &str = "name,type,state,consumers,messages_ready,messages_unacknowledged,head_message_timestamp,message_stats.publish,message_stats.ack,message_stats.deliver_no_ack,message_stats.get_no_ack";

/// What the server tells of one queue.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub(super) struct Queue {
    #[serde(default)]
    pub(super) name: Lenient<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: Lenient<String>,
    #[serde(default)]
    pub(super) state: Lenient<String>,
    /// Messages that no consumer was given.
    #[serde(default, rename = "messages_ready")]
    pub(super) ready: Lenient<u64>,
    /// Messages that consumers hold.
    #[serde(default, rename = "messages_unacknowledged")]
    pub(super) held: Lenient<u64>,
    /// Consumers that are subscribed.
    #[serde(default)]
    pub(super) consumers: Lenient<u64>,
    /// The property `timestamp` of the oldest message, in seconds since 1970. Only classic queues tell it.
    #[serde(default, rename = "head_message_timestamp")]
    pub(super) oldest: Lenient<u64>,
    #[serde(default, rename = "message_stats")]
    pub(super) stats: Stats,
}

/// Counters since the queue or the server began; each is absent before it first counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Stats {
    publish: Lenient<u64>,
    ack: Lenient<u64>,
    deliver_no_ack: Lenient<u64>,
    get_no_ack: Lenient<u64>,
}

impl Queue {
    /// Messages that were published to the queue.
    pub(super) fn published(&self) -> Option<u64> {
        self.stats.publish.0
    }

    /// Messages that consumers have done with: acknowledged, or taken without the need to. A server that counts anything of the queue leaves out what has
    /// never happened; unknown where it counts nothing.
    pub(super) fn handled(&self) -> Option<u64> {
        let Stats { publish, ack, deliver_no_ack, get_no_ack } = self.stats;
        let done =
            [ack, deliver_no_ack, get_no_ack].into_iter().filter_map(|count| count.0).reduce(u64::saturating_add);
        done.or(publish.0.map(|_| 0))
    }
}

/// A value of the right type, or none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Lenient<T>(pub(super) Option<T>);

impl<'de> Deserialize<'de> for Lenient<u64> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any).map(|(number, _)| Self(number))
    }
}

impl<'de> Deserialize<'de> for Lenient<String> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any).map(|(_, text)| Self(text))
    }
}

/// Takes any value, and keeps whole numbers and texts.
struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = (Option<u64>, Option<String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok((Some(number), None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok((None, None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok((None, None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok((None, None))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok((None, None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok((None, Some(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok((None, None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok((None, None))
    }
}

impl<'de> Deserialize<'de> for Stats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StatsVisitor)
    }
}

/// Takes any value: no counters where there is something else in their place, such as the empty list that stands for none.
struct StatsVisitor;

impl<'de> Visitor<'de> for StatsVisitor {
    type Value = Stats;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, _: u64) -> Result<Stats, E> {
        Ok(Stats::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Stats, E> {
        Ok(Stats::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Stats, E> {
        Ok(Stats::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Stats, E> {
        Ok(Stats::default())
    }

    fn visit_unit<E>(self) -> Result<Stats, E> {
        Ok(Stats::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Stats, E> {
        Ok(Stats::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Stats, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Stats::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Stats, A::Error> {
        let mut stats = Stats::default();
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "publish" => stats.publish = fields.next_value()?,
                "ack" => stats.ack = fields.next_value()?,
                "deliver_no_ack" => stats.deliver_no_ack = fields.next_value()?,
                "get_no_ack" => stats.get_no_ack = fields.next_value()?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(stats)
    }
}

/// The queues of these names in an answer, which is a list, or a page of one. Absent where it is neither.
pub(super) fn read(text: &[u8], wanted: &BTreeSet<&str>) -> Option<BTreeMap<String, Queue>> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let found = List(wanted).deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    found
}

#[derive(Clone, Copy)]
struct List<'a>(&'a BTreeSet<&'a str>);

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Option<BTreeMap<String, Queue>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Option<BTreeMap<String, Queue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("queues")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut found = BTreeMap::new();
        while let Some(queue) = items.next_element::<Queue>()? {
            if let Some(name) = queue.name.0.clone().filter(|name| self.0.contains(name.as_str())) {
                found.insert(name, queue);
            }
        }
        Ok(Some(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "items" => found = fields.next_value_seed(self)?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Option<Queue> {
        read(text.as_bytes(), &BTreeSet::from(["orders"])).and_then(|mut found| found.remove("orders"))
    }

    #[test]
    fn a_list_and_a_page_of_one_say_the_same() {
        let queue = r#"{"name":"orders","type":"classic","state":"running","messages_ready":2,"messages_unacknowledged":1,"head_message_timestamp":1795670000,"message_stats":{"publish":7,"ack":3,"get_no_ack":1},"more":[{"x":1}]}"#;
        let listed = one(&format!(r#"[{{"name":"other","messages_ready":9}},{queue}]"#)).unwrap();
        assert_eq!(one(&format!(r#"{{"page":1,"items":[{queue}],"total_count":2}}"#)).unwrap(), listed);
        assert_eq!((listed.ready.0, listed.held.0, listed.oldest.0), (Some(2), Some(1), Some(1_795_670_000)));
        assert_eq!((listed.published(), listed.handled()), (Some(7), Some(4)));
    }

    #[test]
    fn what_is_missing_or_of_another_type_is_unknown_and_not_zero() {
        for value in ["null", "-1", "1.5", "\"7\"", "[1,2]", "{\"a\":1}", "true", "1e3"] {
            let text = format!(
                r#"[{{"name":"orders","messages_ready":{value},"messages_unacknowledged":3,"message_stats":{value}}}]"#
            );
            let queue = one(&text).unwrap();
            assert_eq!((queue.ready.0, queue.held.0, queue.handled()), (None, Some(3), None), "{value}");
        }
        let bare = one(r#"[{"name":"orders","message_stats":{"publish":null}}]"#).unwrap();
        assert_eq!((bare.ready.0, bare.published(), bare.handled()), (None, None, None));
        let published = one(r#"[{"name":"orders","message_stats":{"publish":7}}]"#).unwrap();
        assert_eq!(published.handled(), Some(0), "it counts, and nothing was handled yet");
        assert_eq!(one(r#"[{"name":["orders"]},{}]"#), None);
    }

    #[test]
    fn what_is_no_list_of_queues_is_no_answer() {
        let deep = "[".repeat(100_000);
        for text in
            ["", "[", "{}", "7", "null", "[7]", "[] []", r#"{"items":7}"#, r#"{"items":{}}"#, r#"[{"name":"#, &deep]
        {
            assert_eq!(read(text.as_bytes(), &BTreeSet::new()), None, "{text:.40}");
        }
        assert_eq!(read(b"[]", &BTreeSet::new()), Some(BTreeMap::new()));
    }
}
