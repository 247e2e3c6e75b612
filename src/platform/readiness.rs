//! When this replica is ready: it has listed the cluster's objects, has its certificate, knows the authorities of client certificates, and has
//! measured once.
//!
//! Readiness only. Liveness never depends on the cluster: a restart of the operator would not repair it.

use tokio::sync::watch;

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

/// Turns true when all of `lists` have. Samples are not waited for: a database that hangs must keep no workload from being made, suspended or scaled
/// to what is known.
pub async fn may_reconcile(lists: Vec<watch::Receiver<bool>>, done: watch::Sender<bool>) {
    for list in lists {
        become_true(list).await;
    }
    done.send_replace(true);
    // Receivers take the end of the sender for the end of the operator.
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

    #[tokio::test]
    async fn reconciling_begins_with_the_lists_and_waits_for_no_sample() {
        let (done, mut may) = watch::channel(false);
        let (listed, list) = watch::channel(false);
        let waiting = tokio::spawn(may_reconcile(vec![list], done));
        assert!(!*may.borrow_and_update());
        listed.send_replace(true);
        may.changed().await.unwrap();
        assert!(*may.borrow());
        waiting.abort();
    }

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
