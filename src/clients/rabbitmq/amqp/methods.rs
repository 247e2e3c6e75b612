//! The methods of AMQP 0-9-1 that a consumer uses, and no others. Pure.

use super::fields::{Fields, long_text, short_text};

/// How a connection begins: the protocol and its version.
pub(super) const PROTOCOL: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The one channel of a connection; 0 is the connection itself.
pub(super) const CHANNEL: u16 = 1;
/// So large frames are offered, in bytes, with what is around their payload. It is the server's own default.
pub(super) const LARGEST_FRAME: u32 = 128 << 10;
/// What ends each frame.
pub(super) const FRAME_END: u8 = 0xce;

pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;

/// A class and a method of it.
type Name = (u16, u16);

const START_OK: Name = (10, 11);
const TUNE_OK: Name = (10, 31);
const OPEN: Name = (10, 40);
const CLOSE: Name = (10, 50);
const CLOSE_OK: Name = (10, 51);
const CHANNEL_OPEN: Name = (20, 10);
const QOS: Name = (60, 10);
const CONSUME: Name = (60, 20);
const CANCEL: Name = (60, 30);
const CANCEL_OK: Name = (60, 31);
const ACK: Name = (60, 80);
const NACK: Name = (60, 120);

/// What the server tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Told {
    /// It introduces itself, with its version where it tells that, and the ways to log in.
    Start {
        version: Option<String>,
        mechanisms: String,
    },
    /// What it proposes: the largest frame in bytes, and after how many seconds of silence a connection is dead. 0 is no limit.
    Tune {
        largest_frame: u32,
        heartbeat: u16,
    },
    /// The virtual host is open.
    OpenOk,
    ChannelOpenOk,
    QosOk,
    ConsumeOk,
    /// The consumer that has ended, because it was asked for.
    CancelOk,
    /// The consumer that has ended because its queue is gone.
    Cancelled {
        consumer: Vec<u8>,
    },
    /// A message begins.
    Deliver(Delivered),
    /// It ends the connection, or its channel.
    Closed(Closed),
    /// It has heard that the connection ends.
    CloseOk,
}

/// How the delivery of a message begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Delivered {
    pub(super) consumer: Vec<u8>,
    pub(super) tag: u64,
    pub(super) routing_key: Vec<u8>,
}

/// Why the server ends a connection or its channel. The text is compared and never shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Closed {
    pub(super) code: u16,
    pub(super) text: String,
}

impl Told {
    /// Reads a method; none where it is not one that a consumer is told, or makes no sense.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(payload);
        Some(match (fields.short()?, fields.short()?) {
            (10, 10) => {
                fields.short()?;
                let properties = fields.table()?;
                let version = properties.into_iter().find(|(name, _)| name == "version").map(|(_, value)| value);
                let mechanisms = String::from_utf8_lossy(fields.long_text()?).into_owned();
                Self::Start { version: version.and_then(|version| String::from_utf8(version).ok()), mechanisms }
            }
            (10, 30) => {
                fields.short()?;
                Self::Tune { largest_frame: fields.long()?, heartbeat: fields.short()? }
            }
            (10, 41) => Self::OpenOk,
            (10, 50) | (20, 40) => {
                let code = fields.short()?;
                Self::Closed(Closed { code, text: String::from_utf8_lossy(fields.short_text()?).into_owned() })
            }
            CLOSE_OK => Self::CloseOk,
            (20, 11) => Self::ChannelOpenOk,
            (60, 11) => Self::QosOk,
            (60, 21) => Self::ConsumeOk,
            CANCEL => Self::Cancelled { consumer: fields.short_text()?.to_vec() },
            CANCEL_OK => Self::CancelOk,
            (60, 60) => {
                let consumer = fields.short_text()?.to_vec();
                let tag = fields.long_long()?;
                // Whether it was delivered before, and the exchange.
                fields.octet()?;
                fields.short_text()?;
                Self::Deliver(Delivered { consumer, tag, routing_key: fields.short_text()?.to_vec() })
            }
            _ => return None,
        })
    }
}

/// What is asked of the server.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask<'a> {
    /// The user and the password.
    StartOk {
        product: &'a str,
        user: &'a str,
        password: &'a str,
    },
    TuneOk {
        largest_frame: u32,
        heartbeat: u16,
    },
    /// A virtual host.
    Open(&'a str),
    Close,
    ChannelOpen,
    /// So many messages at most are to be unacknowledged, of each consumer that begins after that.
    Qos(u16),
    /// Messages of this queue, to this consumer; `exclusive`: to no other.
    Consume {
        queue: &'a str,
        consumer: &'a str,
        exclusive: bool,
    },
    Cancel {
        consumer: &'a str,
    },
    Ack(u64),
    /// The message goes back to its queue.
    Nack(u64),
}

impl Ask<'_> {
    /// Appends its frame.
    pub(super) fn write(self, frames: &mut Vec<u8>) {
        let mut out = Vec::new();
        let (channel, name) = match self {
            Self::StartOk { product, user, password } => {
                properties(product, &mut out);
                short_text("PLAIN", &mut out);
                long_text(&[b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat(), &mut out);
                short_text("en_US", &mut out);
                (0, START_OK)
            }
            Self::TuneOk { largest_frame, heartbeat } => {
                out.extend(CHANNEL.to_be_bytes());
                out.extend(largest_frame.to_be_bytes());
                out.extend(heartbeat.to_be_bytes());
                (0, TUNE_OK)
            }
            Self::Open(vhost) => {
                short_text(vhost, &mut out);
                out.extend([0, 0]);
                (0, OPEN)
            }
            Self::Close => {
                // Code 200, no text, and no method that would be to blame.
                out.extend([0, 200, 0, 0, 0, 0, 0]);
                (0, CLOSE)
            }
            Self::ChannelOpen => {
                out.push(0);
                (CHANNEL, CHANNEL_OPEN)
            }
            Self::Qos(prefetch) => {
                out.extend([0; 4]);
                out.extend(prefetch.to_be_bytes());
                out.push(0);
                (CHANNEL, QOS)
            }
            Self::Consume { queue, consumer, exclusive } => {
                out.extend([0, 0]);
                short_text(queue, &mut out);
                short_text(consumer, &mut out);
                out.push(u8::from(exclusive) << 2);
                long_text(&[], &mut out);
                (CHANNEL, CONSUME)
            }
            Self::Cancel { consumer } => {
                short_text(consumer, &mut out);
                out.push(0);
                (CHANNEL, CANCEL)
            }
            Self::Ack(tag) => {
                out.extend(tag.to_be_bytes());
                out.push(0);
                (CHANNEL, ACK)
            }
            Self::Nack(tag) => {
                out.extend(tag.to_be_bytes());
                out.push(2);
                (CHANNEL, NACK)
            }
        };
        let (class, method) = name;
        frame(METHOD, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), out.as_slice()].concat(), frames);
    }
}

/// What this client is and can do. Without `consumer_cancel_notify` the server would say nothing of a queue that is deleted.
fn properties(product: &str, into: &mut Vec<u8>) {
    let mut abilities = Vec::new();
    for ability in ["consumer_cancel_notify", "basic.nack", "authentication_failure_close"] {
        short_text(ability, &mut abilities);
        abilities.extend(b"t\x01");
    }
    let mut table = Vec::new();
    for (name, value) in [("product", product), ("version", env!("CARGO_PKG_VERSION"))] {
        short_text(name, &mut table);
        table.push(b'S');
        long_text(value.as_bytes(), &mut table);
    }
    short_text("capabilities", &mut table);
    table.push(b'F');
    long_text(&abilities, &mut table);
    long_text(&table, into);
}

/// Appends a frame.
pub(super) fn frame(kind: u8, channel: u16, payload: &[u8], frames: &mut Vec<u8>) {
    frames.push(kind);
    frames.extend(channel.to_be_bytes());
    long_text(payload, frames);
    frames.push(FRAME_END);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ask: Ask<'_>) -> Vec<u8> {
        let mut frames = Vec::new();
        ask.write(&mut frames);
        frames
    }

    #[test]
    fn frames_are_written_as_the_protocol_says() {
        let acknowledged = [1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 1, 2, 0, FRAME_END];
        assert_eq!(written(Ask::Ack(258)), acknowledged);
        let back = [1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 120, 0, 0, 0, 0, 0, 0, 0, 3, 2, FRAME_END];
        assert_eq!(written(Ask::Nack(3)), back);
        let consume = written(Ask::Consume { queue: "q", consumer: "c", exclusive: true });
        assert_eq!(consume[7..], [0, 60, 0, 20, 0, 0, 1, b'q', 1, b'c', 4, 0, 0, 0, 0, FRAME_END]);
        assert_eq!(written(Ask::Qos(300))[7..], [0, 60, 0, 10, 0, 0, 0, 0, 1, 44, 0, FRAME_END]);
        let login = written(Ask::StartOk { product: "p", user: "u", password: "w" });
        assert!(login.windows(9).any(|bytes| bytes == b"\0\0\0\x04\0u\0w\x05"), "{login:?}");
    }

    #[test]
    fn what_the_server_tells_is_read_and_anything_else_is_not() {
        let deliver = b"\0\x3c\0\x3c\x01c\0\0\0\0\0\0\0\x07\x01\x00\x02rk";
        let delivered = Delivered { consumer: b"c".to_vec(), tag: 7, routing_key: b"rk".to_vec() };
        assert_eq!(Told::read(deliver), Some(Told::Deliver(delivered)));
        assert_eq!(Told::read(&deliver[..deliver.len() - 1]), None, "cut");
        let closed = Closed { code: 404, text: "no".to_owned() };
        assert_eq!(Told::read(b"\0\x14\0\x28\x01\x94\x02no\0\0\0\0"), Some(Told::Closed(closed)));
        let tune = Told::Tune { largest_frame: 131_072, heartbeat: 60 };
        assert_eq!(Told::read(b"\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x3c"), Some(tune));
        for unknown in [b"\0\x0b\0\x0a".as_slice(), b"\0", b"\0\x3c\0\x3c"] {
            assert_eq!(Told::read(unknown), None);
        }
    }
}
