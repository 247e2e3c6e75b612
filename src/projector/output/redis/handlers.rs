//! The commands of each type of event, and how an event fills them.

use std::{collections::BTreeMap, sync::Arc};

use sha2::{Digest, Sha256};

use super::super::{
    super::{
        config::RedisOutput,
        error::ProjectorError,
        event::Event,
        fields_seen::FieldsSeen,
        template::{Template, TemplateError},
    },
    claims::{Place, Wanted},
};

/// Commands that write one key, which is their first argument, wait for nothing and take no script. `PUBLISH` names a channel there.
const ALLOWED: [&str; 58] = [
    "APPEND",
    "DECR",
    "DECRBY",
    "DEL",
    "EXPIRE",
    "EXPIREAT",
    "GEOADD",
    "HDEL",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HMSET",
    "HSET",
    "HSETNX",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "LINSERT",
    "LPOP",
    "LPUSH",
    "LPUSHX",
    "LREM",
    "LSET",
    "LTRIM",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PFADD",
    "PSETEX",
    PUBLISH,
    "RPOP",
    "RPUSH",
    "RPUSHX",
    "SADD",
    "SET",
    "SETBIT",
    "SETEX",
    "SETNX",
    "SETRANGE",
    "SREM",
    "UNLINK",
    "XADD",
    "XDEL",
    "XTRIM",
    "ZADD",
    "ZINCRBY",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    "JSON.SET",
    "JSON.DEL",
    "JSON.MERGE",
    "JSON.NUMINCRBY",
    "JSON.ARRAPPEND",
    "JSON.CLEAR",
    "JSON.STRAPPEND",
    "JSON.TOGGLE",
    "JSON.ARRTRIM",
];
/// What Lua can hand over to a command is limited.
const MOST_WORDS: usize = 1_000;
/// What our own keys begin with.
const RESERVED: &str = "projectionist:";
/// Commands whose further words are keys as well.
const OF_MANY_KEYS: [&str; 2] = ["DEL", "UNLINK"];
/// Names a channel in place of a key.
const PUBLISH: &str = "PUBLISH";

/// How many of the words of a command are keys, from the second on.
fn count_of_keys(name: &str) -> usize {
    if OF_MANY_KEYS.contains(&name) { usize::MAX } else { 1 }
}

/// What stands for a key, in the same slot of a Redis Cluster. The prefix holds no brace.
pub(super) fn stand_in(prefix: &str, key: &str) -> String {
    // Of a key with braces the slot is that of what is in the first ones.
    if key.contains(['{', '}']) { format!("{prefix}{key}") } else { format!("{prefix}{{{key}}}") }
}

/// The words of a command that name what it writes: keys, or a channel.
pub fn written_by(words: &[String]) -> &[String] {
    let [name, rest @ ..] = words else { return &[] };
    rest.get(..count_of_keys(&name.to_ascii_uppercase())).unwrap_or(rest)
}

/// Why a command cannot be run.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// A handler without commands, or a command without words.
    #[error(
        "it must have at least one command, and each command a name and a key: [[HSET, \"order:{{stream}}\", …], …]"
    )]
    Empty,
    /// A command that reads, waits, or names its keys elsewhere.
    #[error(
        "{0} is not a command that a handler may use: there are those that write the key that comes first, such as SET, HSET, HINCRBY, SADD, ZADD, LPUSH, XADD, DEL, EXPIRE and JSON.SET"
    )]
    NotAllowed(String),
    /// Too long.
    #[error("a command {0} has more than 1000 words: split it")]
    TooLong(String),
    /// A word is no template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The handlers, understood.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Commands {
    of_types: BTreeMap<String, Handler>,
    shared: bool,
    /// What the names of keys and channels begin with that stand for the real ones; empty for workers.
    prefix: String,
}

/// What is done with events of a type.
#[derive(Clone, Debug)]
struct Handler {
    commands: Vec<Command>,
    seen: FieldsSeen,
}

/// A command of a handler.
#[derive(Clone, Debug)]
struct Command {
    words: Vec<Template>,
    /// Of this command as it is written and those before it: tells whether a changed handler begins as it did.
    fingerprint: Arc<str>,
}

/// A command for an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Filled {
    pub(super) words: Vec<String>,
    /// Of the command as it is written and those before it in the handler.
    pub(super) fingerprint: Arc<str>,
}

impl Command {
    /// Its first word in capitals.
    fn name(&self) -> String {
        self.words.first().map(|name| name.beginning().0.to_ascii_uppercase()).unwrap_or_default()
    }

    fn keys(&self) -> impl Iterator<Item = &Template> {
        self.words.iter().skip(1).take(count_of_keys(&self.name()))
    }
}

impl Filled {
    #[cfg(test)]
    pub(super) fn new(words: Vec<String>, fingerprint: &str) -> Self {
        Self { words, fingerprint: fingerprint.into() }
    }

    /// Its first word in capitals.
    pub(super) fn name(&self) -> String {
        self.words.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default()
    }

    /// In bytes.
    pub(super) fn size(&self) -> usize {
        self.words.iter().map(String::len).sum()
    }

    /// The keys that it writes. A channel is none.
    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        let name = self.name();
        let count = if name == PUBLISH { 0 } else { count_of_keys(&name) };
        self.words.iter().skip(1).take(count)
    }

    /// Its keys, or its channel.
    fn places_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let count = count_of_keys(&self.name());
        self.words.iter_mut().skip(1).take(count)
    }

    fn writes_reserved(&self) -> bool {
        self.words.iter().skip(1).take(count_of_keys(&self.name())).any(|key| key.starts_with(RESERVED))
    }
}

impl Commands {
    /// Reads the handlers.
    ///
    /// # Errors
    /// Names the type of event whose handler is wrong, and why.
    pub(in crate::projector) fn parse(output: &RedisOutput) -> Result<Self, ProjectorError> {
        let parsed = output.handlers.iter().map(|(event_type, commands)| {
            let commands = handler(commands);
            let commands =
                commands.map_err(|source| ProjectorError::Commands { event_type: event_type.clone(), source })?;
            Ok((event_type.clone(), Handler { commands, seen: FieldsSeen::default() }))
        });
        let of_types = parsed.collect::<Result<_, ProjectorError>>()?;
        Ok(Self { of_types, shared: output.shared, prefix: String::new() })
    }

    /// The same with other keys and channels, as [`stand_in`] calls them.
    pub(super) fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// What the Projection claims for its workers. A channel is no key.
    pub(super) fn wanted(&self, projection: &str) -> Wanted {
        let commands = self.of_types.values().flat_map(|handler| &handler.commands);
        let places = commands.filter(|command| command.name() != PUBLISH).flat_map(Command::keys).filter_map(Place::of);
        Wanted { projection: projection.to_owned(), places: places.collect(), shared: self.shared }
    }

    /// The first type of event whose handler asks for the position.
    pub(in crate::projector) fn asks_for_position(&self) -> Option<&str> {
        let asks = |command: &Command| command.words.iter().any(Template::asks_for_position);
        self.of_types
            .iter()
            .find(|(_, handler)| handler.commands.iter().any(asks))
            .map(|(event_type, _)| event_type.as_str())
    }

    /// The types of event that have a handler.
    pub(in crate::projector) fn event_types(&self) -> Vec<String> {
        self.of_types.keys().cloned().collect()
    }

    /// The commands for an event, which may have so many bytes in all.
    ///
    /// # Errors
    /// Why they cannot be run for this event, without anything of what it holds.
    pub(super) fn of(&self, event: &Event, most_bytes: usize) -> Result<Vec<Filled>, String> {
        let (mut left, mut filled) = (most_bytes, Vec::new());
        let Some(Handler { commands, seen }) = self.of_types.get(&event.event_type) else { return Ok(filled) };
        let asked = || commands.iter().flat_map(|command| command.words.iter().flat_map(Template::paths));
        for (number, command) in (1..).zip(commands) {
            let mut words = Vec::new();
            for word in &command.words {
                let word = word
                    .fill_within(event, left)
                    .map_err(|missing| format!("command {number}: {}", seen.lacks(event, &missing, asked())))?
                    .ok_or_else(|| too_large(number, most_bytes))?;
                left -= word.len();
                words.push(word);
            }
            let mut command = Filled { words, fingerprint: Arc::clone(&command.fingerprint) };
            if command.writes_reserved() {
                return Err(format!(
                    "command {number} ({}) writes a key that begins with {RESERVED}, where the checkpoints are",
                    command.name()
                ));
            }
            if !self.prefix.is_empty() {
                command.places_mut().for_each(|place| *place = stand_in(&self.prefix, place));
            }
            filled.push(command);
        }
        seen.had_all();
        Ok(filled)
    }
}

fn too_large(number: i32, most_bytes: usize) -> String {
    format!(
        "with command {number} the commands for this event have more than {most_bytes} bytes, which is 16 MiB and spec.projector.builtin.maxEventBytes: let the handler write less of the event, or raise that and the workers' memory"
    )
}

fn handler(commands: &[Vec<String>]) -> Result<Vec<Command>, CommandError> {
    if commands.is_empty() {
        return Err(CommandError::Empty);
    }
    let mut hash = Sha256::new();
    let parsed = commands.iter().map(|words| {
        let templates = command(words)?;
        for word in words {
            hash.update((word.len() as u64).to_be_bytes());
            hash.update(word);
        }
        hash.update([0]);
        let digest = hash.clone().finalize();
        let fingerprint = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>().into();
        Ok(Command { words: templates, fingerprint })
    });
    parsed.collect()
}

fn command(words: &[String]) -> Result<Vec<Template>, CommandError> {
    let [name, _, ..] = words else { return Err(CommandError::Empty) };
    if !ALLOWED.contains(&name.to_ascii_uppercase().as_str()) {
        return Err(CommandError::NotAllowed(name.clone()));
    }
    if words.len() > MOST_WORDS {
        return Err(CommandError::TooLong(name.clone()));
    }
    Ok(words.iter().map(|word| Template::parse(word)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Commands, String> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let handlers = BTreeMap::from([("Placed".to_owned(), vec![words])]);
        Commands::parse(&RedisOutput { handlers, shared: false }).map_err(|error| error.to_string())
    }

    fn event(stream: &str) -> Event {
        Event {
            position: 1,
            since: 1,
            before: 0,
            shown_position: 1,
            behind_parked: None,
            shard: 0,
            event_type: "Placed".to_owned(),
            stream: Some(stream.to_owned()),
            recorded_at: None,
            data: Some(super::super::super::super::event::JsonText(r#"{"total": "a b\nc"}"#.to_owned())),
        }
    }

    #[test]
    fn commands_that_write_one_key_are_taken_and_others_are_refused_by_name() {
        assert!(parse(&["hset", "order:{stream}", "total", "{data.total}"]).is_ok());
        for words in [
            &["EVAL", "return 1", "0"][..],
            &["BLPOP", "q", "0"],
            &["KEYS", "*"],
            &["MSET", "a", "1"],
            &["{type}", "a"],
        ] {
            let why = parse(words).unwrap_err();
            assert!(why.contains("event type Placed") && why.contains(words[0]) && why.contains("HSET"), "{why}");
        }
        for words in [&["SET"][..], &[]] {
            assert!(parse(words).unwrap_err().contains("at least one command"), "{words:?}");
        }
        assert!(parse(&["SET", "order:{total}", "1"]).unwrap_err().contains("{total}"));
    }

    #[test]
    fn an_event_never_writes_where_the_checkpoints_are() {
        let commands = parse(&["SET", "{stream}", "{data.total}"]).unwrap();
        assert_eq!(commands.of(&event("k"), 100).unwrap()[0].words, ["SET", "k", "a b\nc"]);
        let reserved = event("projectionist:{shop/orders}");
        assert!(commands.of(&reserved, 100).unwrap_err().contains("checkpoints"));
        for name in ["DEL", "unlink"] {
            let commands = parse(&[name, "a", "b", "{stream}"]).unwrap();
            assert!(commands.of(&reserved, 100).unwrap_err().contains("checkpoints"), "{name}");
        }
        // Only a value.
        assert!(parse(&["RPUSH", "a", "{stream}"]).unwrap().of(&reserved, 100).is_ok());
    }

    #[test]
    fn with_a_prefix_every_place_is_another_one_and_no_value_is() {
        let filled = |words: &[&str]| {
            let commands = parse(words).unwrap().with_prefix("dry:");
            commands.of(&event("s"), 100).map(|mut commands| commands.remove(0))
        };
        for (words, renamed, keys) in [
            (&["HSET", "a:{stream}", "a", "b"][..], &["HSET", "dry:{a:s}", "a", "b"][..], 1),
            (&["del", "a", "{stream}", "c{{d}}"], &["del", "dry:{a}", "dry:{s}", "dry:c{d}"], 3),
            (&["PUBLISH", "news", "{stream}"], &["PUBLISH", "dry:{news}", "s"], 0),
        ] {
            let filled = filled(words).unwrap();
            assert_eq!(filled.words, renamed);
            assert_eq!(filled.keys().count(), keys, "{words:?}");
        }
        assert!(filled(&["SET", "projectionist:x", "1"]).unwrap_err().contains("checkpoints"), "as without");
    }

    #[test]
    fn commands_of_one_event_that_are_too_large_are_told_before_they_are_filled() {
        let event = event("s");
        let commands = parse(&["RPUSH", "k", "{data.total}{data.total}", "{data.total}"]).unwrap();
        // RPUSH, k, and three times five letters.
        assert!(commands.of(&event, 21).is_ok());
        let why = commands.of(&event, 20).unwrap_err();
        assert!(why.contains("20 bytes") && why.contains("command 1") && why.contains("maxEventBytes"), "{why}");
    }

    #[test]
    fn a_fingerprint_is_of_what_is_written_up_to_a_command() {
        let of = |commands: &[&[&str]]| {
            let words = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let commands: Vec<Vec<String>> = commands.iter().map(words).collect();
            handler(&commands).unwrap().iter().map(|command| command.fingerprint.to_string()).collect::<Vec<_>>()
        };
        let first = of(&[&["SET", "a", "b"], &["SET", "c", "d"]]);
        let second = of(&[&["SET", "a", "b"], &["SET", "c", "e"]]);
        assert_eq!(first[0], second[0], "the same beginning");
        assert_ne!(first[1], second[1]);
        assert_ne!(of(&[&["SET", "ab", "c"]]), of(&[&["SET", "a", "bc"]]));
        assert_eq!(first[0], of(&[&["SET", "a", "b"]])[0], "the same in every run");
        assert!(first[0].len() == 16 && first[0].chars().all(|letter| letter.is_ascii_hexdigit()));
    }
}
