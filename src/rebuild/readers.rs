//! The readers of a read model, as the controller asks for them to be led from one version to another.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;

use super::{Compared, Comparison};
use crate::{
    measure::{MeasureError, RunKey},
    resolve::LedBy,
};

/// Whose readers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReadersOf {
    /// A run whose read store they ask.
    pub run: RunKey,
    /// What leads them there.
    pub by: LedBy,
}

/// Why readers see what they saw before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LeadError {
    /// What is there, or the new version, does not allow it: it stays so until a person does something.
    #[error("{0}")]
    Refused(String),
    /// The read store failed or is not known yet. Whether readers were led on is not known where no answer came.
    #[error("{}", .0.message)]
    Failed(MeasureError),
}

/// Tells which version readers see, compares it with another, and leads them to that. A version is named as the read store names it to readers.
pub trait SwitchReaders: Send + Sync + 'static {
    /// What readers see; `None`: they were led to no version yet.
    fn shown<'a>(&'a self, of: &'a ReadersOf, within: Duration) -> BoxFuture<'a, Result<Option<String>, LeadError>>;

    /// Leads readers to `to` in place of `from`, where they see that; nothing changes where they see `to` already.
    fn switch<'a>(
        &'a self,
        of: &'a ReadersOf,
        from: Option<&'a str>,
        to: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), LeadError>>;

    /// Asks two versions the same, at a moment at which both have handled the same events.
    fn compare(&self, of: Arc<Comparison>, within: Duration) -> BoxFuture<'static, Result<Compared, MeasureError>>;
}
