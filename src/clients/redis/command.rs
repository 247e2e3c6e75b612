//! What is asked, and what comes back.

use super::Reply;
use crate::measure::MeasureError;

/// A command and its arguments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Command {
    words: Vec<Vec<u8>>,
    /// Which of the words is the key that it is about.
    key: Option<usize>,
}

impl Command {
    /// About no key, from its words, such as `["TIME"]`.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self { words: words.into_iter().map(|word| word.as_bytes().to_vec()).collect(), key: None }
    }

    /// About a key, from its words, such as `["XINFO", "GROUPS", key]`, where the key is at place 2. A cluster's node is chosen by it.
    pub fn about_key<'a>(place: usize, words: impl IntoIterator<Item = &'a str>) -> Self {
        Self { key: Some(place), ..Self::new(words) }
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

impl Answered {
    /// All of them unknown for this reason.
    pub(super) fn unknown(commands: usize, why: &MeasureError) -> Self {
        Self { servers: Vec::new(), replies: vec![(Err(why.clone()), None); commands] }
    }
}
