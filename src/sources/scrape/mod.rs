//! Pages in Prometheus's text format: what waits, how old the oldest is, how many came; or any number that has a target.
//!
//! One request a poll for each page, whatever the number of Projections that read it. The pages of a workload's own pods: [`PodsProbe`].

mod crew;
mod number;
mod pods;

pub use pods::{LARGEST_POD_PAGE, PodsProbe};

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    clients::{
        http_settings::HttpSettings,
        scrape::{Client, Series, no_page, parse},
    },
    lag::Sample,
    measure::MeasureError,
    resolve::{AskedMetric, Numbers},
    sources::{
        BatchProbe,
        numbers::{Gauge, Reading},
    },
};
use number::{SeriesByName, Told};

/// What there is to know of a projection in order to measure it.
pub type Question = Numbers<AskedMetric>;

/// Asks for one page.
pub struct ScrapeProbe {
    client: Client,
    gauges: HashMap<Question, Gauge>,
    started: std::time::Instant,
}

impl ScrapeProbe {
    /// Not connected yet. `addresses`: which may be asked; `started`: where the clock of samples begins.
    pub fn new(settings: HttpSettings, addresses: Arc<AddressRules>, started: std::time::Instant) -> Self {
        Self { client: Client::new(settings, addresses), gauges: HashMap::new(), started }
    }
}

/// Not woken. A page tells only who asks.
impl BatchProbe for ScrapeProbe {
    type Question = Question;

    async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let page = self.client.page(by).await.and_then(|page| series(&page, questions));
        self.gauges.retain(|question, _| questions.contains(&question));
        let (at, now) = (self.started.elapsed(), jiff::Timestamp::now().as_millisecond());
        let by_name = page.as_deref().map(SeriesByName::of);
        let number = |asked: &AskedMetric| {
            let page = by_name.as_ref().map_err(|unknown| (*unknown).clone())?;
            Told::by_page(asked, page, now)?.number(asked.aggregate)
        };
        let mut taken: HashMap<&Question, Result<Sample, MeasureError>> = HashMap::new();
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            let sample = taken.entry(question).or_insert_with(|| {
                let reading = match &page {
                    Ok(_) => Reading::of(question, number)?,
                    // That there is no page concerns no single number of it.
                    Err(unknown) => return Err(unknown.clone()),
                };
                self.gauges.entry((*question).clone()).or_default().take(reading, at)
            });
            answers.push(sample.clone().map_err(|unknown| unknown.about(self.client.settings())));
        }
        answers
    }
}

/// The series of all metrics that are asked for.
fn series(page: &[u8], questions: &[&Question]) -> Result<Vec<Series>, MeasureError> {
    let text = std::str::from_utf8(page).map_err(|_| no_page("it is not UTF-8"))?;
    let wanted: HashSet<&str> =
        questions.iter().flat_map(|question| question.all()).map(|metric| metric.name.as_str()).collect();
    parse(text, |name| wanted.contains(name))
        .map_err(|unreadable| no_page(&format!("line {}: {}", unreadable.line, unreadable.why)))
}
