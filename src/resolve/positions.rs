//! How a position in a source is written by those who ask whether a read model has come to it.

use std::sync::Arc;

use super::{KurrentDbSubscriptions, PostgresQuestion, ResolvedSource, StoreConsumer};
use crate::lag::Position;

/// What a single position is in a source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PositionKind {
    /// The number of an event in the order in which events are handled: `57`.
    Number,
    /// A place in PostgreSQL's write-ahead log: `16/B374D848`.
    Lsn,
    /// The offset of a record in a partition of one of these topics: `3:1042`, or `orders-3:1042` where there are several topics.
    Offset(Arc<[Arc<str>]>),
    /// One position says nothing here, for this reason.
    Meaningless(&'static str),
}

/// A position, and the log that it is in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Name and number of the log, where the source has several.
    pub log: Option<(Arc<str>, i32)>,
    /// The position there.
    pub position: Position,
}

impl Place {
    /// Another position in the same log.
    #[must_use]
    pub fn at(&self, position: Position) -> Self {
        Self { log: self.log.clone(), position }
    }
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
            Self::Kafka { question, .. } => PositionKind::Offset(Arc::clone(&question.topics)),
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
    pub fn parse(&self, text: &str) -> Result<Place, String> {
        let alone = |position| Place { log: None, position };
        let (read, example) = match self {
            Self::Number => (number(text).map(alone), "57"),
            Self::Lsn => (lsn(text).map(alone), "16/B374D848, as pg_current_wal_lsn() tells it"),
            Self::Offset(topics) if topics.len() == 1 => (offset(topics, text), "3:1042, partition and offset"),
            Self::Offset(topics) => {
                (offset(topics, text), "orders-3:1042: one of the topics, its partition, and the offset")
            }
            Self::Meaningless(why) => return Err((*why).to_owned()),
        };
        read.ok_or_else(|| format!("{:?} is not a position: it is written like {example}", shortened(text)))
    }

    /// The position as it is written.
    pub fn written(&self, Place { log, position }: &Place) -> String {
        match (self, log) {
            (Self::Lsn, _) => format!("{:X}/{:X}", position.0 >> 32, position.0 & 0xFFFF_FFFF),
            (Self::Offset(topics), Some((_, partition))) if topics.len() == 1 => format!("{partition}:{position}"),
            (_, Some((topic, partition))) => format!("{topic}-{partition}:{position}"),
            (_, None) => position.to_string(),
        }
    }
}

fn number(text: &str) -> Option<Position> {
    digits(text, 10).and_then(|()| text.parse().ok()).map(Position)
}

/// A record of one of these topics.
fn offset(topics: &[Arc<str>], text: &str) -> Option<Place> {
    let (partition, position) = text.rsplit_once(':')?;
    let read = |topic: &Arc<str>, partition: &str| {
        let partition = digits(partition, 10).and_then(|()| partition.parse().ok())?;
        Some(Place { log: Some((Arc::clone(topic), partition)), position: number(position)? })
    };
    let named = partition.rsplit_once('-').and_then(|(topic, partition)| {
        let topic = topics.iter().find(|one| ***one == *topic)?;
        read(topic, partition)
    });
    match topics {
        [only] => named.or_else(|| read(only, partition)),
        _ => named,
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            for kind in [PositionKind::Number, PositionKind::Lsn, PositionKind::Offset([Arc::from("a"), Arc::from("a-1")].into())] {
                if let Ok(place) = kind.parse(&text) {
                    prop_assert_eq!(kind.parse(&kind.written(&place)), Ok(place));
                }
            }
        }
    }

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
            assert_eq!(read.as_ref().ok().map(|place| place.position.0), expected, "{text}");
            if let Ok(place) = read {
                assert_eq!((place.log.is_none(), kind.written(&place).as_str()), (true, text));
            }
        }
        assert!(PositionKind::Lsn.parse("x").unwrap_err().contains("16/B374D848"));
        assert_eq!(PositionKind::Meaningless("no").parse("57"), Err("no".to_owned()));
    }

    #[test]
    fn an_offset_names_its_partition_and_of_several_topics_the_one() {
        let one = PositionKind::Offset([Arc::from("orders")].into());
        let two = PositionKind::Offset([Arc::from("orders"), Arc::from("orders-eu")].into());
        for (kind, text, expected) in [
            (&one, "3:1042", Some(("orders", 3, 1042, "3:1042"))),
            (&one, "orders-3:1042", Some(("orders", 3, 1042, "3:1042"))),
            (&two, "orders-3:0", Some(("orders", 3, 0, "orders-3:0"))),
            (&two, "orders-eu-0:7", Some(("orders-eu", 0, 7, "orders-eu-0:7"))),
            (&two, "3:1042", None),
            (&one, "others-3:1042", None),
            (&one, "1042", None),
            (&one, "-3:1042", None),
            (&one, "3:-1", None),
            (&one, "3:", None),
        ] {
            let read = kind.parse(text).ok();
            let told = read.as_ref().map(|place| (place.log.clone().unwrap(), place.position.0, kind.written(place)));
            let expected = expected.map(|(topic, partition, position, written)| {
                ((Arc::from(topic), partition), position, written.to_owned())
            });
            assert_eq!(told, expected, "{text}");
        }
        assert!(one.parse("57").unwrap_err().contains("partition and offset"));
    }
}
