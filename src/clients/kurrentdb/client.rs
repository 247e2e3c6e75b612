//! Asks one cluster: finds the server that leads it, sends many requests over one connection to it, and opens a new one when that broke.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures::StreamExt as _;
use prost::Message;
use tokio::time::{Instant, timeout_at};

use super::{
    ConnectionSettings,
    connection::{Candidate, Connection, no_leader, resolve, share, timed_out, told},
    events::{EventPage, events},
    grpc::{Call, Flow, Frame},
    messages::{Empty, ListOptions, ListReq, Malformed, Metadata, ReadEvent, ReadResp, Subscription, parts},
    reads::{READ, Read, created, decode, unreadable, written},
    shards::stream_hash,
    words::{Trouble, no_stream, not_the_api, refused},
};
use crate::{addresses::AddressRules, api::Reason, clients::words::without_secrets, measure::MeasureError};

const LIST: &str = "/event_store.client.persistent_subscriptions.PersistentSubscriptions/List";
/// So many requests are under way at the same time.
const AT_ONCE: usize = 16;
/// A larger event is passed over: its position and time stay unknown. A server takes events of 1 MiB unless it is told otherwise.
const LARGEST_EVENT: usize = (1 << 20) + (64 << 10);
/// A list of subscriptions takes about 300 bytes for each, and 100 for each of its consumers.
const LARGEST_LIST: usize = 8 << 20;
/// An empty subscription takes two bytes in a list and a hundred times that in memory, so that they are counted, too.
const MOST_SUBSCRIPTIONS: usize = 10_000;
/// A page ends after so many bytes of events.
const LARGEST_PAGE: usize = 2 << 20;
/// The type of links.
const LINK: &str = "$>";

/// A request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// All persistent subscriptions of the cluster.
    Subscriptions,
    /// Events, without what they hold. Links are not followed: a link is an event of its own.
    Read(Read),
    /// Events with what they hold. Links in a stream are followed; those in `$all` are events of their own, beside those that they lead to.
    Events(Read),
}

/// An event, without what it holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Recorded {
    /// Its number in its stream.
    pub revision: u64,
    /// Its place in the log, in bytes.
    pub commit: u64,
    /// When the server took it, by the server's clock; absent where it does not tell.
    pub created: Option<jiff::Timestamp>,
    /// The [hash](stream_hash) of its stream; of a link, that of the stream that it leads to.
    pub stream_hash: u64,
}

/// What was read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Page {
    /// In the order of the read; `None` for an event that was too large to be looked at.
    pub events: Vec<Option<Recorded>>,
    /// The revision of the stream's last event; absent for `$all`.
    pub last_revision: Option<u64>,
    /// False where reading ended before the end that the request names, since the events were large.
    pub whole: bool,
    /// The server's time in whole seconds, where it tells it.
    pub at: Option<jiff::Timestamp>,
}

/// The answer to a request of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// All persistent subscriptions, none where there are none.
    Subscriptions(Vec<Subscription>),
    /// Events.
    Page(Page),
    /// Events with what they hold.
    Events(EventPage),
}

/// Asks the leader of one cluster. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: ConnectionSettings,
    /// Which addresses may be asked.
    addresses: Arc<AddressRules>,
    connection: Option<Connection>,
    /// The server that answered last, which is tried first.
    preferred: Option<Candidate>,
    /// As which program it connects, for people who look at the server's connections.
    program: &'static str,
}

/// Servers that do not lead, as this call found out, and the one that does by their word.
#[derive(Default)]
struct Followers {
    seen: Vec<Candidate>,
    leader: Option<String>,
}

impl Client {
    /// Not connected yet.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>) -> Self {
        Self { settings, addresses, connection: None, preferred: None, program: "projectionist-sampler" }
    }

    /// The same, which connects under this name.
    #[must_use]
    pub fn named(self, program: &'static str) -> Self {
        Self { program, ..self }
    }

    /// Where it asks.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Sends all the requests over one connection, 16 at a time, and returns the answer to each, in their order.
    ///
    /// # Errors
    /// Why there is no answer to that request until `by`. Holds no secret and does not say where.
    pub async fn ask(&mut self, requests: &[Request], by: Instant) -> Vec<Result<Response, MeasureError>> {
        if requests.is_empty() {
            return Vec::new();
        }
        let mut followers = Followers::default();
        let mut again = true;
        loop {
            // Taken out, so that a call that is given up half-way leaves no connection in an unknown state.
            let (connection, kept) = match self.connection.take().filter(Connection::is_open) {
                Some(connection) => (connection, true),
                None => match self.open(&followers, by).await {
                    Ok(connection) => (connection, false),
                    Err(failed) => return requests.iter().map(|_| Err(failed.clone())).collect(),
                },
            };
            let answers = ask_at_once(&connection, requests, by).await;
            let not_leader = answers.iter().find_map(|answer| match answer {
                Err(Trouble::NotLeader(leader)) => Some(leader.clone()),
                _ => None,
            });
            if let Some(leader) = not_leader {
                followers.seen.push(connection.candidate.clone());
                followers.leader = leader.or(followers.leader);
                continue;
            }
            let answered = answers.iter().any(Result::is_ok);
            let broke = answers.iter().any(|answer| matches!(answer, Err(Trouble::Broken(_))));
            // A server may have closed a connection that was idle: a new one is tried once.
            if broke && kept && !answered && std::mem::take(&mut again) {
                continue;
            }
            if !broke && connection.is_open() && answers.iter().any(|answer| !is_timeout(answer)) {
                self.preferred = Some(connection.candidate.clone());
                self.connection = Some(connection);
            }
            return answers.into_iter().map(|answer| answer.map_err(|trouble| self.masked(told(trouble)))).collect();
        }
    }

    /// Connects to the first server that accepts the connection and is none of those that follow another.
    async fn open(&self, followers: &Followers, by: Instant) -> Result<Connection, MeasureError> {
        let (mut candidates, mut failed) = resolve(&self.settings.servers, &self.addresses, by).await;
        candidates.retain(|candidate| !followers.seen.contains(candidate));
        // Only servers that are named are connected to: another that is told to lead could be any server.
        let leads = |candidate: &Candidate| followers.leader.as_deref() == Some(&candidate.server.to_string());
        candidates.sort_by_key(|candidate| (!leads(candidate), self.preferred.as_ref() != Some(candidate)));
        let count = candidates.len();
        for (turn, candidate) in candidates.into_iter().enumerate() {
            let left = by.saturating_duration_since(Instant::now());
            let by = Instant::now() + share(left, count - turn);
            match Connection::open(&self.settings, candidate, self.program, by).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
        let named = |leader: &String| self.settings.servers.iter().any(|server| server.to_string() == *leader);
        let elsewhere = followers.leader.as_ref().is_some_and(|leader| !named(leader));
        if !followers.seen.is_empty() && (failed.is_none() || elsewhere) {
            return Err(no_leader(followers.leader.as_deref()));
        }
        Err(self.masked(failed.unwrap_or_else(|| timed_out(self.settings.tls))))
    }

    /// Without the password, in whatever form it was sent, should a server repeat it.
    fn masked(&self, error: MeasureError) -> MeasureError {
        let Some((user, password)) = &self.settings.login else { return error };
        let sent = BASE64_STANDARD.encode(format!("{user}:{password}"));
        MeasureError { message: without_secrets(&error.message, [password.as_str(), sent.as_str()]), ..error }
    }
}

fn is_timeout(answer: &Result<Response, Trouble>) -> bool {
    matches!(answer, Err(Trouble::Refused(error)) if error.reason == Reason::TimedOut)
}

async fn ask_at_once(connection: &Connection, requests: &[Request], by: Instant) -> Vec<Result<Response, Trouble>> {
    let requests = requests.iter().cloned().enumerate();
    let answers = futures::stream::iter(requests).map(|(place, request)| async move {
        let answer = timeout_at(by, ask_one(connection, &request, by)).await;
        (place, answer.unwrap_or_else(|_| Err(Trouble::Refused(timed_out(connection.target.tls)))))
    });
    let mut answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

async fn ask_one(connection: &Connection, request: &Request, by: Instant) -> Result<Response, Trouble> {
    match request {
        Request::Subscriptions => subscriptions(connection, by).await.map(Response::Subscriptions),
        Request::Read(read) => page(connection, read, by).await.map(Response::Page),
        Request::Events(read) => events(connection, read, by).await.map(Response::Events),
    }
}

async fn subscriptions(connection: &Connection, by: Instant) -> Result<Vec<Subscription>, Trouble> {
    let request = ListReq { options: Some(ListOptions { all: Some(Empty {}) }) };
    let call = Call { target: &connection.target, path: LIST, largest: LARGEST_LIST, by };
    let mut found: Option<Vec<Subscription>> = None;
    let mut take = |frame| {
        if found.is_some() {
            return Err(not_the_api("two lists"));
        }
        found = Some(listed(&bytes(frame)?)?);
        Ok(Flow::Continue)
    };
    match call.ask(connection.requests.clone(), &request, &mut take).await {
        Err(Trouble::NoSubscriptions) => Ok(Vec::new()),
        Err(trouble) => Err(trouble),
        Ok(_) => found.ok_or_else(|| not_the_api("no list")),
    }
}

async fn page(connection: &Connection, read: &Read, by: Instant) -> Result<Page, Trouble> {
    let call = Call { target: &connection.target, path: READ, largest: LARGEST_EVENT, by };
    let most = read.most();
    let mut page = Page { whole: true, ..Page::default() };
    let mut bytes = 0;
    let mut take = |frame| {
        let length = match &frame {
            Frame::Message(message) => message.len(),
            Frame::TooLarge => LARGEST_EVENT,
        };
        let (more, Glance { created, stream_hash }) = match frame {
            Frame::TooLarge => {
                (ReadResp { event: Some(ReadEvent { event: None }), ..ReadResp::default() }, Glance::default())
            }
            Frame::Message(message) => {
                let glance = glance(&message).map_err(unreadable)?;
                (decode(message)?, glance)
            }
        };
        if more.stream_not_found.is_some() {
            return Err(no_stream());
        }
        page.last_revision = more.last_stream_position.or(page.last_revision);
        if let Some(event) = more.event {
            if page.events.len() >= most {
                return Err(not_the_api("more events than were asked for"));
            }
            page.events.push(event.event.map(|event| Recorded {
                revision: event.stream_revision,
                commit: event.commit_position,
                created,
                stream_hash,
            }));
            bytes += length;
        }
        if bytes > LARGEST_PAGE && page.events.len() < most {
            page.whole = false;
            return Ok(Flow::Stop);
        }
        Ok(Flow::Continue)
    };
    let at = call.ask(connection.requests.clone(), &written(read, false), &mut take).await?;
    page.at = at;
    Ok(page)
}

fn bytes(frame: Frame) -> Result<Bytes, Trouble> {
    match frame {
        Frame::Message(message) => Ok(message),
        Frame::TooLarge => Err(not_the_api("the answer is too large")),
    }
}

/// The subscriptions of a list (`ListResp`), one after the other, so that a list takes no more memory than those that are kept.
fn listed(list: &[u8]) -> Result<Vec<Subscription>, Trouble> {
    let mut found = Vec::new();
    for subscription in parts(list, 1) {
        if found.len() == MOST_SUBSCRIPTIONS {
            return Err(refused(
                Reason::InvalidAnswer,
                &format!(
                    "the cluster lists more than {MOST_SUBSCRIPTIONS} persistent subscriptions, which are not read"
                ),
            ));
        }
        found.push(decode(subscription.map_err(unreadable)?)?);
    }
    Ok(found)
}

/// What is looked at of an event beside its numbers, without keeping its body.
#[derive(Default)]
struct Glance {
    created: Option<jiff::Timestamp>,
    stream_hash: u64,
}

/// Looks into the event of a `ReadResp`.
fn glance(message: &[u8]) -> Result<Glance, Malformed> {
    let mut seen = Glance::default();
    for event in parts(message, 1) {
        for recorded in parts(event?, 1) {
            let recorded = recorded?;
            let mut is_link = false;
            for entry in parts(recorded, 6) {
                let Metadata { key, value } = Metadata::decode(entry?)?;
                match key.as_str() {
                    "created" => seen.created = created(&value),
                    "type" => is_link = value == LINK,
                    _ => {}
                }
            }
            for stream in parts(recorded, 2) {
                for name in parts(stream?, 3) {
                    seen.stream_hash = stream_hash(name?);
                }
            }
            // `REVISION@STREAM`
            for target in parts(recorded, 8).filter(|_| is_link) {
                let target = target?;
                if let Some(at) = target.iter().position(|byte| *byte == b'@') {
                    seen.stream_hash = stream_hash(&target[at + 1..]);
                }
            }
        }
    }
    Ok(seen)
}
