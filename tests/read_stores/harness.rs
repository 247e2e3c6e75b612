//! One server of each kind for all tests that neither stop nor reconfigure it, and what these tests declare.

use std::sync::OnceLock;

use serde_json::{Value, json};
use test_cluster::{Elasticsearch, Postgres, Redis, elasticsearch::Distribution};
use tokio_postgres::Client;

use crate::sampler::Running;

pub fn redis_server() -> &'static Redis {
    static SERVER: OnceLock<Redis> = OnceLock::new();
    SERVER.get_or_init(|| Redis::on_loopback().unwrap())
}

/// Elasticsearch has users with the rights of docs/read-stores.md (`documented`), a part of them, or others, and one with those of docs/rebuilds.md for other indices
/// (`leader`); OpenSearch comes without users.
pub fn search_server(distribution: Distribution) -> &'static Elasticsearch {
    static ELASTICSEARCH: OnceLock<Elasticsearch> = OnceLock::new();
    static OPENSEARCH: OnceLock<Elasticsearch> = OnceLock::new();
    let server = match distribution {
        Distribution::Elasticsearch => &ELASTICSEARCH,
        Distribution::OpenSearch => &OPENSEARCH,
    };
    let role = |index: &str| format!("  indices: [{{names: ['{index}'], privileges: [read]}}]");
    let (reader, elsewhere, documented) = (role("checkpoints"), role("invoices"), documented_role());
    let leader = role_of(include_str!("../../docs/rebuilds.md"), "PUT /_security/role/projectionist-orders")
        .replace("orders", "ruled");
    let users = [
        ("reader", reader.as_str()),
        ("documented", documented.as_str()),
        ("elsewhere", elsewhere.as_str()),
        ("monitor", "  cluster: [monitor]"),
        ("leader", leader.as_str()),
    ];
    server.get_or_init(|| Elasticsearch::on_loopback(distribution, &users).unwrap_or_else(|error| panic!("{error:#}")))
}

/// The role that docs/read-stores.md says to make, as lines of `roles.yml`.
fn documented_role() -> String {
    role_of(include_str!("../../docs/read-stores.md"), "PUT /_security/role/projectionist")
}

/// What follows on this line of a page.
fn role_of(page: &str, request: &str) -> String {
    let mut lines = page.lines().skip_while(|line| *line != request);
    let role: Value = serde_json::from_str(lines.nth(1).unwrap()).unwrap();
    role.as_object().unwrap().iter().map(|(field, value)| format!("  {field}: {value}\n")).collect()
}

pub fn postgres_server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::on_loopback().unwrap())
}

/// A database of its own with an event table.
pub async fn events(name: &str) -> (String, Client) {
    let url = postgres_server().create_database(name).await.unwrap();
    let client = postgres_server().connect(name).await.unwrap();
    let tables = "create table events (position bigint generated always as identity primary key, stream text not null default 's',
        tenant text not null default 'a', type text not null default 't', data jsonb not null default '{}',
        recorded_at timestamptz not null default clock_timestamp())";
    client.batch_execute(tables).await.unwrap();
    (url, client)
}

/// Appends events of these tenants.
pub async fn append(client: &Client, tenants: &[&str]) {
    let tenants: Vec<String> = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
    client.execute("insert into events (tenant) select unnest($1::text[])", &[&tenants]).await.unwrap();
}

/// A running sampler whose Secrets hold these URLs.
pub fn sampler_with(urls: &[(&str, &str)]) -> Running {
    let running = Running::start();
    for (name, url) in urls {
        running.secret(name, &json!({ "url": url }));
    }
    running
}

/// Declares a Projection of the event table in the database of the Secret `events`, unless its spec has another source.
pub fn declare(sampler: &mut Running, name: &str, spec: &Value) {
    let mut all = json!({
        "source": { "postgres": { "connection": { "secretRef": { "name": "events" } }, "eventTable": {} } },
    });
    for (field, value) in spec.as_object().unwrap() {
        all[field] = value.clone();
    }
    sampler.declare_spec(name, &all);
}
