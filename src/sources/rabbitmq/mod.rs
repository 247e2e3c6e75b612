//! Queues of RabbitMQ: what waits in each, and what consumers hold without having acknowledged it, as the management API tells.
//!
//! And streams, by the offsets that their consumers store; the protocol for streams is spoken where a Projection names some.
//!
//! One request a poll for each virtual host, whatever the number of Projections and queues. The server's numbers are up to some seconds old
//! (`collect_statistics_interval`).

mod answers;
mod counters;
mod streams;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::{Reason, StreamReference},
    clients::rabbitmq::{Answer, Client, ConnectionSettings, StreamClient},
    lag::{Certain, CheckpointState, Head, Note, Pending, Sample},
    measure::MeasureError,
    sources::BatchProbe,
};
use answers::{COLUMNS, Queue};
use counters::{Counters, QueueSample, Totals};
use streams::Streams;

/// So many queues are asked for by name; of more, all of the virtual host are listed.
const MOST_NAMED: usize = 100;
/// The server matches names whatever their case, so that more may be in an answer than were asked for.
const PAGE: usize = 500;
/// The server reads a request line of up to 8 kB.
const LONGEST_NAMES: usize = 4_000;
/// How long the port for streams is waited for: numbers of queues, which are there already, are not held back for longer.
const STREAMS_PATIENCE: Duration = Duration::from_secs(2);
/// A date in whole seconds tells a moment up to this early.
const DATE_STEP: Duration = Duration::from_secs(1);

/// What there is to know of a projection in order to measure it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// The virtual host.
    pub vhost: String,
    /// The queues: each counted by itself, and summed.
    pub queues: Vec<String>,
    /// The streams with their consumers: each counted by itself, and summed. At least one queue or one stream.
    pub streams: Vec<StreamReference>,
    /// The queues of the same virtual host that hold messages which failed.
    pub dead_letter_queues: Vec<String>,
}

/// Asks one management API as one user.
pub struct RabbitMqProbe {
    client: Client,
    /// By virtual host and queue.
    counters: HashMap<(String, String), Counters>,
    addresses: Arc<AddressRules>,
    /// Those that ask about streams, by virtual host.
    streams: HashMap<String, Streams>,
    started: std::time::Instant,
}

/// What one poll saw of a queue.
#[derive(Clone, Copy, Debug)]
struct Depth {
    /// Messages that wait or that consumers hold.
    events: u64,
    /// Age of the oldest, where it is known.
    age: Option<Duration>,
    /// How far the oldest is dated in the future of the server's clock.
    ahead: Duration,
    totals: Totals,
}

/// What one poll saw of a virtual host.
#[derive(Default)]
struct Looked {
    queues: HashMap<String, Result<Depth, MeasureError>>,
    streams: streams::Looked,
    /// The server's time, where it tells.
    at: Option<jiff::Timestamp>,
}

impl RabbitMqProbe {
    /// Not connected yet. `addresses`: which may be asked; `started`: where the clock of samples begins.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>, started: std::time::Instant) -> Self {
        let client = Client::new(settings, Arc::clone(&addresses));
        Self { client, counters: HashMap::new(), addresses, streams: HashMap::new(), started }
    }

    /// Asks about the streams of all virtual hosts at once, over a connection to each.
    async fn look_at_streams(&mut self, questions: &[&Question], by: Instant) -> HashMap<String, streams::Looked> {
        let mut asked: BTreeMap<&str, BTreeSet<&StreamReference>> = BTreeMap::new();
        for question in questions.iter().filter(|question| !question.streams.is_empty()) {
            asked.entry(&question.vhost).or_default().extend(&question.streams);
        }
        self.streams.retain(|vhost, _| asked.contains_key(vhost.as_str()));
        for vhost in asked.keys() {
            let client = || StreamClient::new(self.client.settings().clone(), Arc::clone(&self.addresses), vhost);
            self.streams.entry((*vhost).to_owned()).or_insert_with(|| Streams::new(client()));
        }
        let looks = self.streams.iter_mut().filter_map(|(vhost, streams)| {
            let asked = asked.get(vhost.as_str())?;
            Some(async move { (vhost.clone(), streams.look(asked, by).await) })
        });
        join_all(looks).await.into_iter().collect()
    }

    /// Takes in what the server says of these queues.
    fn look(&mut self, vhost: &str, queues: &BTreeSet<&str>, answer: &Answer) -> Result<Looked, MeasureError> {
        let listed = answers::read(&answer.body, queues)
            .ok_or_else(|| unknown(Reason::InvalidAnswer, "the answer is no list of queues"))?;
        let depths = queues.iter().map(|queue| {
            let depth = listed.get(*queue).ok_or_else(no_queue).and_then(|told| self.depth(vhost, queue, told, answer));
            ((*queue).to_owned(), depth)
        });
        Ok(Looked { queues: depths.collect(), streams: streams::Looked::new(), at: answer.at })
    }

    fn depth(&mut self, vhost: &str, name: &str, queue: &Queue, answer: &Answer) -> Result<Depth, MeasureError> {
        let events = measurable(queue)?;
        let at = self.started.elapsed();
        let unattended = queue.consumers.0 == Some(0) && queue.ready.0.is_some_and(|ready| ready > 0);
        let seen =
            QueueSample { at, depth: events, published: queue.published(), handled: queue.handled(), unattended };
        let totals = self.counters.entry((vhost.to_owned(), name.to_owned())).or_default().take(seen);
        let oldest = queue.oldest.0.and_then(|seconds| jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
        let between = |from: jiff::Timestamp, to| Duration::try_from(from.duration_until(to)).unwrap_or_default();
        let dated = oldest.zip(answer.at).filter(|_| events > 0);
        let age = if events == 0 { Some(Duration::ZERO) } else { dated.map(|(oldest, now)| between(oldest, now)) };
        let ahead = dated.map_or(Duration::ZERO, |(oldest, now)| between(now, oldest)).saturating_sub(DATE_STEP);
        Ok(Depth { events, age, ahead, totals })
    }
}

/// Not woken. The management API tells only what it is asked.
impl BatchProbe for RabbitMqProbe {
    type Question = Question;

    async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let mut asked: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for question in questions {
            let queues = question.queues.iter().chain(&question.dead_letter_queues);
            let streams = question.streams.iter().map(|one| &one.stream);
            asked.entry(&question.vhost).or_default().extend(queues.chain(streams).map(String::as_str));
        }
        let mut looked: HashMap<&str, Result<Looked, MeasureError>> = HashMap::new();
        for (place, (vhost, queues)) in asked.iter().enumerate() {
            // Each virtual host has its part of the time, so that one that hangs does not keep the next from being asked.
            let now = Instant::now();
            let part = by.saturating_duration_since(now) / u32::try_from(asked.len() - place).unwrap_or(u32::MAX);
            let answer = self.client.get(&path(vhost, queues), now + part).await;
            looked.insert(*vhost, answer.and_then(|answer| self.look(vhost, queues, &answer)));
        }
        let mut streams = self.look_at_streams(questions, by.min(Instant::now() + STREAMS_PATIENCE)).await;
        for (vhost, looked) in &mut looked {
            if let (Ok(looked), Some(streams)) = (looked, streams.remove(*vhost)) {
                looked.streams = streams;
            }
        }
        self.counters.retain(|(vhost, queue), _| {
            asked.get(vhost.as_str()).is_some_and(|queues| queues.contains(queue.as_str()))
        });
        let at = self.started.elapsed();
        let server = self.client.settings();
        let answers = questions.iter().map(|question| {
            let vhost = &question.vhost;
            let sample = match looked.get(vhost.as_str()) {
                Some(Ok(looked)) => sample(question, looked, at),
                Some(Err(unknown)) => Err(unknown.clone()),
                None => Err(unknown(Reason::NotMeasuredYet, "not looked at yet")),
            };
            sample.map_err(|unknown| MeasureError {
                reason: unknown.reason,
                message: format!("{server}, vhost {vhost}: {}", unknown.message),
            })
        });
        answers.collect()
    }
}

/// What to ask about these queues: only them where their names fit, else all of the virtual host. `enable_queue_totals` makes the server tell depths
/// also where its statistics are off.
fn path(vhost: &str, queues: &BTreeSet<&str>) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let all = format!("queues/{}?columns={COLUMNS}&enable_queue_totals=true", encoded(vhost));
    // How the server matches other letters and line ends is not worth relying on.
    let matches = |name: &&str| name.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if queues.len() > MOST_NAMED || !queues.iter().all(matches) {
        return all;
    }
    let names: Vec<String> = queues.iter().map(|name| literally(name)).collect();
    let names = encoded(&format!("^({})$", names.join("|")));
    if names.len() > LONGEST_NAMES {
        return all;
    }
    format!("{all}&page=1&page_size={PAGE}&use_regex=true&name={names}")
}

/// A regular expression that matches this text alone.
fn literally(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for letter in text.chars() {
        if !letter.is_ascii_alphanumeric() {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// How many messages the queue holds, if that can be told and says what is pending.
fn measurable(queue: &Queue) -> Result<u64, MeasureError> {
    if queue.kind.0.as_deref() == Some("stream") {
        return Err(unknown(
            Reason::InvalidSpec,
            "it is a stream, which keeps messages that were handled, so that its depth says nothing of what is pending: name it in spec.source.rabbitmq.streams, with the reference of its consumer",
        ));
    }
    if let Some(state @ ("down" | "stopped" | "crashed" | "minority" | "noproc" | "terminated")) =
        queue.state.0.as_deref()
    {
        return Err(MeasureError {
            reason: Reason::SourceFailed,
            message: format!(
                "its state is {state}, so that its numbers stand still: bring back the node that holds it, or a majority of its members"
            ),
        });
    }
    let numbers = queue.ready.0.zip(queue.held.0);
    numbers.map(|(ready, held)| ready.saturating_add(held)).ok_or_else(|| {
        unknown(
            Reason::SourceFailed,
            "the server tells no number of messages: it has none yet of a queue that was declared, or a server that was started, some seconds ago. If this stays, is management_agent.disable_metrics_collector set on a server before 3.10?",
        )
    })
}

/// Sums what was seen of each queue and each stream.
fn sample(question: &Question, looked: &Looked, at: Duration) -> Result<Sample, MeasureError> {
    let depths = &looked.queues;
    let (mut events, mut arrived, mut handled) = (0_u64, 0_u64, 0_u64);
    let (mut staleness, mut ahead) = (Some(Duration::ZERO), Duration::ZERO);
    let mut unattended = Vec::new();
    for queue in &question.queues {
        let depth = depth_of(queue, depths)?;
        unattended.extend(depth.totals.unattended.then_some(queue.as_str()));
        events = events.saturating_add(depth.events);
        arrived = arrived.saturating_add(depth.totals.arrived);
        handled = handled.saturating_add(depth.totals.handled);
        staleness = staleness.zip(depth.age).map(|(oldest, age)| oldest.max(age));
        ahead = ahead.max(depth.ahead);
    }
    let (mut exact, mut certain) = (true, events);
    for asked in &question.streams {
        let seen = looked.streams.get(asked).cloned().unwrap_or_else(|| Err(no_queue()))?;
        events = events.saturating_add(seen.events);
        arrived = arrived.saturating_add(seen.arrived);
        handled = handled.saturating_add(seen.handled);
        exact &= seen.exact;
        certain = certain.saturating_add(seen.certain);
        let written = seen.oldest.and_then(|written| jiff::Timestamp::from_millisecond(written).ok());
        let dated = written.zip(looked.at);
        let age = dated.map(|(written, now)| Duration::try_from(written.duration_until(now)).unwrap_or_default());
        let age = if seen.events == 0 { Some(Duration::ZERO) } else { age };
        staleness = staleness.zip(age).map(|(oldest, age)| oldest.max(age));
    }
    // Any number of consumers share a queue, so that queues are no shards: `pending_by_shard` stays empty.
    let pending = Some(Pending { events, exact });
    let mut notes = Vec::new();
    if !unattended.is_empty() {
        notes.push(Note::NoConsumer(Arc::from(format!(
            "messages wait in {} {}, and no consumer is subscribed there: do the workers run, and do they consume from this queue of vhost {}?",
            if unattended.len() == 1 { "queue" } else { "queues" },
            unattended.join(", "),
            question.vhost
        ))));
    }
    let parked = parked(question, depths).unwrap_or_else(|unknown| {
        notes.push(Note::parked_unknown(&unknown));
        None
    });
    Ok(Sample {
        taken: jiff::Timestamp::now(),
        staleness,
        ahead_of_clock: ahead,
        parked,
        notes,
        upper_bound: (!exact).then(|| Arc::from(BETWEEN)),
        certain: (!exact).then(|| Certain::oldest(certain)),
        // What lies between events is little, and much alike everywhere in a stream.
        tells_rates: true,
        ..Sample::new(at, Head::Unnumbered, CheckpointState::Handled(handled), pending, arrived)
    })
}

/// Why the number is a bound, for people.
const BETWEEN: &str = "a stream is counted by its offsets, and the server gives offsets to what it writes between events as well, such as the offsets that consumers store: the number is exact when all that waits is in one chunk";

/// What the dead-letter queues hold; absent where the spec names none.
fn parked(
    question: &Question,
    depths: &HashMap<String, Result<Depth, MeasureError>>,
) -> Result<Option<u64>, MeasureError> {
    let mut parked = None;
    for queue in &question.dead_letter_queues {
        parked = Some(parked.unwrap_or(0_u64).saturating_add(depth_of(queue, depths)?.events));
    }
    Ok(parked)
}

/// What was seen of a queue.
fn depth_of(queue: &str, depths: &HashMap<String, Result<Depth, MeasureError>>) -> Result<Depth, MeasureError> {
    let depth = depths.get(queue).cloned().unwrap_or_else(|| Err(no_queue()));
    depth.map_err(|unknown| MeasureError {
        reason: unknown.reason,
        message: format!("queue {queue}: {}", unknown.message),
    })
}

fn no_queue() -> MeasureError {
    unknown(Reason::QueueNotFound, "there is no such queue: correct its name in the Projection, or declare it")
}

fn unknown(reason: Reason, message: &str) -> MeasureError {
    MeasureError { reason, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_queues_are_asked_for_by_name_and_many_by_their_virtual_host() {
        let of = |names: &[&str]| path("/", &names.iter().copied().collect());
        let named = of(&["orders", "a.b/(c"]);
        assert!(named.starts_with("queues/%2F?columns=name,"), "{named}");
        assert!(named.contains("&enable_queue_totals=true"), "{named}");
        assert!(named.ends_with("&name=%5E%28a%5C%2Eb%5C%2F%5C%28c%7Corders%29%24"), "{named}");
        let many: Vec<String> = (0..=MOST_NAMED).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = "x".repeat(255);
        let long: Vec<String> = (0..20).map(|n| format!("{n}{long}")).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        for all in [of(&many), of(&long), of(&["bestellungen-für-später"]), of(&["a\nb"])] {
            assert!(all.ends_with("&enable_queue_totals=true"), "{all}");
        }
        assert!(of(&many[..MOST_NAMED]).contains("use_regex"));
    }
}
