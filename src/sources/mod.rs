//! What the sampler asks of a source: one module a kind, all behind one trait. Only reads, and only here.

pub mod postgres;

use std::{future::Future, sync::Arc};

use crate::{
    lag::Sample,
    measure::{MeasureError, ProjectionKey},
};

/// One projection to be measured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask<Question> {
    /// Which.
    pub key: ProjectionKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// The generation of the spec that the question was made from.
    pub generation: i64,
    /// The read store that its workers write to: the same text for the same store.
    pub read_store: Arc<str>,
    /// What to ask.
    pub question: Question,
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
/// A probe keeps its connection and its memory of the source from poll to poll, holds every deadline itself, and reports for each projection
/// at most once a poll. A projection that it does not report for keeps its last answer, until that is too old.
pub trait Probe: Send + 'static {
    /// What there is to know of a projection in order to measure it.
    type Question: Clone + Eq + Send + Sync + 'static;

    /// Measures once.
    fn measure(
        &mut self,
        asks: &[Arc<Ask<Self::Question>>],
        report: Report<'_, Self::Question>,
    ) -> impl Future<Output = Pace> + Send;

    /// Returns when the source says that there is something new. Never, for a source that cannot.
    fn woken(&self) -> impl Future<Output = ()> + Send;
}
