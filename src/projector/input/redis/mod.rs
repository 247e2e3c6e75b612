//! Takes entries of streams in Redis as one of a group's consumers.
//!
//! The server keeps which consumer was given an entry, and since when (its idle time). An entry that a consumer has had for [`LEASE`] is anybody's: so a dead
//! worker's entries are taken over, one that failed is given again after a pause (its idle time is set so), and those in hand are renewed.

mod entries;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use self::entries::Entries;
use super::{
    super::error::ProjectorError,
    queue::{Delivery, Queue},
};
use crate::{
    addresses::AddressRules,
    api::{RedisEvent, StreamGroup},
    clients::redis::{Bounds, Client, Command, ConnectionSettings, Reply, refusal},
    measure::MeasureError,
};

/// An entry that no consumer has renewed for this long is anybody's.
const LEASE: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// How often it is looked for such entries.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// For all that is asked in one turn.
const DEADLINE: Duration = Duration::from_secs(10);
/// A consumer of an earlier run that holds nothing is forgotten after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3_600);
/// How the names of our consumers begin.
const CONSUMER: &str = "projectionist ";
/// What one reply may take of memory, or twice as much as the largest event that is read.
const MOST_BYTES: usize = 16 << 20;
/// So many entries are asked for until it is known how large they are.
const FIRST_COUNT: usize = 16;
/// So many entries are named in one command.
const MOST_NAMED: usize = 1_000;

/// Removes consumers of the group ARGV[1] that hold nothing: ARGV[2], and those that begin with ARGV[3] and were idle for ARGV[4] milliseconds. In one step,
/// since what a consumer holds when it is removed is never given to another.
const FORGET: &str = "
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for i = 1, #fields, 2 do one[fields[i]] = fields[i + 1] end
  local old = string.sub(one.name, 1, #ARGV[3]) == ARGV[3] and one.idle > tonumber(ARGV[4])
  if one.pending == 0 and (one.name == ARGV[2] or old) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one.name)
  end
end";

/// One consumer of the group of each stream.
pub(in crate::projector) struct RedisQueue {
    client: Client,
    streams: Vec<Stream>,
    /// The consumer's name.
    consumer: String,
    entries: Entries,
}

struct Stream {
    names: StreamGroup,
    /// Where to go on looking for entries that others left behind, and when.
    cursor: String,
    claim_at: Instant,
    /// What others left behind must be taken first, however short a time ago: there is one worker at a time, which keeps the order.
    recovering: bool,
    /// How many entries to ask for, by what replies have taken.
    count: usize,
}

/// Names an entry: the place of its stream among the streams, and its ID.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::projector) struct Entry {
    stream: usize,
    id: String,
}

impl RedisQueue {
    /// Connects. `me` is this run of a worker, `alone`: there is one worker at a time, and it keeps the order; `types` are the types of event that are wanted.
    pub(in crate::projector) async fn open(
        settings: ConnectionSettings,
        (streams, event): (&[StreamGroup], &RedisEvent),
        max_event_bytes: u64,
        types: Vec<String>,
        (me, alone): (&str, bool),
    ) -> Result<Self, ProjectorError> {
        let largest = usize::try_from(max_event_bytes).unwrap_or(usize::MAX);
        let reply = MOST_BYTES.max(largest.saturating_mul(2));
        let bounds =
            Bounds { text: largest, reply, replies: reply.saturating_mul(streams.len().max(1)), received: 1 << 30 };
        let now = Instant::now();
        let stream = |names: &StreamGroup| Stream {
            names: names.clone(),
            cursor: FIRST.to_owned(),
            claim_at: now,
            recovering: alone,
            count: FIRST_COUNT,
        };
        let mut queue = Self {
            client: Client::new(settings, Arc::new(AddressRules::everywhere())).with_bounds(bounds),
            streams: streams.iter().map(stream).collect(),
            consumer: format!("{CONSUMER}{me}"),
            entries: Entries::new(event, types, max_event_bytes),
        };
        queue.forget("").await;
        Ok(queue)
    }

    /// Forgets consumers that hold nothing: `ended`, and those of earlier runs.
    async fn forget(&mut self, ended: &str) {
        let idle = FORGOTTEN_AFTER.as_millis().to_string();
        let forget = |stream: &Stream| {
            let StreamGroup { key, group } = &stream.names;
            Command::about_key(3, ["EVAL", FORGET, "1", key, group, ended, CONSUMER, &idle])
        };
        let commands: Vec<Command> = self.streams.iter().map(forget).collect();
        for reply in self.client.ask(&commands, Instant::now() + DEADLINE).await {
            if let Ok(Reply::Error(error)) = reply {
                tracing::debug!(error = refusal(&error).message, "consumers that have ended are left in the group");
            }
        }
    }

    /// Asks, and takes a refusal for a failure.
    async fn ask(&mut self, commands: &[Command], about: &[usize]) -> Result<Vec<Reply>, ProjectorError> {
        let replies = self.client.ask(commands, Instant::now() + DEADLINE).await;
        let told = replies.into_iter().zip(about).map(|(reply, stream)| match reply {
            Ok(Reply::Error(error)) => Err(self.refused(*stream, &error)),
            Ok(reply) => Ok(reply),
            Err(MeasureError { message, .. }) => {
                Err(ProjectorError::Source(format!("{}: {message}", self.client.settings())))
            }
        });
        told.collect()
    }

    fn refused(&self, stream: usize, error: &str) -> ProjectorError {
        let Some(Stream { names: StreamGroup { key, group }, .. }) = self.streams.get(stream) else {
            return ProjectorError::Source(refusal(error).message);
        };
        if error.starts_with("NOGROUP") {
            return ProjectorError::Source(format!(
                "stream {key} has no group {group}, or there is no such stream: create it where the read model begins, such as XGROUP CREATE {key} {group} 0 MKSTREAM. If there was one, create it behind what was handled: entries that the inbox has forgotten would have their effects twice"
            ));
        }
        ProjectorError::Source(format!("stream {key}, group {group}: {}", refusal(error).message))
    }

    /// The same command for entries of each stream: its words before the IDs, and those behind them.
    async fn about(
        &mut self,
        entries: &[Entry],
        words: impl Fn(&StreamGroup) -> (Vec<String>, Vec<String>),
    ) -> Result<(), ProjectorError> {
        let (mut commands, mut about) = (Vec::new(), Vec::new());
        for (place, stream) in self.streams.iter().enumerate() {
            let ids: Vec<&str> =
                entries.iter().filter(|entry| entry.stream == place).map(|entry| entry.id.as_str()).collect();
            let (before, behind) = words(&stream.names);
            for ids in ids.chunks(MOST_NAMED) {
                let words = before.iter().map(String::as_str).chain(ids.iter().copied());
                commands.push(Command::about_key(1, words.chain(behind.iter().map(String::as_str))));
                about.push(place);
            }
        }
        self.ask(&commands, &about).await.map(drop)
    }

    /// Takes the entries for this consumer once more, so that they are idle for so long.
    async fn claim(&mut self, entries: &[Entry], idle: Duration) -> Result<(), ProjectorError> {
        let (consumer, idle) = (self.consumer.clone(), idle.as_millis().to_string());
        let words = |names: &StreamGroup| {
            let StreamGroup { key, group } = names;
            let before = ["XCLAIM", key, group, &consumer, "0"].map(str::to_owned);
            (before.to_vec(), ["IDLE", &idle, "JUSTID"].map(str::to_owned).to_vec())
        };
        self.about(entries, words).await
    }

    /// What to ask of the streams, and of which.
    fn requests(&self, limit: usize) -> Vec<(usize, Request, Command)> {
        let mut requests = Vec::new();
        let share = (limit / self.streams.len().max(1)).max(1);
        for (place, stream) in self.streams.iter().enumerate() {
            let StreamGroup { key, group } = &stream.names;
            let count = stream.count.min(share).to_string();
            if stream.recovering || stream.claim_at <= Instant::now() {
                let idle = if stream.recovering { Duration::ZERO } else { LEASE }.as_millis().to_string();
                let words = ["XAUTOCLAIM", key, group, &self.consumer, &idle, &stream.cursor, "COUNT", &count];
                requests.push((place, Request::Claim, Command::about_key(1, words)));
            }
            if !stream.recovering {
                let words = ["XREADGROUP", "GROUP", group, &self.consumer, "COUNT", &count, "STREAMS", key, ">"];
                requests.push((place, Request::Read, Command::about_key(7, words)));
            }
        }
        requests
    }

    /// Takes over what a reply tells, and returns the entries in it.
    fn take_in(&mut self, place: usize, request: Request, reply: &Reply) -> Vec<Delivery<Entry>> {
        let Some(stream) = self.streams.get_mut(place) else { return Vec::new() };
        if *reply == Reply::Oversized {
            // They are this consumer's now, unseen: they are claimed once their lease has run out, in smaller portions.
            stream.count = (stream.count / 4).max(1);
            return Vec::new();
        }
        let entries = match request {
            Request::Claim => {
                let next = reply.as_array().and_then(|parts| parts.first()).and_then(Reply::as_str);
                stream.cursor = next.unwrap_or(FIRST).to_owned();
                if stream.cursor == FIRST {
                    stream.claim_at = Instant::now() + CLAIM_EVERY;
                    stream.recovering = false;
                }
                reply.as_array().and_then(|parts| parts.get(1))
            }
            Request::Read => {
                let one = reply.as_array().and_then(|streams| streams.first()).and_then(Reply::as_array);
                one.and_then(|pair| pair.get(1))
            }
        };
        let entries = entries.and_then(Reply::as_array).unwrap_or_default();
        let bytes: usize = entries.iter().map(size).sum();
        if entries.len() >= stream.count && bytes < MOST_BYTES / 8 {
            stream.count = stream.count.saturating_mul(2);
        } else if bytes > MOST_BYTES / 2 {
            stream.count = (stream.count / 2).max(1);
        }
        let key = stream.names.key.clone();
        entries.iter().filter_map(|entry| self.delivery(place, &key, entry)).collect()
    }

    fn delivery(&self, stream: usize, key: &str, entry: &Reply) -> Option<Delivery<Entry>> {
        let [id, fields] = entry.as_array()? else { return None };
        let id = id.as_str()?.to_owned();
        let content = match fields.as_array() {
            Some(fields) => self.entries.event(&id, fields),
            // It was deleted: there is nothing to do with it.
            None => Ok(None),
        };
        // An ID has no blanks, so that a key with blanks makes it no other entry's.
        Some(Delivery { id: format!("{key} {id}"), receipt: Entry { stream, id }, content })
    }
}

/// Where every look at what others left behind begins and ends.
const FIRST: &str = "0-0";

#[derive(Clone, Copy, Debug)]
enum Request {
    Claim,
    Read,
}

/// The bytes of texts in a reply, which nearly all of its memory goes to.
fn size(reply: &Reply) -> usize {
    match reply {
        Reply::Text(text) => text.len(),
        Reply::Array(items) => items.iter().map(size).sum(),
        _ => size_of::<Reply>(),
    }
}

impl Queue for RedisQueue {
    type Receipt = Entry;

    fn renew_every(&self) -> Duration {
        RENEW_EVERY
    }

    async fn fetch(&mut self, limit: usize) -> Result<Vec<Delivery<Entry>>, ProjectorError> {
        let requests = self.requests(limit);
        let about: Vec<usize> = requests.iter().map(|(place, ..)| *place).collect();
        let commands: Vec<Command> = requests.iter().map(|(.., command)| command.clone()).collect();
        let replies = self.ask(&commands, &about).await?;
        let mut found = Vec::new();
        for ((place, request, _), reply) in requests.iter().zip(&replies) {
            found.extend(self.take_in(*place, *request, reply));
        }
        Ok(found)
    }

    async fn renew(&mut self, held: &[Entry]) -> Result<(), ProjectorError> {
        self.claim(held, Duration::ZERO).await
    }

    async fn acknowledge(&mut self, done: &[Entry]) -> Result<(), ProjectorError> {
        let words = |names: &StreamGroup| (["XACK", &names.key, &names.group].map(str::to_owned).to_vec(), Vec::new());
        self.about(done, words).await
    }

    async fn put_back(&mut self, held: &[Entry], pause: Duration) -> Result<(), ProjectorError> {
        self.claim(held, LEASE.saturating_sub(pause)).await
    }

    fn place(&self, Entry { stream, id }: &Entry) -> String {
        let key = self.streams.get(*stream).map_or("?", |stream| &stream.names.key);
        format!("entry {id} of stream {key}")
    }

    async fn finish(&mut self) {
        let consumer = self.consumer.clone();
        self.forget(&consumer).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.as_bytes().to_vec())
    }

    fn queue() -> RedisQueue {
        let settings = ConnectionSettings::from_keys(|key| (key == "host").then_some("localhost")).unwrap();
        let names = StreamGroup { key: "orders".to_owned(), group: "list".to_owned() };
        RedisQueue {
            client: Client::new(settings, Arc::new(AddressRules::everywhere())),
            streams: vec![Stream {
                names,
                cursor: FIRST.to_owned(),
                claim_at: Instant::now(),
                recovering: false,
                count: 2,
            }],
            consumer: "me".to_owned(),
            entries: Entries::new(&RedisEvent::default(), vec!["Placed".to_owned()], 100),
        }
    }

    #[tokio::test]
    async fn an_entry_is_named_by_its_stream_and_its_id() {
        let mut queue = queue();
        let fields = Reply::Array(["type", "Placed"].map(text).to_vec());
        let gone = Reply::Array(vec![text("5-1"), Reply::Nil]);
        let entries = Reply::Array(vec![Reply::Array(vec![text("5-0"), fields]), gone]);
        let read = Reply::Array(vec![Reply::Array(vec![text("orders"), entries])]);
        let found = queue.take_in(0, Request::Read, &read);
        let ids: Vec<&str> = found.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["orders 5-0", "orders 5-1"]);
        assert!(matches!(found[0].content, Ok(Some(_))));
        assert!(matches!(found[1].content, Ok(None)), "one that was deleted is done");
        assert_eq!(queue.place(&found[0].receipt), "entry 5-0 of stream orders");
    }

    #[tokio::test]
    async fn who_is_alone_takes_what_was_left_behind_before_anything_new() {
        let mut queue = queue();
        queue.streams[0].recovering = true;
        let asked = queue.requests(10);
        assert!(matches!(asked[..], [(0, Request::Claim, _)]));
        let page = |cursor: &str| Reply::Array(vec![text(cursor), Reply::Array(Vec::new()), Reply::Array(Vec::new())]);
        queue.take_in(0, Request::Claim, &page("7-0"));
        assert!(queue.streams[0].recovering && queue.streams[0].cursor == "7-0");
        queue.take_in(0, Request::Claim, &page(FIRST));
        assert!(matches!(queue.requests(10)[..], [(0, Request::Read, _)]));
    }

    #[tokio::test]
    async fn less_is_asked_for_where_replies_are_too_large() {
        let mut queue = queue();
        queue.streams[0].count = 100;
        assert!(queue.take_in(0, Request::Read, &Reply::Oversized).is_empty());
        assert_eq!(queue.streams[0].count, 25);
    }
}
