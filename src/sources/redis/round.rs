//! One look at a server or cluster: asks about all streams and groups at once, then for entries where the numbers alone do not tell.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    answers::{self, EntryId, Group, Stream},
    ask::{Answer, OfStream, ask, no_group, nonsense, refused},
    backlog::{self, Backlog, Known, MOST_COUNTED, Placed},
    counters::{Arrived, Handled},
    lists::{self, Lengths},
};
use crate::{
    api::{Reason, RedisList, StreamGroup},
    clients::{
        blamed::Blamed,
        redis::{Client, Command, Reply},
    },
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
    /// Streams whose answers ended the connection, or came too late.
    blamed: Blamed<String>,
    /// Groups whose entries were too large to be counted, and when.
    given_up: HashMap<StreamGroup, Instant>,
}

/// Entries that were too large are asked for again after so long.
const GIVE_UP_FOR: Duration = Duration::from_secs(60);

/// So often at most is asked at one look for what an answer that ended the connection kept from being read.
const MOST_ROUND_TRIPS: usize = 3;

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
    let mut streams: BTreeMap<String, Vec<&StreamGroup>> = BTreeMap::new();
    asked.iter().for_each(|one| streams.entry(one.key.clone()).or_default().push(one));
    let names: Vec<String> = streams.keys().cloned().collect();
    let (mut unread, last) = memory.blamed.part(&names);
    unread.extend(last);
    let (mut lists, mut told) = (HashMap::new(), BTreeMap::new());
    for turn in 0..MOST_ROUND_TRIPS {
        let of_lists: Vec<&RedisList> = asked_lists.iter().copied().filter(|_| turn == 0).collect();
        let of_streams: Vec<(&str, &[&StreamGroup])> =
            unread.iter().map(|stream| (stream.as_str(), streams[*stream].as_slice())).collect();
        let answers = match ask(client, &of_lists, &of_streams, by).await {
            Ok(answers) => answers,
            Err(unknown) if turn == 0 => return Err(unknown),
            // What the first round trip told stands.
            Err(_) => break,
        };
        let mut of_lists = answers.lists.into_iter();
        for list in asked_lists.iter().filter(|_| turn == 0) {
            let lengths = memory.lengths.entry((*list).clone()).or_default();
            let next = || of_lists.next().unwrap_or_else(|| Err(nonsense("the server")));
            lists.insert((*list).clone(), lists::read(list, next, lengths));
        }
        let answered: Vec<(&String, OfStream)> = unread.into_iter().zip(answers.streams).collect();
        unread = memory.blamed.judge(answered.iter().map(|(stream, of_stream)| (*stream, of_stream.outcome())));
        for (stream, OfStream { now, stream: of_stream, groups, held }) in answered {
            let why = |answer: Answer| answer.map_err(|error| memory.blamed.explain(stream, error));
            let (of_stream, groups) = (why(of_stream), why(groups));
            for (one, held) in streams[stream].iter().zip(held) {
                let placed = memory.places.get(*one).copied();
                told.insert(*one, tell(one, now, &of_stream, (&groups, placed), why(held)));
            }
        }
        if unread.is_empty() {
            break;
        }
    }
    let told: Vec<(&StreamGroup, Result<Told, MeasureError>)> = told.into_iter().collect();
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

fn about(one: &StreamGroup, unknown: &MeasureError) -> MeasureError {
    unknown.about(format_args!("stream {}, group {}", one.key, one.group))
}
