//! What is asked, and what comes back.

use std::time::Duration;

use super::Reply;
use crate::measure::MeasureError;

/// A command and its arguments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Command {
    words: Vec<Vec<u8>>,
    /// Which of the words is the key that it is about.
    key: Option<usize>,
    waits_for_slot: bool,
}

impl Command {
    /// About no key, from its words, such as `["TIME"]`.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            words: words.into_iter().map(|word| word.as_bytes().to_vec()).collect(),
            key: None,
            waits_for_slot: false,
        }
    }

    /// About a key, from its words, such as `["XINFO", "GROUPS", key]`, where the key is at place 2. A cluster's node is chosen by it.
    pub fn about_key<'a>(place: usize, words: impl IntoIterator<Item = &'a str>) -> Self {
        Self { key: Some(place), ..Self::new(words) }
    }

    /// Is not sent on (`ASK`) to the node that its slot is being moved to, which has only some of the slot's keys: for a script that writes keys which
    /// it does not name, and would make them there a second time.
    #[must_use]
    pub fn waiting_for_its_slot(self) -> Self {
        Self { waits_for_slot: true, ..self }
    }

    pub(super) fn waits_for_slot(&self) -> bool {
        self.waits_for_slot
    }

    pub(super) fn words(&self) -> &[Vec<u8>] {
        &self.words
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        self.words.get(self.key?).map(Vec::as_slice)
    }
}

/// What servers answered.
#[derive(Debug, Default)]
pub struct Answered {
    /// For each server that was asked, the replies to what every server is asked.
    pub servers: Vec<Vec<Result<Reply, MeasureError>>>,
    /// For each command the reply, and the place of the server in `servers`; without one where no server could be asked.
    pub replies: Vec<(Result<Reply, MeasureError>, Option<usize>)>,
}

/// What one server answered that was asked as all others.
#[derive(Debug)]
pub struct ServerAnswer {
    /// Which node of a cluster it is; absent for a server alone.
    pub node: Option<String>,
    /// From sending the commands over an open connection to the last reply.
    pub latency: Duration,
    /// The reply to each command.
    pub replies: Vec<Result<Reply, MeasureError>>,
}

impl Answered {
    /// All of them unknown for this reason.
    pub(super) fn unknown(commands: usize, why: &MeasureError) -> Self {
        Self { servers: Vec::new(), replies: vec![(Err(why.clone()), None); commands] }
    }
}
