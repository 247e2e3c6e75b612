//! Subscriptions to streams of KurrentDB (EventStoreDB): persistent ones, whose checkpoint and buffers the server tells, and catch-up ones, whose checkpoint the
//! read store keeps.
//!
//! One request a poll lists all persistent subscriptions of the cluster; one for each stream tells its end and the first event beyond a checkpoint; `$all` is
//! read by a bounded page from the checkpoint or the last look, whichever comes first, and by another one from a checkpoint that the first does not reach.

mod all;
mod catch_up;
mod counters;
mod persistent;
mod positions;
mod round;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::{CatchUpSubscription, PersistentSubscription, Reason},
    clients::kurrentdb::{Client, ConnectionSettings, Filter, Read},
    lag::{Certain, CheckpointState, Head, Note, Pending, Sample},
    measure::{MeasureError, RunKey},
    read_stores::Checkpoint,
    resolve::KurrentDbSubscriptions,
    sources::{Ask, Pace, Probe, Report, Target},
};
use counters::{Arrivals, Counters};
use persistent::{State, SubscriptionState};
use positions::unknown;
use round::{Pages, Subscriptions};

/// Why what waits in persistent subscriptions is a bound, for people.
const UNTOLD: &str = "a persistent subscription that does not read live tells a checkpoint which it writes now and then, so that events beyond it may be handled already";

/// What there is to know of a projection in order to measure it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Question {
    /// Persistent subscriptions, at least one: each counted by itself, and summed.
    Persistent(Vec<PersistentSubscription>),
    /// One stream, a category included.
    Stream(String),
    /// All events that pass the filter.
    All(Filter),
}

impl From<&KurrentDbSubscriptions> for Question {
    fn from(subscriptions: &KurrentDbSubscriptions) -> Self {
        match subscriptions {
            KurrentDbSubscriptions::Persistent(subscriptions) => Self::Persistent(subscriptions.clone()),
            KurrentDbSubscriptions::CatchUp(catch_up) => match Log::from(catch_up) {
                Log::Stream(stream) => Self::Stream(stream),
                Log::All(filter) => Self::All(filter),
            },
        }
    }
}

/// What a catch-up subscription reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Log {
    /// One stream, a category included.
    Stream(String),
    /// All events that pass the filter.
    All(Filter),
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(stream) => write!(f, "stream {stream}"),
            Self::All(_) => f.write_str(positions::ALL),
        }
    }
}

impl From<&CatchUpSubscription> for Log {
    fn from(CatchUpSubscription { stream, filter }: &CatchUpSubscription) -> Self {
        if stream != positions::ALL {
            return Self::Stream(stream.clone());
        }
        Self::All(match filter {
            None => Filter::NotSystem,
            Some(filter) if !filter.event_type_prefixes.is_empty() => {
                Filter::EventTypes(filter.event_type_prefixes.clone())
            }
            Some(filter) if !filter.stream_prefixes.is_empty() => Filter::Streams(filter.stream_prefixes.clone()),
            Some(filter) if filter.system_events == Some(true) => Filter::None,
            Some(_) => Filter::NotSystem,
        })
    }
}

/// One projection that is to be measured now.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which.
    pub key: &'a RunKey,
    /// What it reads.
    pub question: &'a Question,
    /// How far it has come; absent for persistent subscriptions.
    pub checkpoint: Option<&'a Checkpoint>,
}

/// Asks one cluster as one user.
pub struct KurrentDbProbe {
    client: Client,
    /// Of persistent subscriptions, by stream and group.
    counters: HashMap<PersistentSubscription, Counters>,
    /// Of streams, counted in events.
    streams: HashMap<String, Arrivals>,
    /// Of `$all`, whose end is counted in bytes.
    logs: HashMap<RunKey, Arrivals>,
    started: std::time::Instant,
}

impl KurrentDbProbe {
    /// Not connected yet. `started`: where the clock of samples begins.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>, started: std::time::Instant) -> Self {
        Self {
            client: Client::new(settings, addresses),
            counters: HashMap::new(),
            streams: HashMap::new(),
            logs: HashMap::new(),
            started,
        }
    }

    /// Measures once for each of these; what the server has not answered by `by` is reported as `TimedOut`.
    pub async fn answer(&mut self, asked: &[Asked<'_>], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let reads = asked.iter().filter_map(first_read).collect();
        let list = asked.iter().any(|one| matches!(one.question, Question::Persistent(_)));
        let (listed, mut pages) = round::first(&mut self.client, list, reads, by).await;
        let states = states(asked, &listed);
        let more = self.second_reads(asked, &states, &pages);
        pages.read(&mut self.client, more, by).await;
        let more = self.third_reads(asked, &pages);
        pages.read(&mut self.client, more, by).await;
        self.remember(asked, &states, &pages);
        let server = self.client.settings().to_string();
        let at = self.started.elapsed();
        asked.iter().map(|one| self.sample(one, &states, &pages, at).map_err(|error| error.about(&server))).collect()
    }

    /// What the answers so far make necessary.
    fn second_reads(&self, asked: &[Asked<'_>], states: &States, pages: &Pages) -> BTreeSet<Read> {
        let known = || states.values().filter_map(|state| state.as_ref().ok());
        let mut reads: BTreeSet<Read> = known().filter_map(State::wants).collect();
        reads.extend(known().any(State::wants_end_of_log).then(all::end_of_log));
        reads.extend(asked.iter().filter_map(|one| {
            let (Question::All(filter), Ok((end, _))) = (one.question, pages.end()) else { return None };
            catch_up::log_read(filter, one.checkpoint, self.last_end(one.key), end)
        }));
        reads
    }

    /// What the pages from the last look leave open: at most one more for each filter and checkpoint of `$all`.
    fn third_reads(&self, asked: &[Asked<'_>], pages: &Pages) -> BTreeSet<Read> {
        let read_on = |one: &Asked<'_>| {
            let Question::All(filter) = one.question else { return None };
            catch_up::log_read_on(filter, one.checkpoint, self.last_end(one.key), pages)
        };
        asked.iter().filter_map(read_on).collect()
    }

    fn last_end(&self, key: &RunKey) -> Option<u64> {
        self.logs.get(key).and_then(|arrivals| arrivals.end)
    }

    /// Counts what came; forgets what is not asked for any more.
    fn remember(&mut self, asked: &[Asked<'_>], states: &States, pages: &Pages) {
        self.counters.retain(|one, _| states.contains_key(one));
        let streams: BTreeSet<&String> = asked
            .iter()
            .filter_map(|one| match one.question {
                Question::Stream(stream) => Some(stream),
                _ => None,
            })
            .collect();
        self.streams.retain(|stream, _| streams.contains(stream));
        for one in asked {
            if let Question::Stream(stream) = one.question
                && let Some(count) = catch_up::count(stream, one.checkpoint, pages)
            {
                self.streams.entry(stream.clone()).or_default().take(count, |before| count - before);
            }
        }
    }

    fn sample(
        &mut self,
        one: &Asked<'_>,
        states: &States,
        pages: &Pages,
        at: Duration,
    ) -> Result<Sample, MeasureError> {
        match one.question {
            Question::Persistent(subscriptions) => self.summed(subscriptions, states, pages, at),
            Question::Stream(stream) => {
                let arrived = self.streams.get(stream).map_or(0, Arrivals::total);
                catch_up::of_stream(stream, one.checkpoint, pages, arrived, at)
                    .map_err(|error| error.about(format_args!("stream {stream}")))
            }
            Question::All(filter) => {
                let arrivals = self.logs.entry(one.key.clone()).or_default();
                catch_up::of_log(filter, one.checkpoint, pages, arrivals, at).map_err(|error| error.about("$all"))
            }
        }
    }

    fn summed(
        &mut self,
        subscriptions: &[PersistentSubscription],
        states: &States,
        pages: &Pages,
        at: Duration,
    ) -> Result<Sample, MeasureError> {
        let (mut pending, mut certain) = (Pending { events: 0, exact: true }, 0_u64);
        let (mut arrived, mut handled) = (0_u64, 0_u64);
        let (mut staleness, mut ahead) = (Some(Duration::ZERO), Duration::ZERO);
        let (mut parked, mut notes) = (0_u64, Vec::new());
        let seen: Result<Vec<(&PersistentSubscription, SubscriptionState)>, MeasureError> = subscriptions
            .iter()
            .map(|one| {
                let state = states.get(one).cloned().unwrap_or_else(|| Err(not_looked_at()));
                let seen = state.and_then(|state| state.seen(pages));
                seen.map(|seen| (one, seen)).map_err(|error| error.about(named(one)))
            })
            .collect();
        for (one, seen) in seen? {
            let counters = self.counters.entry(one.clone()).or_default();
            let (came, done) = counters.take(at, seen.count, seen.pending.events, seen.completed);
            pending.events = pending.events.saturating_add(seen.pending.events);
            pending.exact &= seen.pending.exact;
            certain = certain.saturating_add(if seen.pending.exact { seen.pending.events } else { seen.held });
            arrived = arrived.saturating_add(came);
            handled = handled.saturating_add(done);
            staleness = staleness.zip(seen.age).map(|(oldest, age)| oldest.max(age));
            ahead = ahead.max(seen.ahead);
            parked = parked.saturating_add(seen.parked);
            if seen.consumers == 0 && seen.pending.events > 0 {
                notes.push(Note::NoConsumer(named(one).into()));
            }
        }
        // Any number of consumers share a subscription, so that subscriptions are no shards: `pending_by_shard` stays empty.
        Ok(Sample {
            taken: jiff::Timestamp::now(),
            staleness,
            ahead_of_clock: ahead,
            parked: Some(parked),
            notes,
            upper_bound: (!pending.exact).then(|| Arc::from(UNTOLD)),
            certain: (!pending.exact).then(|| Certain::oldest(certain)),
            ..Sample::new(at, Head::Unnumbered, CheckpointState::Handled(handled), Some(pending), arrived)
        })
    }
}

/// Not woken: a subscription would bring all events with their bodies.
impl Probe for KurrentDbProbe {
    type Question = Question;

    /// What is remembered begins with the first look.
    fn follow(&mut self, asks: &[Arc<Ask<Question>>]) {
        let keys: BTreeSet<&RunKey> = asks.iter().map(|ask| &ask.key).collect();
        self.logs.retain(|key, _| keys.contains(key));
    }

    async fn measure(
        &mut self,
        targets: Vec<Target<Question>>,
        deadline: Instant,
        report: Report<'_, Question>,
    ) -> Pace {
        let asked: Vec<Asked<'_>> = targets
            .iter()
            .map(|Target { ask, checkpoint }| Asked {
                key: &ask.key,
                question: &ask.question,
                checkpoint: checkpoint.as_ref(),
            })
            .collect();
        let answers = self.answer(&asked, deadline).await;
        for (target, mut answer) in targets.iter().zip(answers) {
            if let (Ok(sample), Some(checkpoint)) = (&mut answer, &target.checkpoint) {
                sample.faults.failed.clone_from(&checkpoint.failed);
                sample.parked_in_store(checkpoint.parked.as_ref());
                sample.notes.extend(Note::never_called(&checkpoint.uncalled));
            }
            report(&target.ask, answer);
        }
        Pace::Usual
    }
}

/// What is known of each persistent subscription that is asked for.
type States = HashMap<PersistentSubscription, Result<State, MeasureError>>;

fn states(asked: &[Asked<'_>], listed: &Subscriptions) -> States {
    let mut states = States::new();
    for one in asked {
        let Question::Persistent(subscriptions) = one.question else { continue };
        for subscription in subscriptions {
            let state = match listed {
                None => Err(not_looked_at()),
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(all)) => all
                    .get(&(subscription.stream.clone(), subscription.group.clone()))
                    .ok_or_else(no_subscription)
                    .and_then(State::new),
            };
            states.insert(subscription.clone(), state);
        }
    }
    states
}

fn first_read(one: &Asked<'_>) -> Option<Read> {
    match one.question {
        Question::Persistent(_) => None,
        Question::Stream(stream) => Some(catch_up::stream_read(stream, one.checkpoint)),
        Question::All(_) => Some(all::end_of_log()),
    }
}

fn named(one: &PersistentSubscription) -> String {
    format!("stream {}, group {}", one.stream, one.group)
}

/// How a projection begins whose workers create it.
fn no_subscription() -> MeasureError {
    unknown(
        Reason::NeverCommitted,
        "there is no such persistent subscription, so that how much is pending cannot be told: correct stream and group in the Projection, or create it. One that was deleted has forgotten how far it had come",
    )
}

fn not_looked_at() -> MeasureError {
    unknown(Reason::NotMeasuredYet, "not looked at yet")
}
