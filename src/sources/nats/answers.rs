//! What JetStream's answers about a consumer and its oldest message say. Pure.

use serde::Deserialize;

use crate::{
    clients::nats::{ApiError, Payload, Reply, answer_text, no_jetstream, nonsense},
    measure::MeasureError,
};

/// How far a consumer has come, counted in deliveries (each redelivery counts) and in messages of the stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

/// What `CONSUMER.INFO` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Consumer {
    /// Another time is another consumer of the same name.
    pub(super) created: jiff::Timestamp,
    pub(super) delivered: Place,
    pub(super) ack_floor: Place,
    /// Messages that were delivered and are not acknowledged.
    pub(super) held: u64,
    /// Messages beyond the delivered ones that the consumer is to get.
    pub(super) waiting: u64,
    /// Messages were delivered more than once, and the server gives them up after a number of times.
    pub(super) may_have_given_up: bool,
    /// The subjects that it is to get; empty for all.
    pub(super) subjects: Vec<String>,
    /// Messages that may be held at the same time; absent where there is no limit.
    pub(super) most_held: Option<u64>,
    /// The server's clock, from NATS 2.10 on.
    pub(super) now: Option<jiff::Timestamp>,
}

impl Consumer {
    /// What the consumer has before it.
    pub(super) fn pending(&self) -> u64 {
        self.waiting.saturating_add(self.held)
    }

    /// The server delivers nothing more before some of what is held is acknowledged, although more waits.
    pub(super) fn is_full(&self) -> bool {
        self.waiting > 0 && self.most_held.is_some_and(|most| self.held >= most)
    }

    /// The place in the stream from which the oldest message before the consumer is to be searched; absent where it cannot be told.
    ///
    /// The acknowledgement floor stays before a message that was given up until nothing else is held, so that the next one may be one that is never
    /// delivered again. It certainly is not where everything beyond the floor is held.
    pub(super) fn oldest_from(&self) -> Option<u64> {
        if self.held == 0 {
            return self.delivered.stream_seq.max(self.ack_floor.stream_seq).checked_add(1);
        }
        let beyond_floor = self.delivered.stream_seq.saturating_sub(self.ack_floor.stream_seq);
        if self.may_have_given_up && beyond_floor > self.held {
            return None;
        }
        self.ack_floor.stream_seq.checked_add(1)
    }
}

#[derive(Deserialize)]
struct ConsumerInfo {
    created: jiff::Timestamp,
    delivered: Place,
    ack_floor: Place,
    num_ack_pending: u64,
    num_pending: u64,
    #[serde(default)]
    num_redelivered: u64,
    config: ConsumerConfig,
    ts: Option<jiff::Timestamp>,
}

#[derive(Deserialize)]
struct ConsumerConfig {
    #[serde(default)]
    max_deliver: i64,
    #[serde(default)]
    max_ack_pending: i64,
    filter_subject: Option<String>,
    #[serde(default)]
    filter_subjects: Vec<String>,
}

/// Reads the answer to `CONSUMER.INFO`.
///
/// # Errors
/// The server's refusal in words, or that the answer makes no sense.
pub(super) fn consumer(reply: &Reply) -> Result<Consumer, MeasureError> {
    let text = answer_text(reply)?;
    let info: ConsumerInfo = serde_json::from_slice(text).map_err(|_| nonsense())?;
    let mut subjects = info.config.filter_subjects;
    subjects.extend(info.config.filter_subject.filter(|subject| !subject.is_empty() && subject != ">"));
    Ok(Consumer {
        created: info.created,
        delivered: info.delivered,
        ack_floor: info.ack_floor,
        held: info.num_ack_pending,
        waiting: info.num_pending,
        may_have_given_up: info.config.max_deliver > 0 && info.num_redelivered > 0,
        subjects,
        most_held: u64::try_from(info.config.max_ack_pending).ok().filter(|most| *most > 0),
        now: info.ts,
    })
}

/// Reads the time of the message in the answer to `STREAM.MSG.GET`; absent where there is no such message. Of a long answer only the end is kept,
/// where the time is: before it come bodies in base64, which hold no quotation mark.
///
/// # Errors
/// As [`consumer`].
pub(super) fn time_of_message(reply: &Reply) -> Result<Option<jiff::Timestamp>, MeasureError> {
    const NO_MESSAGE: u32 = 10_037;
    #[derive(Deserialize)]
    struct Got {
        error: Option<ApiError>,
        message: Option<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        time: jiff::Timestamp,
    }
    let text = match reply {
        Reply::NoResponder => return Err(no_jetstream()),
        Reply::Answered(Payload::Whole(text)) => text,
        Reply::Answered(Payload::Tail(tail)) => {
            let tail = String::from_utf8_lossy(tail);
            let (_, time) = tail.rsplit_once("\"time\":\"").ok_or_else(nonsense)?;
            let time = time.split('"').next().unwrap_or_default();
            return time.parse().map(Some).map_err(|_| nonsense());
        }
    };
    let got: Got = serde_json::from_slice(text).map_err(|_| nonsense())?;
    match got.error {
        Some(error) if error.err_code == NO_MESSAGE => Ok(None),
        Some(error) => Err(error.refusal()),
        None => got.message.map(|message| Some(message.time)).ok_or_else(nonsense),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    fn reply(text: &str) -> Reply {
        Reply::Answered(Payload::Whole(text.as_bytes().to_vec()))
    }

    const INFO: &str = r#"{"type":"io.nats.jetstream.api.v1.consumer_info_response","stream_name":"S","name":"C","created":"2026-11-26T05:18:16.437324029Z","config":{"durable_name":"C","max_deliver":2,"filter_subject":"s.a"},"delivered":{"consumer_seq":10,"stream_seq":7,"last_active":"2026-11-26T05:18:19.493629581Z"},"ack_floor":{"consumer_seq":0,"stream_seq":0},"num_ack_pending":3,"num_redelivered":4,"num_waiting":0,"num_pending":3}"#;

    #[test]
    fn a_consumer_is_read_and_half_of_one_is_not_taken_for_zero() {
        let found = consumer(&reply(INFO)).unwrap();
        assert_eq!((found.pending(), found.delivered.stream_seq, found.subjects.len()), (6, 7, 1));
        assert!(found.may_have_given_up && found.now.is_none());
        for part in [r#""num_pending":3"#, r#""num_ack_pending":3,"#, r#""created":"2026-11-26T05:18:16.437324029Z","#]
        {
            let unknown = consumer(&reply(&INFO.replace(part, r#""x":1"#))).unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer, "{part}");
        }
        for text in
            ["", "{}", "[]", "null", r#"{"num_pending":-1}"#, &INFO.replace("\"num_pending\":3", "\"num_pending\":-1")]
        {
            assert_eq!(consumer(&reply(text)).unwrap_err().reason, Reason::InvalidAnswer, "{text}");
        }
        assert_eq!(consumer(&Reply::Answered(Payload::Tail(Vec::new()))).unwrap_err().reason, Reason::InvalidAnswer);
    }

    #[test]
    fn refusals_are_told_in_words() {
        for (error, reason, words) in [
            (r#"{"code":404,"err_code":10059,"description":"stream not found"}"#, Reason::StreamNotFound, "create"),
            (r#"{"code":404,"err_code":10014,"description":"consumer not found"}"#, Reason::NeverCommitted, "create"),
            (
                r#"{"code":503,"err_code":10039,"description":"jetstream not enabled for account"}"#,
                Reason::SourceFailed,
                "enable",
            ),
            (r#"{"code":503,"err_code":10008,"description":"unavailable"}"#, Reason::SourceFailed, "cluster"),
            (r#"{"code":500,"description":"insufficient resources"}"#, Reason::SourceFailed, "insufficient"),
            ("{}", Reason::SourceFailed, ""),
        ] {
            let found = consumer(&reply(&format!(r#"{{"type":"x","error":{error}}}"#))).unwrap_err();
            assert_eq!(found.reason, reason, "{error}");
            assert!(found.message.contains(words), "{}", found.message);
        }
        assert!(consumer(&Reply::NoResponder).unwrap_err().message.contains("enable it"));
    }

    #[test]
    fn the_time_of_a_message_is_read_from_the_end_of_a_long_answer() {
        let text = r#"{"type":"x","message":{"subject":"time","seq":1,"data":"YWJj","time":"2026-11-26T05:18:16.438524848Z"}}"#;
        let time = time_of_message(&reply(text)).unwrap();
        assert_eq!(time, Some("2026-11-26T05:18:16.438524848Z".parse().unwrap()));
        let tail = text.split_once("YWJj").unwrap().1;
        assert_eq!(time_of_message(&Reply::Answered(Payload::Tail(tail.as_bytes().to_vec()))).unwrap(), time);
        let none = r#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
        assert_eq!(time_of_message(&reply(none)).unwrap(), None);
        assert!(time_of_message(&reply("{}")).is_err());
        assert!(time_of_message(&Reply::Answered(Payload::Tail(b"xyz".to_vec()))).is_err());
    }

    #[test]
    fn the_oldest_is_the_next_after_the_floor_unless_that_may_have_been_given_up() {
        let place = |stream_seq| Place { consumer_seq: 0, stream_seq };
        let mut consumer = consumer(&reply(INFO)).unwrap();
        assert_eq!(consumer.oldest_from(), None, "of seven beyond the floor, three are held");
        consumer.ack_floor = place(4);
        assert_eq!(consumer.oldest_from(), Some(5), "all beyond the floor are held");
        (consumer.ack_floor, consumer.may_have_given_up) = (place(2), false);
        assert_eq!(consumer.oldest_from(), Some(3));
        consumer.held = 0;
        assert_eq!(consumer.oldest_from(), Some(8));
    }
}
