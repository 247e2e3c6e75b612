//! What programs of this machine do one after the other: installing, downloading, building.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

/// Waits for its turn, which lasts until what is returned is dropped. `others`: what it waits for, for messages.
///
/// # Errors
/// When the file cannot be made.
pub(crate) fn turn(file: &Path, others: &str) -> Result<File> {
    let lock = File::create(file).with_context(|| format!("opening {}", file.display()))?;
    flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("waiting for {others}"))?;
    Ok(lock)
}
