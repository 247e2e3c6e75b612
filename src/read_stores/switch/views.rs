//! Versions in PostgreSQL: a schema a version, and views that readers name, all moved in one transaction.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::{Client, Error, error::SqlState};

use super::{SwitchError, Switched, VersionSwitch, judge};
use crate::{
    api::Reason,
    clients::postgres::{Database, quote_identifier},
    measure::MeasureError,
};

/// A view that a switch made has a comment that begins with this and ends with the version.
const MARK: &str = "projectionist version: ";
/// A view is locked while it is replaced, and readers that come meanwhile wait. All locks together are waited for no longer than this at a try, so that
/// readers do not wait long for one that is slow.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// Where locks were not to be had, so much time passes before the next try. Readers that waited go on meanwhile.
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// The views of one read model.
#[derive(Debug)]
pub struct ViewSwitch {
    database: Arc<Database>,
    schema: String,
    views: Vec<String>,
}

impl ViewSwitch {
    /// Of the read model whose readers look at these views of this schema. Each shows the table (or view) of its name in the schema that is called like
    /// the version. Readers name the columns that they want: where a version adds one, PostgreSQL refuses a `select *` once that was prepared before.
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

    /// `None`: readers held the views for too long.
    async fn in_transaction(
        &self,
        client: &Client,
        from: Option<&str>,
        to: &str,
    ) -> Result<Option<Switched>, SwitchError> {
        let failed = |error: &Error| self.failed(error);
        // Two who switch at once come one after the other.
        let lock = "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('projectionist views ' || $1::text, 0))";
        client.query_one(lock, &[&self.schema]).await.map_err(|error| failed(&error))?;
        if let Some(done) = judge(self.found(client).await?.as_deref(), from, to)? {
            return Ok(Some(done));
        }
        // A reader of several views may hold what is waited for here, and wait for what is held here. The server ends one of both once one of them has
        // waited for deadlock_timeout: never the reader, since here the wait is over by then.
        let patience = "select extract(epoch from pg_catalog.current_setting('deadlock_timeout')::interval)::float8";
        let patience = client.query_one(patience, &[]).await.and_then(|row| row.try_get::<_, f64>(0));
        let patience = patience.map_err(|error| failed(&error))?;
        let until = Instant::now() + LONGEST_WAIT.min(Duration::from_secs_f64(patience.max(0.0) / 2.0));
        for view in &self.views {
            let left = until.saturating_duration_since(Instant::now()).as_millis().max(1);
            let (shown, table) = (self.named(&self.schema, view), self.named(to, view));
            let mark = format!("{MARK}{to}").replace('\'', "''");
            // Replaced and not dropped: rights on it and what stands on it stay.
            let replace = format!(
                "set local lock_timeout = {left}; create or replace view {shown} as select * from {table}; comment on view {shown} is E'{}'",
                mark.replace('\\', "\\\\")
            );
            let replaced = client.batch_execute(&replace).await;
            // A view shows what its owner may read. That is seen when it is read, and not when it is made.
            let readable = match replaced {
                Ok(()) => client.batch_execute(&format!("select from {shown} limit 0")).await,
                Err(error) => Err(error),
            };
            let Err(error) = readable else { continue };
            return match error.code() {
                Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED) => Ok(None),
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => Err(SwitchError::Unsuitable(
                    format!("there is no table {table}: make it before readers are led to it"),
                )),
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Err(SwitchError::Unsuitable(format!(
                    "the role of the read store may not lead readers to {table} by the view {shown}: {}. It must own the view, and the view's owner needs usage on schema {} and select on the table",
                    error.as_db_error().map_or("", |error| error.message()),
                    quote_identifier(to)
                ))),
                Some(&SqlState::INVALID_TABLE_DEFINITION) => Err(SwitchError::Unsuitable(format!(
                    "the columns of {table} do not begin with those that {shown} has, in name, type and order, so that readers could not go on: add columns at the end only, or name other views"
                ))),
                _ => Err(failed(&error)),
            };
        }
        Ok(Some(Switched::Now))
    }

    fn failed(&self, error: &Error) -> SwitchError {
        SwitchError::Failed(self.database.failed(error))
    }
}

impl ViewSwitch {
    /// Tries once. `None`: readers held the views for too long.
    async fn try_once(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Option<Switched>, SwitchError> {
        let lease = self.database.lease(by).await.map_err(SwitchError::Failed)?;
        let client = &lease.live.session.client;
        let work = async {
            client.batch_execute("begin read write").await.map_err(|error| self.failed(&error))?;
            let switched = self.in_transaction(client, from, to).await;
            let end = if matches!(switched, Ok(Some(_))) { "commit" } else { "rollback" };
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

impl VersionSwitch for ViewSwitch {
    async fn shown(&self, by: Instant) -> Result<Option<String>, SwitchError> {
        let lease = self.database.lease(by).await.map_err(SwitchError::Failed)?;
        match timeout_at(by, self.found(&lease.live.session.client)).await {
            Ok(shown) => {
                lease.give_back();
                shown
            }
            Err(_) => {
                lease.abandon().await;
                Err(SwitchError::Failed(self.database.timed_out()))
            }
        }
    }

    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        loop {
            if let Some(switched) = self.try_once(from, to, by).await? {
                return Ok(switched);
            }
            if Instant::now() + BETWEEN_TRIES + LONGEST_WAIT >= by {
                let why = format!(
                    "{}: readers hold the views in schema {} for so long that they cannot be replaced: see pg_stat_activity for statements that run and transactions that stay open",
                    self.database.identity().settings(),
                    self.schema
                );
                return Err(SwitchError::Failed(MeasureError { reason: Reason::TimedOut, message: why }));
            }
            sleep(BETWEEN_TRIES).await;
        }
    }
}
