//! One connection to one cluster: opened when it is needed, asked many requests at once, closed as soon as an answer makes no sense.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    ConnectionSettings,
    connection::{Answer, ClientKind, Connection, Request, timed_out},
    protocol::{Bounds, is_subject},
};
use crate::{addresses::AddressRules, api::Reason, clients::words::without_secrets, measure::MeasureError};

/// Requests that are under way at the same time: a server drops those beyond its queue (10,000 by default for all its clients).
const MOST_AT_ONCE: usize = 1_000;
/// What the server's list of connections shows.
const CLIENT_NAME: &str = "projectionist-sampler";

/// Asks one server of a cluster. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: ConnectionSettings,
    /// Which may be asked.
    addresses: Arc<AddressRules>,
    connection: Option<Connection>,
    /// The server that is tried first: the one that answered last.
    preferred: usize,
}

impl Client {
    /// Not connected yet. `addresses`: which may be asked.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>) -> Self {
        Self { settings, addresses, connection: None, preferred: 0 }
    }

    /// Where it asks.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Sends all the requests at once (1,000 at a time) and returns the answer to each, in their order. An answer is returned also where other
    /// requests got none.
    ///
    /// # Errors
    /// Why there is no answer to that request. Holds no secret and does not say where.
    pub async fn ask(&mut self, requests: &[Request], by: Instant) -> Vec<Answer> {
        let mut all = Vec::new();
        for batch in requests.chunks(MOST_AT_ONCE) {
            all.extend(self.ask_at_once(batch, by).await);
        }
        all
    }

    async fn ask_at_once(&mut self, requests: &[Request], by: Instant) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = Vec::new();
        let mut broken = None;
        // A server may have closed a connection that was idle: then nothing was answered, and a new one is tried once.
        for fresh in [self.connection.is_none(), true] {
            answers = requests.iter().map(|request| (!is_subject(&request.subject)).then(no_subject)).collect();
            broken = self.try_once(requests, &mut answers, by).await.err();
            let nothing = !answers.iter().flatten().any(Result::is_ok);
            let closed = broken.as_ref().is_some_and(|broken| broken.reason == Reason::SourceFailed);
            if fresh || !(nothing && closed) {
                break;
            }
        }
        let broken = broken.unwrap_or_else(unanswered);
        // Only one answer is to blame where one cannot be read; which is not known, so that none of the others is said to be nonsense.
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(broken.clone()))).collect()
    }

    async fn try_once(
        &mut self,
        requests: &[Request],
        answers: &mut [Option<Answer>],
        by: Instant,
    ) -> Result<(), MeasureError> {
        // Taken out, so that a call that is given up half-way leaves no connection in an unknown state.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.open(by).await?,
        };
        let done = connection.ask(requests, answers, by).await;
        self.mask(answers);
        match done {
            Ok(()) => self.connection = Some(connection),
            Err(broken) => return Err(self.masked(broken)),
        }
        Ok(())
    }

    async fn open(&mut self, by: Instant) -> Result<Connection, MeasureError> {
        let kind = ClientKind { name: CLIENT_NAME, bounds: Bounds::default() };
        let (place, connection) = open(&self.settings, &self.addresses, kind, self.preferred, by).await?;
        self.preferred = place;
        Ok(connection)
    }

    fn masked(&self, error: MeasureError) -> MeasureError {
        masked(&self.settings, error)
    }

    fn mask(&self, answers: &mut [Option<Answer>]) {
        for answer in answers.iter_mut().flatten() {
            if let Err(error) = answer {
                *error = self.masked(error.clone());
            }
        }
    }
}

/// Connects to the first server that accepts the connection, beginning with the one at `first`, and returns which it is.
pub(super) async fn open(
    settings: &ConnectionSettings,
    addresses: &AddressRules,
    kind: ClientKind,
    first: usize,
    by: Instant,
) -> Result<(usize, Connection), MeasureError> {
    let count = settings.servers.len();
    let mut failed = None;
    for turn in 0..count {
        let place = (first + turn) % count;
        let left = by.saturating_duration_since(Instant::now());
        let share = u32::try_from(count - turn).unwrap_or(1);
        let until = Instant::now() + left / share;
        match Connection::open(settings, &settings.servers[place], addresses, kind, until).await {
            Ok(connection) => return Ok((place, connection)),
            Err(error) => failed = Some(masked(settings, error)),
        }
    }
    Err(failed.unwrap_or_else(timed_out))
}

/// Hides the password where the server repeats it in an error.
pub(super) fn masked(settings: &ConnectionSettings, mut error: MeasureError) -> MeasureError {
    error.message = without_secrets(&error.message, settings.secrets());
    error
}

fn no_subject() -> Answer {
    Err(MeasureError {
        reason: Reason::InvalidSpec,
        message: "the name holds blanks or control characters, or is too long".to_owned(),
    })
}

/// Others were answered on the same connection.
fn unanswered() -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: "no answer, although the server answers other questions: a stream or consumer without a leader does not answer; check the servers of its cluster (nats server report jetstream)"
            .to_owned(),
    }
}
