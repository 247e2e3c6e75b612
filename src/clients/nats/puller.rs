//! A connection of a worker: pulls messages from consumers of JetStream, and tells what became of them.
//!
//! It is opened once. After a failure it is of no more use; what it was given and has not acknowledged is given again by the server.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    ConnectionSettings,
    client::{masked, open},
    connection::{Answer, ClientKind, Connection, Request, timed_out},
    protocol::{Bounds, Incoming, publish, tell},
    pulled::Pulled,
    words::refusal,
};
use crate::{addresses::AddressRules, measure::MeasureError};

/// What the server's list of connections shows.
const CLIENT_NAME: &str = "projectionist-projector";
/// Once some messages came, the rest is waited for this long after the last. Newer servers tell when there are no more, older ones not always.
const QUIET: Duration = Duration::from_millis(250);

/// A worker's connection.
pub struct Puller {
    settings: ConnectionSettings,
    connection: Connection,
    /// Messages that came when they were not waited for any more.
    early: Vec<Pulled>,
}

/// How the server ended a pull that gave fewer messages than were asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PullEnded {
    /// Such as 404: there are no messages.
    pub code: u16,
    /// The server's words.
    pub description: String,
}

impl Puller {
    /// Connects to the first server that accepts the connection. `bounds`: what may be taken of messages.
    ///
    /// # Errors
    /// Why there is no connection. Holds no secret and does not say where.
    pub async fn open(
        settings: ConnectionSettings,
        addresses: &AddressRules,
        bounds: Bounds,
        by: Instant,
    ) -> Result<Self, MeasureError> {
        let kind = ClientKind { name: CLIENT_NAME, bounds };
        let (_, connection) = open(&settings, addresses, kind, 0, by).await?;
        Ok(Self { settings, connection, early: Vec::new() })
    }

    /// Where it is connected to.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Messages that came when they were not waited for any more.
    pub fn take_early(&mut self) -> Vec<Pulled> {
        std::mem::take(&mut self.early)
    }

    /// Asks one question.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn ask(&mut self, request: Request, by: Instant) -> Answer {
        let mut answers = [None];
        let done = self.connection.ask(&[request], &mut answers, by).await;
        let [answer] = answers;
        let answer = match (answer, done) {
            (Some(answer), _) => answer,
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(timed_out()),
        };
        answer.map_err(|error| masked(&self.settings, error))
    }

    /// Asks a consumer for up to `most` messages, and returns those that come with how the server ended it, if it did. Those that came late before are returned
    /// alone, if there are any. The request must not make the server wait.
    ///
    /// # Errors
    /// The connection failed, the server refused the request, or nothing at all came in time.
    pub async fn pull(
        &mut self,
        request: &Request,
        most: usize,
        by: Instant,
    ) -> Result<(Vec<Pulled>, Option<PullEnded>), MeasureError> {
        if !self.early.is_empty() {
            return Ok((self.take_early(), None));
        }
        let mut out = Vec::new();
        let inbox = self.connection.next_reply();
        publish(&request.subject, &inbox, &request.body, &mut out);
        self.connection.decoder.begin();
        let (mut found, mut ended) = (Vec::new(), None);
        let done = self.connection.exchange(out, by, |incoming, until| match incoming {
            Incoming::Error(error) => Err(refusal(&error)),
            Incoming::Message(message) => {
                let status = message.status().filter(|_| message.subject == inbox);
                if let Some((code, description)) = status {
                    ended = Some(PullEnded { code, description: description.to_owned() });
                    return Ok(true);
                }
                let Some(message) = Pulled::of(message) else { return Ok(false) };
                let pending = message.place.pending;
                found.push(message);
                *until = by.min(Instant::now() + QUIET);
                Ok(found.len() >= most || pending == 0)
            }
            Incoming::Info(_) | Incoming::Ping | Incoming::Pong => Ok(false),
        });
        match done.await {
            Ok(false) if found.is_empty() => Err(timed_out()),
            Ok(_) => Ok((found, ended)),
            Err(error) => Err(masked(&self.settings, error)),
        }
    }

    /// Sends each body to its subject, and waits until the server has taken all of them.
    ///
    /// # Errors
    /// The connection failed, or the server refused a subject.
    pub async fn tell(&mut self, messages: &[(&str, &str)], by: Instant) -> Result<(), MeasureError> {
        let mut out = Vec::new();
        for (subject, body) in messages {
            tell(subject, body, &mut out);
        }
        out.extend_from_slice(b"PING\r\n");
        let early = &mut self.early;
        let done = self.connection.exchange(out, by, |incoming, _| match incoming {
            Incoming::Error(error) => Err(refusal(&error)),
            Incoming::Pong => Ok(true),
            Incoming::Message(message) => {
                early.extend(Pulled::of(message));
                Ok(false)
            }
            Incoming::Info(_) | Incoming::Ping => Ok(false),
        });
        match done.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(timed_out()),
            Err(error) => Err(masked(&self.settings, error)),
        }
    }
}
