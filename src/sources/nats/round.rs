//! One look at a server: asks about all consumers at once, then for the oldest message of those whose oldest may have changed.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    answers::{self, Consumer},
    counters::{Counters, Totals},
};
use crate::{
    api::{Reason, StreamConsumer},
    clients::nats::{Client, Reply, Request},
    measure::MeasureError,
};

/// A consumer that is asked about.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Asked {
    pub(super) domain: Option<String>,
    pub(super) consumer: StreamConsumer,
}

impl Asked {
    /// The subject of JetStream's API for what is asked.
    fn subject(&self, what: &str) -> String {
        match &self.domain {
            None => format!("$JS.API.{what}"),
            Some(domain) => format!("$JS.{domain}.API.{what}"),
        }
    }

    fn about(&self, unknown: &MeasureError) -> MeasureError {
        let StreamConsumer { stream, consumer } = &self.consumer;
        unknown.about(format_args!("stream {stream}, consumer {consumer}"))
    }
}

/// What was seen of one consumer.
#[derive(Clone, Debug)]
pub(super) struct ConsumerState {
    pub(super) pending: u64,
    /// When the oldest of what is pending was stored, where it is known.
    pub(super) oldest: Option<jiff::Timestamp>,
    /// The server's clock, or the operator's where the server does not tell its own.
    pub(super) now: jiff::Timestamp,
    /// What is known since measuring began.
    pub(super) totals: Totals,
    /// Messages that may be held at the same time.
    pub(super) most_held: Option<u64>,
}

pub(super) type Looked = HashMap<Asked, Result<ConsumerState, MeasureError>>;

/// What is kept from poll to poll.
#[derive(Default)]
pub(super) struct Memory {
    counters: HashMap<Asked, Counters>,
    oldest: HashMap<Asked, Oldest>,
    /// Consumers whose oldest message was too large or too slow, and since when.
    given_up: HashMap<Asked, Instant>,
}

/// A message that was too large is asked for again after so long, and one that stays the oldest is looked at again: it may have been deleted.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Of a consumer with more filters than this, the oldest message is not looked for.
const MOST_FILTERS: usize = 16;

/// The oldest message of a consumer, as it was found.
#[derive(Clone, Debug)]
struct Oldest {
    created: jiff::Timestamp,
    from: u64,
    pending: u64,
    asked: Instant,
    time: Option<jiff::Timestamp>,
}

impl Oldest {
    /// Whether it still is the oldest: nothing before it was handled, and nothing was removed.
    fn holds(&self, consumer: &Consumer, from: u64) -> bool {
        self.created == consumer.created
            && self.from == from
            && self.pending <= consumer.pending()
            && self.time.is_some()
            && self.asked.elapsed() < AGAIN_AFTER
    }
}

type Told = Result<Consumer, MeasureError>;

/// Looks once, at this time on a clock that never goes back.
pub(super) async fn look(
    client: &mut Client,
    memory: &mut Memory,
    asked: &BTreeSet<Asked>,
    at: Duration,
    by: tokio::time::Instant,
) -> Looked {
    let info = |one: &Asked| {
        let StreamConsumer { stream, consumer } = &one.consumer;
        Request { subject: one.subject(&format!("CONSUMER.INFO.{stream}.{consumer}")), body: String::new() }
    };
    let requests: Vec<Request> = asked.iter().map(info).collect();
    let answers = client.ask(&requests, by).await;
    let told: Vec<(&Asked, Told)> = asked
        .iter()
        .zip(answers)
        .map(|(one, answer)| {
            (one, answer.and_then(|reply| answers::consumer(&reply)).map_err(|error| one.about(&error)))
        })
        .collect();
    let oldest = oldest(client, memory, &told, by).await;
    memory.forget(asked);
    let mut looked = HashMap::new();
    for ((one, told), oldest) in told.into_iter().zip(oldest) {
        let seen = told.and_then(|consumer| {
            let oldest = oldest?;
            let totals = memory.counters.entry(one.clone()).or_default().take(&consumer, at);
            let now = consumer.now.unwrap_or_else(jiff::Timestamp::now);
            Ok(ConsumerState { pending: consumer.pending(), oldest, now, totals, most_held: consumer.most_held })
        });
        looked.insert(one.clone(), seen);
    }
    looked
}

/// Finds when the oldest message before each consumer was stored; absent where that is not known.
async fn oldest(
    client: &mut Client,
    memory: &mut Memory,
    told: &[(&Asked, Told)],
    by: tokio::time::Instant,
) -> Vec<Result<Option<jiff::Timestamp>, MeasureError>> {
    let mut found = Vec::new();
    let (mut requests, mut places) = (Vec::new(), Vec::new());
    for (place, (one, told)) in told.iter().enumerate() {
        found.push(Ok(None));
        let Some(consumer) = told.as_ref().ok().filter(|consumer| consumer.pending() > 0) else { continue };
        let Some(from) = consumer.oldest_from() else { continue };
        if let Some(before) = memory.oldest.get(*one).filter(|before| before.holds(consumer, from)) {
            found[place] = Ok(before.time);
            continue;
        }
        let gave_up = memory.given_up.get(*one).is_some_and(|since| since.elapsed() < AGAIN_AFTER);
        if gave_up || consumer.subjects.len() > MOST_FILTERS {
            continue;
        }
        // Asked by subject also where there is no filter: then the next message is found where the one at this place was deleted.
        let everything = [">".to_owned()];
        let subjects = if consumer.subjects.is_empty() { &everything[..] } else { &consumer.subjects };
        let first = requests.len();
        for subject in subjects {
            requests.push(Request {
                subject: one.subject(&format!("STREAM.MSG.GET.{}", one.consumer.stream)),
                body: json!({ "seq": from, "next_by_subj": subject }).to_string(),
            });
        }
        places.push((place, from, first..requests.len()));
    }
    let answers = if requests.is_empty() { Vec::new() } else { client.ask(&requests, by).await };
    for (place, from, range) in places {
        let (one, told) = &told[place];
        let Ok(consumer) = told else { continue };
        found[place] = match first_of(&answers[range]) {
            Ok(time) => {
                memory.given_up.remove(*one);
                let (created, pending) = (consumer.created, consumer.pending());
                memory.oldest.insert((*one).clone(), Oldest { created, from, pending, asked: Instant::now(), time });
                Ok(time)
            }
            // How much is pending is known all the same.
            Err(unknown)
                if matches!(unknown.reason, Reason::InvalidAnswer | Reason::TimedOut | Reason::SourceFailed) =>
            {
                memory.given_up.insert((*one).clone(), Instant::now());
                Ok(None)
            }
            Err(unknown) => Err(one.about(&unknown)),
        };
    }
    found
}

/// The earliest of the times that were answered.
fn first_of(answers: &[Result<Reply, MeasureError>]) -> Result<Option<jiff::Timestamp>, MeasureError> {
    let mut earliest = None;
    for answer in answers {
        let time = answers::time_of_message(answer.as_ref().map_err(Clone::clone)?)?;
        earliest = earliest.into_iter().chain(time).min();
    }
    Ok(earliest)
}

impl Memory {
    /// Forgets what is not asked for any more.
    fn forget(&mut self, asked: &BTreeSet<Asked>) {
        self.counters.retain(|one, _| asked.contains(one));
        self.oldest.retain(|one, _| asked.contains(one));
        self.given_up.retain(|one, _| asked.contains(one));
    }
}
