//! The polling tasks of one kind of source, one for each server.

use std::{collections::HashMap, hash::Hash};

use tokio::sync::watch;

use super::{
    AbortOnDrop,
    poll::{Polling, Work, poll},
};
use crate::sources::Probe;

pub(super) struct Tasks<Identity, P: Probe> {
    running: HashMap<Identity, Running<P::Question>>,
}

struct Running<Question> {
    work: watch::Sender<Work<Question>>,
    _task: AbortOnDrop,
}

impl<Identity, P: Probe> Default for Tasks<Identity, P> {
    fn default() -> Self {
        Self { running: HashMap::new() }
    }
}

impl<Identity: Eq + Hash, P: Probe> Tasks<Identity, P> {
    /// Ends the tasks, and with them the connections, of servers that are not wanted any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Identity) -> bool) {
        self.running.retain(|identity, _| wanted(identity));
    }

    /// Gives the task of this server its work; `probe` is made for a new one.
    pub(super) fn assign(
        &mut self,
        identity: Identity,
        work: Work<P::Question>,
        probe: impl FnOnce() -> P,
        polling: &Polling,
    ) {
        if let Some(running) = self.running.get(&identity) {
            running.work.send_if_modified(|before| {
                let modified = before.asks != work.asks || before.interval != work.interval;
                *before = work;
                modified
            });
            return;
        }
        let (work, work_there) = watch::channel(work);
        let task = poll(probe(), work_there, polling.clone());
        self.running.insert(identity, Running { work, _task: AbortOnDrop(tokio::spawn(task)) });
    }
}
