//! Which workers there are: announces this one, keeps its lease, and lists the others.
//!
//! Uses a connection of its own, so that the lease is kept while a long statement of the user's runs. Decides nothing: the receiver of the view
//! does.

use std::{future::Future, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_postgres::{Client, Error, Statement, types::ToSql};

use super::{
    super::{
        super::error::{ProjectorError, doing as for_statement, unless_pooled, within},
        Membership, View,
    },
    CONNECT_DEADLINE,
    checkpoint::Tables,
};
use crate::clients::postgres::{ConnectionSettings, Session, connect, quote_identifier};

/// How long a lease lasts after a renewal, by the database's clock.
pub(super) const LEASE: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// News that come faster than this are looked at together.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(20);
/// A server that takes longer has let the lease run out.
const DEADLINE: Duration = LEASE;
/// A worker that has been dead for this long is forgotten.
const FORGET_AFTER: &str = "1 minute";

/// This worker among the others.
#[derive(Debug)]
pub(in crate::projector) struct PostgresMembership {
    session: Session,
    projection: String,
    me: String,
    name: String,
    renew: Statement,
    members: Statement,
    owners: Statement,
}

impl PostgresMembership {
    /// Connects, forgets earlier runs of the worker `name`, and announces `me`, its present one.
    pub(super) async fn join(
        settings: &ConnectionSettings,
        application: &str,
        tables: &Tables,
        me: &str,
        name: &str,
    ) -> Result<Self, ProjectorError> {
        let session = connect(settings, application, CONNECT_DEADLINE)
            .await
            .map_err(|source| ProjectorError::Connection { what: "read store", source })?;
        let session = unless_pooled("read store", settings, session)?;
        let Tables { workers, checkpoints, projection, .. } = tables;
        let joined = asked("read store: joining the workers", async {
            let client = &session.client;
            client.batch_execute("set statement_timeout = '9s'; set lock_timeout = '5s'").await?;
            let renew = client
                .prepare(&format!(
                    "insert into {workers} (projection, worker, name, lease_until, backend_pid, backend_start)
                     values ($1, $2, $3, clock_timestamp() + $4 * interval '1 second', pg_backend_pid(),
                         (select backend_start from pg_catalog.pg_stat_activity where pid = pg_backend_pid()))
                     on conflict (projection, worker) do update set lease_until = excluded.lease_until,
                         backend_pid = excluded.backend_pid, backend_start = excluded.backend_start"
                ))
                .await?;
            let alive = tables.alive();
            let members = format!("select w.worker from {workers} w where w.projection = $1 and {alive}");
            let owners = format!(
                "select owner, case when hold_until > clock_timestamp() then hold_at end
                 from {checkpoints} where projection = $1 order by shard"
            );
            let (members, owners) = (client.prepare(&members).await?, client.prepare(&owners).await?);
            let forget = format!(
                "delete from {workers} where projection = $1 and (name = $2 or lease_until < now() - interval '{FORGET_AFTER}')"
            );
            client.execute(&forget, &[projection, &name]).await?;
            let channel: String =
                client.query_one("select 'projectionist:' || md5($1::text)", &[projection]).await?.try_get(0)?;
            client.batch_execute(&format!("listen {}", quote_identifier(&channel))).await?;
            Ok((renew, members, owners))
        });
        let (renew, members, owners) = joined.await?;
        let member = Self {
            session,
            projection: projection.clone(),
            me: me.to_owned(),
            name: name.to_owned(),
            renew,
            members,
            owners,
        };
        member.renew().await?;
        asked("read store: announcing the worker", tables.announce(&member.session.client)).await?;
        Ok(member)
    }

    async fn renew(&self) -> Result<(), ProjectorError> {
        asked("read store: renewing the worker's lease", async {
            let parameters: [&(dyn ToSql + Sync); 4] = [&self.projection, &self.me, &self.name, &LEASE.as_secs_f64()];
            self.session.client.execute(&self.renew, &parameters).await.map(drop)
        })
        .await
    }

    async fn look(&self, since: Instant) -> Result<View, ProjectorError> {
        asked("read store: looking at the other workers", async {
            let client = &self.session.client;
            let parameters: [&(dyn ToSql + Sync); 1] = [&self.projection];
            let (members, owners) =
                tokio::try_join!(client.query(&self.members, &parameters), client.query(&self.owners, &parameters))?;
            let members = members.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            let holds = owners.iter().map(|row| row.try_get(1)).collect::<Result<_, _>>()?;
            let owners = owners.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            Ok(View { since: Some(since), members, owners, holds })
        })
        .await
    }
}

impl Membership for PostgresMembership {
    async fn keep(mut self, views: &watch::Sender<View>) -> ProjectorError {
        let mut renewed = Instant::now();
        loop {
            let since = Instant::now();
            match self.look(since).await {
                Ok(view) => drop(views.send_replace(view)),
                Err(error) => return error,
            }
            let next = since + LOOK_EVERY.mul_f64(rand::random_range(0.8..1.2));
            tokio::select! {
                () = sleep_until(next) => {}
                told = self.session.notifications.recv() => {
                    if told.is_some() {
                        sleep_until(since + LOOK_AT_MOST_EVERY).await;
                    }
                    while self.session.notifications.try_recv().is_ok() {}
                }
            }
            if renewed.elapsed() >= RENEW_EVERY {
                renewed = Instant::now();
                if let Err(error) = self.renew().await {
                    return error;
                }
            }
        }
    }
}

/// Ends a worker's membership, so that the others need not wait for its lease.
pub(super) async fn leave(client: &Client, tables: &Tables, me: &str) -> Result<(), Error> {
    let leave = format!("delete from {} where projection = $1 and worker = $2", tables.workers);
    client.execute(&leave, &[&tables.projection, &me]).await?;
    tables.announce(client).await
}

/// Holds the deadline and says what the work was for.
async fn asked<T>(doing: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, ProjectorError> {
    within(doing, DEADLINE, async { work.await.map_err(for_statement(doing)) }).await
}
