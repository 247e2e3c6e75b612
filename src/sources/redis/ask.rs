//! Asks a server or the nodes of a cluster about streams, groups and lists in one round trip, and says which answers spoilt others.

use super::{answers, lists};
use crate::{
    api::{Reason, RedisList, StreamGroup},
    clients::redis::{Answered, Client, Command, Reply, refusal},
    measure::MeasureError,
};

/// A reply that is no refusal.
pub(super) type Answer = Result<Reply, MeasureError>;

/// What the server answered about a stream.
pub(super) struct OfStream {
    /// The clock of the server that holds it, in milliseconds since 1970.
    pub(super) now: u64,
    pub(super) stream: Answer,
    pub(super) groups: Answer,
    /// What consumers of each group hold.
    pub(super) held: Vec<Answer>,
}

/// What the server answered in one round trip.
pub(super) struct Answers {
    pub(super) lists: Vec<Result<Reply, MeasureError>>,
    pub(super) streams: Vec<OfStream>,
}

/// Asks for the lengths of these lists and about these streams with their groups, in one round trip.
pub(super) async fn ask(
    client: &mut Client,
    lists: &[&RedisList],
    streams: &[(&str, &[&StreamGroup])],
    by: tokio::time::Instant,
) -> Result<Answers, MeasureError> {
    // Before the streams, whose answers may be large enough to end the connection.
    let mut commands: Vec<Command> = lists.iter().flat_map(|list| lists::commands(list)).collect();
    let of_lists = commands.len();
    for (stream, groups) in streams {
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
    let lists = (0..of_lists).map(|_| unread().map(|(reply, _)| reply)).collect();
    let mut next = || unread().and_then(|(reply, now)| Ok((refused(reply)?, now)));
    let mut of_streams = Vec::new();
    for (_, groups) in streams {
        let (stream, now) = next().map_or_else(|unknown| (Err(unknown), 0), |(reply, now)| (Ok(reply), now));
        let mut plain = || next().map(|(reply, _)| reply);
        let of_groups = plain();
        of_streams.push(OfStream { now, stream, groups: of_groups, held: groups.iter().map(|_| plain()).collect() });
    }
    Ok(Answers { lists, streams: of_streams })
}

impl OfStream {
    /// Whether the stream was read. Of several answers that fail, what spoils others says most; what spoils none, such as a refusal, counts as read.
    pub(super) fn outcome(&self) -> Result<(), &MeasureError> {
        let Self { now: _, stream, groups, held } = self;
        let failed: Vec<&MeasureError> =
            [stream, groups].into_iter().chain(held).filter_map(|answer| answer.as_ref().err()).collect();
        let with = |reason: Reason| failed.iter().copied().find(|error| error.reason == reason);
        let found = [Reason::InvalidAnswer, Reason::TimedOut, Reason::SourceFailed].into_iter().find_map(with);
        found.map_or(Ok(()), Err)
    }
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
pub(super) fn refused(reply: Reply) -> Answer {
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
pub(super) fn no_group() -> MeasureError {
    MeasureError {
        reason: Reason::NeverCommitted,
        message: "the stream has no such group, so that how much is pending cannot be told: correct its name in the Projection, or create it (XGROUP CREATE)"
            .to_owned(),
    }
}

pub(super) fn nonsense(what: &str) -> MeasureError {
    MeasureError {
        reason: Reason::InvalidAnswer,
        message: format!("the answer to {what} makes no sense: Redis 7.0 or newer is needed"),
    }
}
