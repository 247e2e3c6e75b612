//! The workers of a group know of each other, and take what is theirs, by advisory locks in PostgreSQL. A connection that ends lets go of all of its own.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use tokio_postgres::{Client, Statement};

use crate::share;

/// Members hold a lock of this and their own number. Shards have those below.
const MEMBER: i32 = 10_000;

/// A member of a group.
pub(crate) struct Group {
    client: Arc<Client>,
    /// The first number of the advisory locks, by which groups are told apart.
    number: i32,
    me: i32,
    members: Statement,
    takes: Statement,
    gives_up: Statement,
}

impl Group {
    pub(crate) async fn join(client: Arc<Client>, number: i32) -> Result<Self> {
        let process: i32 = client.query_one("select pg_backend_pid()", &[]).await?.get(0);
        let members = client
            .prepare(
                "select objid::int from pg_locks where locktype = 'advisory' and granted and classid = $1::int::oid and objid::int >= $2
                 and objsubid = 2 and database = (select oid from pg_database where datname = current_database())",
            )
            .await?;
        let takes = client.prepare("select pg_try_advisory_lock($1, $2)").await?;
        let gives_up = client.prepare("select pg_advisory_unlock($1, $2)").await?;
        let group = Self { client, number, me: MEMBER.saturating_add(process), members, takes, gives_up };
        group.takes(group.me).await?;
        Ok(group)
    }

    /// Those of so many shards that are this member's, as long as no other one comes or goes.
    pub(crate) async fn share(&self, shards: i32) -> Result<BTreeSet<i32>> {
        let rows = self.client.query(&self.members, &[&self.number, &MEMBER]).await?;
        Ok(share::of(self.me, &rows.iter().map(|row| row.get(0)).collect(), shards))
    }

    /// Takes a number of the group's, such as a shard's; false where another member holds it.
    pub(crate) async fn takes(&self, number: i32) -> Result<bool> {
        Ok(self.client.query_one(&self.takes, &[&self.number, &number]).await?.get(0))
    }

    pub(crate) async fn gives_up(&self, number: i32) -> Result<()> {
        self.client.execute(&self.gives_up, &[&self.number, &number]).await?;
        Ok(())
    }
}
