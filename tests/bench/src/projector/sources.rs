//! The event sources: what is made there, and how workers reach it. A queue is made for each figure, since what is acknowledged is gone.

use anyhow::{Context, Error, Result, bail};
use async_nats::{HeaderMap, jetstream};
use projectionist::{
    api::Projection,
    clients::{kafka, nats, postgres::ConnectionSettings, rabbitmq, redis},
    projector::{Input, ProjectorConfig, SourceConnection},
    resolve::{Pods, Workload, validate},
};
use serde_json::{Value, json};
use test_cluster::{EventStore, Nats, Postgres, RabbitMq, Redis, kafka::Brokers, rabbitmq::Published};

use super::stores::unusable;
use crate::event_stores::{COMMANDED, EMMETT, MESSAGE_DB, commanded_appended, emmett_appended, marten_ddl};

/// The database with the events of tables.
pub(super) const EVENTS: &str = "events";
/// Events are of so many streams.
const STREAMS: u32 = 100;
/// Messages that are on their way to a server at once.
const AT_ONCE: u32 = 1_000;

/// An event source.
pub(super) struct Source {
    pub(super) input: Input,
    pub(super) connection: SourceConnection,
}

/// The kinds of source. KurrentDB is not one of them: what a fake of ours gives tells nothing about the server.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Table,
    Marten,
    MessageDb,
    Commanded,
    Emmett,
    Kafka,
    Outbox,
    Redis,
    Nats,
    RabbitMq,
}

impl Kind {
    pub(super) const ALL: [Self; 10] = [
        Self::Table,
        Self::Marten,
        Self::MessageDb,
        Self::Commanded,
        Self::Emmett,
        Self::Kafka,
        Self::Outbox,
        Self::Redis,
        Self::Nats,
        Self::RabbitMq,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Table => "an event table",
            Self::Marten => "Marten",
            Self::MessageDb => "Message DB",
            Self::Commanded => "Commanded",
            Self::Emmett => "Emmett",
            Self::Kafka => "Kafka",
            Self::Outbox => "an outbox",
            Self::Redis => "Redis streams",
            Self::Nats => "JetStream",
            Self::RabbitMq => "RabbitMQ",
        }
    }

    /// A name for what is made for its figures.
    pub(super) fn short_name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Marten => "marten",
            Self::MessageDb => "message_db",
            Self::Commanded => "commanded",
            Self::Emmett => "emmett",
            Self::Kafka => "kafka",
            Self::Outbox => "outbox",
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::RabbitMq => "rabbitmq",
        }
    }
}

/// The servers with events. What is not needed yet is not started.
pub(super) struct Sources<'a> {
    postgres: &'a Postgres,
    redis: &'a Redis,
    kafka: Option<Brokers>,
    nats: Option<(Nats, jetstream::Context)>,
    rabbit: Option<RabbitMq>,
    events: u32,
}

impl<'a> Sources<'a> {
    /// Makes the database. `events` is how many each source has.
    pub(super) async fn open(postgres: &'a Postgres, redis: &'a Redis, events: u32) -> Result<Self> {
        postgres.create_database(EVENTS).await?;
        Ok(Self { postgres, redis, kafka: None, nats: None, rabbit: None, events })
    }

    /// Makes what all figures of a kind share.
    pub(super) async fn prepare(&mut self, kind: Kind) -> Result<()> {
        let events = self.events;
        match kind {
            Kind::Table => {
                let table = EventStore::create_events_table(self.postgres, EVENTS, "events").await?;
                table.append_events(events).await
            }
            Kind::Marten => {
                let append = format!(
                    "insert into mt_events (seq_id, id, stream_id, version, data, type, tenant_id, is_archived)
                     select nextval('mt_events_sequence'), gen_random_uuid(), md5((n % {STREAMS})::text)::uuid, n, jsonb_build_object('n', n), 'Counted', 'one', false
                     from generate_series(1, {events}) n order by n"
                );
                self.in_schema("marten", &marten_ddl("marten", false), &append).await
            }
            Kind::MessageDb => {
                let append = format!(
                    "insert into message_store.messages (stream_name, position, type, data)
                     select 'order-' || n % {STREAMS}, n, 'Counted', jsonb_build_object('n', n) from generate_series(1, {events}) n order by n"
                );
                self.in_schema("message_db", MESSAGE_DB, &append).await
            }
            Kind::Commanded => {
                let append = self.by_stream(|stream, count, number| {
                    let body = format!("convert_to(json_build_object('n', {number})::text, 'UTF8')");
                    commanded_appended("commanded", stream, count, "Counted", &body, "clock_timestamp()")
                });
                self.in_schema("commanded", COMMANDED, &append).await
            }
            Kind::Emmett => {
                let append = self.by_stream(|stream, count, number| {
                    let body = format!("jsonb_build_object('n', {number})");
                    emmett_appended("emmett", stream, count, "'emt:default', false", &body)
                });
                let index = "create unique index on emt_messages (global_position, is_archived, partition)";
                self.in_schema("emmett", &format!("{EMMETT}; {index}"), &append).await
            }
            Kind::Kafka => {
                let brokers = Brokers::on_loopback(1)?;
                brokers.ask(&["create", "events", "12", ""])?;
                brokers.ask(&["count", "events", &events.to_string(), "lz4"])?;
                self.kafka = Some(brokers);
                Ok(())
            }
            Kind::Nats => {
                let nats = Nats::on_loopback()?;
                let context = jetstream::new(async_nats::connect(nats.url()).await?);
                let subjects = vec!["events.>".to_owned()];
                let config = jetstream::stream::Config { name: EVENTS.to_owned(), subjects, ..Default::default() };
                context.create_stream(config).await?;
                for numbers in parts(events) {
                    let mut stored = Vec::new();
                    for n in numbers {
                        let mut headers = HeaderMap::new();
                        headers.insert("type", "Counted");
                        let body = json!({"n": n}).to_string();
                        let subject = format!("events.stream-{}", n % STREAMS);
                        stored.push(context.publish_with_headers(subject, headers, body.into()).await?);
                    }
                    for stored in stored {
                        stored.await?;
                    }
                }
                self.nats = Some((nats, context));
                Ok(())
            }
            Kind::Redis => {
                for numbers in parts(events) {
                    let entries: Vec<[String; 9]> = numbers
                        .map(|n| {
                            let (stream, data) = (format!("stream-{}", n % STREAMS), json!({"n": n}).to_string());
                            ["XADD", EVENTS, "*", "type", "Counted", "stream", &stream, "data", &data]
                                .map(str::to_owned)
                        })
                        .collect();
                    let words: Vec<Vec<&str>> =
                        entries.iter().map(|entry| entry.iter().map(String::as_str).collect()).collect();
                    let commands: Vec<&[&str]> = words.iter().map(Vec::as_slice).collect();
                    self.redis.run_all(&commands)?;
                }
                Ok(())
            }
            Kind::RabbitMq => {
                self.rabbit = Some(RabbitMq::on_loopback()?);
                Ok(())
            }
            Kind::Outbox => Ok(()),
        }
    }

    /// Ends the servers that are no longer needed.
    pub(super) fn finish(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Kafka => self.kafka = None,
            Kind::Nats => self.nats = None,
            Kind::RabbitMq => self.rabbit = None,
            Kind::Redis => drop(self.redis.run(&format!("DEL {EVENTS}"))?),
            Kind::Table | Kind::Marten | Kind::MessageDb | Kind::Commanded | Kind::Emmett | Kind::Outbox => {}
        }
        Ok(())
    }

    /// What workers read of a kind that was prepared, for the figure of this name.
    pub(super) async fn source(&self, kind: Kind, name: &str) -> Result<Source> {
        let connection = json!({"secretRef": {"name": "events"}});
        let postgres = |library: Value| -> Result<Source> {
            let mut source = json!({"connection": connection});
            for (field, value) in library.as_object().into_iter().flatten() {
                source[field] = value.clone();
            }
            let settings = ConnectionSettings::parse(&self.postgres.url(EVENTS))?;
            of(&json!({"postgres": source}), SourceConnection::Postgres(Box::new(settings)))
        };
        match kind {
            Kind::Table => postgres(json!({"eventTable": {}})),
            Kind::Marten => postgres(json!({"marten": {"schema": "marten", "tenant": "one"}})),
            Kind::MessageDb => postgres(json!({"messageDb": {"category": "order"}})),
            Kind::Commanded => postgres(json!({"commanded": {"schema": "commanded"}})),
            Kind::Emmett => postgres(json!({"emmett": {"schema": "emmett"}})),
            Kind::Outbox => {
                let client = self.postgres.connect(EVENTS).await?;
                let table = format!(
                    "create table {name} (id bigserial primary key, type text, stream text, data jsonb, created_at timestamptz not null default now(), sent_at timestamptz);
                     create index on {name} (id) where sent_at is null;
                     insert into {name} (type, stream, data) select 'Counted', 'stream-' || n % {STREAMS}, jsonb_build_object('n', n) from generate_series(1, {}) n; analyze {name}",
                    self.events
                );
                client.batch_execute(&table).await?;
                postgres(json!({"outbox": {"table": name, "sentAt": "sent_at"}}))
            }
            Kind::Kafka => {
                let addresses = self.kafka.as_ref().context("no Kafka")?.addresses();
                let settings = kafka::Settings::from_keys(|key| (key == "bootstrapServers").then_some(&*addresses))?;
                let source = json!({"kafka": {"connection": connection, "topics": ["events"], "group": name}});
                of(&source, SourceConnection::Kafka(settings))
            }
            Kind::Redis => {
                self.redis.run(&format!("XGROUP CREATE {EVENTS} {name} 0"))?;
                let url = self.redis.url();
                let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(&*url));
                let streams = [json!({"key": EVENTS, "group": name})];
                of(
                    &json!({"redis": {"connection": connection, "streams": streams}}),
                    SourceConnection::Redis(settings.map_err(unusable)?),
                )
            }
            Kind::Nats => {
                let (server, context) = self.nats.as_ref().context("no NATS")?;
                let durable = jetstream::consumer::pull::Config {
                    durable_name: Some(name.to_owned()),
                    max_ack_pending: 10_000,
                    ..Default::default()
                };
                context.get_stream(EVENTS).await?.create_consumer(durable).await?;
                let url = server.url();
                let settings = nats::ConnectionSettings::from_keys(|key| (key == "url").then_some(&*url));
                let consumers = [json!({"stream": EVENTS, "consumer": name})];
                let event = json!({"stream": {"subjectToken": 2}});
                of(
                    &json!({"nats": {"connection": connection, "consumers": consumers, "event": event}}),
                    SourceConnection::Nats(settings.map_err(unusable)?),
                )
            }
            Kind::RabbitMq => {
                let server = self.rabbit.as_ref().context("no RabbitMQ")?;
                let queue = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
                server.run("PUT", &format!("queues/%2F/{name}"), &queue)?;
                let mut publisher = server.consumer()?;
                for numbers in parts(self.events) {
                    publisher.publish_all(name, numbers.map(message))?;
                }
                let (url, port) = (server.url(), server.amqp().port().to_string());
                let settings = rabbitmq::ConnectionSettings::from_keys(|key| match key {
                    "url" => Some(&*url),
                    "amqp-port" => Some(&*port),
                    _ => None,
                });
                of(
                    &json!({"rabbitmq": {"connection": connection, "queues": [name]}}),
                    SourceConnection::RabbitMq(settings.map_err(unusable)?),
                )
            }
        }
    }

    /// Makes an event store in a schema of its own, with its events.
    async fn in_schema(&self, schema: &str, tables: &str, append: &str) -> Result<()> {
        let client = self.postgres.connect(EVENTS).await?;
        let all = format!("create schema {schema}; set search_path to {schema}; {tables}; {append}; analyze");
        client.batch_execute(&all).await.with_context(|| format!("the event store in schema {schema}"))
    }

    /// What appends to each stream. `append` is given the stream, how many, and SQL that makes a number of all from `n`, which counts from 1.
    fn by_stream(&self, append: impl Fn(&str, i64, &str) -> String) -> String {
        let each = (0..STREAMS).map(|stream| {
            let count = i64::from(self.events / STREAMS) + i64::from(stream < self.events % STREAMS);
            append(&format!("stream-{stream}"), count, &format!("{stream} + {STREAMS} * (n - 1)"))
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

/// What the operator gives a worker for a Projection with this source.
fn of(source: &Value, connection: SourceConnection) -> Result<Source> {
    let projection: Projection = serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1",
        "kind": "Projection",
        "metadata": {"namespace": "bench", "name": "events", "uid": "1", "generation": 1},
        "spec": {
            "source": source,
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "reads"}}}},
            "lag": {"target": "5s"},
            "projector": {"builtin": {"handlers": {"Counted": "select 1"}}},
        },
    }))?;
    let validated = validate(&projection).map_err(|invalid| Error::msg(format!("{source}: {invalid:?}")))?;
    let Workload::Own { pods: Pods::Builtin(pods), .. } = validated.workload else { bail!("no built-in projector") };
    let config = ProjectorConfig::from_json(&pods.configuration.to_string())?;
    Ok(Source { input: config.input, connection })
}

/// As many numbers at once as messages are sent at once; from 1.
fn parts(events: u32) -> impl Iterator<Item = std::ops::Range<u32>> {
    (1..=events).step_by(AT_ONCE as usize).map(move |first| first..(events + 1).min(first + AT_ONCE))
}

fn message(n: u32) -> Published {
    Published {
        id: Some(format!("m-{n}")),
        type_: Some("Counted".to_owned()),
        headers: vec![("stream".to_owned(), format!("stream-{}", n % STREAMS))],
        body: json!({"n": n}).to_string(),
    }
}
