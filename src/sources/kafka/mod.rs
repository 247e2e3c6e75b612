//! Kafka as a source: how far consumers are behind the ends of their topics' partitions.
//!
//! How far they have come a consumer group has committed, or the read store holds ([`stored`]). Only asks; never joins the group. One probe a cluster and user,
//! with one connection a broker. [`look`] asks; [`lag`] says what the answers mean.

mod lag;
mod look;
mod partitions;
mod question;
mod stored;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::kafka::{KafkaError, Settings},
    lag::Note,
    measure::MeasureError,
    read_stores::Checkpoint,
    sources::{Ask, Pace, Probe, Report, Target},
};
use lag::{Memory, Outlived};
use look::Looker;
use partitions::Committed;
pub use question::{Progress, Question};

/// So long before the sampler's deadline the probe gives up by itself, since it can say which broker did not answer.
const MARGIN: Duration = Duration::from_millis(400);
/// A leader or coordinator that moves is asked for again after this time.
const MOVING: Duration = Duration::from_millis(250);
/// So often in one poll. One that has not settled by then is told as such, so that others are not measured less often.
const MOST_TRIES: u32 = 3;

/// Measures all Projections on one cluster with one user.
pub struct KafkaProbe {
    looker: Result<Looker, KafkaError>,
    memories: HashMap<Question, Memory>,
    /// The beginning of the clock of samples.
    started: std::time::Instant,
}

impl KafkaProbe {
    /// Connects with the first poll; `addresses` are the rules for what brokers announce, `started` is the beginning of the clock of samples.
    pub fn new(settings: Settings, addresses: Arc<AddressRules>, started: std::time::Instant) -> Self {
        Self { looker: Looker::new(settings, addresses), memories: HashMap::new(), started }
    }
}

impl KafkaProbe {
    /// Requests made so far, those of handshakes included, and connections that are open.
    pub fn cost(&self) -> (u64, usize) {
        self.looker.as_ref().map_or((0, 0), Looker::cost)
    }
}

impl Probe for KafkaProbe {
    type Question = Question;

    fn follow(&mut self, asks: &[Arc<Ask<Question>>]) {
        self.memories.retain(|question, _| asks.iter().any(|ask| ask.question == *question));
        if let Ok(looker) = &mut self.looker {
            looker.forget_all_but(asks.iter().map(|ask| &ask.question));
        }
    }

    async fn measure(
        &mut self,
        targets: Vec<Target<Question>>,
        deadline: Instant,
        report: Report<'_, Question>,
    ) -> Pace {
        let by = deadline - MARGIN;
        let mut left: BTreeMap<Question, Vec<Arc<Ask<Question>>>> = BTreeMap::new();
        let mut held: BTreeMap<Question, Committed> = BTreeMap::new();
        let mut checkpoints: BTreeMap<Question, Checkpoint> = BTreeMap::new();
        for Target { ask, checkpoint } in targets {
            let question = &ask.question;
            match stored::offsets(question, checkpoint.as_ref()) {
                Ok(offsets) => drop(held.insert(question.clone(), offsets)),
                Err(unknown) => {
                    report(&ask, Err(unknown));
                    continue;
                }
            }
            if let Some(checkpoint) = checkpoint {
                checkpoints.insert(question.clone(), checkpoint);
            }
            left.entry(question.clone()).or_default().push(ask);
        }
        let looker = match &mut self.looker {
            Ok(looker) => looker,
            Err(error) => {
                for ask in left.values().flatten() {
                    report(ask, Err(told(error)));
                }
                return Pace::Usual;
            }
        };
        for tries in 1.. {
            held.retain(|question, _| left.contains_key(question));
            let answers = looker.look(&held, by).await;
            let again = tries < MOST_TRIES && Instant::now() + MOVING * 2 < by;
            for (question, answer) in answers {
                if again && answer.as_ref().is_err_and(|error| error.code.is_some_and(|code| code.has_moved())) {
                    continue;
                }
                let result = answer.map_err(|error| told(&error)).and_then(|found| {
                    let now = jiff::Timestamp::now();
                    let memory = self.memories.entry(question.clone()).or_default();
                    memory.created_again(&found).map_err(|outlived| created_again(&question.progress, &outlived))?;
                    if question.progress.group().is_none() {
                        stored::within_the_log(&found)?;
                    }
                    let clock = (self.started.elapsed(), now.as_millisecond());
                    let nature = |topic: &str| looker.nature(topic);
                    let mut sample = memory
                        .sample(&found, question.reset_to_earliest, nature, clock)
                        .map_err(|lag::CommitsGone| commits_gone(&question.progress))?;
                    sample.taken = now;
                    if let Some(Checkpoint { failed, parked, uncalled, .. }) = checkpoints.remove(&question) {
                        sample.faults.failed = failed;
                        sample.parked_in_store(parked.as_ref());
                        sample.notes.extend(Note::never_called(&uncalled));
                    }
                    Ok(sample)
                });
                for ask in left.remove(&question).into_iter().flatten() {
                    report(&ask, result.clone());
                }
            }
            if left.is_empty() {
                break;
            }
            sleep(MOVING).await;
        }
        Pace::Usual
    }
}

fn told(error: &KafkaError) -> MeasureError {
    MeasureError { reason: error.reason, message: error.message.clone() }
}

fn created_again(progress: &Progress, Outlived { partition: (topic, number), offset }: &Outlived) -> MeasureError {
    let (holder, remedy) = match progress {
        Progress::Group(group) => (
            format!("group {group}"),
            "reset the group's offsets of the topic (kafka-consumer-groups.sh --reset-offsets) and let its consumers begin again",
        ),
        Progress::Stored { .. } => (
            "the read store".to_owned(),
            "delete the offsets that are stored for the topic, or set them to where the projector shall begin, and let it begin again",
        ),
    };
    MeasureError {
        reason: Reason::CheckpointBeyondHead,
        message: format!(
            "topic {topic} was deleted and created again, and {holder} has offset {offset} for partition {number} as before: that is no place in the new log, in which the events in front of it are skipped: {remedy}. What waits is known again when the offset has changed"
        ),
    }
}

fn commits_gone(progress: &Progress) -> MeasureError {
    let message = match progress {
        Progress::Group(group) => format!(
            "group {group} had committed offsets and has none any more: was it deleted, or did they expire (offsets.retention.minutes)? What waits is known again when its consumers commit"
        ),
        Progress::Stored { .. } => {
            "the read store held offsets of these topics and holds none any more: were the rows deleted? What waits is known again when the projector stores its offsets".to_owned()
        }
    };
    MeasureError { reason: Reason::SourceFailed, message }
}
