//! Writes one Projection's status when it is due, and publishes the Events that go with it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    announce::announcements,
    due::{News, StatusMemory},
    report::{Reports, Stored, Unwritten},
    urgency::{Urgency, WriteSlots, has_only_begun, numbers_every, urgency},
};
use crate::{
    api::{ProjectionStatus, WorkersStatus},
    controller::parts::Owner,
    metrics::ControllerMetrics,
    platform::errors::in_words,
};

/// How long adding workers may wait until the status shows their number.
const REQUIRED_FIRST_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes status and Events.
pub struct StatusWriter {
    pub(in crate::controller) reports: Reports,
    pub(in crate::controller) metrics: Arc<ControllerMetrics>,
    pub(in crate::controller) slots: Mutex<Slots>,
}

/// When the next status may be written of those that many Projections want to write at once.
pub struct Slots {
    numbers: WriteSlots,
    news: WriteSlots,
}

impl Default for Slots {
    fn default() -> Self {
        Self { numbers: WriteSlots::of_numbers(), news: WriteSlots::of_news() }
    }
}

impl Slots {
    fn next(&mut self, urgency: Urgency, now: Instant) -> Instant {
        if urgency == Urgency::InTurn { self.news.next(now) } else { self.numbers.next(now) }
    }
}

/// What became of a status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// It is there, or the one that is there says the same.
    Yes,
    /// It is not due before this time has passed.
    Waits(Duration),
    /// The Projection is gone.
    Gone,
    /// The API server refused it or did not answer.
    Failed,
}

impl StatusWriter {
    /// Writes the number of required workers into the status before workers are added, since the other replicas serve the number from there. If the
    /// workers were added first, an autoscaler that asks another replica at that moment would remove them again. `false` where the Projection is gone.
    pub async fn publish_required_first(
        &self,
        owner: &Owner,
        previous: &ProjectionStatus,
        there: &Stored,
        required: WorkersStatus,
        memory: &mut StatusMemory,
    ) -> bool {
        let before = there.status.workers.as_ref().and_then(|workers| workers.required);
        if before >= required.required {
            return true;
        }
        let next = ProjectionStatus { workers: Some(required), ..previous.clone() };
        self.metrics.status_writes.inc();
        // If this write fails, the workers are added all the same; the whole status is written after them.
        match timeout(REQUIRED_FIRST_TIMEOUT, self.reports.write_status(owner, &there.version, &next)).await {
            Ok(Ok(stored)) => memory.written = Some((stored, Instant::now())),
            Ok(Err(Unwritten::Gone)) => return false,
            Ok(Err(Unwritten::Failed(error))) => not_written(owner, &in_words(&error)),
            Err(_) => not_written(owner, "the API server did not answer in time"),
        }
        true
    }

    /// Writes the status where something is new, or another client has changed it. `there` is the status that the API server has, `projections` how
    /// many Projections share the rate at which numbers are written.
    pub async fn write(
        &self,
        owner: &Owner,
        previous: &ProjectionStatus,
        there: &Stored,
        next: ProjectionStatus,
        memory: &mut StatusMemory,
        projections: usize,
    ) -> Written {
        let news = News {
            urgency: urgency(&there.status, &next),
            foreign: *previous != there.status,
            only_begun: has_only_begun(previous, &next),
            numbers_every: numbers_every(projections),
        };
        let now = Instant::now();
        if news.urgency == Urgency::Never {
            if news.foreign {
                // A write of this replica that had been given up has reached the API server.
                let events = announcements(previous, &there.status);
                memory.written = Some((there.clone(), now));
                self.reports.publish(owner, events).await;
            }
            return Written::Yes;
        }
        let slot = || self.slots.lock().unwrap_or_else(PoisonError::into_inner).next(news.urgency, now);
        let left = memory.wait(news, now, slot);
        if !left.is_zero() {
            return Written::Waits(left);
        }
        self.metrics.status_writes.inc();
        match self.reports.write_status(owner, &there.version, &next).await {
            Ok(stored) => {
                memory.was_written(stored, Instant::now());
                self.reports.publish(owner, announcements(previous, &next)).await;
                Written::Yes
            }
            Err(Unwritten::Gone) => Written::Gone,
            Err(Unwritten::Failed(error)) => {
                not_written(owner, &in_words(&error));
                self.metrics.failures.inc();
                // Where no retry can help, the workers are removed even though the status does not record the suspension.
                memory.unrecordable = matches!(&error, kube::Error::Api(status) if matches!(status.code, 403 | 422));
                Written::Failed
            }
        }
    }
}

fn not_written(owner: &Owner, why: &str) {
    tracing::warn!("the status of {}/{} could not be written: {why}", owner.namespace(), owner.name());
}
