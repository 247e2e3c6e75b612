//! What an error of a broker, or of the way to it, means: a reason for machines and a sentence for people.

use std::io;

use kacrab_protocol::ProtocolError;

use crate::api::Reason;

/// Why a cluster, a topic, a partition or a group did not answer. Holds no secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct KafkaError {
    /// The class of failure.
    pub reason: Reason,
    /// What, where, and what to do.
    pub message: String,
    /// The broker's error code, where a broker answered with one.
    pub code: Option<Code>,
    /// The answer had more bytes than are read: asked for less, the broker may answer with less.
    pub oversized: bool,
}

impl KafkaError {
    /// Without a code of a broker.
    pub fn new(reason: Reason, message: String) -> Self {
        Self { reason, message, code: None, oversized: false }
    }

    /// No broker said anything of `what`.
    pub fn not_told(what: &str) -> Self {
        Self::new(Reason::InvalidAnswer, format!("no broker said anything of {what}"))
    }

    /// The partition has no leader at present, as when all its replicas are down.
    pub fn no_leader(topic: &str, number: i32) -> Self {
        let message =
            format!("partition {number} of topic {topic} has no leader: are the brokers with its replicas down?");
        Self { code: Some(Code(5)), ..Self::new(Reason::SourceFailed, message) }
    }

    /// The topic is there, and nothing is said of its partitions.
    pub(super) fn no_partitions(place: &str, topic: &str) -> Self {
        let message = format!(
            "{place}: topic {topic} has no partitions by the cluster's metadata: is it being created or deleted? What waits is known when they are there"
        );
        Self::new(Reason::SourceFailed, message)
    }

    /// Says in addition that the address is one that brokers announce.
    pub(super) fn of_announced(mut self) -> Self {
        self.message.push_str("; the cluster's brokers announce it (advertised.listeners)");
        self
    }

    pub(super) fn timed_out(place: &str, what: &str) -> Self {
        Self::new(
            Reason::TimedOut,
            format!(
                "{place}: {what} got no answer in time: does a firewall or network policy drop packets, or does the broker hang?"
            ),
        )
    }

    pub(super) fn invalid(place: &str, why: &str) -> Self {
        Self::new(Reason::InvalidAnswer, format!("{place}: {why}: is this a Kafka broker?"))
    }

    pub(super) fn codec(place: &str, error: &ProtocolError) -> Self {
        Self::invalid(place, &format!("an answer cannot be read ({error})"))
    }

    /// The sentence for an error code; `what` names the topic, partition or group that it is about.
    pub(super) fn of(code: Code, place: &str, what: &str) -> Self {
        let (reason, name, advice) = code.words();
        let advice = if advice.is_empty() { String::new() } else { format!(": {advice}") };
        Self { code: Some(code), ..Self::new(reason, format!("{place}: {what}: {name}{advice}")) }
    }

    pub(super) fn io(place: &str, error: &io::Error, tls: bool) -> Self {
        use io::ErrorKind;
        let (reason, text) = match error.kind() {
            ErrorKind::ConnectionRefused => (
                Reason::ConnectionRefused,
                "refused the connection: is the broker running, and is host and port that of a listener which the operator can reach?".to_owned(),
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                let advice = if tls {
                    "is it restarting, does this listener expect no TLS, or does it require a client certificate?"
                } else {
                    "is it restarting, or does this listener expect TLS or SASL (security.protocol)?"
                };
                (Reason::ConnectionRefused, format!("closed the connection: {advice}"))
            }
            // What TLS says against us comes with the first answer.
            ErrorKind::InvalidData if tls => (
                Reason::TlsFailed,
                format!("TLS could not be agreed on: {error}: does the listener require a client certificate, or another one?"),
            ),
            _ => (Reason::SourceFailed, error.to_string()),
        };
        Self::new(reason, format!("{place}: {text}"))
    }
}

/// An error code of Kafka's protocol. Zero is no error and never stands here.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Code(pub i16);

impl Code {
    pub(super) const SASL_AUTHENTICATION_FAILED: Self = Self(58);

    /// The coordinator or leader has moved, so that the next question must ask who it is now.
    pub fn has_moved(self) -> bool {
        matches!(self.0, 5 | 6 | 9 | 14 | 15 | 16 | 74 | 75)
    }

    /// The topic or partition does not exist (any more).
    pub fn is_unknown_topic(self) -> bool {
        matches!(self.0, 3 | 100 | 103)
    }

    /// The offset is before the first that is kept, or behind the last.
    pub fn is_out_of_range(self) -> bool {
        self.0 == 1
    }

    /// The user may not ask this.
    pub fn is_forbidden(self) -> bool {
        matches!(self.0, 29..=31)
    }

    /// `None` for zero.
    pub(super) fn from_wire(code: i16) -> Option<Self> {
        (code != 0).then_some(Self(code))
    }

    fn words(self) -> (Reason, String, &'static str) {
        let (reason, name, advice) = match self.0 {
            1 => (Reason::InvalidAnswer, "OFFSET_OUT_OF_RANGE", "the offset is not in the log"),
            3 => (
                Reason::TableNotFound,
                "UNKNOWN_TOPIC_OR_PARTITION",
                "there is no such topic: create it, or correct its name in the Projection; a user without DESCRIBE on the topic gets the same answer",
            ),
            5 => {
                (Reason::SourceFailed, "LEADER_NOT_AVAILABLE", "a leader is being elected, or all replicas are offline")
            }
            6 => (Reason::SourceFailed, "NOT_LEADER_OR_FOLLOWER", "the leader is moving"),
            7 => (Reason::TimedOut, "REQUEST_TIMED_OUT", "the broker is overloaded"),
            9 => (Reason::SourceFailed, "REPLICA_NOT_AVAILABLE", "the leader is moving"),
            14 => (Reason::SourceFailed, "COORDINATOR_LOAD_IN_PROGRESS", "the group's coordinator is starting"),
            15 => (Reason::SourceFailed, "COORDINATOR_NOT_AVAILABLE", "the group's coordinator is not there yet"),
            16 => (Reason::SourceFailed, "NOT_COORDINATOR", "the group's coordinator is moving"),
            17 => (Reason::InvalidAnswer, "INVALID_TOPIC_EXCEPTION", "correct the topic's name in the Projection"),
            22 | 25 => (
                Reason::SourceFailed,
                "UNKNOWN_MEMBER_ID",
                "the group has members of its own, which commit its offsets: name another group",
            ),
            24 => (Reason::InvalidAnswer, "INVALID_GROUP_ID", "correct the group's name in the Projection"),
            29 => (
                Reason::PermissionDenied,
                "TOPIC_AUTHORIZATION_FAILED",
                "allow the user DESCRIBE (and READ) on the topic",
            ),
            30 => (Reason::PermissionDenied, "GROUP_AUTHORIZATION_FAILED", "allow the user DESCRIBE on the group"),
            31 => (Reason::PermissionDenied, "CLUSTER_AUTHORIZATION_FAILED", "allow it to the user in the Secret"),
            33 => (
                Reason::AuthenticationFailed,
                "UNSUPPORTED_SASL_MECHANISM",
                "name a mechanism that the listener offers",
            ),
            34 => (
                Reason::AuthenticationFailed,
                "ILLEGAL_SASL_STATE",
                "does this listener expect another security.protocol?",
            ),
            35 => (Reason::InvalidAnswer, "UNSUPPORTED_VERSION", "the broker is too old or too new for this request"),
            58 => (
                Reason::AuthenticationFailed,
                "SASL_AUTHENTICATION_FAILED",
                "correct username and password in the Secret",
            ),
            69 => (Reason::NeverCommitted, "GROUP_ID_NOT_FOUND", "there is no such group"),
            74 | 75 => (Reason::SourceFailed, "the leader's epoch has changed", "the leader is moving"),
            78 => (Reason::SourceFailed, "OFFSET_NOT_AVAILABLE", "the new leader does not know its high watermark yet"),
            88 => (Reason::SourceFailed, "UNSTABLE_OFFSET_COMMIT", "a transaction that commits offsets is open"),
            100 | 103 => (Reason::TableNotFound, "UNKNOWN_TOPIC_ID", "the topic was deleted"),
            other => return (Reason::SourceFailed, format!("error code {other}"), ""),
        };
        (reason, name.to_owned(), advice)
    }
}
