//! What the sampler asks of a source: one module a kind, all behind one trait. Only reads, and only here.

pub mod kafka;
pub mod kurrentdb;
pub mod nats;
mod numbers;
pub mod postgres;
pub mod prometheus;
pub mod rabbitmq;
pub mod redis;
pub mod scrape;

use std::{future::Future, sync::Arc};

use tokio::time::Instant;

use crate::{
    api::CheckpointLocation,
    lag::Sample,
    measure::{MeasureError, RunKey},
    read_stores::{Checkpoint, CheckpointStore},
};

/// One projection to be measured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask<Question> {
    /// Which.
    pub key: RunKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// The generation of the spec that the question was made from.
    pub generation: i64,
    /// The read store that its workers write to, where there is one: the same text for the same store.
    pub read_store: Option<Arc<str>>,
    /// Where its checkpoint is; absent where the source keeps it.
    pub checkpoint: Option<CheckpointQuery>,
    /// What to ask.
    pub question: Question,
}

/// Where a checkpoint is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckpointQuery {
    /// The read store.
    pub store: CheckpointStore,
    /// The place in it.
    pub location: CheckpointLocation,
    /// Where the place is in the event source itself: what to say when it is not there.
    pub in_source: Option<Arc<str>>,
}

/// One projection to be measured now, with the checkpoint that was read before.
#[derive(Clone, Debug)]
pub struct Target<Question> {
    /// What to ask, for whom.
    pub ask: Arc<Ask<Question>>,
    /// How far it has come; absent where the source keeps that itself.
    pub checkpoint: Option<Checkpoint>,
}

/// When the next poll should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// After the usual interval.
    Usual,
    /// Soon: something is about to settle, such as a writer that is about to commit.
    Soon,
}

/// Takes the answers as they come in.
pub type Report<'a, Question> = &'a mut (dyn FnMut(&Ask<Question>, Result<Sample, MeasureError>) + Send);

/// Answers for all projections of one source.
///
/// A probe keeps its connection and its memory of the source from poll to poll, and reports for each projection at most once a poll. A projection that it
/// does not report for keeps its last answer, until that is too old. The sampler reads the checkpoints first, so that a healthy one is never beyond
/// the head, and hands over those that came in time.
pub trait Probe: Send + 'static {
    /// What there is to know of a projection in order to measure it.
    type Question: Clone + Eq + Send + Sync + 'static;

    /// A server that refuses the login is asked less and less often. False where it is asked at each poll all
    /// the same, so that a login that is allowed again is seen soon.
    const PAUSES_AFTER_REFUSED_LOGIN: bool = true;

    /// From now on these are measured, each as soon as its checkpoint is there. By default the probe's memory of each begins with the first look.
    fn follow(&mut self, asks: &[Arc<Ask<Self::Question>>]) {
        let _ = asks;
    }

    /// Measures once. What is not reported by `deadline` the sampler reports as timed out, and drops the future a little later: so a probe that has
    /// more to say of it, or something to clean up, gives up by itself.
    fn measure(
        &mut self,
        targets: Vec<Target<Self::Question>>,
        deadline: Instant,
        report: Report<'_, Self::Question>,
    ) -> impl Future<Output = Pace> + Send;

    /// Returns when the source says that there is something new. Never by default, for a source that only answers.
    fn woken(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// A probe that asks all questions of a poll at once, of a source that keeps the checkpoints itself.
pub trait BatchProbe: Send + 'static {
    /// What there is to know of a projection in order to measure it.
    type Question: Clone + Eq + Send + Sync + 'static;

    /// Measures once for each of these questions, and answers in their order. What the source has not answered by `by` is `TimedOut`.
    fn answer(
        &mut self,
        questions: &[&Self::Question],
        by: Instant,
    ) -> impl Future<Output = Vec<Result<Sample, MeasureError>>> + Send;
}

impl<P: BatchProbe> Probe for P {
    type Question = P::Question;

    async fn measure(
        &mut self,
        targets: Vec<Target<P::Question>>,
        deadline: Instant,
        report: Report<'_, P::Question>,
    ) -> Pace {
        let questions: Vec<&P::Question> = targets.iter().map(|target| &target.ask.question).collect();
        for (target, mut answer) in targets.iter().zip(self.answer(&questions, deadline).await) {
            // What the source keeps tells nothing of events that workers could not handle.
            if let (Ok(sample), Some(checkpoint)) = (&mut answer, &target.checkpoint) {
                sample.faults.failed.clone_from(&checkpoint.failed);
            }
            report(&target.ask, answer);
        }
        Pace::Usual
    }
}
