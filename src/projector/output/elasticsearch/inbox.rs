//! A read model in Elasticsearch or OpenSearch of events that come from a queue: whole documents, each written with a version that the message holds.
//!
//! Nothing is noted of a message that is handled: what is repeated, and what comes after a later version, is refused by the documents' versions. Of those that
//! cannot be handled a document of the state tells the operator.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::{
    super::{
        super::{config::ProjectorConfig, error::ProjectorError, event::Event},
        ApplyError, Inbox,
        inbox::{MOST_TOLD, TOLD_FOR},
    },
    LONGEST_FAILURE,
    documents::{Portion, ReadModelWriter},
    handlers::Documents,
    kept::{FailedMessage, Kept, Unhandled, json},
    requests::Condition,
    state::State,
};
use crate::clients::elasticsearch::ConnectionSettings;

/// Of so many messages it is remembered how often this worker has tried them.
const MOST_REMEMBERED: usize = 10_000;
/// What is being done, for messages.
const OPENING: &str = "read store: reading what could not be handled";
const RECORDING: &str = "read store: recording a failed event";

/// A connection to the read store.
pub(in crate::projector) struct SearchInbox {
    state: State,
    writer: ReadModelWriter,
    /// How often this worker has tried messages that cannot be handled.
    tried: HashMap<String, u32>,
    /// What is told as failed, as this worker has last seen it: how often each was tried, and since when it has been so.
    told: BTreeMap<String, (u64, Instant)>,
}

impl SearchInbox {
    /// Connects, and makes the index of the state where it is missing.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        config: &ProjectorConfig,
        documents: Documents,
    ) -> Result<Self, ProjectorError> {
        let state = State::new(settings, documents.state_index(), &config.projection);
        let writer = ReadModelWriter::new(documents, config.max_event_bytes);
        let mut inbox = Self { state, writer, tried: HashMap::new(), told: BTreeMap::new() };
        let kept = inbox.state.unhandled(OPENING).await?;
        inbox.see(kept.as_ref().map(|kept| &kept.value));
        Ok(inbox)
    }

    /// Takes over what is told as failed.
    fn see(&mut self, unhandled: Option<&Unhandled>) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.told);
        for FailedMessage { message, times, .. } in unhandled.into_iter().flat_map(|unhandled| &unhandled.failed) {
            let since = before.get(message).filter(|(seen, _)| seen == times).map_or(now, |(_, since)| *since);
            self.told.insert(message.clone(), (*times, since));
        }
    }

    /// Changes what is told as failed, on top of what other workers have made of it.
    async fn tell(&mut self, change: impl Fn(&mut Vec<FailedMessage>)) -> Result<(), ProjectorError> {
        loop {
            let kept = self.state.unhandled(RECORDING).await?;
            let (condition, before) = match kept {
                Some(Kept { cas, value }) => (Condition::Unchanged(cas), value),
                None => (Condition::New, Unhandled::default()),
            };
            let mut after = before.clone();
            change(&mut after.failed);
            if after != before {
                let document = (self.state.failed_id(), condition, json(&after));
                let written = self.state.write(RECORDING, &[document]).await?;
                if !written.first().is_some_and(Option::is_some) {
                    continue;
                }
            }
            self.see(Some(&after));
            return Ok(());
        }
    }
}

impl Inbox for SearchInbox {
    async fn handle(&mut self, ids: &[String], events: &[Event]) -> Result<usize, ApplyError> {
        let count = match self.writer.write(&mut self.state, events, &|| true).await? {
            Portion::Written(count) => count,
            // It is never said that this worker may not write.
            Portion::Lost => 0,
        };
        let done = ids.get(..count).unwrap_or_default();
        for id in done {
            self.tried.remove(id);
        }
        if done.iter().any(|id| self.told.contains_key(id)) {
            let forget = |failed: &mut Vec<FailedMessage>| failed.retain(|one| !done.contains(&one.message));
            self.tell(forget).await.map_err(ApplyError::Store)?;
        }
        Ok(count)
    }

    async fn record_failure(&mut self, id: &str, why: &str) -> Result<u32, ProjectorError> {
        if self.tried.len() >= MOST_REMEMBERED {
            self.tried.clear();
        }
        let times = self.tried.entry(id.to_owned()).or_default();
        *times = times.saturating_add(1);
        let times = *times;
        let why: String = why.chars().take(LONGEST_FAILURE).collect();
        self.tell(|failed| {
            if let Some(one) = failed.iter_mut().find(|one| one.message == id) {
                (one.why, one.times) = (why.clone(), one.times.saturating_add(1));
            } else if failed.len() < MOST_TOLD {
                failed.push(FailedMessage { message: id.to_owned(), why: why.clone(), times: 1 });
            }
        })
        .await?;
        Ok(times)
    }

    /// There are no notes; what is told as failed and was not tried for a while is no longer told.
    async fn prune(&mut self) -> Result<bool, ProjectorError> {
        let kept = self.state.unhandled(OPENING).await?;
        self.see(kept.as_ref().map(|kept| &kept.value));
        let old = |(times, since): &(u64, Instant)| (since.elapsed() > TOLD_FOR).then_some(*times);
        let gone: BTreeMap<String, u64> =
            self.told.iter().filter_map(|(id, seen)| Some((id.clone(), old(seen)?))).collect();
        if !gone.is_empty() {
            self.tell(|failed| failed.retain(|one| gone.get(&one.message) != Some(&one.times))).await?;
        }
        Ok(false)
    }
}
