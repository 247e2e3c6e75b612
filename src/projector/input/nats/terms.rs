//! On which terms a consumer of JetStream gives messages, and whether a worker can keep what it promises on them. Pure.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    clients::nats::{Reply, answer_text, nonsense},
    measure::MeasureError,
};

/// A worker renews what it has in hand. This much time it must have for that.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);
/// What is in hand is renewed at least this often, also to be heard by the server, which ends connections that say nothing for minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a consumer is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Terms {
    /// What is not acknowledged or renewed for so long is given again; the shortest where there are several times.
    pub(super) shortest_wait: Duration,
    /// The longest of these times.
    pub(super) longest_wait: Duration,
    /// How many messages one request may ask for.
    pub(super) most: Option<usize>,
    /// How many bytes one request may ask for.
    pub(super) most_bytes: Option<usize>,
    /// How many messages workers were given and have not acknowledged.
    pub(super) held: u64,
}

#[derive(Deserialize)]
struct Info {
    num_ack_pending: u64,
    config: Config,
}

/// Durations are in nanoseconds.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    deliver_subject: String,
    ack_policy: String,
    #[serde(default)]
    ack_wait: u64,
    #[serde(default)]
    backoff: Vec<u64>,
    #[serde(default)]
    max_deliver: i64,
    #[serde(default)]
    headers_only: bool,
    #[serde(default)]
    max_batch: i64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    priority_groups: Vec<String>,
}

/// Why a consumer's terms are not known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Unsuitable {
    /// The server refuses to say, or what it says makes no sense.
    Unknown(MeasureError),
    /// They are known, and events would be lost, or have effects twice. Says what to do.
    Refused(String),
}

impl Terms {
    /// Reads the answer to `CONSUMER.INFO`.
    pub(super) fn read(reply: &Reply) -> Result<Self, Unsuitable> {
        let text = answer_text(reply).map_err(Unsuitable::Unknown)?;
        let info: Info = serde_json::from_slice(text).map_err(|_| Unsuitable::Unknown(nonsense()))?;
        let config = info.config;
        if let Some(why) = config.refused() {
            return Err(Unsuitable::Refused(why));
        }
        let waits = || config.backoff.iter().copied().chain((config.ack_wait > 0).then_some(config.ack_wait));
        let (Some(shortest), Some(longest)) = (waits().min(), waits().max()) else {
            return Err(Unsuitable::Unknown(nonsense()));
        };
        let (shortest_wait, longest_wait) = (Duration::from_nanos(shortest), Duration::from_nanos(longest));
        if shortest_wait < SHORTEST_WAIT {
            return Err(Unsuitable::Refused(format!(
                "it gives messages again after {shortest_wait:?} (ack_wait, or a time in backoff), which is too short to renew what a worker has in hand: set ack_wait to at least {SHORTEST_WAIT:?}, better 30s, and remove shorter times from backoff"
            )));
        }
        let limit = |number: i64| usize::try_from(number).ok().filter(|number| *number > 0);
        Ok(Self {
            shortest_wait,
            longest_wait,
            most: limit(config.max_batch),
            most_bytes: limit(config.max_bytes),
            held: info.num_ack_pending,
        })
    }

    /// How often a worker has to renew what it has in hand.
    pub(super) fn renew_every(&self) -> Duration {
        (self.shortest_wait / 3).min(LONGEST_PAUSE)
    }
}

impl Config {
    /// Why a worker must not read from it.
    fn refused(&self) -> Option<String> {
        if !self.deliver_subject.is_empty() {
            return Some("it is a push consumer, and workers share pull consumers: create a pull consumer".to_owned());
        }
        match self.ack_policy.as_str() {
            "explicit" => {}
            "none" => {
                return Some(
                    "its ack_policy is none, so that what a worker loses is lost: create it with ack_policy explicit"
                        .to_owned(),
                );
            }
            _ => {
                return Some("its ack_policy is all, with which one acknowledgement stands for all messages before it, also for those that failed or that other workers have in hand: create it with ack_policy explicit".to_owned());
            }
        }
        if self.max_deliver > 0 {
            return Some(format!(
                "its max_deliver is {}: a message that failed so often would never be given again, and its event would be missing from the read model. Set max_deliver to -1; the pauses between attempts grow to 15 s",
                self.max_deliver
            ));
        }
        if self.headers_only {
            return Some(
                "it delivers headers alone (headers_only), and the events are in the bodies: set headers_only to false"
                    .to_owned(),
            );
        }
        if !self.priority_groups.is_empty() {
            return Some("it has priority groups, which are not supported: create it without".to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clients::nats::Payload;

    fn read(field: &str, value: serde_json::Value) -> Result<Terms, Unsuitable> {
        let mut info = json!({
            "type": "io.nats.jetstream.api.v1.consumer_info_response", "num_ack_pending": 3,
            "config": {"durable_name": "list", "ack_policy": "explicit", "ack_wait": 30_000_000_000_u64, "max_deliver": -1, "max_ack_pending": 1000},
        });
        info["config"][field] = value;
        Terms::read(&Reply::Answered(Payload::Whole(info.to_string().into_bytes())))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_in_hand_is_renewed_well_before_it_is_given_to_another() {
        let terms = read("description", json!("x")).unwrap();
        assert_eq!((terms.renew_every(), terms.held, terms.most), (seconds(10), 3, None));
        let terms = read("backoff", json!([6_000_000_000_u64, 60_000_000_000_u64])).unwrap();
        assert_eq!((terms.renew_every(), terms.longest_wait), (seconds(2), seconds(60)));
        let terms = read("ack_wait", json!(3_600_000_000_000_u64)).unwrap();
        assert_eq!(terms.renew_every(), seconds(30), "so that the server hears of the worker");
        assert_eq!(read("max_batch", json!(7)).unwrap().most, Some(7));
    }

    #[test]
    fn consumers_that_would_lose_events_are_refused_in_words() {
        for (field, value, expected) in [
            ("deliver_subject", json!("push"), "create a pull consumer"),
            ("ack_policy", json!("none"), "ack_policy explicit"),
            ("ack_policy", json!("all"), "ack_policy explicit"),
            ("max_deliver", json!(5), "its max_deliver is 5"),
            ("headers_only", json!(true), "headers_only"),
            ("priority_groups", json!(["a"]), "priority groups"),
            ("ack_wait", json!(1_000_000_000), "at least 2s"),
            ("backoff", json!([500_000_000, 5_000_000_000_u64]), "after 500ms"),
        ] {
            let Err(Unsuitable::Refused(why)) = read(field, value.clone()) else { panic!("{field} {value}") };
            assert!(why.contains(expected), "{why}");
        }
        assert!(matches!(read("ack_wait", json!(0)), Err(Unsuitable::Unknown(_))), "unknown is not zero");
    }
}
