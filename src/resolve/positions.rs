//! How a position in a source is written by those who ask whether a read model has come to it.

use super::{KurrentDbSubscriptions, PostgresQuestion, ResolvedSource, StoreConsumer};
use crate::lag::Position;

/// What a single position is in a source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PositionKind {
    /// The number of an event in the order in which events are handled: `57`.
    Number,
    /// A place in PostgreSQL's write-ahead log: `16/B374D848`.
    Lsn,
    /// One position says nothing here, for this reason.
    Meaningless(&'static str),
}

impl ResolvedSource {
    /// What a single position is in this source.
    pub fn position_kind(&self) -> PositionKind {
        let queue =
            PositionKind::Meaningless("a queue numbers no messages, so that it cannot be asked for one of them");
        match self {
            Self::Postgres { question, .. } => match question {
                PostgresQuestion::EventTable(_) | PostgresQuestion::Library(_) | PostgresQuestion::Query(_) => {
                    PositionKind::Number
                }
                PostgresQuestion::ReplicationSlot(_) => PositionKind::Lsn,
                PostgresQuestion::Outbox(_) => PositionKind::Meaningless(
                    "an outbox is handled row by row and in no certain order, so that one position says nothing of the rows before it",
                ),
                PostgresQuestion::Consumer(consumer) => match &**consumer {
                    StoreConsumer::Commanded(_) => PositionKind::Number,
                    StoreConsumer::Emmett(_) => PositionKind::Meaningless(
                        "Emmett handles events in the order of their transactions, so that one position says nothing of the positions below it",
                    ),
                    StoreConsumer::Akka(_) => PositionKind::Meaningless(
                        "Akka keeps an offset for each slice, so that one position says nothing",
                    ),
                },
            },
            Self::KurrentDb { subscriptions: KurrentDbSubscriptions::CatchUp(_), .. } => PositionKind::Number,
            Self::KurrentDb { .. } => PositionKind::Meaningless(
                "a persistent subscription hands out events out of order, so that one position says nothing of those before it",
            ),
            Self::Kafka { .. } => PositionKind::Meaningless(
                "each partition has offsets of its own, and which partition is meant cannot be said yet",
            ),
            Self::RabbitMq { .. } | Self::Redis { .. } | Self::Nats { .. } => queue,
            Self::Prometheus { .. } | Self::Scrape { .. } => {
                PositionKind::Meaningless("a metric tells how much waits, and no positions")
            }
        }
    }
}

impl PositionKind {
    /// Reads a position.
    ///
    /// # Errors
    /// What is wrong with it and how it is written, or why there is none in this source.
    pub fn parse(self, text: &str) -> Result<Position, String> {
        let read = match self {
            Self::Number => digits(text, 10).and_then(|()| text.parse().ok()).map(Position),
            Self::Lsn => lsn(text),
            Self::Meaningless(why) => return Err(why.to_owned()),
        };
        let example = if self == Self::Lsn { "16/B374D848, as pg_current_wal_lsn() tells it" } else { "57" };
        read.ok_or_else(|| format!("{:?} is not a position: it is written like {example}", shortened(text)))
    }

    /// The position as it is written.
    pub fn written(self, position: Position) -> String {
        match self {
            Self::Lsn => format!("{:X}/{:X}", position.0 >> 32, position.0 & 0xFFFF_FFFF),
            Self::Number | Self::Meaningless(_) => position.to_string(),
        }
    }
}

/// A text has digits only, and some.
fn digits(text: &str, radix: u32) -> Option<()> {
    (!text.is_empty() && text.chars().all(|letter| letter.is_digit(radix))).then_some(())
}

fn lsn(text: &str) -> Option<Position> {
    let (high, low) = text.split_once('/')?;
    let part = |text: &str| digits(text, 16).and_then(|()| u32::from_str_radix(text, 16).ok());
    i64::try_from(u64::from(part(high)?) << 32 | u64::from(part(low)?)).ok().map(Position)
}

/// The beginning of what a caller wrote.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_the_source_writes_them() {
        for (kind, text, expected) in [
            (PositionKind::Number, "57", Some(57)),
            (PositionKind::Number, "0", Some(0)),
            (PositionKind::Number, "9223372036854775807", Some(i64::MAX)),
            (PositionKind::Number, "9223372036854775808", None),
            (PositionKind::Number, "-1", None),
            (PositionKind::Number, "+1", None),
            (PositionKind::Number, "", None),
            (PositionKind::Number, "1/2", None),
            (PositionKind::Lsn, "16/B374D848", Some(0x16_B374_D848)),
            (PositionKind::Lsn, "0/0", Some(0)),
            (PositionKind::Lsn, "16/B374D8480", None),
            (PositionKind::Lsn, "FFFFFFFF/0", None),
            (PositionKind::Lsn, "16", None),
        ] {
            let read = kind.parse(text);
            assert_eq!(read.as_ref().ok().map(|position| position.0), expected, "{text}");
            if let Ok(position) = read {
                assert_eq!(kind.written(position), text);
            }
        }
        assert!(PositionKind::Lsn.parse("x").unwrap_err().contains("16/B374D848"));
        assert_eq!(PositionKind::Meaningless("no").parse("57"), Err("no".to_owned()));
    }
}
