//! Versions in PostgreSQL: a schema a version, and views that readers name, all moved in one transaction.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Client, Error, error::SqlState};

use super::{SwitchError, Switched, VersionSwitch, judge};
use crate::clients::postgres::{Database, quote_identifier};

/// A view that a switch made has a comment that begins with this and ends with the version.
const MARK: &str = "projectionist version: ";
/// A view is locked while it is replaced. Readers that come meanwhile wait for one that is slow no longer than this.
const LOCK_TIMEOUT: &str = "1s";

/// The views of one read model.
#[derive(Debug)]
pub struct ViewSwitch {
    database: Arc<Database>,
    schema: String,
    views: Vec<String>,
}

impl ViewSwitch {
    /// Of the read model whose readers look at these views of this schema. Each shows the table (or view) of its name in the schema that is called like
    /// the version.
    pub fn new(database: Arc<Database>, schema: &str, views: &[&str]) -> Self {
        let views = views.iter().map(|view| (*view).to_owned()).collect();
        Self { database, schema: schema.to_owned(), views }
    }

    fn named(&self, schema: &str, view: &str) -> String {
        format!("{}.{}", quote_identifier(schema), quote_identifier(view))
    }

    /// The version that all views show.
    async fn found(&self, client: &Client) -> Result<Option<String>, SwitchError> {
        let find = "select c.relkind::text, pg_catalog.obj_description(c.oid, 'pg_class') from pg_catalog.pg_class c
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = $1::text and c.relname = $2::text";
        let mut versions: Vec<Option<String>> = Vec::new();
        for view in &self.views {
            let row = client.query_opt(find, &[&self.schema, view]).await.map_err(|error| self.failed(&error))?;
            let Some(row) = row else {
                versions.push(None);
                continue;
            };
            let (kind, comment): (String, Option<String>) = (row.get(0), row.get(1));
            let version = comment.as_deref().filter(|_| kind == "v").and_then(|comment| comment.strip_prefix(MARK));
            match version {
                Some(version) => versions.push(Some(version.to_owned())),
                None => {
                    let place = self.named(&self.schema, view);
                    return Err(SwitchError::NotOurs(format!(
                        "{place} is there and is no view that a switch made: it is left as it is; name other views"
                    )));
                }
            }
        }
        versions.dedup();
        match &versions[..] {
            [] => Ok(None),
            [version] => Ok(version.clone()),
            _ => Err(SwitchError::NotOurs(format!(
                "the views in schema {} show several versions: drop those that are to be shown again",
                self.schema
            ))),
        }
    }

    async fn in_transaction(&self, client: &Client, from: Option<&str>, to: &str) -> Result<Switched, SwitchError> {
        let failed = |error: &Error| self.failed(error);
        // Two who switch at once come one after the other.
        let lock = "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('projectionist views ' || $1::text, 0))";
        client.query_one(lock, &[&self.schema]).await.map_err(|error| failed(&error))?;
        if let Some(done) = judge(self.found(client).await?.as_deref(), from, to)? {
            return Ok(done);
        }
        for view in &self.views {
            let (shown, table) = (self.named(&self.schema, view), self.named(to, view));
            let mark = format!("{MARK}{to}").replace('\'', "''");
            // Replaced and not dropped: rights on it and what stands on it stay.
            let replace = format!(
                "create or replace view {shown} as select * from {table}; comment on view {shown} is E'{}'",
                mark.replace('\\', "\\\\")
            );
            client.batch_execute(&replace).await.map_err(|error| match error.code() {
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => {
                    SwitchError::Unsuitable(format!("there is no table {table}: make it before readers are led to it"))
                }
                Some(&SqlState::INVALID_TABLE_DEFINITION) => SwitchError::Unsuitable(format!(
                    "the columns of {table} do not begin with those that {shown} has, in name, type and order, so that readers could not go on: add columns at the end only, or name other views"
                )),
                _ => failed(&error),
            })?;
        }
        Ok(Switched::Now)
    }

    fn failed(&self, error: &Error) -> SwitchError {
        SwitchError::Failed(self.database.failed(error))
    }
}

impl VersionSwitch for ViewSwitch {
    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        let lease = self.database.lease(by).await.map_err(SwitchError::Failed)?;
        let client = &lease.live.session.client;
        let work = async {
            let begin = format!("begin read write; set local lock_timeout = '{LOCK_TIMEOUT}'");
            client.batch_execute(&begin).await.map_err(|error| self.failed(&error))?;
            let switched = self.in_transaction(client, from, to).await;
            let end = if switched.is_ok() { "commit" } else { "rollback" };
            let ended = client.batch_execute(end).await.map_err(|error| self.failed(&error));
            switched.and_then(|switched| ended.map(|()| switched))
        };
        match timeout_at(by, work).await {
            Ok(switched) => {
                lease.give_back();
                switched
            }
            Err(_) => {
                lease.abandon().await;
                Err(SwitchError::Failed(self.database.timed_out()))
            }
        }
    }
}
