//! One connection to one database, with the task that drives it.

use std::{future::poll_fn, time::Duration};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{ConnectionSettings, classify, pooled::is_ours_alone, tls};
use crate::api::Reason;

/// Notifications that wait to be taken. What comes beyond is dropped: whoever has so many waiting is awake already.
const MOST_NOTIFICATIONS: usize = 256;

/// Why there is no connection. Messages hold no secret.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConnectError {
    /// The connection string cannot be read.
    #[error("the connection string cannot be read: {0}")]
    Invalid(String),
    /// TLS cannot be set up.
    #[error("{database}: {message}")]
    Tls {
        /// Where.
        database: String,
        /// What.
        message: String,
    },
    /// The server, or the way to it, refused.
    #[error("{database}: {message}")]
    Refused {
        /// The class of failure.
        reason: Reason,
        /// Where.
        database: String,
        /// What, and what to do.
        message: String,
    },
    /// No answer before the deadline.
    #[error(
        "{database}: no connection within {seconds:.1} s: does a firewall or network policy drop packets, or does the server hang?"
    )]
    TimedOut {
        /// Where.
        database: String,
        /// The deadline in seconds.
        seconds: f64,
    },
}

impl ConnectError {
    /// The reason for a condition.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid(_) => Reason::ConnectionStringInvalid,
            Self::Tls { .. } => Reason::TlsFailed,
            Self::Refused { reason, .. } => *reason,
            Self::TimedOut { .. } => Reason::TimedOut,
        }
    }
}

/// An open connection. Dropping it closes the connection and ends the task that drives it.
pub struct Session {
    /// For statements.
    pub client: Client,
    /// The channels of notifications (`LISTEN`) as they come in. Ends when the connection does.
    pub notifications: mpsc::Receiver<String>,
    /// False when a pooler may serve each transaction with another server process, and serve others with it afterwards: then nothing may be
    /// left behind on it, and neither `LISTEN` nor locks of the session work.
    pub ours_alone: bool,
    cancel: CancelToken,
    tls: MakeRustlsConnect,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Session {
    /// Takes the notifications away, for whoever waits for them apart from the statements.
    pub fn take_notifications(&mut self) -> mpsc::Receiver<String> {
        let (_, none) = mpsc::channel(1);
        std::mem::replace(&mut self.notifications, none)
    }

    /// Asks the server to give up what it is doing for this connection, and waits at most `deadline` for that request to be delivered. A
    /// server that hangs is not told.
    pub async fn cancel(&self, deadline: Duration) {
        // The answer does not matter: the caller closes the connection next.
        let _ = timeout(deadline, self.cancel.cancel_query(self.tls.clone())).await;
    }
}

/// Opens a connection; `application_name` is what `pg_stat_activity` will show.
///
/// # Errors
/// Whatever keeps the server from accepting us, and `TimedOut` after `deadline`.
pub async fn connect(
    settings: &ConnectionSettings,
    application_name: &str,
    deadline: Duration,
) -> Result<Session, ConnectError> {
    let tls = tls::connector(settings)?;
    let mut config = settings.config.clone();
    config.application_name(application_name).connect_timeout(deadline);
    let (client, mut connection) = within(deadline, settings, config.connect(tls.clone())).await?;
    let (sender, notifications) = mpsc::channel(MOST_NOTIFICATIONS);
    let driver = tokio::spawn(async move {
        // Ends with the connection; the failure itself reaches whoever waits for a statement.
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = sender.try_send(notification.channel().to_owned());
            }
        }
    });
    let cancel = client.cancel_token();
    let mut session = Session { cancel, client, notifications, ours_alone: false, tls, driver };
    session.ours_alone = within(deadline, settings, is_ours_alone(&session.client)).await?;
    Ok(session)
}

/// Waits for a step of connecting; a failure names the database and its cause.
pub(super) async fn within<T>(
    deadline: Duration,
    settings: &ConnectionSettings,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, ConnectError> {
    let database = || settings.to_string();
    let done = timeout(deadline, step).await;
    let done = done.map_err(|_| ConnectError::TimedOut { database: database(), seconds: deadline.as_secs_f64() })?;
    done.map_err(|error| {
        let (reason, message) = classify(&error);
        ConnectError::Refused { reason, database: database(), message }
    })
}
