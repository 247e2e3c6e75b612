//! One task a source: polls at its interval with jitter, and at once when the source pushes. Knows no kind of source.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{SamplerMetrics, checkpoints::CheckpointReader, observation_store::Reported};
use crate::{
    api::Reason,
    backoff::Backoff,
    lag::Sample,
    measure::{MeasureError, RunKey},
    read_your_writes::Waiters,
    snapshot::valid_for,
    sources::{Ask, Pace, Probe, Report, Target},
};

/// A source or read store that has not answered by then is not waited for.
const DEADLINE: Duration = Duration::from_secs(5);
/// A probe that does not end by itself at its deadline is ended so long after it.
const GRACE: Duration = Duration::from_secs(1);

/// Pushes that come within this time of the beginning of a poll are answered together.
const PUSH_GAP: Duration = Duration::from_millis(50);
/// However often a source pushes, polling takes no more than one part in so many of its connection's time.
const PUSH_REST: u32 = 5;
/// While requests wait for a read model, polling takes no more than one part in so many of its connection's time: they are few and wait for seconds.
const WAITED_FOR_REST: u32 = 2;
/// The distance of polls while something settles.
const SOON: Duration = Duration::from_millis(200);

/// How long a server is left alone that has refused the login: servers log each attempt, and some lock an account after a number of them. New credentials are another endpoint and are tried at once; this is how late a password is seen that was corrected on the server.
const LOGIN_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// What a task has to do.
#[derive(Clone, Debug)]
pub(super) struct Work<Question> {
    pub(super) asks: Vec<Arc<Ask<Question>>>,
    pub(super) interval: Duration,
}

/// What all polling tasks share.
#[derive(Clone, Debug)]
pub(super) struct Polling {
    /// Where the answers go.
    pub(super) reports: mpsc::UnboundedSender<Reported>,
    /// Counters.
    pub(super) metrics: Arc<SamplerMetrics>,
    /// Who waits for a read model.
    pub(super) waiters: Waiters,
}

/// Runs until `work` is dropped.
pub(super) async fn poll<P: Probe>(
    mut probe: P,
    mut work: watch::Receiver<Work<P::Question>>,
    Polling { reports, metrics, waiters }: Polling,
) {
    let mut joined = waiters.joined();
    let mut checkpoints = CheckpointReader::default();
    let mut followed: Option<Vec<Arc<Ask<P::Question>>>> = None;
    let mut refusals = 0;
    loop {
        let started = Instant::now();
        let Work { asks, interval } = work.borrow_and_update().clone();
        joined.mark_unchanged();
        if followed.as_ref() != Some(&asks) {
            checkpoints.follow(&asks);
            probe.follow(&asks);
            followed = Some(asks.clone());
        }
        let mut login = Login::default();
        let mut report = |ask: &Ask<P::Question>, result: Result<Sample, MeasureError>| {
            metrics.count(result.is_ok());
            login.take(&result);
            let next_within = result.as_ref().map_or(Duration::ZERO, |sample| sample.next_within);
            let valid = valid_for(interval.max(next_within));
            // The receiver is gone when the operator ends.
            let _ = reports.send(Reported {
                key: ask.key.clone(),
                uid: Arc::clone(&ask.uid),
                generation: ask.generation,
                read_store: ask.read_store.clone(),
                result,
                valid_until: std::time::Instant::now() + valid,
            });
        };
        let targets = checkpoints.targets(&asks, started + DEADLINE, &mut report).await;
        let pace = measure(&mut probe, targets, &mut report).await;
        metrics.polls.fetch_add(1, Ordering::Relaxed);
        let polled = started.elapsed();
        let spent = u64::try_from(polled.as_micros()).unwrap_or(u64::MAX);
        metrics.poll_microseconds.fetch_add(spent, Ordering::Relaxed);
        refusals = if P::PAUSES_AFTER_REFUSED_LOGIN && login.refused_to_all() { refusals + 1 } else { 0 };
        let next = started + next_poll(interval, pace, refusals, rand::random_range(0.0..1.0));
        // A server that refuses the login is left alone, even while requests wait.
        let are_waited_for = || refusals == 0 && waiters.are_waited_for(asks.iter().map(|ask| &ask.key));
        let for_waiters = started + PUSH_GAP.max(polled * WAITED_FOR_REST);
        let next = if are_waited_for() { next.min(for_waiters) } else { next };
        let not_before = tokio::select! {
            () = sleep_until(next) => None,
            () = probe.woken() => {
                metrics.pushes.fetch_add(1, Ordering::Relaxed);
                Some(started + PUSH_GAP.max(polled * PUSH_REST))
            }
            () = checkpoints.late() => Some(started + PUSH_GAP.max(polled * PUSH_REST)),
            () = async { while joined.changed().await.is_ok() && !are_waited_for() {} } => Some(for_waiters),
            changed = work.changed() => match changed {
                Ok(()) => None,
                Err(_) => return,
            },
        };
        if let Some(not_before) = not_before {
            sleep_until(not_before).await;
        }
    }
}

/// Measures once, and reports what the probe has not reported when its time is over.
async fn measure<P: Probe>(probe: &mut P, targets: Vec<Target<P::Question>>, report: Report<'_, P::Question>) -> Pace {
    if targets.is_empty() {
        return Pace::Usual;
    }
    let deadline = Instant::now() + DEADLINE;
    let mut unanswered: HashMap<RunKey, Arc<Ask<P::Question>>> =
        targets.iter().map(|target| (target.ask.key.clone(), Arc::clone(&target.ask))).collect();
    let mut note = |ask: &Ask<P::Question>, result| {
        unanswered.remove(&ask.key);
        report(ask, result);
    };
    if let Ok(pace) = timeout_at(deadline + GRACE, probe.measure(targets, deadline, &mut note)).await {
        return pace;
    }
    for ask in unanswered.values() {
        report(
            ask,
            Err(MeasureError { reason: Reason::TimedOut, message: "the source did not answer in time".to_owned() }),
        );
    }
    Pace::Usual
}

/// Whether the server, or the read store, refused the login for each projection that a poll has told of.
#[derive(Default)]
struct Login {
    refused: bool,
    otherwise: bool,
}

impl Login {
    fn take(&mut self, result: &Result<Sample, MeasureError>) {
        let refused = result.as_ref().is_err_and(|unknown| unknown.reason == Reason::AuthenticationFailed);
        self.refused |= refused;
        self.otherwise |= !refused;
    }

    fn refused_to_all(&self) -> bool {
        self.refused && !self.otherwise
    }
}

/// How long after the beginning of a poll the next one begins: the interval, longer after so many refusals of the login in a row, a tenth more or less as
/// `random` (0 to 1) says, so that sources and replicas of the operator do not poll in step.
pub(super) fn next_poll(interval: Duration, pace: Pace, refusals: u32, random: f64) -> Duration {
    let interval = match pace {
        _ if refusals > 0 => interval.max(LOGIN_BACKOFF.pause(refusals - 1)),
        Pace::Usual => interval,
        Pace::Soon => interval.min(SOON),
    };
    interval.mul_f64(0.9 + 0.2 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_are_spread_around_the_interval() {
        let interval = Duration::from_secs(5);
        assert_eq!(next_poll(interval, Pace::Usual, 0, 0.0), Duration::from_millis(4_500));
        assert_eq!(next_poll(interval, Pace::Usual, 0, 1.0), Duration::from_millis(5_500));
        assert_eq!(next_poll(interval, Pace::Soon, 0, 0.5), SOON);
    }

    #[test]
    fn a_server_that_refuses_the_login_is_asked_less_and_less_often() {
        let seconds =
            |interval, refusals| next_poll(Duration::from_millis(interval), Pace::Soon, refusals, 0.5).as_secs();
        assert_eq!([1, 2, 3, 4, 5, 6, 1_000].map(|refusals| seconds(500, refusals)), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!([1, 2, 3, 4, 5].map(|refusals| seconds(5_000, refusals)), [5, 5, 5, 8, 16]);
        let refused = Err(MeasureError { reason: Reason::AuthenticationFailed, message: String::new() });
        let other = Err(MeasureError { reason: Reason::TimedOut, message: String::new() });
        let mut login = Login::default();
        assert!(!login.refused_to_all(), "nothing was told");
        login.take(&refused);
        assert!(login.refused_to_all());
        login.take(&other);
        assert!(!login.refused_to_all());
    }
}
