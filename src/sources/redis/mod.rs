//! Redis Streams that consumer groups read: what waits in each stream for its group, and what consumers hold without having acknowledged it. And lists,
//! which hold what has not been handled.
//!
//! One round trip a poll asks about all streams and lists of all Projections on one server (or one to each master of a cluster); a second one follows where
//! entries themselves have to be looked at.

mod answers;
mod ask;
mod backlog;
mod counters;
mod lists;
mod round;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::{Reason, RedisList, StreamGroup},
    clients::redis::{Client, ConnectionSettings},
    lag::{Certain, CheckpointState, Head, Note, Pending, Sample},
    measure::MeasureError,
    sources::BatchProbe,
};
use backlog::{Bound, Lost};
use round::{Looked, Memory};

/// What there is to know of a projection in order to measure it: what it reads, at least one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// Each counted by itself, and summed.
    pub streams: Vec<StreamGroup>,
    /// Each counted by itself, and summed.
    pub lists: Vec<RedisList>,
}

/// Asks one server or cluster as one user.
pub struct RedisProbe {
    client: Client,
    memory: Memory,
    started: std::time::Instant,
}

impl RedisProbe {
    /// Not connected yet. `addresses`: which of those that servers tell may be asked; `started`: where the clock of samples begins.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>, started: std::time::Instant) -> Self {
        Self { client: Client::new(settings, addresses), memory: Memory::default(), started }
    }
}

/// Not woken. Streams could wake a client only by a blocking read, which takes a connection for each.
impl BatchProbe for RedisProbe {
    type Question = Question;

    async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let asked: BTreeSet<&StreamGroup> = questions.iter().flat_map(|question| &question.streams).collect();
        let lists: BTreeSet<&RedisList> = questions.iter().flat_map(|question| &question.lists).collect();
        let looked = round::look(&mut self.client, &mut self.memory, (&asked, &lists), by).await;
        let at = self.started.elapsed();
        let server = self.client.settings().to_string();
        let answers = questions.iter().map(|question| {
            let looked = looked.as_ref().map_err(Clone::clone);
            let sample = looked.and_then(|looked| sample(question, looked, at));
            sample.map_err(|unknown| unknown.about(&server))
        });
        answers.collect()
    }
}

/// Sums what was seen of each stream.
fn sample(question: &Question, looked: &Looked, at: Duration) -> Result<Sample, MeasureError> {
    let (mut events, mut arrived, mut handled) = (0_u64, 0_u64, 0_u64);
    let (mut certain, mut unseen, mut bounds, mut ahead) = (0_u64, false, Vec::new(), Duration::ZERO);
    let mut staleness = Some(Duration::ZERO);
    for asked in &question.streams {
        let seen = looked.groups.get(asked).cloned().unwrap_or_else(|| Err(not_asked()))?;
        events = events.saturating_add(seen.backlog.events);
        certain = certain.saturating_add(seen.backlog.certain);
        unseen |= seen.backlog.unseen;
        arrived = arrived.saturating_add(seen.arrived);
        handled = handled.saturating_add(seen.handled);
        if let Some(bound) = seen.backlog.bound {
            bounds.push(in_words(bound, asked));
        }
        let age = |milliseconds: u64| Duration::from_millis(seen.now.saturating_sub(milliseconds));
        let this = match seen.backlog.oldest {
            _ if seen.backlog.events == 0 => Some(Duration::ZERO),
            oldest => oldest.and_then(answers::EntryId::time).map(age),
        };
        staleness = staleness.zip(this).map(|(oldest, this)| oldest.max(this));
        let newest = seen.newest.time().unwrap_or_default();
        ahead = ahead.max(Duration::from_millis(newest.saturating_sub(seen.now)));
    }
    let (mut parked, mut unknown): (Option<u64>, Option<MeasureError>) = (None, None);
    for asked in &question.lists {
        let seen = looked.lists.get(asked).cloned().unwrap_or_else(|| Err(not_asked()))?;
        events = events.saturating_add(seen.events);
        certain = certain.saturating_add(seen.events);
        arrived = arrived.saturating_add(seen.arrived);
        handled = handled.saturating_add(seen.handled);
        match seen.parked {
            Some(Ok(more)) => parked = Some(parked.unwrap_or(0).saturating_add(more)),
            Some(Err(why)) => unknown = unknown.or(Some(why)),
            None => {}
        }
        // An entry of a list has no time.
        staleness = staleness.filter(|_| seen.events == 0);
    }
    let notes = unknown.iter().map(Note::parked_unknown).collect();
    let exact = bounds.is_empty();
    // Any number of consumers share a stream, so that streams are no shards: `pending_by_shard` stays empty.
    Ok(Sample {
        taken: jiff::Timestamp::now(),
        staleness,
        ahead_of_clock: ahead,
        parked: parked.filter(|_| unknown.is_none()),
        notes,
        upper_bound: (!exact).then(|| Arc::from(bounds.join("; "))),
        certain: (!exact).then(|| if unseen { Certain::oldest_of_part(certain) } else { Certain::oldest(certain) }),
        ..Sample::new(at, Head::Unnumbered, CheckpointState::Handled(handled), Some(Pending { events, exact }), arrived)
    })
}

fn not_asked() -> MeasureError {
    MeasureError { reason: Reason::NotMeasuredYet, message: "it has not been looked at yet".to_owned() }
}

fn in_words(bound: Bound, asked: &StreamGroup) -> String {
    let StreamGroup { key: stream, group } = asked;
    match bound {
        Bound::TooManyToCount(Lost::Removed) => format!(
            "stream {stream}, group {group}: entries were trimmed (MAXLEN, MINID) or deleted, which the server may go on counting as waiting (lag), and more than {} entries wait. The number is exact when fewer wait or the group has come to the end",
            backlog::MOST_COUNTED
        ),
        Bound::TooManyToCount(Lost::Null) => format!(
            "stream {stream}, group {group}: the server has lost count (lag is NULL, after XDEL or where the group began in the middle of the stream), and more than {} entries wait. The number is exact again when fewer wait or the group has come to the end",
            backlog::MOST_COUNTED
        ),
        Bound::SetBack => format!(
            "stream {stream}, group {group}: the group was set back (XGROUP SETID), and entries that consumers hold wait once more. The number is exact again when these are acknowledged"
        ),
    }
}
