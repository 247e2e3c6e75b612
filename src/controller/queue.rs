//! Which Projection is reconciled next: first come, first served, each at most once at a time, failures later and later.
//!
//! Pure: the time comes in. A Projection that fails waits longer each time, so that a hundred of them do not delay a good one.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{backoff::Backoff, measure::ProjectionKey};

/// The waits of a Projection that fails.
pub(super) const BACKOFF: Backoff = Backoff::new(FIRST_WAIT, Duration::from_secs(120));
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// All is as it should be until something changes.
    Settled,
    /// Look again after this time: something is left to write that is not urgent.
    Again(Duration),
    /// Something failed that may work later.
    Failed,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    ready: VecDeque<ProjectionKey>,
    queued: HashSet<ProjectionKey>,
    running: HashSet<ProjectionKey>,
    /// To be reconciled again after the round that is running.
    again: HashSet<ProjectionKey>,
    timers: BTreeSet<(Instant, ProjectionKey)>,
    due: HashMap<ProjectionKey, Instant>,
    failures: HashMap<ProjectionKey, u32>,
}

impl Queue {
    /// Something changed: as soon as possible.
    pub fn push(&mut self, key: ProjectionKey) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// The next one to start, if any is ready at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<ProjectionKey> {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.timers.pop_first() else { break };
            self.due.remove(&key);
            self.push(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        // It sees everything there is: a look planned for later is not needed.
        self.cancel(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    /// When the next one becomes ready by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// One has ended. `jitter` from 0 to 1 spreads those that failed together.
    pub fn ended(&mut self, key: ProjectionKey, ended: Ended, now: Instant, jitter: f64) {
        self.running.remove(&key);
        match ended {
            Ended::Settled => {
                self.failures.remove(&key);
            }
            Ended::Again(after) => {
                self.failures.remove(&key);
                self.at(key.clone(), now + after);
            }
            Ended::Failed => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                let wait = BACKOFF.jittered(*failures, jitter);
                *failures = failures.saturating_add(1);
                self.at(key.clone(), now + wait);
            }
        }
        if self.again.remove(&key) {
            self.push(key);
        }
    }

    fn at(&mut self, key: ProjectionKey, at: Instant) {
        self.cancel(&key);
        self.due.insert(key.clone(), at);
        self.timers.insert((at, key));
    }

    fn cancel(&mut self, key: &ProjectionKey) {
        if let Some(at) = self.due.remove(key) {
            self.timers.remove(&(at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ProjectionKey {
        ProjectionKey { namespace: "shop".into(), name: name.into() }
    }

    #[test]
    fn first_come_first_served_and_each_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "a"] {
            queue.push(key(name));
        }
        assert_eq!((queue.pop(now), queue.pop(now), queue.pop(now)), (Some(key("a")), Some(key("b")), None));
    }

    #[test]
    fn a_change_while_running_runs_it_once_more_and_not_beside_itself() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(key("a"));
        queue.pop(now);
        queue.push(key("a"));
        queue.push(key("a"));
        assert_eq!(queue.pop(now), None);
        queue.ended(key("a"), Ended::Settled, now, 0.0);
        assert_eq!((queue.pop(now), queue.pop(now)), (Some(key("a")), None));
    }

    #[test]
    fn a_hundred_failing_ones_leave_the_way_free() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for number in 0..100 {
            queue.push(key(&number.to_string()));
        }
        while let Some(one) = queue.pop(now) {
            queue.ended(one, Ended::Failed, now, 0.0);
        }
        queue.push(key("good"));
        assert_eq!(queue.pop(now), Some(key("good")));
        assert_eq!(queue.next_due(), Some(now + FIRST_WAIT));
    }

    #[test]
    fn failures_wait_longer_each_time_and_success_forgets_them() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for ended in [Ended::Failed, Ended::Failed, Ended::Settled, Ended::Failed] {
            queue.push(key("a"));
            queue.pop(now);
            queue.ended(key("a"), ended, now, 0.0);
        }
        assert_eq!(queue.next_due(), Some(now + FIRST_WAIT));
        queue.push(key("a"));
        queue.pop(now);
        queue.ended(key("a"), Ended::Failed, now, 0.0);
        assert_eq!(queue.next_due(), Some(now + FIRST_WAIT * 2));
    }

    #[test]
    fn a_later_look_comes_by_itself_and_an_earlier_one_replaces_it() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(key("a"));
        queue.pop(now);
        queue.ended(key("a"), Ended::Again(Duration::from_secs(10)), now, 0.0);
        assert_eq!(queue.pop(now), None);
        queue.push(key("a"));
        assert_eq!(queue.pop(now), Some(key("a")));
        queue.ended(key("a"), Ended::Settled, now, 0.0);
        assert_eq!((queue.pop(now + Duration::from_secs(11)), queue.next_due()), (None, None));
    }
}
