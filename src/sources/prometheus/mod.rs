//! Queries to Prometheus: what waits, how old the oldest is, how many came; or any number that has a target.
//!
//! One request a poll for each different query, whatever the number of Projections that ask it, over two connections. Queries that the server did not answer
//! in time when they were asked last go over the second one, so that a query that takes too long delays no other; the rest is shared by both.

mod turns;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        http_settings::HttpSettings,
        prometheus::{Client, LEAST_TIME, Query},
    },
    lag::Sample,
    measure::MeasureError,
    resolve::Numbers,
    sources::{
        Pace, Probe, Report, Target,
        numbers::{Gauge, Reading},
    },
};
use turns::{Queues, Turns};

/// A query may take this share of the time that is left, so that one that takes too long leaves time for others.
const SHARE: u32 = 2;
/// A query that got a smaller share of the poll than this and was not answered had no turn: it may be quick enough.
const FAIR_SHARE: u32 = 8;
/// A Projection for whose queries there was no time keeps its last answer for so long, as far as that is not too old by then.
const KEPT: Duration = Duration::from_secs(10);

/// What there is to know of a projection in order to measure it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Question {
    /// Sent as the header `X-Scope-OrgID`.
    pub tenant: Option<Arc<str>>,
    /// The queries, in PromQL.
    pub queries: Numbers<Arc<str>>,
}

/// Asks one server as one user.
pub struct PrometheusProbe {
    clients: [Client; 2],
    turns: Turns,
    memories: HashMap<Question, Memory>,
    started: std::time::Instant,
}

/// What is remembered of one question.
#[derive(Default)]
struct Memory {
    gauge: Gauge,
    answered: Option<Instant>,
}

/// What the server said to each query for which there was time.
type Answers = HashMap<Query, Result<f64, MeasureError>>;

impl Question {
    fn query(&self, text: &Arc<str>) -> Query {
        Query { text: Arc::clone(text), tenant: self.tenant.clone() }
    }

    fn each(&self) -> impl Iterator<Item = Query> {
        self.queries.all().map(|text| self.query(text))
    }
}

impl PrometheusProbe {
    /// Not connected yet. `addresses`: which may be asked; `started`: where the clock of samples begins.
    pub fn new(settings: &HttpSettings, addresses: &Arc<AddressRules>, started: std::time::Instant) -> Self {
        let client = || Client::new(settings.clone(), Arc::clone(addresses));
        Self { clients: [client(), client()], turns: Turns::default(), memories: HashMap::new(), started }
    }

    /// Measures once for each of these questions; what the server has not answered by `by`, and what there was no time to ask, is reported as `TimedOut`.
    pub async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let answers = self.ask(questions, by).await;
        self.turns.end(&answers);
        self.memories.retain(|question, _| questions.contains(&question));
        let at = self.started.elapsed();
        let mut taken: HashMap<&Question, Result<Sample, MeasureError>> = HashMap::new();
        let mut samples = Vec::with_capacity(questions.len());
        for question in questions {
            let sample = taken.entry(question).or_insert_with(|| {
                if question.each().any(|query| !answers.contains_key(&query)) {
                    return Err(no_time(answers.len()));
                }
                let answer = |text: &Arc<str>| answers.get(&question.query(text)).cloned();
                let number = |text: &Arc<str>| answer(text).unwrap_or_else(|| Err(no_time(answers.len())));
                let memory = self.memories.entry((*question).clone()).or_default();
                memory.answered = Some(Instant::now());
                memory.gauge.take(Reading::of(&question.queries, number)?, at)
            });
            let server = self.clients[0].settings();
            samples.push(sample.clone().map_err(|unknown| unknown.about(server)));
        }
        samples
    }

    /// Asks over both connections until all is answered or the time is over.
    async fn ask(&mut self, questions: &[&Question], by: Instant) -> Answers {
        let begun = Instant::now();
        let poll = Poll {
            queues: Mutex::new(self.turns.begin(questions)),
            unreachable: Mutex::new(None),
            least: by.saturating_duration_since(begun) / FAIR_SHARE,
            half: begun + by.saturating_duration_since(begun) / 2,
            by,
        };
        let [first, second] = &mut self.clients;
        let (first, second) = futures::join!(poll.work(first, false), poll.work(second, true));
        let mut answers: Answers = first.into_iter().chain(second).collect();
        // Where the server cannot be reached at all, the rest is not tried.
        let unreachable = poll.unreachable.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(unknown) = unreachable {
            let Queues { punctual, late } = poll.queues.into_inner().unwrap_or_else(PoisonError::into_inner);
            answers.extend(punctual.into_iter().chain(late).map(|query| (query, Err(unknown.clone()))));
        }
        answers
    }

    /// Whether the last answer to this question is still good enough.
    fn keeps(&self, question: &Question) -> bool {
        let answered = self.memories.get(question).and_then(|memory| memory.answered);
        answered.is_some_and(|answered| answered.elapsed() < KEPT)
    }

    /// Whether there was time for all queries of this question in the poll that has just ended.
    fn was_asked(&self, question: &Question) -> bool {
        self.turns.was_asked(question)
    }
}

/// One poll, shared by both connections.
struct Poll {
    queues: Mutex<Queues>,
    unreachable: Mutex<Option<MeasureError>>,
    /// The least time that is a turn.
    least: Duration,
    half: Instant,
    by: Instant,
}

impl Poll {
    /// The next query, and whether it is the last. Late ones get half of the poll's time, and what the others leave.
    fn next(&self, takes_late: bool) -> Option<(Query, bool)> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let late = takes_late && (queues.punctual.is_empty() || Instant::now() < self.half);
        let next = if late { queues.late.pop_front() } else { None };
        let next = next.or_else(|| queues.punctual.pop_front())?;
        let last = queues.punctual.is_empty() && (!takes_late || queues.late.is_empty());
        Some((next, last))
    }

    fn unreachable(&self) -> std::sync::MutexGuard<'_, Option<MeasureError>> {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one query after the other.
    async fn work(&self, client: &mut Client, takes_late: bool) -> Vec<(Query, Result<f64, MeasureError>)> {
        let mut answers = Vec::new();
        loop {
            let left = self.by.saturating_duration_since(Instant::now());
            if left < LEAST_TIME || self.unreachable().is_some() {
                return answers;
            }
            let Some((query, last)) = self.next(takes_late) else { return answers };
            let time = if last { left } else { left / SHARE };
            let answer = client.number(&query, Instant::now() + time).await;
            match &answer {
                Err(unknown) if unknown.reason == Reason::TimedOut && time < self.least => continue,
                Err(unknown) if is_unreachable(unknown) => *self.unreachable() = Some(unknown.clone()),
                _ => {}
            }
            answers.push((query, answer));
        }
    }
}

fn is_unreachable(unknown: &MeasureError) -> bool {
    matches!(
        unknown.reason,
        Reason::ConnectionRefused | Reason::HostNotFound | Reason::AddressRefused | Reason::TlsFailed
    )
}

/// Not woken. The query API tells only what it is asked.
impl Probe for PrometheusProbe {
    type Question = Question;

    async fn measure(
        &mut self,
        targets: Vec<Target<Question>>,
        deadline: Instant,
        report: Report<'_, Question>,
    ) -> Pace {
        let questions: Vec<&Question> = targets.iter().map(|target| &target.ask.question).collect();
        for (target, answer) in targets.iter().zip(self.answer(&questions, deadline).await) {
            let question = &target.ask.question;
            if self.was_asked(question) || !self.keeps(question) {
                report(&target.ask, answer);
            }
        }
        Pace::Usual
    }
}

/// `asked`: for so many there was time.
fn no_time(asked: usize) -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: format!(
            "there was no time to ask: the server answered {asked} other queries in this poll. Each is asked in its turn; where that is too seldom, let recording rules compute what takes long"
        ),
    }
}
