//! Connections to PostgreSQL: over TLS where an authority is given, and a few of them shared by many requests.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use thiserror::Error;
use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls::{AuthorityError, trust};

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The connection string cannot be read, or the server refuses.
    #[error("PostgreSQL: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// The authority cannot be read.
    #[error("PostgreSQL: {0}")]
    Authority(#[from] AuthorityError),
}

/// Where the database is.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

impl Database {
    /// A database by its connection string. With `authority`, certificates in PEM, only TLS is spoken, and only with a server whose certificate they signed for
    /// the host in the connection string.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn new(url: &str, authority: Option<&str>) -> Result<Self, ConnectError> {
        let mut config: Config = url.parse()?;
        let tls = authority.map(trust).transpose()?.map(MakeRustlsConnect::new);
        if tls.is_some() {
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
        }
        Ok(Self { config, tls })
    }

    /// A connection of its own. It ends when the client is dropped.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        // What happens to a connection its client reports, so that nothing looks at the tasks' ends.
        if let Some(tls) = &self.tls {
            let (client, connection) = self.config.connect(tls.clone()).await?;
            tokio::spawn(connection);
            return Ok(client);
        }
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// A connection that is given back when it is dropped.
pub type Pooled = OwnedMappedMutexGuard<Option<Client>, Client>;

/// A few connections. Who asks for one when all are taken waits.
#[derive(Clone)]
pub struct Pool {
    database: Database,
    slots: Arc<[Arc<Mutex<Option<Client>>>]>,
    next: Arc<AtomicUsize>,
}

impl Pool {
    /// Up to `size` connections, made when they are first needed.
    #[must_use]
    pub fn new(database: Database, size: NonZeroUsize) -> Self {
        Self { database, slots: (0..size.get()).map(|_| Arc::default()).collect(), next: Arc::default() }
    }

    /// A connection for the time being. A transaction on it that was given up is rolled back before anything else is done.
    ///
    /// # Errors
    /// When none is there and none can be made.
    pub async fn get(&self) -> Result<Pooled, ConnectError> {
        let free = self.slots.iter().find_map(|slot| Arc::clone(slot).try_lock_owned().ok());
        let mut slot = match free {
            Some(slot) => slot,
            None => {
                let next = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
                Arc::clone(&self.slots[next]).lock_owned().await
            }
        };
        let client = match slot.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.database.connect().await?,
        };
        Ok(OwnedMutexGuard::map(slot, |slot| slot.insert(client)))
    }
}
