//! Consumers of NATS JetStream: what each has yet to be given, and what it was given and has not acknowledged.
//!
//! One round trip a poll asks about all consumers of all Projections on one server; a second one follows for the age of the oldest message, where
//! that may have changed.

mod answers;
mod counters;
mod round;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::{Reason, StreamConsumer},
    clients::nats::{Client, ConnectionSettings},
    lag::{CheckpointState, Head, Note, Pending, Sample},
    measure::MeasureError,
    sources::BatchProbe,
};
use round::{Asked, Looked, Memory};

/// What there is to know of a projection in order to measure it: what it reads, at least one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// Each counted by itself, and summed.
    pub consumers: Vec<StreamConsumer>,
    /// The JetStream domain that all of them are in; absent for that of the server.
    pub domain: Option<String>,
}

impl Question {
    fn asked(&self) -> impl Iterator<Item = Asked> + '_ {
        self.consumers.iter().map(|consumer| Asked { domain: self.domain.clone(), consumer: consumer.clone() })
    }
}

/// Asks one server as one user.
pub struct NatsProbe {
    client: Client,
    memory: Memory,
    started: std::time::Instant,
}

impl NatsProbe {
    /// Not connected yet. `addresses`: which may be asked; `started`: where the clock of samples begins.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>, started: std::time::Instant) -> Self {
        Self { client: Client::new(settings, addresses), memory: Memory::default(), started }
    }
}

/// Not woken: a subscription to the stream's subjects would bring all messages with their bodies.
impl BatchProbe for NatsProbe {
    type Question = Question;

    async fn answer(&mut self, questions: &[&Question], by: Instant) -> Vec<Result<Sample, MeasureError>> {
        let asked: BTreeSet<Asked> = questions.iter().flat_map(|question| question.asked()).collect();
        let began = self.started.elapsed();
        let looked = round::look(&mut self.client, &mut self.memory, &asked, began, by).await;
        let at = self.started.elapsed();
        let server = self.client.settings().to_string();
        let answers =
            questions.iter().map(|question| sample(question, &looked, at).map_err(|unknown| unknown.about(&server)));
        answers.collect()
    }
}

/// Sums what was seen of each consumer.
fn sample(question: &Question, looked: &Looked, at: Duration) -> Result<Sample, MeasureError> {
    let (mut events, mut arrived, mut handled) = (0_u64, 0_u64, 0_u64);
    let mut staleness = Some(Duration::ZERO);
    let (mut ahead, mut notes) = (Duration::ZERO, Vec::new());
    for asked in question.asked() {
        let seen = looked.get(&asked).cloned().unwrap_or_else(|| Err(not_asked()))?;
        events = events.saturating_add(seen.pending);
        arrived = arrived.saturating_add(seen.totals.arrived);
        handled = handled.saturating_add(seen.totals.handled);
        if seen.totals.stopped {
            let StreamConsumer { stream, consumer } = &asked.consumer;
            notes.push(Note::DeliveryStopped(Arc::from(format!(
                "stream {stream}, consumer {consumer}: workers hold as many messages as max_ack_pending allows ({}), so that the server delivers nothing more, to no worker: see whether workers hang or do not acknowledge; if they are only slow, raise max_ack_pending",
                seen.most_held.unwrap_or_default()
            ))));
        }
        let this = match seen.oldest {
            _ if seen.pending == 0 => Some(Duration::ZERO),
            oldest => oldest.map(|time| Duration::try_from(seen.now.duration_since(time)).unwrap_or_default()),
        };
        staleness = staleness.zip(this).map(|(oldest, this)| oldest.max(this));
        if let Some(time) = seen.oldest.filter(|_| seen.pending > 0) {
            ahead = ahead.max(Duration::try_from(time.duration_since(seen.now)).unwrap_or_default());
        }
    }
    // Any number of workers share a consumer, so that consumers are no shards: `pending_by_shard` stays empty.
    Ok(Sample {
        taken: jiff::Timestamp::now(),
        staleness,
        ahead_of_clock: ahead,
        notes,
        ..Sample::new(
            at,
            Head::Unnumbered,
            CheckpointState::Handled(handled),
            Some(Pending { events, exact: true }),
            arrived,
        )
    })
}

fn not_asked() -> MeasureError {
    MeasureError { reason: Reason::NotMeasuredYet, message: "the consumer has not been looked at yet".to_owned() }
}
