//! Who lives, judged by this worker's clock alone: Elasticsearch tells no time.
//!
//! Each worker counts up a number beside its name. One whose number has not changed for as long as a lease lasts is dead to those who have watched
//! it for so long; and a worker that has not been able to count for so long takes itself for dead before they do, since it counts from before it asked. Pure: the
//! time comes in.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::kept::Beat;

/// How long a lease lasts after a renewal. A killed worker's shards wait for its end.
pub(super) const LEASE: Duration = Duration::from_secs(6);

/// What a worker knows of itself and of the others. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Until then the others take this worker for alive, whatever they see.
    until: Option<Instant>,
    /// How often they may have taken it for dead.
    lapses: u64,
    seen: BTreeMap<String, Sighting>,
}

#[derive(Clone, Copy, Debug)]
struct Sighting {
    beat: u64,
    /// When this number was first seen.
    since: Instant,
    is_dead: bool,
}

impl Lease {
    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lease was renewed, by a request that was sent at this time. `was_listed`: the others knew the worker until then.
    pub(super) fn renewed(&self, sent: Instant, was_listed: bool) {
        self.with(|inner| {
            if inner.until.is_some_and(|until| until < sent || !was_listed) {
                inner.lapses += 1;
            }
            inner.until = Some(sent + LEASE);
        });
    }

    /// True while no other worker can have taken this one for dead.
    pub(super) fn holds(&self, now: Instant) -> bool {
        self.with(|inner| inner.until.is_some_and(|until| now < until))
    }

    /// Grows whenever the lease had ended before it was renewed: what the worker knew of its shards before counts no longer.
    pub(super) fn lapses(&self) -> u64 {
        self.with(|inner| inner.lapses)
    }

    /// Takes in the workers as they were read by a question that was sent and answered at these times; returns the names of the living.
    pub(super) fn look(&self, workers: &[Beat], sent: Instant, answered: Instant) -> Vec<String> {
        self.with(|inner| {
            inner.seen.retain(|name, _| workers.iter().any(|worker| worker.name == *name));
            let mut living = Vec::new();
            for Beat { name, beat } in workers {
                let new = Sighting { beat: *beat, since: answered, is_dead: false };
                let sighting = inner.seen.entry(name.clone()).or_insert(new);
                if sighting.beat != *beat {
                    *sighting = new;
                }
                sighting.is_dead = sent.saturating_duration_since(sighting.since) >= LEASE;
                if !sighting.is_dead {
                    living.push(name.clone());
                }
            }
            living
        })
    }

    /// Whether a worker has been dead for so long at this time.
    pub(super) fn is_dead_for(&self, name: &str, time: Duration, now: Instant) -> bool {
        self.with(|inner| {
            let sighting = inner.seen.get(name);
            sighting.is_some_and(|seen| seen.is_dead && now.saturating_duration_since(seen.since) >= LEASE + time)
        })
    }

    /// Whether a shard with this owner is free, where the workers were just read: one that is not listed has left, and one that is listed is
    /// dead only where it was watched for a lease and has not moved since.
    pub(super) fn is_free(&self, owner: Option<&str>, workers: &[Beat]) -> bool {
        let Some(worker) = owner.and_then(|owner| workers.iter().find(|worker| worker.name == owner)) else {
            return true;
        };
        self.with(|inner| inner.seen.get(&worker.name).is_some_and(|seen| seen.is_dead && seen.beat == worker.beat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(workers: &[(&str, u64)]) -> Vec<Beat> {
        workers.iter().map(|(name, beat)| Beat { name: (*name).to_owned(), beat: *beat }).collect()
    }

    #[test]
    fn a_worker_is_dead_once_its_number_was_watched_for_a_lease_without_a_change() {
        let (lease, began) = (Lease::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let look = |workers: &[(&str, u64)], seconds| lease.look(&beats(workers), at(seconds), at(seconds));
        assert_eq!(look(&[("a", 900), ("b", 1)], 0), ["a", "b"], "nothing is known of them yet");
        assert_eq!(look(&[("a", 900), ("b", 2)], 5), ["a", "b"]);
        assert_eq!(look(&[("a", 900), ("b", 3)], 6), ["b"]);
        assert!(lease.is_free(Some("a"), &beats(&[("a", 900)])) && !lease.is_free(Some("b"), &beats(&[("b", 3)])));
        // It has come back since.
        assert!(!lease.is_free(Some("a"), &beats(&[("a", 901)])));
        assert_eq!(look(&[("a", 901), ("b", 4)], 7), ["a", "b"]);
        // One that joined since is not known, and one that is not listed has left.
        assert!(
            !lease.is_free(Some("c"), &beats(&[("c", 1)])) && lease.is_free(Some("c"), &[]) && lease.is_free(None, &[])
        );
        // A watcher that was frozen itself judges by what it sees then.
        assert_eq!(look(&[("a", 950), ("b", 90)], 100), ["a", "b"]);
        assert!(!lease.is_dead_for("a", Duration::ZERO, at(200)));
        assert_eq!(look(&[("a", 950)], 106), Vec::<String>::new());
        assert!(
            lease.is_dead_for("a", Duration::ZERO, at(106))
                && !lease.is_dead_for("a", Duration::from_secs(60), at(106))
        );
    }

    #[test]
    fn time_that_a_question_took_counts_for_the_worker_that_is_watched() {
        let (lease, began) = (Lease::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        lease.look(&beats(&[("a", 1)]), at(0), at(3));
        assert_eq!(lease.look(&beats(&[("a", 1)]), at(8), at(9)), ["a"]);
        assert_eq!(lease.look(&beats(&[("a", 1)]), at(9), at(9)), Vec::<String>::new());
    }

    #[test]
    fn a_worker_that_was_frozen_takes_itself_for_dead_and_knows_that_it_was() {
        let (lease, began) = (Lease::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        assert!(!lease.holds(at(0)));
        lease.renewed(at(0), false);
        lease.renewed(at(2), true);
        assert!(lease.holds(at(7)) && !lease.holds(at(8)));
        assert_eq!(lease.lapses(), 0);
        lease.renewed(at(9), true);
        assert!(lease.holds(at(10)) && lease.lapses() == 1);
        lease.renewed(at(11), false);
        assert_eq!(lease.lapses(), 2, "the others had forgotten it");
    }
}
