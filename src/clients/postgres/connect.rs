//! One connection to one database, with the task that drives it.

use std::{future::poll_fn, io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, Config, Connection, Error,
    config::{ChannelBinding, LoadBalanceHosts, SslMode as Mode},
    error::SqlState,
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    ConnectionSettings, classify,
    classify::classify_io,
    pooled::is_ours_alone,
    settings::{Host, SslMode, Wanted},
    socket::Socket,
    tls,
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::address::{host_and_port, permitted, resolve},
    measure::MeasureError,
};

/// The most notifications that wait to be taken. Further ones are dropped: a client with so many waiting is awake already.
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
    /// Where its server was reached, and how.
    reached: Reached,
    driver: JoinHandle<()>,
}

/// Where a server was reached.
struct Reached {
    host: String,
    address: SocketAddr,
    config: Config,
    tls: MakeRustlsConnect,
}

type Tls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

impl Reached {
    /// The TLS of one connection.
    fn tls(&self) -> Tls {
        let Ok(tls) = MakeTlsConnect::<Socket>::make_tls_connect(&mut self.tls.clone(), &self.host);
        tls
    }
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
    /// Takes the notifications away, for a task that waits for them apart from the statements.
    pub fn take_notifications(&mut self) -> mpsc::Receiver<String> {
        let (_, none) = mpsc::channel(1);
        std::mem::replace(&mut self.notifications, none)
    }

    /// Asks the server to cancel what it is doing for this connection, and waits at most `deadline` for that request to be delivered. A server that
    /// hangs does not get it.
    pub async fn cancel(&self, deadline: Duration) {
        // The answer does not matter: the caller closes the connection next.
        let _ = timeout(deadline, async {
            if let Ok(socket) = Socket::connect_to(self.reached.address, &self.reached.config).await {
                let _ = self.cancel.cancel_query_raw(socket, self.reached.tls()).await;
            }
        })
        .await;
    }
}

/// Opens a connection; `application_name` is what `pg_stat_activity` will show.
///
/// Tries each server that the settings name, with and without TLS as `sslmode` says. Wherever they lead to: for a worker, which runs in a pod of the
/// namespace whose Secret it reads.
///
/// # Errors
/// Whatever keeps the last server from accepting us, and `TimedOut` after `deadline`.
pub async fn connect(
    settings: &ConnectionSettings,
    application_name: &str,
    deadline: Duration,
) -> Result<Session, ConnectError> {
    try_each(settings, None, application_name, deadline).await
}

/// As [`connect`], at addresses that `rules` allow only.
pub(super) async fn connect_within(
    settings: &ConnectionSettings,
    rules: &AddressRules,
    application_name: &str,
    deadline: Duration,
) -> Result<Session, ConnectError> {
    try_each(settings, Some(rules), application_name, deadline).await
}

async fn try_each(
    settings: &ConnectionSettings,
    rules: Option<&AddressRules>,
    application_name: &str,
    deadline: Duration,
) -> Result<Session, ConnectError> {
    let tls = tls::connector(settings)?;
    let until = Instant::now() + deadline;
    let mut hosts: Vec<_> = settings.hosts.iter().collect();
    if settings.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        hosts.sort_by_cached_key(|_| rand::random::<u64>());
    }
    let mut failed = None;
    for (index, host) in hosts.iter().enumerate() {
        // One that does not answer leaves time for the others.
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(hosts.len() - index).unwrap_or(u32::MAX);
        match connect_to(settings, (host, rules), application_name, &tls, share).await {
            Ok(session) => return Ok(session),
            Err(error) if hosts.len() == 1 => return Err(error),
            Err(error) => failed = Some(at(host, error)),
        }
    }
    Err(failed.unwrap_or_else(|| ConnectError::Invalid("it names no host".to_owned())))
}

/// Says which of several servers it is about.
fn at((host, _, port): &Host, error: ConnectError) -> ConnectError {
    let at = host_and_port(host, *port);
    match error {
        ConnectError::Refused { reason, database, message } => {
            ConnectError::Refused { reason, database, message: format!("{at}, the last that was tried: {message}") }
        }
        other => other,
    }
}

/// One server, in the order in which `sslmode` wants TLS.
async fn connect_to(
    settings: &ConnectionSettings,
    (host, rules): (&Host, Option<&AddressRules>),
    application_name: &str,
    tls: &MakeRustlsConnect,
    deadline: Duration,
) -> Result<Session, ConnectError> {
    let until = Instant::now() + deadline;
    let timed_out = || ConnectError::TimedOut { database: settings.to_string(), seconds: deadline.as_secs_f64() };
    let found = timeout(deadline, addresses_of(host, rules)).await.map_err(|_| timed_out())?;
    let addresses = found.map_err(|MeasureError { reason, message }| ConnectError::Refused {
        reason,
        database: settings.to_string(),
        message,
    })?;
    let mut config = settings.config_for(host);
    config.application_name(application_name);
    let needs_tls = config.get_channel_binding() == ChannelBinding::Require;
    let attempts: &[Mode] = match settings.ssl_mode {
        SslMode::Disable => &[Mode::Disable],
        SslMode::Allow if !needs_tls => &[Mode::Disable, Mode::Require],
        SslMode::Prefer if !needs_tls => &[Mode::Prefer, Mode::Disable],
        _ => &[Mode::Require],
    };
    let mut first: Option<ConnectError> = None;
    for mode in attempts {
        config.ssl_mode(*mode);
        let left = until.saturating_duration_since(Instant::now());
        let reach = async {
            let (socket, address) = Socket::connect(&addresses, &config).await.map_err(Unreached::Network)?;
            let reached = Reached { host: host.0.clone(), address, config: config.clone(), tls: tls.clone() };
            let (client, connection) = config.connect_raw(socket, reached.tls()).await.map_err(Unreached::Server)?;
            Ok((client, connection, reached))
        };
        let (error, again) = match timeout(left, reach).await {
            Ok(Ok((client, connection, reached))) => return open(settings, client, connection, reached, until).await,
            Ok(Err(Unreached::Network(error))) => {
                let (reason, message) = classify_io(&error);
                (ConnectError::Refused { reason, database: settings.to_string(), message }, false)
            }
            Ok(Err(Unreached::Server(error))) => {
                let again = may_differ(&error);
                (refused(settings, &error), again)
            }
            Err(_) => (timed_out(), false),
        };
        first = Some(match first {
            None => error,
            Some(first) => both(first, error, settings.ssl_mode),
        });
        if !again {
            break;
        }
    }
    Err(first.unwrap_or_else(|| ConnectError::Invalid("it names no host".to_owned())))
}

/// Why a server was not reached.
enum Unreached {
    /// There is no connection.
    Network(io::Error),
    /// The server, or TLS, refused.
    Server(Error),
}

/// The addresses of a server, those alone that may be asked where there are rules: what is judged here is what is connected to.
async fn addresses_of(
    (name, address, port): &Host,
    rules: Option<&AddressRules>,
) -> Result<Vec<SocketAddr>, MeasureError> {
    let found = match address {
        Some(address) => vec![SocketAddr::new(*address, *port)],
        None => resolve(name, *port).await?,
    };
    match rules {
        Some(rules) => permitted(found.into_iter(), rules),
        None => Ok(found),
    }
}

/// Whether the other way, with or without TLS, may end differently: TLS itself failed, or the server has rules for either.
fn may_differ(error: &Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => error.to_string().contains("TLS"),
    }
}

fn refused(settings: &ConnectionSettings, error: &Error) -> ConnectError {
    let (reason, message) = classify(error);
    ConnectError::Refused { reason, database: settings.to_string(), message }
}

/// What both ways came to.
fn both(first: ConnectError, second: ConnectError, mode: SslMode) -> ConnectError {
    let words = if mode == SslMode::Allow { ["without TLS", "with TLS"] } else { ["with TLS", "without TLS"] };
    match (first, second) {
        (ConnectError::Refused { message: one, .. }, ConnectError::Refused { reason, database, message: other }) => {
            let message = format!("{}: {one}; {}: {other}", words[0], words[1]);
            ConnectError::Refused { reason, database, message }
        }
        (_, second) => second,
    }
}

async fn open<S, T>(
    settings: &ConnectionSettings,
    client: Client,
    mut connection: Connection<S, T>,
    reached: Reached,
    until: Instant,
) -> Result<Session, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, notifications) = mpsc::channel(MOST_NOTIFICATIONS);
    let driver = tokio::spawn(async move {
        // Ends with the connection; the failure itself reaches the task that waits for a statement.
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = sender.try_send(notification.channel().to_owned());
            }
        }
    });
    let cancel = client.cancel_token();
    let mut session = Session { cancel, client, notifications, ours_alone: false, reached, driver };
    let left = until.saturating_duration_since(Instant::now());
    session.ours_alone = within(left, settings, is_ours_alone(&session.client)).await?;
    if settings.wanted != Wanted::Any {
        let left = until.saturating_duration_since(Instant::now());
        let state = "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on'";
        let state = within(left, settings, session.client.query_typed_one(state, &[])).await?;
        let unfit = match settings.wanted {
            Wanted::Primary => state.try_get(0),
            _ => state.try_get(1),
        };
        if unfit.map_err(|error| refused(settings, &error))? {
            return Err(ConnectError::Refused {
                reason: Reason::SourceIsReplica,
                database: settings.to_string(),
                message: "the server is a standby or takes no writes, and target_session_attrs wants another: name the primary".to_owned(),
            });
        }
    }
    Ok(session)
}

/// Waits for a step of connecting; a failure names the database and its cause.
async fn within<T>(
    deadline: Duration,
    settings: &ConnectionSettings,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, ConnectError> {
    match timeout(deadline, step).await {
        Ok(done) => done.map_err(|error| refused(settings, &error)),
        Err(_) => Err(ConnectError::TimedOut { database: settings.to_string(), seconds: deadline.as_secs_f64() }),
    }
}
