//! The read stores: what handlers do there for an event, and how many events are seen to be done.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Error, Result};
use projectionist::{
    clients::{elasticsearch, postgres::ConnectionSettings, redis},
    measure::MeasureError,
    projector::{ElasticsearchOutput, Output, PostgresOutput, RedisOutput, StoreConnection},
};
use serde_json::{Value, json};
use test_cluster::{Elasticsearch, Postgres, Redis, redis::Answer};

/// The table of sums, in which each event changes the row of its stream.
pub(super) const TOTALS: &str =
    "create table if not exists totals (stream text primary key, sum numeric, events bigint)";
const UPSERT: &str = "insert into totals values (:stream, (:data->>'n')::bigint, 1)
     on conflict (stream) do update set sum = totals.sum + excluded.sum, events = totals.events + 1";

/// A server with read models, each by its name.
pub(super) enum Store<'a> {
    /// A database for each.
    Postgres(&'a Postgres),
    /// Keys that end with the name.
    Redis(&'a Redis),
    /// An index for each.
    Search(&'a Elasticsearch),
}

impl fmt::Display for Store<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres(_) => "PostgreSQL (an upsert)",
            Self::Redis(_) => "Redis (two HINCRBY)",
            Self::Search(_) => "Elasticsearch (a document)",
        })
    }
}

impl Store<'_> {
    pub(super) fn short_name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Redis(_) => "redis",
            Self::Search(_) => "search",
        }
    }

    /// Looking costs the server something.
    pub(super) fn look_every(&self) -> Duration {
        match self {
            Self::Postgres(_) | Self::Redis(_) => Duration::from_millis(100),
            Self::Search(_) => Duration::from_millis(300),
        }
    }

    /// Makes the place of a read model.
    pub(super) async fn prepare(&self, name: &str) -> Result<()> {
        match self {
            Self::Postgres(server) => server.create_database(name).await.map(drop),
            Self::Redis(_) => Ok(()),
            // There are no searches: what is to be seen is asked for.
            Self::Search(server) => {
                let settings = json!({"settings": {"index": {"refresh_interval": "-1", "number_of_replicas": 0}}});
                server.run("PUT", &format!("/{name}"), &settings).map(drop)
            }
        }
    }

    pub(super) fn connection(&self, name: &str) -> Result<StoreConnection> {
        Ok(match self {
            Self::Postgres(server) => {
                StoreConnection::Postgres(Box::new(ConnectionSettings::parse(&server.url(name))?))
            }
            Self::Redis(server) => {
                let url = server.url();
                StoreConnection::Redis(
                    redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str()))
                        .map_err(unusable)?,
                )
            }
            Self::Search(server) => {
                let url = server.url();
                let settings =
                    elasticsearch::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str()))
                        .map_err(unusable)?;
                StoreConnection::Elasticsearch(match server.authority() {
                    Some(authority) => settings.with_ca(authority.as_bytes()),
                    None => settings,
                })
            }
        })
    }

    /// What to do for an event.
    pub(super) fn counting(&self, name: &str) -> Output {
        match self {
            Self::Postgres(_) => in_sql(TOTALS, UPSERT),
            Self::Redis(_) => {
                let totals = format!("totals:{name}");
                in_commands(&[&["HINCRBY", &totals, "{stream}", "{data.n}"], &["HINCRBY", &totals, "events", "1"]])
            }
            Self::Search(_) => {
                let document = json!({"index": {"index": name, "id": "{data.n}-{stream}", "document": {"stream": "{stream}", "n": "{data.n}"}}});
                let handlers = serde_json::from_value(json!({"Counted": [document]})).unwrap_or_default();
                Output::Elasticsearch(ElasticsearchOutput {
                    state_index: "projectionist-state".to_owned(),
                    handlers,
                    shared: false,
                })
            }
        }
    }

    /// How many events are done.
    pub(super) async fn counted(&self, name: &str) -> Result<i64> {
        match self {
            Self::Postgres(server) => {
                let client = server.connect(name).await?;
                Ok(client.query_one("select coalesce(sum(events), 0)::bigint from totals", &[]).await?.try_get(0)?)
            }
            Self::Redis(server) => Ok(number(&server.run(&format!("HGET totals:{name} events"))?)),
            Self::Search(server) => {
                server.run("POST", &format!("/{name}/_refresh"), &Value::Null)?;
                Ok(server.run("GET", &format!("/{name}/_count"), &Value::Null)?["count"].as_i64().unwrap_or(0))
            }
        }
    }
}

pub(super) fn unusable(error: MeasureError) -> Error {
    Error::msg(error.message)
}

pub(super) fn number(answer: &Answer) -> i64 {
    match answer {
        Answer::Integer(number) => *number,
        Answer::Text(text) => text.parse().unwrap_or(0),
        Answer::Nil | Answer::Array(_) => 0,
    }
}

/// One statement for all events.
pub(super) fn in_sql(setup: &str, handler: &str) -> Output {
    Output::Postgres(PostgresOutput {
        schema: None,
        setup: Some(setup.to_owned()),
        handlers: BTreeMap::from([("Counted".to_owned(), handler.to_owned())]),
    })
}

/// Commands for all events.
pub(super) fn in_commands(commands: &[&[&str]]) -> Output {
    let words = |command: &&[&str]| command.iter().map(|word| (*word).to_owned()).collect();
    Output::Redis(RedisOutput {
        handlers: BTreeMap::from([("Counted".to_owned(), commands.iter().map(words).collect())]),
        shared: false,
    })
}
