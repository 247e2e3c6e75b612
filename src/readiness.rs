//! When this replica may be asked: it knows the cluster, has its certificate, knows whom to believe, and has measured once.
//!
//! Readiness only. Liveness never depends on the cluster: restarting us would not mend it.

use std::time::Duration;

use tokio::sync::watch;

/// How long reconciling waits for the first round of samples: a hanging database must not keep workers from being made.
const PATIENCE: Duration = Duration::from_secs(15);

/// What must have happened, each by name.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Vec<(&'static str, watch::Receiver<bool>)>,
}

impl Readiness {
    /// Adds a condition and returns the means to fulfil it.
    pub fn condition(&mut self, name: &'static str) -> watch::Sender<bool> {
        let (sender, receiver) = watch::channel(false);
        self.conditions.push((name, receiver));
        sender
    }

    /// Adds a condition that is fulfilled elsewhere.
    pub fn follow(&mut self, name: &'static str, receiver: watch::Receiver<bool>) {
        self.conditions.push((name, receiver));
    }

    /// What is still missing; empty when ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.conditions.iter().filter(|(_, done)| !*done.borrow()).map(|(name, _)| *name).collect()
    }
}

/// Turns true when all of `lists` have, and the first round of samples is done or has been waited for long enough: before that,
/// every Projection would be reported as not measured.
pub async fn may_reconcile(
    lists: Vec<watch::Receiver<bool>>,
    first_round: watch::Receiver<bool>,
    done: watch::Sender<bool>,
) {
    for list in lists {
        become_true(list).await;
    }
    if tokio::time::timeout(PATIENCE, become_true(first_round)).await.is_err() {
        tracing::warn!("some source has not answered within {} s: reconciling starts without it", PATIENCE.as_secs());
    }
    done.send_replace(true);
    // Whoever listens takes the end of the sender for the end of the operator.
    done.closed().await;
}

async fn become_true(mut receiver: watch::Receiver<bool>) {
    // A sender that is gone will never fulfil it.
    if receiver.wait_for(|done| *done).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let mut readiness = Readiness::default();
        let first = readiness.condition("lists");
        let _second = readiness.condition("certificate");
        assert_eq!(readiness.missing(), ["lists", "certificate"]);
        first.send_replace(true);
        assert_eq!(readiness.missing(), ["certificate"]);
    }
}
