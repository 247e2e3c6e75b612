//! Who waits for which run, and what the sampler tells them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    lag::{LogProgress, Position, Sample},
    measure::{MeasureError, RunKey},
    resolve::Place,
};

/// How far a read model has come by one measurement, or why that is not known.
pub type Progress = Result<Done, MeasureError>;

/// How far a read model has come.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Done {
    /// The position up to which every event of the only log is handled; absent where that is not known, and where there are several.
    pub up_to: Option<Position>,
    /// The same of each of several logs.
    pub by_log: Arc<[LogProgress]>,
}

impl Done {
    /// What this measurement says.
    pub fn of(sample: &Sample) -> Self {
        Self { up_to: sample.done_up_to(), by_log: sample.by_log.clone().into() }
    }

    /// How far it has come in the log of this place.
    pub(super) fn at(&self, place: &Place) -> Option<Position> {
        match &place.log {
            None => self.up_to,
            Some((name, number)) => {
                let found = self.by_log.iter().find(|one| one.name == *name && one.number == *number);
                found.map(|one| one.done_up_to)
            }
        }
    }
}

/// Requests that wait at once in one process.
const MOST: usize = 1_024;

/// Those who wait. Clones share it.
#[derive(Clone, Debug)]
pub struct Waiters(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    runs: Mutex<HashMap<RunKey, Waiting>>,
    /// Changes when a request begins to wait.
    joined: watch::Sender<u64>,
}

/// Those who wait for one run.
#[derive(Debug)]
struct Waiting {
    count: usize,
    /// The last measurement since the first of them came.
    told: watch::Sender<Option<Progress>>,
}

impl Default for Waiters {
    fn default() -> Self {
        Self::at_most(MOST)
    }
}

impl Waiters {
    /// At most so many wait at once.
    pub fn at_most(most: usize) -> Self {
        Self(Arc::new(Shared { most, runs: Mutex::default(), joined: watch::Sender::new(0) }))
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunKey, Waiting>> {
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for measurements of this run from now on; `None` where too many wait already.
    pub fn join(&self, run: &RunKey) -> Option<Waiter> {
        let told = {
            let mut runs = self.runs();
            if runs.values().map(|waiting| waiting.count).sum::<usize>() >= self.0.most {
                return None;
            }
            let waiting =
                runs.entry(run.clone()).or_insert_with(|| Waiting { count: 0, told: watch::Sender::new(None) });
            waiting.count += 1;
            let mut told = waiting.told.subscribe();
            // What was measured before says nothing of an event that was appended since.
            told.mark_unchanged();
            told
        };
        self.0.joined.send_modify(|count| *count = count.wrapping_add(1));
        Some(Waiter { waiters: self.clone(), run: run.clone(), told })
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.runs().values().map(|waiting| waiting.count).sum()
    }

    /// Whether any of these runs is waited for.
    pub(crate) fn are_waited_for<'a>(&self, runs: impl IntoIterator<Item = &'a RunKey>) -> bool {
        let waiting = self.runs();
        !waiting.is_empty() && runs.into_iter().any(|run| waiting.contains_key(run))
    }

    /// Changes its value when another one begins to wait, for whichever run.
    pub(crate) fn joined(&self) -> watch::Receiver<u64> {
        self.0.joined.subscribe()
    }

    /// Tells a measurement to those who wait for this run.
    pub(crate) fn tell(&self, run: &RunKey, progress: impl FnOnce() -> Progress) {
        if let Some(waiting) = self.runs().get(run) {
            waiting.told.send_replace(Some(progress()));
        }
    }
}

/// Waits for measurements of one run, until it is dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Waiters,
    run: RunKey,
    told: watch::Receiver<Option<Progress>>,
}

impl Waiter {
    /// The next measurement that was not told to this waiter yet; of several the last. Cancel-safe.
    pub async fn next(&mut self) -> Progress {
        loop {
            if self.told.changed().await.is_err() {
                // The sender lives as long as there are waiters.
                std::future::pending::<()>().await;
            }
            if let Some(progress) = self.told.borrow_and_update().clone() {
                return progress;
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut runs = self.waiters.runs();
        if let Some(waiting) = runs.get_mut(&self.run) {
            waiting.count = waiting.count.saturating_sub(1);
            if waiting.count == 0 {
                runs.remove(&self.run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn run(name: &str) -> RunKey {
        RunKey::unversioned("shop", name)
    }

    fn done(position: i64) -> Done {
        Done { up_to: Some(Position(position)), ..Done::default() }
    }

    #[tokio::test]
    async fn each_waiter_is_told_what_is_measured_after_it_came() {
        let waiters = Waiters::default();
        let mut joined = waiters.joined();
        waiters.tell(&run("orders"), || panic!("no request waits"));
        let mut first = waiters.join(&run("orders")).unwrap();
        assert!(joined.has_changed().unwrap());
        joined.mark_unchanged();
        waiters.tell(&run("orders"), || Ok(done(1)));
        let mut second = waiters.join(&run("orders")).unwrap();
        assert_eq!(first.next().now_or_never(), Some(Ok(done(1))));
        assert_eq!(second.next().now_or_never(), None, "it came later");
        waiters.tell(&run("orders"), || Ok(done(2)));
        waiters.tell(&run("others"), || panic!("it is not waited for"));
        assert_eq!(first.next().now_or_never(), Some(Ok(done(2))));
        assert_eq!(second.next().now_or_never(), Some(Ok(done(2))));
        assert!(joined.has_changed().unwrap());
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let waiters = Waiters::at_most(2);
        let first = waiters.join(&run("orders")).unwrap();
        let second = waiters.join(&run("others")).unwrap();
        assert!(waiters.join(&run("orders")).is_none());
        assert!(waiters.are_waited_for([&run("orders")]));
        drop(first);
        assert!(!waiters.are_waited_for([&run("orders")]));
        assert!(waiters.are_waited_for([&run("orders"), &run("others")]));
        assert!(waiters.join(&run("orders")).is_some());
        drop(second);
        assert_eq!(waiters.count(), 0);
    }
}
