//! Runs the commands of handlers on keys of their own, as workers run them; or fills and shows them where no server is named.

use std::{slice, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        super::{
            config::{Input, ProjectorConfig},
            error::ProjectorError,
            event::Event,
            sharding::Sharding,
        },
        Advance, Applied, Done, DryRun, DryRunError, Held, Inbox as _, ReadModel as _,
    },
    Commands, RUNNING, RedisInbox, RedisReadModel,
    handlers::{Filled, stand_in},
    most_bytes_of_one_event,
    scratch::Scratch,
    state::State,
};
use crate::clients::redis::{ConnectionSettings, Reply};

/// Keys expire after an hour, and nothing is tried with half of them.
const LONGEST: Duration = Duration::from_secs(50 * 60);
/// Notes of messages are kept for as long as the other keys.
const KEEP_NOTES: Duration = Duration::from_secs(60 * 60);
/// Before the first of all positions.
const START: i64 = -1;
const TRYING: &str = "read store: trying the handlers";

/// Commands that are tried.
pub(in crate::projector) struct RedisDryRun {
    config: ProjectorConfig,
    commands: Commands,
    most_bytes: usize,
    /// What the names of keys begin with; empty where no server is named.
    prefix: String,
    server: Server,
    began: Instant,
}

/// What runs them.
enum Server {
    /// Nothing: they are shown.
    None,
    /// Not begun yet.
    Named(Box<State>),
    /// Events with positions.
    Log { model: Box<RedisReadModel>, shard: (u32, Held) },
    /// Messages, of which so many have been tried.
    Queue { inbox: Box<RedisInbox>, messages: u64 },
}

impl RedisDryRun {
    /// Of these handlers, on keys of their own in the database that is named, if one is.
    pub(in crate::projector) fn new(
        config: &ProjectorConfig,
        commands: Commands,
        settings: Option<ConnectionSettings>,
    ) -> Self {
        let (prefix, server) = match settings {
            None => (String::new(), Server::None),
            Some(settings) => {
                let scratch = Scratch::new();
                let prefix = scratch.prefix().to_owned();
                (prefix, Server::Named(Box::new(State::to_try(&settings, &config.projection, scratch))))
            }
        };
        Self {
            config: config.clone(),
            commands,
            most_bytes: most_bytes_of_one_event(config.max_event_bytes),
            prefix,
            server,
            began: Instant::now(),
        }
    }
}

impl Server {
    fn state(&mut self) -> Option<&mut State> {
        match self {
            Self::None => None,
            Self::Named(state) => Some(state),
            Self::Log { model, .. } => Some(&mut model.state),
            Self::Queue { inbox, .. } => Some(inbox.state()),
        }
    }

    /// Runs the commands of an event as a worker does; returns the replies.
    async fn run(&mut self, event: &Event, commands: &[Filled]) -> Result<Vec<Reply>, DryRunError> {
        let is_queue = matches!(self, Self::Queue { .. });
        let message = match self {
            Self::Queue { messages, .. } => {
                *messages += 1;
                Some(messages.to_string())
            }
            _ => None,
        };
        if let Some((scratch, state)) = self.state().and_then(State::scratch) {
            let prefix = scratch.prefix().to_owned();
            scratch.expect(commands.iter().flat_map(Filled::keys).map(|key| stand_in(&prefix, key)));
            scratch.expect(message.iter().map(|message| format!("{state}:seen:{message}")));
        }
        let applied = match self {
            Self::Queue { inbox, .. } => inbox.handle(message.as_slice(), slice::from_ref(event)).await.map(|_| None),
            Self::Log { model, shard: (shard, held) } => {
                let advance = Advance::to(event.position, *shard, *held);
                let applied = model.apply(slice::from_ref(event), &|_| vec![advance], &|| false).await;
                if matches!(applied, Ok(Applied::Committed(_))) {
                    (held.committed, held.position) = (event.position, event.position);
                }
                applied.map(|applied| match applied {
                    Applied::Committed(_) => None,
                    Applied::ReadAgain(again) => Some(again),
                })
            }
            Self::None | Self::Named(_) => return Ok(Vec::new()),
        };
        let Some(state) = self.state() else { return Ok(Vec::new()) };
        if applied?.is_some() {
            return Err(DryRunError::Store(state.nonsense(TRYING)));
        }
        let mut replies = state.scratch().map(|(scratch, _)| scratch.take_replies()).unwrap_or_default();
        if is_queue && !replies.is_empty() {
            // The first is the message's note.
            replies.remove(0);
        }
        if replies.len() == commands.len() { Ok(replies) } else { Err(DryRunError::Store(state.garbled(RUNNING))) }
    }
}

impl DryRun for RedisDryRun {
    async fn begin(&mut self) -> Result<(), ProjectorError> {
        let is_queue = matches!(self.config.input, Input::Queue(_));
        match &mut self.server {
            Server::Named(state) if is_queue => RedisInbox::check(state).await?,
            Server::Named(state) => {
                state.create(&Sharding::Hashed { shards: 1, start: START }).await?;
            }
            _ => return Ok(()),
        }
        let Server::Named(state) = std::mem::replace(&mut self.server, Server::None) else { return Ok(()) };
        let commands = self.commands.clone().with_prefix(&self.prefix);
        if is_queue {
            let inbox = Box::new(RedisInbox::new(*state, &self.config, commands, KEEP_NOTES));
            self.server = Server::Queue { inbox, messages: 0 };
            return Ok(());
        }
        let most_of_one_event = self.most_bytes;
        let model = RedisReadModel { me: "dry-run".to_owned(), state: *state, commands, shards: 1, most_of_one_event };
        self.server =
            Server::Log { model: Box::new(model), shard: (0, Held { fence: 0, committed: START, position: START }) };
        if let Server::Log { model, shard } = &mut self.server {
            let taken = model.take(&[0]).await?;
            *shard = taken.into_iter().next().ok_or_else(|| model.state.nonsense(TRYING))?;
        }
        Ok(())
    }

    async fn handle(&mut self, event: &Event) -> Result<Option<Done>, DryRunError> {
        let filled = self.commands.of(event, self.most_bytes).map_err(DryRunError::Event)?;
        if filled.is_empty() {
            return Ok(None);
        }
        if let Some(state) = self.server.state()
            && self.began.elapsed() > LONGEST
        {
            let message = format!("it has taken {} minutes: try fewer events at once", LONGEST.as_secs() / 60);
            return Err(DryRunError::Store(state.failed(TRYING, message)));
        }
        let summary = if filled.len() == 1 { "1 command".to_owned() } else { format!("{} commands", filled.len()) };
        let replies = self.server.run(event, &filled).await?;
        let mut lines: Vec<String> = filled.iter().map(line).collect();
        for (line, reply) in lines.iter_mut().zip(&replies) {
            line.push_str(" -> ");
            line.push_str(&shown(reply));
        }
        Ok(Some(Done { summary, lines }))
    }

    async fn finish(&mut self) -> Result<Vec<String>, DryRunError> {
        Ok(Vec::new())
    }

    async fn remove(&mut self) -> Result<(), ProjectorError> {
        match self.server.state() {
            Some(state) => state.remove_scratch().await,
            None => Ok(()),
        }
    }
}

fn line(command: &Filled) -> String {
    command.words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A reply, of which the script has left a part where it is long.
fn shown(reply: &Reply) -> String {
    match reply {
        Reply::Nil => "(nil)".to_owned(),
        Reply::Integer(number) => number.to_string(),
        Reply::Text(text) => quoted(&String::from_utf8_lossy(text)),
        Reply::LongText(bytes) => format!("(a text of {bytes} bytes)"),
        Reply::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Reply::Error(error) => quoted(error),
        Reply::Oversized => "(too much to show)".to_owned(),
    }
}

/// A word as `redis-cli` takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "_-.:/{}+@,…".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("{word:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart_whatever_they_hold() {
        for (word, shown) in [
            ("order:1", "order:1"),
            ("{shop/orders}:a", "{shop/orders}:a"),
            ("", "\"\""),
            ("two words", "\"two words\""),
            ("a\"b\n", "\"a\\\"b\\n\""),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }

    #[test]
    fn replies_are_shown_each_on_one_line() {
        let text = |text: &str| Reply::Text(text.as_bytes().to_vec());
        let items = Reply::Array(vec![text("a b"), Reply::Nil, Reply::Array(Vec::new()), Reply::Integer(-1)]);
        for (reply, expected) in [(text("OK"), "OK"), (items, "[\"a b\" (nil) [] -1]"), (text("a\nb"), "\"a\\nb\"")] {
            assert_eq!(shown(&reply), expected);
        }
    }
}
