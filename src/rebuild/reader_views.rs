//! The views through which readers see a version, as the controller asks for them to be moved.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;

use super::{Compared, Comparison};
use crate::{
    measure::{MeasureError, RunKey},
    resolve::ReaderViews,
};

/// Which views, and in which database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ViewsOf {
    /// The run whose read store holds them.
    pub run: RunKey,
    /// The views.
    pub views: ReaderViews,
}

/// Why readers see what they saw before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ViewError {
    /// What is there, or the new version, does not allow it: it stays so until a person does something.
    #[error("{0}")]
    Refused(String),
    /// The read store failed or is not known yet. Whether readers were led on is not known where no answer came.
    #[error("{}", .0.message)]
    Failed(MeasureError),
}

/// Tells which version readers see, compares it with another, and leads them to that. A version is named by the schema that it is built in.
pub trait SwitchReaders: Send + Sync + 'static {
    /// The schema that the views show; `None`: there are no views yet.
    fn shown<'a>(&'a self, of: &'a ViewsOf, within: Duration) -> BoxFuture<'a, Result<Option<String>, ViewError>>;

    /// Lets the views show the schema `to` in place of `from`, where they show that; nothing changes where they show `to` already.
    fn switch<'a>(
        &'a self,
        of: &'a ViewsOf,
        from: Option<&'a str>,
        to: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), ViewError>>;

    /// Asks two versions the same, at a moment at which both have handled the same events.
    fn compare(&self, of: Arc<Comparison>, within: Duration) -> BoxFuture<'static, Result<Compared, MeasureError>>;
}
