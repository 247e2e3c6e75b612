//! Whether a read store has refused something lately, from counters that it tells when it is asked. No IO.

use std::time::{Duration, Instant};

use crate::{api::Reason, lag::Strain, store_health::StoreSample};

/// So long after the last refusal a store counts as relieved: some of its answers, and long enough for workers that wait before they try again.
const RELIEVED_AFTER: Duration = Duration::from_secs(60);

/// What one store has refused since its server started, and when that last grew.
#[derive(Debug, Default)]
pub(super) struct StrainWatch {
    writes: Option<u64>,
    connections: Option<u64>,
    last: Option<(Strain, Instant)>,
}

impl StrainWatch {
    /// Takes in an answer. What a store does not tell is not known, and no strain: nothing was seen to be refused.
    pub(super) fn take(&mut self, sample: &StoreSample, now: Instant) {
        let connections = grew(&mut self.connections, sample.rejected_connections);
        if grew(&mut self.writes, sample.rejected_writes()) {
            self.last = Some((Strain::Writes, now));
        } else if connections {
            self.last = Some((Strain::Connections, now));
        }
    }

    /// Takes in that it did not answer: one that takes no more connections refuses them, and one that was strained is not known to be relieved.
    pub(super) fn fail(&mut self, why: Reason, now: Instant) {
        match why {
            Reason::TooManyConnections => self.last = Some((Strain::Connections, now)),
            Reason::TimedOut | Reason::ConnectionRefused | Reason::SourceFailed => {
                self.last = self.now(now).map(|strain| (strain, now));
            }
            _ => {}
        }
    }

    /// What it has refused lately.
    pub(super) fn now(&self, now: Instant) -> Option<Strain> {
        self.last.filter(|(_, at)| now.duration_since(*at) < RELIEVED_AFTER).map(|(strain, _)| strain)
    }
}

/// Whether a counter has grown since it was told last. One that is smaller has begun again with its server, or lacks that of a node that is away: what it counts then
/// may be old.
fn grew(before: &mut Option<u64>, told: Option<u64>) -> bool {
    let Some(told) = told else { return false };
    before.replace(told).is_some_and(|before| told > before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_health::WriteQueue;

    fn search(rejected: u64) -> StoreSample {
        StoreSample { writes: Some(WriteQueue { queued: 0, rejected }), ..StoreSample::default() }
    }

    fn redis(refused_writes: u64, rejected_connections: u64) -> StoreSample {
        StoreSample {
            refused_writes: Some(refused_writes),
            rejected_connections: Some(rejected_connections),
            ..StoreSample::default()
        }
    }

    #[test]
    fn what_was_refused_before_anybody_looked_is_no_strain_and_what_is_refused_now_is_for_a_while() {
        let (mut watch, now) = (StrainWatch::default(), Instant::now());
        watch.take(&search(500), now);
        assert_eq!(watch.now(now), None);
        watch.take(&search(501), now);
        assert_eq!(watch.now(now), Some(Strain::Writes));
        watch.take(&search(501), now + Duration::from_secs(5));
        assert_eq!(watch.now(now + Duration::from_secs(59)), Some(Strain::Writes));
        assert_eq!(watch.now(now + Duration::from_secs(60)), None, "relieved by itself");
    }

    #[test]
    fn a_server_that_began_again_or_tells_nothing_has_refused_nothing() {
        let (mut watch, now) = (StrainWatch::default(), Instant::now());
        watch.take(&redis(7, 7), now);
        watch.take(&StoreSample::default(), now);
        watch.take(&redis(7, 7), now);
        watch.take(&redis(3, 3), now);
        watch.take(&redis(0, 0), now);
        assert_eq!(watch.now(now), None);
        watch.take(&redis(0, 1), now);
        assert_eq!(watch.now(now), Some(Strain::Connections));
        watch.take(&redis(1, 2), now);
        assert_eq!(watch.now(now), Some(Strain::Writes), "the worse of both");
    }

    #[test]
    fn one_that_takes_no_connection_refuses_them_and_one_that_is_away_is_not_known_to_be_relieved() {
        let (mut watch, now) = (StrainWatch::default(), Instant::now());
        watch.fail(Reason::TimedOut, now);
        watch.fail(Reason::AuthenticationFailed, now);
        assert_eq!(watch.now(now), None, "that it does not answer us says nothing of the workers");
        watch.fail(Reason::TooManyConnections, now);
        assert_eq!(watch.now(now), Some(Strain::Connections));
        let later = |seconds| now + Duration::from_secs(seconds);
        watch.fail(Reason::ConnectionRefused, later(50));
        assert_eq!(watch.now(later(100)), Some(Strain::Connections));
        watch.fail(Reason::ConnectionRefused, later(120));
        assert_eq!(watch.now(later(121)), None, "relieved before");
    }
}
