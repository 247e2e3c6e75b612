//! A consumer of the streams of a super stream in RabbitMQ: each stream is read by one consumer at a time, which goes on behind the offset that is stored under
//! its reference, and stores that of what it has handled now and then, before it lets go of a stream, and when it ends. The consumers deal the streams out
//! among each other. Events come over AMQP by the client lapin; a message's body is its name.
//!
//! Told by `AMQP_URL`, `SUPER_STREAM`, `PARTITIONS` (how many streams it has, whose names end with their numbers from 0), `STREAMS_AT` (where the protocol for
//! streams is spoken), `REFERENCE`, `RECORD_URL`.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{
    StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{signal::unix::Signal, time::sleep};
use tokio_postgres::NoTls;

use crate::group::Group;
use crate::offsets::Offsets;
use crate::record::{Record, variable};

/// The number of the advisory locks by which the consumers know of each other.
const GROUP: i32 = 1;
/// How often a consumer looks who else is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it stores what it has handled.
const STORE_EVERY: Duration = Duration::from_secs(2);
/// Messages that it is given ahead, of each stream.
const PREFETCH: u16 = 10;

/// A stream that is this consumer's.
struct Held {
    /// Which of the times is meant that it was taken.
    taken: u64,
    /// What it handles next.
    next: u64,
    /// What it would handle next according to the stored offset.
    stored: u64,
}

struct Share {
    channel: Channel,
    group: Group,
    offsets: Offsets,
    name: String,
    reference: String,
    partitions: i32,
    held: BTreeMap<i32, Held>,
    /// How often a stream was taken.
    taken: u64,
    /// With the stream that they are of, and the time that it was taken: one that was given up has sent some ahead, and may be this consumer's again when they are looked at.
    messages: SelectAll<BoxStream<'static, (i32, u64, lapin::Result<Delivery>)>>,
}

/// Consumes until it is told to end.
///
/// # Errors
/// When the server or the database is away or refuses something.
pub(crate) async fn consume(server: &str, name: String, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let connection =
        Connection::connect(server, ConnectionProperties::default()).await.context("connecting to RabbitMQ")?;
    let mut share = Share::open(connection.create_channel().await.context("opening a channel")?, name).await?;
    let mut looked = None::<Instant>;
    let mut stored = Instant::now();
    loop {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            share.look().await?;
            looked = Some(Instant::now());
        }
        if stored.elapsed() >= STORE_EVERY {
            share.store_all()?;
            stored = Instant::now();
        }
        tokio::select! {
            biased;
            _ = ends.recv() => {
                share.store_all()?;
                return connection.close(200, "it was told to end".into()).await.context("closing the connection");
            }
            Some((partition, taken, message)) = share.messages.next() => {
                share.handle((partition, taken), message.context("receiving a message")?, &record).await?;
            }
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

impl Share {
    async fn open(channel: Channel, name: String) -> Result<Self> {
        // Of each consumer on the channel, which here is one for each stream.
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.context("asking for a prefetch")?;
        let offsets = TcpStream::connect(variable("STREAMS_AT")?).context("STREAMS_AT")?;
        let (locks, connection) =
            tokio_postgres::connect(&variable("RECORD_URL")?, NoTls).await.context("connecting to the database")?;
        // The client reports what happens to its connection.
        tokio::spawn(connection);
        Ok(Self {
            channel,
            group: Group::join(Arc::new(locks), GROUP).await?,
            offsets: Offsets::open(offsets)?,
            name,
            reference: variable("REFERENCE")?,
            partitions: variable("PARTITIONS")?.parse().context("PARTITIONS")?,
            held: BTreeMap::new(),
            taken: 0,
            messages: SelectAll::new(),
        })
    }

    fn stream(&self, partition: i32) -> String {
        format!("{}-{partition}", self.name)
    }

    /// What the server calls the consumer of a stream.
    fn tag(&self, partition: i32, taken: u64) -> String {
        format!("{}-{taken}", self.stream(partition))
    }

    /// Sees who is there, gives up what is another's, and takes what is free of its own.
    async fn look(&mut self) -> Result<()> {
        let wanted = self.group.share(self.partitions).await?;
        let lost: Vec<i32> = self.held.keys().copied().filter(|partition| !wanted.contains(partition)).collect();
        for partition in lost {
            let tag = self.held.get(&partition).map(|held| self.tag(partition, held.taken)).unwrap_or_default();
            self.channel.basic_cancel(tag.into(), BasicCancelOptions::default()).await.context("leaving a stream")?;
            self.store(partition)?;
            self.held.remove(&partition);
            self.group.gives_up(partition).await?;
        }
        for partition in wanted {
            if !self.held.contains_key(&partition) && self.group.takes(partition).await? {
                self.begin(partition).await?;
            }
        }
        Ok(())
    }

    async fn begin(&mut self, partition: i32) -> Result<()> {
        let stream = self.stream(partition);
        let next = self.offsets.stored(&stream, &self.reference)?.map_or(0, |offset| offset + 1);
        self.taken += 1;
        let taken = self.taken;
        let mut from = FieldTable::default();
        from.insert("x-stream-offset".into(), AMQPValue::LongLongInt(i64::try_from(next)?));
        let consumer = self
            .channel
            .basic_consume(stream.into(), self.tag(partition, taken).into(), BasicConsumeOptions::default(), from)
            .await
            .context("consuming a stream")?;
        self.messages.push(consumer.map(move |message| (partition, taken, message)).boxed());
        self.held.insert(partition, Held { taken, next, stored: next });
        Ok(())
    }

    async fn handle(&mut self, (partition, taken): (i32, u64), message: Delivery, record: &Record) -> Result<()> {
        let headers = message.properties.headers().as_ref().context("a message without headers")?;
        let Some(AMQPValue::LongLongInt(offset)) = headers.inner().get("x-stream-offset") else {
            anyhow::bail!("a message without its offset");
        };
        let offset = u64::try_from(*offset)?;
        let held = self.held.get_mut(&partition).filter(|held| held.taken == taken);
        // A stream begins with those that were published together with the one that is asked for.
        if let Some(held) = held.filter(|held| offset >= held.next) {
            record.handle(&String::from_utf8_lossy(&message.data)).await?;
            held.next = offset + 1;
        }
        // It is how a consumer of a stream asks for more.
        message.ack(BasicAckOptions::default()).await.map(drop).context("acknowledging a message")
    }

    fn store(&mut self, partition: i32) -> Result<()> {
        let stream = self.stream(partition);
        let Some(held) = self.held.get_mut(&partition).filter(|held| held.next > held.stored) else { return Ok(()) };
        self.offsets.store(&stream, &self.reference, held.next - 1)?;
        held.stored = held.next;
        Ok(())
    }

    fn store_all(&mut self) -> Result<()> {
        let all: Vec<i32> = self.held.keys().copied().collect();
        all.into_iter().try_for_each(|partition| self.store(partition))
    }
}
