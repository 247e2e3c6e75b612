//! Arrivals as workers see them while events are held back: an event that is held back has not come yet.
//!
//! Planned with what arrives at the source, a burst behind an open transaction would bring workers that may not read it. Once nothing is held back the
//! source's own arrivals count again, so that what was released is a backlog of known age, and no rate.

use super::{Sample, arrivals::Arrivals};

/// Follows what may be read, while events are held back.
#[derive(Clone, Debug, Default)]
pub(super) struct Released {
    arrivals: Option<Arrivals>,
}

impl Released {
    /// Takes in a sample. `source`: the arrivals at the source before it.
    pub(super) fn observe(&mut self, sample: &Sample, source: &Arrivals) {
        // Where the source's counter began again, nothing of it is comparable.
        if sample.held_back == 0 || source.total() > sample.arrived {
            self.arrivals = None;
            return;
        }
        let arrivals = self.arrivals.get_or_insert_with(|| source.clone());
        let released = sample.arrived.saturating_sub(sample.held_back);
        // One that was released and is held back again by a later count has come all the same.
        arrivals.observe(sample.at, released.max(arrivals.total()));
    }

    /// What has come for the workers: all that has come to the `source`, unless some of it is held back.
    pub(super) fn of<'a>(&'a self, source: &'a Arrivals) -> &'a Arrivals {
        self.arrivals.as_ref().unwrap_or(source)
    }
}
