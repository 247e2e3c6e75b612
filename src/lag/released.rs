//! Arrivals as workers see them: an event that is held back comes when it is released.
//!
//! Planned with what arrives at the source, a burst behind an open transaction would bring workers that may not read it.

use std::time::Duration;

use super::{Sample, arrivals::Arrivals};

/// After the last event was held back, what was released counts as arriving for so long: as far back as rates look.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Follows what is released, while events are held back and for a while after.
#[derive(Clone, Debug, Default)]
pub(super) struct Released {
    arrivals: Option<Arrivals>,
    held_at: Duration,
}

impl Released {
    /// Takes in a sample. `source`: the arrivals at the source before it.
    pub(super) fn observe(&mut self, sample: &Sample, source: &Arrivals) {
        if sample.held_back > 0 {
            self.held_at = sample.at;
            self.arrivals.get_or_insert_with(|| source.clone());
        }
        let over = sample.at < self.held_at || sample.at - self.held_at > REMEMBERED;
        let begun_again = source.total() > sample.arrived;
        if over || begun_again {
            self.arrivals = None;
        }
        if let Some(arrivals) = &mut self.arrivals {
            let released = sample.arrived.saturating_sub(sample.held_back);
            // One that was released and is held back again by a later count has come all the same.
            arrivals.observe(sample.at, released.max(arrivals.total()));
        }
    }

    /// What arrives for the workers, where that is not what arrives at the source.
    pub(super) fn arrivals(&self) -> Option<&Arrivals> {
        self.arrivals.as_ref()
    }
}
