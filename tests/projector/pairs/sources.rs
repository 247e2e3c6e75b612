//! Every kind of source: how it is opened, how events get there, and how many messages are left there. Each event has a number, and is of one of forty streams by
//! its number; where a source holds what no Projection names, such events are between them.

use std::ops::Range;

use async_nats::jetstream::consumer::PullConsumer;
use serde_json::json;
use test_cluster::Postgres;

use super::servers::Sources;
use crate::{
    emmett,
    event_stores::{COMMANDED, EMMETT, MESSAGE_DB, commanded_appended, emmett_appended, marten_ddl},
    kafka, kurrentdb, nats_queues, outbox, queues, rabbitmq,
    stores::input,
    workshop::{APPLY, Workshop},
};

/// Of so many streams each event is of that which its number says.
pub(super) const STREAMS: i64 = 40;

/// A kind of source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    EventTable,
    Marten,
    MessageDb,
    Commanded,
    Emmett,
    Kafka,
    KurrentDb,
    Outbox,
    RedisStreams,
    Nats,
    RabbitMq,
}

impl Source {
    pub(super) const ALL: [Self; 11] = [
        Self::EventTable,
        Self::Marten,
        Self::MessageDb,
        Self::Commanded,
        Self::Emmett,
        Self::Kafka,
        Self::KurrentDb,
        Self::Outbox,
        Self::RedisStreams,
        Self::Nats,
        Self::RabbitMq,
    ];

    /// Has no positions and promises no order.
    pub(super) fn is_queue(self) -> bool {
        matches!(self, Self::Outbox | Self::RedisStreams | Self::Nats | Self::RabbitMq)
    }

    /// What workers read, of this name.
    pub(super) async fn open(self, servers: &Sources, name: &str) -> Workshop {
        let store = match self {
            Self::EventTable => return Workshop::open_on(&servers.postgres, name, APPLY).await,
            Self::Marten => (json!({"marten": {"schema": "store", "tenant": "one"}}), marten_ddl("store", false)),
            Self::MessageDb => (json!({"messageDb": {"category": "order"}}), MESSAGE_DB.to_owned()),
            Self::Commanded => (json!({"commanded": {"schema": "store"}}), COMMANDED.to_owned()),
            Self::Emmett => (json!({"emmett": {"schema": "store"}}), format!("{EMMETT}; {}", emmett::INDEX)),
            Self::Kafka => return kafka::open(servers.kafka, name, 4, "").await,
            Self::KurrentDb => return kurrentdb::open(&servers.kurrentdb, name, &format!("$ce-{name}"), None).await,
            Self::Outbox => return outbox::Shop::marked(&servers.postgres, name, false).await.shop,
            Self::RedisStreams => return queues::open(&servers.redis, name, "", false).await,
            Self::Nats => return nats_queues::open(&servers.nats, name, "", false).await.0,
            Self::RabbitMq => {
                // Both kinds of queue, by the read store.
                let kind = if name.ends_with("postgres") { "classic" } else { "quorum" };
                rabbitmq::declare(&servers.rabbit, name, &json!({"x-queue-type": kind}));
                return rabbitmq::open(&servers.rabbit, &[name], "", false).await;
            }
        };
        let mut shop = Workshop::open_on(&servers.postgres, name, APPLY).await;
        *shop.table() = input(&store.0);
        let tables = format!("create schema store; set search_path to store; {}; reset search_path", store.1);
        shop.events.client().batch_execute(&tables).await.unwrap();
        shop
    }

    /// Appends events with these numbers, in their order. The first is a multiple of [`STREAMS`].
    pub(super) async fn append(self, servers: &Sources, name: &str, numbers: Range<i64>) {
        match self {
            Self::EventTable => execute(&servers.postgres, name, &rows("events", &numbers)).await,
            Self::Outbox => execute(&servers.postgres, name, &rows("outbox", &numbers)).await,
            Self::Marten => execute(&servers.postgres, name, &marten(&numbers)).await,
            Self::MessageDb => execute(&servers.postgres, name, &message_db(&numbers)).await,
            Self::Commanded => execute(&servers.postgres, name, &commanded(&numbers)).await,
            Self::Emmett => execute(&servers.postgres, name, &emmett(&numbers)).await,
            Self::Kafka => {
                let (events, first) = ((numbers.end - numbers.start).to_string(), numbers.start.to_string());
                kafka::ask(servers.kafka, &["count", name, &events, "lz4", &first]).await;
            }
            Self::KurrentDb => servers.kurrentdb.database(|database| {
                for n in numbers {
                    let (stream, now) = (format!("{name}-{}", n % STREAMS), jiff::Timestamp::now());
                    database.put(&stream, "Counted", json!({"n": n}).to_string().as_bytes(), true, now);
                    database.put(&stream, "Seen", b"no JSON", false, now);
                }
            }),
            Self::RedisStreams => queues::append(&servers.redis, name, numbers),
            Self::Nats => nats_queues::append(&servers.jetstream, name, numbers).await,
            Self::RabbitMq => rabbitmq::append(&servers.rabbit, name, numbers),
        }
    }

    /// How many messages of a queue are not acknowledged; none where events have positions.
    ///
    /// # Errors
    /// While the server has not come back.
    pub(super) async fn left(self, servers: &Sources, name: &str) -> anyhow::Result<i64> {
        match self {
            Self::Outbox => {
                let client = servers.postgres.connect(&format!("{name}_events")).await?;
                Ok(client.query_one("select count(*) from outbox where sent_at is null", &[]).await?.try_get(0)?)
            }
            Self::RedisStreams => queues::try_pending(&servers.redis, name),
            Self::Nats => {
                let stream = servers.jetstream.get_stream(name).await?;
                let consumer: PullConsumer =
                    stream.get_consumer(nats_queues::CONSUMER).await.map_err(|error| anyhow::anyhow!("{error}"))?;
                let info = consumer.get_info().await?;
                Ok(i64::try_from(info.num_ack_pending)? + i64::try_from(info.num_pending)?)
            }
            Self::RabbitMq => {
                servers.rabbit.consumer()?;
                let [ready, held] = rabbitmq::left(&servers.rabbit, name).await?;
                ready.zip(held).map(|(ready, held)| ready + held).ok_or_else(|| anyhow::anyhow!("not counted yet"))
            }
            Self::EventTable
            | Self::Marten
            | Self::MessageDb
            | Self::Commanded
            | Self::Emmett
            | Self::Kafka
            | Self::KurrentDb => Ok(0),
        }
    }
}

/// Over a connection of its own, since servers end in between.
async fn execute(server: &Postgres, name: &str, statements: &str) {
    let client = server.connect(&format!("{name}_events")).await.unwrap();
    client.batch_execute(statements).await.unwrap();
}

fn rows(table: &str, Range { start, end }: &Range<i64>) -> String {
    format!(
        "insert into {table} (stream, type, data)
         select 'o-' || n % {STREAMS}, 'Counted', jsonb_build_object('n', n) from generate_series({start}, {end} - 1) n"
    )
}

/// Between them those of another tenant, and archived ones.
fn marten(Range { start, end }: &Range<i64>) -> String {
    format!(
        "insert into store.mt_events (seq_id, id, stream_id, version, data, type, tenant_id, is_archived)
         select nextval('store.mt_events_sequence'), gen_random_uuid(), md5((n % {STREAMS})::text)::uuid, n, jsonb_build_object('n', n), 'Counted',
             other.tenant, other.archived
         from generate_series({start}, {end} - 1) n, (values ('one', false), ('two', false), ('one', true)) other (tenant, archived) order by n"
    )
}

/// Between them those of a category whose name begins alike.
fn message_db(Range { start, end }: &Range<i64>) -> String {
    format!(
        "insert into message_store.messages (stream_name, position, type, data)
         select category || n % {STREAMS}, n, 'Counted', jsonb_build_object('n', n)
         from generate_series({start}, {end} - 1) n, (values ('order-'), ('orderPosition-')) other (category) order by n"
    )
}

/// Streams one after the other, and what is appended to each: SQL that makes a number from `n`, which counts from 1.
fn by_stream(Range { start, end }: &Range<i64>, append: impl Fn(&str, i64, &str) -> String) -> String {
    let each = (0..STREAMS).map(|stream| {
        let number = format!("{start} + {stream} + {STREAMS} * (n - 1)");
        append(&format!("cart-{stream}"), (end - start) / STREAMS, &number)
    });
    each.collect::<Vec<_>>().join("; ")
}

/// Between them those of another type.
fn commanded(numbers: &Range<i64>) -> String {
    by_stream(numbers, |stream, events, number| {
        let body = format!("convert_to(json_build_object('n', {number})::text, 'UTF8')");
        let of_type = |type_| commanded_appended("store", stream, events, type_, &body, "clock_timestamp()");
        format!("{}; {}", of_type("Seen"), of_type("Counted"))
    })
}

/// Between them those of another partition, and archived ones.
fn emmett(numbers: &Range<i64>) -> String {
    by_stream(numbers, |stream, messages, number| {
        let body = format!("jsonb_build_object('n', {number})");
        let kept = |stream: &str, kept| emmett_appended("store", stream, messages, kept, &body);
        format!(
            "{}; {}; {}",
            kept(&format!("other-{stream}"), "'other', false"),
            kept(stream, "'emt:default', false"),
            kept(&format!("archived-{stream}"), "'emt:default', true")
        )
    })
}
