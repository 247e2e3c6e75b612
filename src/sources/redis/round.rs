//! One look at a server or cluster: asks about all streams and groups at once, then for entries where the numbers alone do not tell.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    answers::{self, EntryId, Group, Stream},
    backlog::{self, Backlog, Known, MOST_COUNTED, Placed},
    counters::{Arrived, Handled},
    lists::{self, Lengths},
};
use crate::{
    api::{Reason, RedisList, StreamGroup},
    clients::redis::{Answered, Client, Command, Reply, refusal},
    measure::MeasureError,
};

/// What was seen of one group.
#[derive(Clone, Debug)]
pub(super) struct GroupState {
    pub(super) backlog: Backlog,
    /// The newest entry that the stream ever had.
    pub(super) newest: EntryId,
    /// The clock of the server that holds the stream, in milliseconds since 1970.
    pub(super) now: u64,
    /// Counters since measuring began.
    pub(super) arrived: u64,
    pub(super) handled: u64,
}

/// What was seen of a server, or of the nodes of a cluster.
pub(super) struct Looked {
    pub(super) groups: HashMap<StreamGroup, Result<GroupState, MeasureError>>,
    pub(super) lists: HashMap<RedisList, Result<lists::ListState, MeasureError>>,
}

/// What is kept from poll to poll.
#[derive(Default)]
pub(super) struct Memory {
    arrived: HashMap<String, Arrived>,
    handled: HashMap<StreamGroup, Handled>,
    lengths: HashMap<RedisList, Lengths>,
    entries: HashMap<StreamGroup, Entries>,
    /// Where groups were at the last look, if the server's counters were right about it.
    places: HashMap<StreamGroup, Placed>,
    /// Streams whose answer ended the connection: they are asked for last, so that they spoil no other's.
    last: HashSet<String>,
    /// Groups whose entries were too large to be counted, and when.
    given_up: HashMap<StreamGroup, Instant>,
}

/// Entries that were too large are asked for again after so long.
const GIVE_UP_FOR: Duration = Duration::from_secs(60);

/// What was found when entries were asked for.
#[derive(Clone, Copy)]
struct Entries {
    /// While these are the same, so are the entries.
    stream: Stream,
    delivered: EntryId,
    most: u64,
    found: (u64, Option<EntryId>),
}

/// A group with everything that the first round trip told of it.
struct Told {
    now: u64,
    stream: Stream,
    group: Group,
    held: Option<(EntryId, EntryId)>,
    known: Known,
}

impl Told {
    /// How many entries are to be asked for: none, the first, or one more than are counted.
    fn most_entries(&self) -> Option<u64> {
        match self.known {
            Known::AtMost(..) => Some(MOST_COUNTED + 1),
            known if backlog::needs_first(known, &self.group, self.held) => Some(1),
            Known::Exactly(..) => None,
        }
    }
}

type Answer = Result<Reply, MeasureError>;

/// Looks once.
///
/// # Errors
/// Why nothing at all is known.
pub(super) async fn look(
    client: &mut Client,
    memory: &mut Memory,
    (asked, asked_lists): (&BTreeSet<&StreamGroup>, &BTreeSet<&RedisList>),
    by: tokio::time::Instant,
) -> Result<Looked, MeasureError> {
    let mut streams: BTreeMap<&str, Vec<&StreamGroup>> = BTreeMap::new();
    asked.iter().for_each(|one| streams.entry(&one.key).or_default().push(one));
    let mut streams: Vec<(&str, Vec<&StreamGroup>)> = streams.into_iter().collect();
    streams.sort_by_key(|(stream, _)| memory.last.contains(*stream));
    // Before the streams, whose answers may be large enough to end the connection.
    let mut commands: Vec<Command> = asked_lists.iter().flat_map(|list| lists::commands(list)).collect();
    for (stream, groups) in &streams {
        commands.push(Command::about_key(2, ["XINFO", "STREAM", stream]));
        commands.push(Command::about_key(2, ["XINFO", "GROUPS", stream]));
        commands.extend(groups.iter().map(|one| Command::about_key(1, ["XPENDING", stream, &one.group])));
    }
    let of_each = [Command::new(["HELLO"]), Command::new(["TIME"])];
    let Answered { servers, replies } = client.ask_each(&of_each, &commands, by).await;
    let clocks: Vec<Result<u64, MeasureError>> = servers.into_iter().map(clock).collect();
    if let [Err(unknown)] = clocks.as_slice() {
        // A primary that became a replica: Sentinels know which server is the primary now.
        client.disconnect();
        return Err(unknown.clone());
    }
    if let ([], Some((Err(unknown), _))) = (clocks.as_slice(), replies.first()) {
        return Err(unknown.clone());
    }
    let mut answers = replies.into_iter();
    // The reply, and the time by the clock of the server that gave it.
    let mut unread = || -> Result<(Reply, u64), MeasureError> {
        let (reply, server) = answers.next().unwrap_or_else(|| (Err(nonsense("the server")), None));
        let clock = server.and_then(|server| clocks.get(server).cloned());
        // Why the server is not to be believed says more than what it said.
        clock.unwrap_or_else(|| Err(nonsense("the server"))).and_then(|now| Ok((reply?, now)))
    };
    let mut lists = HashMap::new();
    for list in asked_lists {
        let lengths = memory.lengths.entry((*list).clone()).or_default();
        lists.insert((*list).clone(), lists::read(list, || unread().map(|(reply, _)| reply), lengths));
    }
    let mut next = || unread().and_then(|(reply, now)| Ok((refused(reply)?, now)));

    let mut told: Vec<(&StreamGroup, Result<Told, MeasureError>)> = Vec::new();
    for (stream, groups) in &streams {
        let (of_stream, now) = next().map_or_else(|unknown| (Err(unknown), 0), |(reply, now)| (Ok(reply), now));
        let of_groups = next().map(|(reply, _)| reply);
        for one in groups {
            let held = next().map(|(reply, _)| reply);
            let placed = memory.places.get(*one).copied();
            told.push((one, tell(one, now, &of_stream, (&of_groups, placed), held)));
        }
        let spoilt = |answer: &Answer| answer.as_ref().is_err_and(|unknown| unknown.reason == Reason::InvalidAnswer);
        if spoilt(&of_stream) || spoilt(&of_groups) {
            memory.last.insert((*stream).to_owned());
        }
    }
    let entries = entries(client, memory, &told, by).await;
    memory.forget(asked);
    memory.lengths.retain(|list, _| asked_lists.contains(list));

    let mut groups = HashMap::new();
    for ((one, told), entries) in told.into_iter().zip(entries) {
        let seen = told.and_then(|told| Ok(memory.take(one, &told, entries.transpose()?)));
        groups.insert(one.clone(), seen);
    }
    Ok(Looked { groups, lists })
}

/// Asks for entries of those groups whose numbers do not tell everything, unless they are the same as at the last poll.
async fn entries(
    client: &mut Client,
    memory: &mut Memory,
    told: &[(&StreamGroup, Result<Told, MeasureError>)],
    by: tokio::time::Instant,
) -> Vec<Option<Result<(u64, Option<EntryId>), MeasureError>>> {
    let mut found: Vec<Option<Result<_, _>>> = Vec::new();
    let (mut commands, mut places) = (Vec::new(), Vec::new());
    for (place, (one, told)) in told.iter().enumerate() {
        found.push(None);
        let Some((told, most)) = told.as_ref().ok().and_then(|told| Some((told, told.most_entries()?))) else {
            continue;
        };
        if memory.given_up.get(*one).is_some_and(|since| since.elapsed() < GIVE_UP_FOR) {
            continue;
        }
        let before = memory.entries.get(*one).filter(|before| {
            (before.stream, before.delivered, before.most) == (told.stream, told.group.delivered, most)
        });
        if let Some(before) = before {
            found[place] = Some(Ok(before.found));
            continue;
        }
        let after = format!("({}", told.group.delivered);
        commands.push(Command::about_key(1, ["XRANGE", &one.key, &after, "+", "COUNT", &most.to_string()]));
        places.push((place, most));
    }
    if commands.is_empty() {
        return found;
    }
    let answers = client.ask_each(&[], &commands, by).await.replies;
    let mut blamed = HashSet::new();
    for ((place, most), (answer, server)) in places.into_iter().zip(answers) {
        let (one, told) = &told[place];
        let too_large = |unknown: &MeasureError| matches!(unknown.reason, Reason::InvalidAnswer | Reason::TimedOut);
        found[place] = match answer.and_then(refused) {
            Ok(Reply::Oversized) => {
                memory.given_up.insert((*one).clone(), Instant::now());
                None
            }
            Ok(reply) => Some(answers::range(&reply).ok_or_else(|| about(one, &nonsense("XRANGE")))),
            // The first that is not answered is the one that the server or the network could not cope with.
            Err(unknown) if too_large(&unknown) && blamed.insert(server) => {
                memory.given_up.insert((*one).clone(), Instant::now());
                None
            }
            Err(unknown) => Some(Err(about(one, &unknown))),
        };
        if let (Some(Ok(found)), Ok(told)) = (&found[place], told) {
            let entries = Entries { stream: told.stream, delivered: told.group.delivered, most, found: *found };
            memory.entries.insert((*one).clone(), entries);
        }
    }
    found
}

impl Memory {
    fn take(&mut self, one: &StreamGroup, told: &Told, entries: Option<(u64, Option<EntryId>)>) -> GroupState {
        let Told { now, stream, group, held, known } = told;
        let backlog = backlog::backlog(*known, entries, group, *held);
        match backlog::certain(*known, entries).and_then(|waiting| Placed::by(stream, group, waiting)) {
            Some(placed) => self.places.insert(one.clone(), placed),
            None => self.places.remove(one),
        };
        let arrived = self.arrived.entry(one.key.clone()).or_default().take(stream);
        let handled = self.handled.entry(one.clone()).or_default();
        let handled = handled.take(stream, group, &backlog, held.map(|(oldest, _)| oldest));
        GroupState { backlog, newest: stream.newest, now: *now, arrived, handled }
    }

    /// Forgets what is not asked for any more.
    fn forget(&mut self, asked: &BTreeSet<&StreamGroup>) {
        let streams: HashSet<&str> = asked.iter().map(|one| one.key.as_str()).collect();
        self.arrived.retain(|stream, _| streams.contains(stream.as_str()));
        self.last.retain(|stream| streams.contains(stream.as_str()));
        self.handled.retain(|one, _| asked.contains(one));
        self.entries.retain(|one, _| asked.contains(one));
        self.places.retain(|one, _| asked.contains(one));
        self.given_up.retain(|one, _| asked.contains(one));
    }
}

/// What the answers say of one group, which was `placed` at the last look.
fn tell(
    one: &StreamGroup,
    now: u64,
    stream: &Answer,
    (groups, placed): (&Answer, Option<Placed>),
    held: Answer,
) -> Result<Told, MeasureError> {
    let unknown = |unknown: &MeasureError| about(one, unknown);
    let stream = Stream::read(stream.as_ref().map_err(unknown)?).ok_or_else(|| unknown(&nonsense("XINFO STREAM")))?;
    let group = Group::find(groups.as_ref().map_err(unknown)?, &one.group)
        .map_err(|()| unknown(&nonsense("XINFO GROUPS")))?
        .ok_or_else(|| unknown(&no_group()))?;
    let held = answers::held(&held.map_err(|refused| unknown(&refused))?);
    Ok(Told { now, stream, group, held, known: backlog::undelivered(&stream, &group, placed) })
}

/// The server's clock in milliseconds since 1970, where the server can tell, from its replies to `HELLO` and `TIME`.
fn clock(replies: Vec<Answer>) -> Result<u64, MeasureError> {
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap_or_else(|| Err(nonsense("the server"))).and_then(refused);
    serves(&next()?)?;
    answers::time(&next()?).ok_or_else(|| nonsense("TIME"))
}

/// Whether this server can tell: a primary that holds data.
fn serves(hello: &Reply) -> Result<(), MeasureError> {
    let field = |name| hello.field(name).and_then(Reply::as_str);
    if field("mode") == Some("sentinel") {
        return Err(MeasureError {
            reason: Reason::SourceFailed,
            message: "this is a Redis Sentinel, which holds no streams: write redis-sentinel://…/NAME in the Secret, with the name by which it knows the primary"
                .to_owned(),
        });
    }
    match field("role") {
        Some("master") => Ok(()),
        // A replica in a cluster answers about keys with a redirection.
        Some(_) if field("mode") == Some("cluster") => Ok(()),
        Some(_) => Err(MeasureError {
            reason: Reason::SourceIsReplica,
            message: "the server is a replica, whose numbers stand still without a sign when it loses its primary: name the primary in the Secret, or a Service that follows it"
                .to_owned(),
        }),
        None => Err(nonsense("HELLO")),
    }
}

/// A refusal of the server in words.
fn refused(reply: Reply) -> Answer {
    match reply {
        Reply::Error(error) if error.contains("no such key") => Err(MeasureError {
            reason: Reason::StreamNotFound,
            message: "there is no such stream: correct its key in the Projection, or create it with the group (XGROUP CREATE … MKSTREAM). A stream that was deleted took its groups with it"
                .to_owned(),
        }),
        Reply::Error(error) if error.starts_with("NOGROUP") => Err(no_group()),
        Reply::Error(error) => Err(refusal(&error)),
        reply => Ok(reply),
    }
}

/// A group that is not there yet is how a projection begins whose workers create it.
fn no_group() -> MeasureError {
    MeasureError {
        reason: Reason::NeverCommitted,
        message: "the stream has no such group, so that how much is pending cannot be told: correct its name in the Projection, or create it (XGROUP CREATE)"
            .to_owned(),
    }
}

fn nonsense(what: &str) -> MeasureError {
    MeasureError {
        reason: Reason::InvalidAnswer,
        message: format!("the answer to {what} makes no sense: Redis 7.0 or newer is needed"),
    }
}

fn about(one: &StreamGroup, unknown: &MeasureError) -> MeasureError {
    unknown.about(format_args!("stream {}, group {}", one.key, one.group))
}
