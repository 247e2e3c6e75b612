//! A message of JetStream as a pull consumer is given it. Pure.
//!
//! The subject that it is to be acknowledged on says where it is: `$JS.ACK.STREAM.CONSUMER.DELIVERIES.SEQUENCE.CONSUMER-SEQUENCE.TIME.PENDING`, in newer servers
//! with the domain and a hash of the account behind `$JS.ACK`, and perhaps more at the end.

use super::protocol::{Message, Payload};

/// A message that this client was given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pulled {
    /// The subject that it was published on.
    pub subject: String,
    /// Where it is.
    pub place: Place,
    /// What it is to be acknowledged on.
    pub acknowledge_on: String,
    /// Headers as they were sent; empty where the message is not kept whole.
    pub headers: Vec<u8>,
    /// The body.
    pub payload: Payload,
    /// The bytes of headers and body as they were sent.
    pub length: usize,
}

/// Where a message is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The stream's name.
    pub stream: String,
    /// Its number in the stream. A stream that is made again begins with 1 again.
    pub sequence: u64,
    /// When it was stored, in nanoseconds since 1970; the same whenever it is delivered, and another for another message of the same number.
    pub stored_at: i64,
    /// How many messages the consumer has yet to be given, but for those that it is given again.
    pub pending: u64,
}

impl Pulled {
    /// What a message is, if it is to be acknowledged.
    pub(super) fn of(message: Message) -> Option<Self> {
        let Message { subject, reply, headers, payload, length } = message;
        let acknowledge_on = reply?;
        let place = Place::of(&acknowledge_on)?;
        Some(Self { subject, place, acknowledge_on, headers, payload, length })
    }

    /// The last header of this name, whatever its case, where the message is kept whole.
    pub fn header(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.headers).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(':')).rev();
        lines.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Place {
    fn of(subject: &str) -> Option<Self> {
        let parts: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
        // Short: stream, consumer and five numbers. Long: domain and account before them.
        let parts = match parts.len() {
            7 => &parts[..],
            9.. => &parts[2..],
            _ => return None,
        };
        let [stream, _consumer, _deliveries, sequence, _consumer_sequence, stored_at, pending, ..] = parts else {
            return None;
        };
        Some(Self {
            stream: (*stream).to_owned(),
            sequence: sequence.parse().ok()?,
            stored_at: stored_at.parse().ok()?,
            pending: pending.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(reply: Option<&str>, headers: &str) -> Message {
        Message {
            subject: "orders.o-1.placed".to_owned(),
            reply: reply.map(str::to_owned),
            headers: headers.as_bytes().to_vec(),
            payload: Payload::Whole(Vec::new()),
            length: headers.len(),
        }
    }

    #[test]
    fn where_a_message_is_stands_in_what_it_is_acknowledged_on_in_both_notations() {
        let expected =
            Place { stream: "orders".to_owned(), sequence: 7, stored_at: 1_700_000_000_123_456_789, pending: 3 };
        for subject in [
            "$JS.ACK.orders.list.2.7.9.1700000000123456789.3",
            "$JS.ACK._.hAsH.orders.list.2.7.9.1700000000123456789.3",
            "$JS.ACK.hub.hAsH.orders.list.2.7.9.1700000000123456789.3.rAnDoM",
        ] {
            assert_eq!(Pulled::of(message(Some(subject), "")).unwrap().place, expected, "{subject}");
        }
        for subject in [
            "$JS.ACK.orders.list.2.7.9.1700000000123456789",
            "$JS.ACK.orders.list.2.x.9.1700000000123456789.3",
            "$JS.ACK.a.orders.list.2.7.9.1700000000123456789.3",
            "_INBOX.projectionist.1",
            "",
        ] {
            assert_eq!(Pulled::of(message(Some(subject), "")), None, "{subject}");
        }
        assert_eq!(Pulled::of(message(None, "")), None);
    }

    #[test]
    fn of_headers_the_last_of_a_name_counts() {
        let headers = "NATS/1.0\r\nType: Placed\r\nNats-Msg-Id:7\r\ntype: Moved: twice \r\n\r\n";
        let found = Pulled::of(message(Some("$JS.ACK.orders.list.2.7.9.17.3"), headers)).unwrap();
        assert_eq!(found.header("type"), Some("Moved: twice"));
        assert_eq!(found.header("nats-msg-id"), Some("7"));
        assert_eq!(found.header("stream"), None);
    }
}
