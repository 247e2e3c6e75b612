//! Whether the checkpoint moves while there is work.

use std::time::Duration;

use super::{CheckpointState, Sample};

/// Follows a checkpoint. Keeps its state over samples without a lag: a checkpoint that is unknown has not moved.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    watched: Option<Watched>,
    /// Where the checkpoint was stuck before the process restarted, as [`Sample::checkpoint_text`] writes it, until the first one is seen.
    stuck_at: Option<String>,
}

/// A checkpoint, and for how long it has been seen not to move while there was work. That time is a sum and not a point in time, so that it survives
/// a clock that starts again.
#[derive(Clone, Debug)]
struct Watched {
    checkpoint: CheckpointState,
    /// Events were seen to wait. Before that nothing asks it to move, not even during a time without samples.
    waited_for: bool,
    seen_at: Duration,
    frozen_for: Duration,
}

impl Progress {
    pub(super) fn remembering(stuck_at: Option<String>) -> Self {
        Self { watched: None, stuck_at }
    }

    /// Takes in a checkpoint and whether an event waits for a worker, and returns how long it has not moved although there is work. Only another
    /// checkpoint, or the knowledge that nothing waits, ends that time; a sample that shows neither, or a missing sample, lets it go on.
    pub(super) fn observe(&mut self, sample: &Sample, waits: Option<bool>, stuck_after: Duration) -> Duration {
        if sample.checkpoint == CheckpointState::NeverCommitted {
            return Duration::ZERO;
        }
        let stuck_before = self.stuck_at.take().is_some_and(|before| sample.checkpoint_text() == Some(before));
        let same = self.watched.take().filter(|before| before.checkpoint == sample.checkpoint);
        let frozen_for = match &same {
            _ if waits == Some(false) => Duration::ZERO,
            Some(before) if before.waited_for => before.frozen_for + sample.at.saturating_sub(before.seen_at),
            // For how long is not known, only that it was long enough.
            None if stuck_before => stuck_after,
            _ => Duration::ZERO,
        };
        let waited_for = waits.unwrap_or_else(|| stuck_before || same.is_some_and(|before| before.waited_for));
        let checkpoint = sample.checkpoint.clone();
        self.watched = Some(Watched { checkpoint, waited_for, seen_at: sample.at, frozen_for });
        frozen_for
    }
}
