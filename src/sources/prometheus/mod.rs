//! Queries to Prometheus: what waits, how old the oldest is, how many came; or any number that has a target.
//!
//! One request a poll for each different query, whatever the number of Projections that ask it. Those that the server answered in time at the last poll are
//! asked first, one after the other over one connection; the others over a second one, so that a query that takes too long delays no other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        http_settings::HttpSettings,
        prometheus::{Client, Query},
    },
    lag::Sample,
    measure::MeasureError,
    resolve::Numbers,
    sources::{
        Pace, Probe, Report, Target,
        numbers::{Gauge, Reading},
    },
};

/// A query may take this share of the time that is left, so that one that takes too long leaves time for others.
const SHARE: u32 = 2;

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
    /// For queries that were answered in time at the last poll, and for the others.
    clients: [Client; 2],
    late: BTreeSet<Query>,
    gauges: HashMap<Question, Gauge>,
    started: std::time::Instant,
}

/// What the server said to each query.
type Answers = BTreeMap<Query, Result<f64, MeasureError>>;

impl Question {
    fn query(&self, text: &Arc<str>) -> Query {
        Query { text: Arc::clone(text), tenant: self.tenant.clone() }
    }
}

impl PrometheusProbe {
    /// Not connected yet. `addresses`: which may be asked; `started`: where the clock of samples begins.
    pub fn new(settings: &HttpSettings, addresses: &Arc<AddressRules>, started: std::time::Instant) -> Self {
        let client = || Client::new(settings.clone(), Arc::clone(addresses));
        Self { clients: [client(), client()], late: BTreeSet::new(), gauges: HashMap::new(), started }
    }

    /// Measures once for each of these questions; what the server has not answered by `by` is reported as `TimedOut`.
    pub async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let queries: BTreeSet<Query> =
            questions.iter().flat_map(|question| question.queries.all().map(|text| question.query(text))).collect();
        let (late, punctual): (Vec<_>, Vec<_>) = queries.into_iter().partition(|query| self.late.contains(query));
        let [first, second] = &mut self.clients;
        let (punctual, late) = futures::join!(ask(first, punctual, by), ask(second, late, by));
        let answers: Answers = punctual.into_iter().chain(late).collect();
        let timed_out = |answer: &Result<f64, MeasureError>| matches!(answer, Err(e) if e.reason == Reason::TimedOut);
        self.late = answers.iter().filter(|(_, answer)| timed_out(answer)).map(|(query, _)| query.clone()).collect();
        self.gauges.retain(|question, _| questions.contains(&question));
        let at = self.started.elapsed();
        let mut taken: HashMap<&Question, Result<Sample, MeasureError>> = HashMap::new();
        let mut samples = Vec::with_capacity(questions.len());
        for question in questions {
            let sample = taken.entry(question).or_insert_with(|| {
                let answer = |text: &Arc<str>| answers.get(&question.query(text)).cloned();
                let number = |text: &Arc<str>| answer(text).unwrap_or_else(|| Err(not_asked()));
                let reading = Reading::of(&question.queries, number)?;
                let gauge = self.gauges.entry((*question).clone()).or_default();
                gauge.take(reading, at)
            });
            let server = self.clients[0].settings();
            samples.push(sample.clone().map_err(|unknown| unknown.about(server)));
        }
        samples
    }
}

/// Asks one query after the other. Where the server cannot be reached at all, the rest is not tried.
async fn ask(client: &mut Client, queries: Vec<Query>, by: Instant) -> Vec<(Query, Result<f64, MeasureError>)> {
    let mut answers = Vec::with_capacity(queries.len());
    let mut unreachable: Option<MeasureError> = None;
    let mut left = queries.len();
    for query in queries {
        left -= 1;
        let answer = match &unreachable {
            Some(unknown) => Err(unknown.clone()),
            None => {
                let time = by.saturating_duration_since(Instant::now());
                let time = if left > 0 { time / SHARE } else { time };
                client.number(&query, Instant::now() + time).await
            }
        };
        if let Err(unknown) = &answer
            && matches!(
                unknown.reason,
                Reason::ConnectionRefused | Reason::HostNotFound | Reason::AddressRefused | Reason::TlsFailed
            )
        {
            unreachable = Some(unknown.clone());
        }
        answers.push((query, answer));
    }
    answers
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
            report(&target.ask, answer);
        }
        Pace::Usual
    }
}

fn not_asked() -> MeasureError {
    MeasureError { reason: Reason::NotMeasuredYet, message: "not asked yet".to_owned() }
}
