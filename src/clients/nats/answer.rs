//! What JetStream answers whatever it was asked: a refusal, or a text. Pure.

use serde::Deserialize;

use super::{connection::Reply, protocol::Payload};
use crate::{api::Reason, measure::MeasureError};

/// A refusal of JetStream's.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct ApiError {
    /// As in HTTP.
    pub code: u32,
    /// The server's number of the error.
    pub err_code: u32,
    /// Its words.
    pub description: String,
}

#[derive(Deserialize)]
struct ErrorReply {
    error: Option<ApiError>,
}

/// The text of an answer that is no refusal.
///
/// # Errors
/// The server's refusal in words, or that the answer makes no sense.
pub fn answer_text(reply: &Reply) -> Result<&[u8], MeasureError> {
    let text = match reply {
        Reply::NoResponder => return Err(no_jetstream()),
        Reply::Answered(Payload::Tail(_)) => {
            return Err(MeasureError {
                reason: Reason::InvalidAnswer,
                message: "the answer is larger than 64 KiB, or those before it took 32 MiB".to_owned(),
            });
        }
        Reply::Answered(Payload::Whole(text)) => text,
    };
    let refused: ErrorReply = serde_json::from_slice(text).map_err(|_| nonsense())?;
    refused.error.map_or(Ok(text.as_slice()), |error| Err(error.refusal()))
}

impl ApiError {
    /// What it means.
    pub fn refusal(&self) -> MeasureError {
        let (reason, advice) = match (self.err_code, self.code) {
            (10_059, _) => (Reason::StreamNotFound, "correct its name in the Projection, or create it"),
            // A consumer that is not there yet is how a projection begins whose workers create it.
            (10_014, _) => (
                Reason::NeverCommitted,
                "how much is pending cannot be told: correct its name in the Projection, or create it. One that was deleted, or an ephemeral one that was not used for long, has forgotten how far it had come",
            ),
            (10_039 | 10_076, _) => (Reason::SourceFailed, "enable JetStream for the server and the user's account"),
            (_, 503) => {
                (Reason::SourceFailed, "JetStream does not serve it at the moment: check the servers of its cluster")
            }
            (_, 401 | 403) => {
                (Reason::PermissionDenied, "grant the user in the Secret what docs/sources/nats.md lists")
            }
            _ => (Reason::SourceFailed, ""),
        };
        let said: String = self.description.chars().filter(|letter| !letter.is_control()).take(200).collect();
        let message = if advice.is_empty() { said } else { format!("{said}: {advice}") };
        MeasureError { reason, message }
    }
}

/// Nothing answers on the subjects of JetStream's API.
pub fn no_jetstream() -> MeasureError {
    MeasureError {
        reason: Reason::SourceFailed,
        message:
            "no JetStream answers: enable it for the server and the user's account, or correct spec.source.nats.domain"
                .to_owned(),
    }
}

/// An answer of another shape.
pub fn nonsense() -> MeasureError {
    MeasureError {
        reason: Reason::InvalidAnswer,
        message: "the answer makes no sense: NATS 2.9 or newer is needed".to_owned(),
    }
}
