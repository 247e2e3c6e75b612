//! One connection to one database, shared by all of its users: opened when first asked for, reopened after a short pause, never two at a time.
//!
//! Knows statements and channels, not what they are for.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{MutexGuard, Notify},
    time::{Instant, timeout_at},
};
use tokio_postgres::Error;

use super::{
    ConnectError, ConnectionIdentity, Session, classify, connect::connect_within, quote_identifier, reading,
    reading_and_undoing, reading_one_moment,
};
use crate::{addresses::AddressRules, api::Reason, clients::blamed::Blamed, measure::MeasureError};

/// The name that `pg_stat_activity` shows for the sampler's connections.
pub const APPLICATION_NAME: &str = "projectionist-sampler";
/// Settings for each transaction. None of the operator's statements may run longer on the server, so that none is left behind when the client gives
/// up, and a locked table delays the others on the same connection by no more than a second. Compiling a statement that runs for a millisecond, which the
/// server does where it expects many rows, took a second of its time.
const LIMITS: [&str; 4] =
    ["statement_timeout = 4000", "lock_timeout = 1000", "idle_in_transaction_session_timeout = 10000", "jit = off"];
/// The same for statements that look at much, on a connection that nothing else waits for.
const LONG: [&str; 4] =
    ["statement_timeout = 30000", "lock_timeout = 1000", "idle_in_transaction_session_timeout = 10000", "jit = off"];
/// A refusal is repeated for at most this long before the server is asked again. Polls of one source begin at least 450 ms apart, so that of two
/// polls at least one asks: what was put right on the server is seen by the second.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// How long a request to cancel a statement may take.
const CANCEL_DEADLINE: Duration = Duration::from_millis(500);

/// A database, whether connected or not.
#[derive(Debug)]
pub struct Database {
    identity: ConnectionIdentity,
    addresses: Arc<AddressRules>,
    slot: tokio::sync::Mutex<Option<Live>>,
    wake: Arc<Notify>,
    channels: Mutex<BTreeSet<String>>,
    refusals: Mutex<Option<RefusedLogin>>,
    slow: Mutex<HashMap<&'static str, Blamed<String>>>,
    opened: AtomicU64,
}

/// An open connection.
#[derive(Debug)]
pub struct Live {
    /// The connection.
    pub session: Session,
    listening: BTreeSet<String>,
    forwarder: tokio::task::JoinHandle<()>,
}

/// The right to use the connection alone. Dropping it closes the connection, since a statement may still be running on it;
/// [`Lease::give_back`] keeps it.
#[derive(Debug)]
pub struct Lease<'a> {
    /// The connection.
    pub live: Live,
    slot: MutexGuard<'a, Option<Live>>,
}

#[derive(Clone, Debug)]
struct RefusedLogin {
    retry_at: Instant,
    why: MeasureError,
}

impl Database {
    /// A database to which no connection was made yet. `addresses`: which may be asked.
    pub fn new(identity: ConnectionIdentity, addresses: Arc<AddressRules>) -> Self {
        Self {
            identity,
            addresses,
            slot: tokio::sync::Mutex::default(),
            wake: Arc::default(),
            channels: Mutex::default(),
            refusals: Mutex::default(),
            slow: Mutex::default(),
            opened: AtomicU64::new(0),
        }
    }

    /// The same database with a connection of its own.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self::new(self.identity.clone(), Arc::clone(&self.addresses))
    }

    /// Which database it is, for messages.
    pub fn identity(&self) -> &ConnectionIdentity {
        &self.identity
    }

    /// Which tables did not answer in time, of those that are read for a purpose.
    pub fn slow_tables<T>(&self, purpose: &'static str, with: impl FnOnce(&mut Blamed<String>) -> T) -> T {
        with(self.slow.lock().unwrap_or_else(PoisonError::into_inner).entry(purpose).or_default())
    }

    /// How many connections have been opened so far.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// The channels to listen on, on this connection and every later one. Takes effect with the next lease. Not through a pooler: notifications would
    /// go to the pooler, or to the next client that uses the server's process.
    pub fn listen(&self, channels: BTreeSet<String>) {
        *self.channels.lock().unwrap_or_else(PoisonError::into_inner) = channels;
    }

    /// Returns when a notification has come since the last call, or the connection has ended.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The connection, opened if need be.
    ///
    /// # Errors
    /// Why there is none. Between attempts the last failure is repeated without asking the server.
    pub async fn lease(&self, deadline: Instant) -> Result<Lease<'_>, MeasureError> {
        let mut slot = timeout_at(deadline, self.slot.lock()).await.map_err(|_| self.timed_out())?;
        let open = slot.take().filter(|live| !live.session.client.is_closed());
        let live = match open {
            Some(live) => live,
            None => self.open(deadline).await?,
        };
        let mut lease = Lease { live, slot };
        match timeout_at(deadline, self.follow_channels(&mut lease.live)).await {
            Ok(Ok(())) => Ok(lease),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => {
                lease.abandon().await;
                Err(self.timed_out())
            }
        }
    }

    /// The words for a deadline that has passed.
    pub fn timed_out(&self) -> MeasureError {
        MeasureError {
            reason: Reason::TimedOut,
            message: format!(
                "{}: no answer in time: is the server overloaded or stopped, or a table locked? See pg_stat_activity and pg_locks",
                self.identity.settings()
            ),
        }
    }

    /// The words for a failed statement.
    pub fn failed(&self, error: &Error) -> MeasureError {
        let (reason, message) = classify(error);
        MeasureError { reason, message: format!("{}: {message}", self.identity.settings()) }
    }

    async fn open(&self, deadline: Instant) -> Result<Live, MeasureError> {
        let refused = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(refusal) = refused.as_ref().filter(|refusal| Instant::now() < refusal.retry_at) {
            return Err(refusal.why.clone());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match self.connect(left).await {
            Ok(live) => {
                *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(live)
            }
            Err(error) => {
                let why = MeasureError { reason: error.reason(), message: error.to_string() };
                let retry_at = Instant::now() + pause(rand::random_range(0.0..1.0));
                *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(RefusedLogin { retry_at, why: why.clone() });
                Err(why)
            }
        }
    }

    async fn connect(&self, deadline: Duration) -> Result<Live, ConnectError> {
        let settings = self.identity.settings();
        let mut session = connect_within(settings, &self.addresses, APPLICATION_NAME, deadline).await?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut notifications = session.take_notifications();
        let wake = Arc::clone(&self.wake);
        let forwarder = tokio::spawn(async move {
            while notifications.recv().await.is_some() {
                wake.notify_one();
            }
            // The connection has ended: tasks that wait should learn why at once.
            wake.notify_one();
        });
        Ok(Live { session, listening: BTreeSet::new(), forwarder })
    }

    async fn follow_channels(&self, live: &mut Live) -> Result<(), Error> {
        let wanted = self.channels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if wanted == live.listening || !live.session.ours_alone {
            return Ok(());
        }
        let added = wanted.difference(&live.listening).map(|channel| format!("listen {}", quote_identifier(channel)));
        let gone = live.listening.difference(&wanted).map(|channel| format!("unlisten {}", quote_identifier(channel)));
        let statements = added.chain(gone).collect::<Vec<_>>().join("; ");
        live.session.client.batch_execute(&statements).await?;
        live.listening = wanted;
        Ok(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl Live {
    /// Runs `work` in a read-only transaction with limits of time: see [`reading`].
    ///
    /// # Errors
    /// The outer one is the server's refusal to begin.
    pub async fn reading<T, E>(&self, work: impl Future<Output = Result<T, E>>) -> Result<Result<T, E>, Error> {
        reading(&self.session.client, &LIMITS, work).await
    }

    /// As [`Self::reading`], for statements that are not ours: see [`reading_and_undoing`].
    ///
    /// # Errors
    /// The outer one is the server's refusal to begin.
    pub async fn reading_and_undoing<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, Error> {
        reading_and_undoing(&self.session.client, &LIMITS, work).await
    }

    /// As [`Self::reading_and_undoing`], with half a minute for each statement, where all of them see what was committed when the first began.
    ///
    /// # Errors
    /// The outer one is the server's refusal to begin.
    pub async fn reading_one_moment<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, Error> {
        reading_one_moment(&self.session.client, &LONG, work).await
    }
}

impl Lease<'_> {
    /// Leaves the connection open for the next one. Only when no statement is running on it.
    pub fn give_back(self) {
        let Self { live, mut slot } = self;
        *slot = Some(live).filter(|live| !live.session.client.is_closed());
    }

    /// Stops what is running and closes the connection, before anyone else can open another.
    pub async fn abandon(self) {
        let Self { live, slot } = self;
        live.session.cancel(CANCEL_DEADLINE).await;
        drop(live);
        drop(slot);
    }
}

/// How long to wait after a refusal: the longest pause, of which `random` (0 to 1) takes up to a half.
fn pause(random: f64) -> Duration {
    LONGEST_PAUSE.mul_f64(1.0 - random / 2.0)
}
