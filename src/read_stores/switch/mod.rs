//! Which version of a read model readers see: moved from one to the next at once, so that a reader sees the one or the other, and never none or both.
//!
//! Each switch is fenced by the version that it expects, so that of two who switch at once only one does, and repeating one that was done changes
//! nothing. What was not made for this is refused and left as it is.

mod alias;
mod pointer;
mod views;

use std::{fmt, future::Future};

use tokio::time::Instant;

use crate::measure::MeasureError;

pub use alias::AliasSwitch;
pub use pointer::PointerSwitch;
pub use views::ViewSwitch;

/// What a switch came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Switched {
    /// Readers see the new version from now on.
    Now,
    /// They saw it before.
    Before,
}

/// Why readers see what they saw before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SwitchError {
    /// What is there was not made by a switch.
    #[error("{0}")]
    NotOurs(String),
    /// Readers see another version than was expected: another switch came first.
    #[error("readers see {}, and not {} as expected", shown(found.as_deref()), shown(expected.as_deref()))]
    Unexpected {
        /// What they see; `None` where there is no version yet.
        found: Option<String>,
        /// What was to be replaced.
        expected: Option<String>,
    },
    /// The new version is not there, or does not fit the readers.
    #[error("{0}")]
    Unsuitable(String),
    /// The server failed or refused. Whether the switch was done is not known where no answer came: repeat it.
    #[error("{}", .0.message)]
    Failed(MeasureError),
}

fn shown(version: Option<&str>) -> Quoted<'_> {
    Quoted(version)
}

struct Quoted<'a>(Option<&'a str>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(version) => write!(f, "version {version:?}"),
            None => f.write_str("no version"),
        }
    }
}

/// Moves the readers of one read model between its versions.
pub trait VersionSwitch {
    /// The version that readers see; `None`: they were led to none yet.
    ///
    /// # Errors
    /// When what is there was not made by a switch, or the server does not tell.
    fn shown(&self, by: Instant) -> impl Future<Output = Result<Option<String>, SwitchError>> + Send;

    /// Shows readers the version `to` in place of `from`; `None`: in place of none, for the first version.
    ///
    /// # Errors
    /// Why they see what they saw before.
    fn switch(
        &self,
        from: Option<&str>,
        to: &str,
        by: Instant,
    ) -> impl Future<Output = Result<Switched, SwitchError>> + Send;
}

/// Whether `found` is to be replaced.
fn judge(found: Option<&str>, from: Option<&str>, to: &str) -> Result<Option<Switched>, SwitchError> {
    match found {
        Some(found) if found == to => Ok(Some(Switched::Before)),
        found if found == from => Ok(None),
        found => Err(SwitchError::Unexpected { found: found.map(str::to_owned), expected: from.map(str::to_owned) }),
    }
}
