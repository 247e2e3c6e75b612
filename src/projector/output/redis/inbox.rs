//! A read model in Redis of events that come from a queue: a note of each message, written in the script that runs its commands.
//!
//! A note is a key that expires. Redis takes nothing back: of a message whose command fails, the note says how many commands are done, so that it is taken
//! up there and no command runs twice.

use std::{borrow::Cow, time::Duration};

use sha2::{Digest, Sha256};

use super::{
    super::{
        super::{config::ProjectorConfig, error::ProjectorError, event::Event},
        ApplyError, Inbox,
        inbox::{MOST_TOLD, TOLD_FOR},
    },
    LONGEST_FAILURE, RUNNING,
    handlers::{Commands, Filled},
    most_bytes_of_one_event,
    portion::{self, Stopped},
    refusals::{self, Refused},
    state::{self, State},
};
use crate::{
    clients::redis::{ConnectionSettings, Reply},
    names::redis_state,
};

/// A message is called by its identity, or by a hash of it where that has more bytes.
const LONGEST_NAME: usize = 64;
/// Taken for how often a message was tried whose note does not say it, so that the longest pause follows.
const TRIED_OFTEN: u32 = 100;
/// What is being done, for messages.
const OPENING: &str = "read store: asking what the server keeps";
const RECORDING: &str = "read store: recording a failed event";

/// A script with what those on an inbox share.
macro_rules! script {
    ($($name:literal),+) => {
        concat!(include_str!("inbox_common.lua"), $(include_str!($name)),+)
    };
}

/// A connection to the read store.
pub(in crate::projector) struct RedisInbox {
    state: State,
    commands: Commands,
    /// For how many milliseconds notes are kept.
    keep_for: String,
    /// What the commands of one event may have, in bytes.
    most_of_one_event: usize,
}

impl RedisInbox {
    /// Connects. Notes are kept for `keep_for`.
    ///
    /// # Errors
    /// Where the server evicts keys that expire, and with them notes.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        config: &ProjectorConfig,
        commands: Commands,
        keep_for: Duration,
    ) -> Result<Self, ProjectorError> {
        let mut state = State::with_keys_below(settings, &config.projection);
        Self::check(&mut state).await?;
        Ok(Self::new(state, config, commands, keep_for))
    }

    pub(super) fn new(state: State, config: &ProjectorConfig, commands: Commands, keep_for: Duration) -> Self {
        let most_of_one_event = most_bytes_of_one_event(config.max_event_bytes);
        Self { state, commands, keep_for: keep_for.as_millis().to_string(), most_of_one_event }
    }

    /// Whether the server keeps notes.
    ///
    /// # Errors
    /// Where it evicts keys that expire.
    pub(super) async fn check(state: &mut State) -> Result<(), ProjectorError> {
        let told = state.run(OPENING, include_str!("inbox_open.lua"), Vec::new()).await?;
        let told: Vec<&str> = told.as_array().unwrap_or_default().iter().filter_map(Reply::as_str).collect();
        let [policy, appends] = told[..] else { return Err(state.garbled(OPENING)) };
        match policy {
            "noeviction" => {}
            "" => tracing::warn!(
                "the server does not say what it evicts when its memory is full (grant +info): any maxmemory-policy but noeviction may lose which messages are handled"
            ),
            policy => {
                let message = format!(
                    "the server evicts keys when its memory is full (maxmemory-policy {policy}), and with {}:seen:… it would lose which messages are handled: set noeviction",
                    redis_state::key(state.projection())
                );
                return Err(state.failed(OPENING, message));
            }
        }
        if appends == "0" {
            tracing::warn!(
                "the server has no append-only file (appendonly no): when it ends, effects of messages are lost that the queue no longer has"
            );
        }
        Ok(())
    }

    pub(super) fn state(&mut self) -> &mut State {
        &mut self.state
    }

    /// Whether the message is noted as handled.
    async fn is_handled(&mut self, id: &str) -> Result<bool, ProjectorError> {
        let words = vec![name(id).into_owned()];
        let script = concat!(include_str!("inbox_common.lua"), "return note_of(ARGV[1])");
        Ok(self.state.run(RUNNING, script, words).await?.as_str() == Some("1"))
    }

    /// Which message the script stopped at, and why.
    fn stopped(&self, reply: &[Reply], events: &[Event], commands: &[Vec<Filled>]) -> Option<(usize, Refused)> {
        // Its identity may be part of its content, which is never told.
        let note = redis_state::seen(self.state.projection(), "MESSAGE");
        let note = format!("{note:?}, where MESSAGE stands for its identity");
        if let [how, message] = reply
            && how.as_str() == Some("foreign")
        {
            let index = usize::try_from(message.as_count()?).ok()?.checked_sub(1)?;
            let why = format!(
                "its note holds what no worker writes, so that it is not known whether it was handled: did something else write there? Where it was not, DEL {note}; where it was, set that to 1 with PX"
            );
            return Some((index, Refused::Event(why)));
        }
        let Stopped { index, command, error } = Stopped::read(reply)?;
        let refused = match error {
            Some(error) => {
                let failed = commands.get(index)?.get(command.checked_sub(1)?)?;
                refusals::meaning(error, (command, failed), &events.get(index)?.event_type, self.state.projection())
            }
            None => Refused::Event(state::changed(command, &format!("DEL {note}"))),
        };
        Some((index, refused))
    }
}

impl Inbox for RedisInbox {
    /// As many as one script may run.
    async fn handle(&mut self, ids: &[String], events: &[Event]) -> Result<usize, ApplyError> {
        let (portion, failed) = portion::of(&self.commands, events, self.most_of_one_event);
        if let (true, Some(message), Some(id)) = (portion.is_empty(), failed, ids.first()) {
            // One that is handled already stays so, whatever its handler has become since.
            let is_handled = self.is_handled(id).await.map_err(ApplyError::Store)?;
            return if is_handled { Ok(1) } else { Err(ApplyError::Event { index: 0, message }) };
        }
        let count = portion.len();
        let mut words = vec![self.keep_for.clone(), count.to_string()];
        // Which command it was, for when one fails.
        let mut names: Vec<Vec<Filled>> = Vec::new();
        for (id, commands) in ids.iter().zip(portion) {
            words.extend([name(id).into_owned(), commands.len().to_string()]);
            names.push(portion::push(&mut words, commands));
        }
        let reply =
            self.state.run(RUNNING, script!("words.lua", "inbox.lua"), words).await.map_err(ApplyError::Store)?;
        let stopped = match reply.as_array() {
            Some([done]) if done.as_str() == Some("done") => return Ok(count),
            Some(stopped) => self.stopped(stopped, events, &names),
            None => None,
        };
        match stopped {
            Some((_, Refused::Server(message))) => Err(ApplyError::Store(self.state.failed(RUNNING, message))),
            Some((0, Refused::Event(message))) => Err(ApplyError::Event { index: 0, message }),
            // Those before it are done: it is the first of what comes next.
            Some((index, Refused::Event(_))) => Ok(index),
            None => Err(ApplyError::Store(self.state.garbled(RUNNING))),
        }
    }

    async fn record_failure(&mut self, id: &str, why: &str) -> Result<u32, ProjectorError> {
        let why = why.chars().take(LONGEST_FAILURE).collect();
        let (told_for, most) = (TOLD_FOR.as_millis().to_string(), MOST_TOLD.to_string());
        let words = vec![self.keep_for.clone(), told_for, most, name(id).into_owned(), why];
        let times = self.state.run(RECORDING, script!("inbox_fail.lua"), words).await?;
        if times.as_str() == Some("foreign") {
            return Ok(TRIED_OFTEN);
        }
        let times = times.as_count().ok_or_else(|| self.state.nonsense(RECORDING))?;
        Ok(u32::try_from(times).unwrap_or(u32::MAX))
    }

    /// The server itself forgets notes.
    async fn prune(&mut self) -> Result<bool, ProjectorError> {
        Ok(false)
    }
}

/// What a message is called in the names of keys. No two messages are called the same: what is hashed is longer than any identity that is not.
fn name(id: &str) -> Cow<'_, str> {
    if id.len() <= LONGEST_NAME {
        return id.into();
    }
    let digest = Sha256::digest(id);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_called_by_its_identity_as_long_as_that_is_short() {
        assert_eq!(name("orders 5-0"), "orders 5-0");
        let long = "m".repeat(LONGEST_NAME + 1);
        let called = name(&long);
        assert!(called.starts_with("sha256:") && called.len() > LONGEST_NAME && called.is_ascii(), "{called}");
        assert_eq!(name(&called).len(), called.len());
        assert_ne!(name(&called), called, "an identity that looks like a hash is none");
        assert_ne!(name(&"m".repeat(LONGEST_NAME + 2)), called);
    }
}
