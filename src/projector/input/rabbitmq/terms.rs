//! On which terms a queue gives messages, and whether a worker can keep what it promises on them. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

/// What is asked of the management API.
pub(super) const COLUMNS: &str = "type,auto_delete,exclusive,arguments,effective_policy_definition";
/// From this version on a quorum queue drops a message that was delivered again so often, unless it is told otherwise.
const LIMITED_SINCE: u64 = 4;
const DEFAULT_LIMIT: i64 = 20;

/// What a queue is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Terms {
    /// The server gives messages to one of its consumers at a time.
    pub(super) single_active: bool,
}

/// What the management API tells of a queue. A policy's definition is no map where there is no policy.
#[derive(Deserialize)]
struct Info {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    auto_delete: Value,
    #[serde(default)]
    exclusive: Value,
    #[serde(default)]
    arguments: Value,
    #[serde(default)]
    effective_policy_definition: Value,
}

impl Terms {
    /// Reads what the management API tells of a queue of a server of this version. None where that makes no sense.
    ///
    /// # Errors
    /// Why events would be lost. Says what to do.
    pub(super) fn read(told: &[u8], version: Option<&str>) -> Option<Result<Self, String>> {
        let info: Info = serde_json::from_slice(told).ok()?;
        let none = Map::new();
        let of = |value: &'_ Value, name: &str| value.as_object().unwrap_or(&none).get(name).cloned();
        let argument = |name: &str| of(&info.arguments, &format!("x-{name}"));
        let policy = |name: &str| of(&info.effective_policy_definition, name);
        if info.kind == "stream" {
            return Some(Err("it is a stream, which keeps what was read: the workers read queues".to_owned()));
        }
        if info.auto_delete == Value::Bool(true) {
            return Some(Err(
                "it is deleted with its messages when the last worker ends (auto_delete): declare it without that"
                    .to_owned(),
            ));
        }
        if info.exclusive == Value::Bool(true) {
            return Some(Err(
                "it is exclusive to the connection that has declared it: declare it without that".to_owned()
            ));
        }
        let number = |value: Option<Value>| value.and_then(|value| value.as_i64());
        let told = [number(argument("delivery-limit")), number(policy("delivery-limit"))];
        let major = version.and_then(|version| version.split('.').next()?.parse::<u64>().ok());
        let by_default = major.filter(|major| *major >= LIMITED_SINCE).map(|_| DEFAULT_LIMIT);
        // The lower of the two counts; one below zero is none.
        let limit = match told.into_iter().flatten().reduce(i64::min) {
            _ if info.kind != "quorum" => None,
            Some(limit) => Some(limit).filter(|limit| *limit >= 0),
            None => by_default,
        };
        let is_dead_lettered =
            [argument("dead-letter-exchange"), policy("dead-letter-exchange")].iter().any(Option::is_some);
        if let Some(limit) = limit.filter(|_| !is_dead_lettered) {
            return Some(Err(format!(
                "it drops a message that was delivered again more than {limit} times (delivery-limit), and with it its event: a message that cannot be handled is delivered again with each worker that ends. Lift the limit by a policy (delivery-limit -1, or none before RabbitMQ 4), or have such messages put aside (dead-letter-exchange) and name that queue in spec.source.rabbitmq.deadLetterQueues"
            )));
        }
        Some(Ok(Self { single_active: argument("single-active-consumer") == Some(Value::Bool(true)) }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(told: &Value, version: &str) -> Result<Terms, String> {
        Terms::read(told.to_string().as_bytes(), Some(version)).unwrap()
    }

    #[test]
    fn queues_that_would_lose_events_are_refused_in_words() {
        let quorum = |arguments: Value, policy: Value| json!({"type": "quorum", "arguments": arguments, "effective_policy_definition": policy});
        for (told, version, expected) in [
            (json!({"type": "stream"}), "3.13.7", "it is a stream"),
            (json!({"type": "classic", "auto_delete": true}), "4.1.0", "auto_delete"),
            (json!({"type": "classic", "exclusive": true}), "4.1.0", "exclusive"),
            (quorum(json!({}), json!([])), "4.0.1", "more than 20 times"),
            (quorum(json!({"x-delivery-limit": 5}), json!({})), "3.10.8", "more than 5 times"),
            (quorum(json!({"x-delivery-limit": 50}), json!({"delivery-limit": 7})), "4.0.1", "more than 7 times"),
        ] {
            let why = read(&told, version).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn queues_that_keep_a_message_until_it_is_acknowledged_are_read() {
        let shared = Ok(Terms { single_active: false });
        for (told, version) in [
            (
                json!({"type": "classic", "auto_delete": false, "arguments": {}, "effective_policy_definition": ""}),
                "4.0.1",
            ),
            (json!({"type": "quorum", "arguments": {"x-queue-type": "quorum"}}), "3.13.7"),
            (json!({"type": "quorum", "effective_policy_definition": {"delivery-limit": -1}}), "4.0.1"),
            (json!({"type": "quorum", "arguments": {"x-dead-letter-exchange": ""}}), "4.0.1"),
            (json!({"type": "quorum"}), "unknown"),
        ] {
            assert_eq!(read(&told, version), shared, "{told}");
        }
        let single = json!({"type": "classic", "arguments": {"x-single-active-consumer": true}});
        assert_eq!(read(&single, "3.10.8"), Ok(Terms { single_active: true }));
        assert_eq!(Terms::read(b"no json", None), None);
    }
}
