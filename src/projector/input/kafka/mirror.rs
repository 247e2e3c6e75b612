//! Commits to a consumer group what the read store holds, so that other tools see how far a projection has come. Nothing depends on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    addresses::AddressRules,
    clients::kafka::{Client, KafkaError, Partition, Settings},
};

/// Offsets are committed no more often.
const EVERY: Duration = Duration::from_secs(1);
/// All are committed again after so long: a worker that held a partition before may have been later with its last commit.
const AGAIN: Duration = Duration::from_secs(30);
/// For one commit.
const DEADLINE: Duration = Duration::from_secs(10);
/// A worker that ends waits so long for its last commit.
const LAST: Duration = Duration::from_secs(2);
const WARN_EVERY: Duration = Duration::from_secs(60);

type Offsets = BTreeMap<Partition, i64>;

/// The task that commits, on connections of its own.
pub(super) struct Mirror {
    offsets: watch::Sender<Offsets>,
    task: JoinHandle<()>,
}

impl Mirror {
    /// Connects with the first commit.
    ///
    /// # Errors
    /// The authority or the client certificate cannot be read.
    pub(super) fn start(settings: Settings, group: &str) -> Result<Self, KafkaError> {
        let client = Client::new(settings, Arc::new(AddressRules::everywhere()))?;
        let (offsets, changes) = watch::channel(Offsets::new());
        let task = tokio::spawn(mirror(client, group.into(), changes));
        Ok(Self { offsets, task })
    }

    /// Another worker commits for this partition from now on.
    pub(super) fn released(&self, partition: &Partition) {
        self.offsets.send_if_modified(|offsets| offsets.remove(partition).is_some());
    }

    /// This offset is read next.
    pub(super) fn committed(&self, partition: &Partition, offset: i64) {
        self.offsets.send_if_modified(|offsets| offsets.insert(partition.clone(), offset) != Some(offset));
    }

    /// Commits what is left, as far as that is soon done.
    pub(super) async fn finish(self) {
        let Self { offsets, mut task } = self;
        drop(offsets);
        if timeout(LAST, &mut task).await.is_err() {
            task.abort();
        }
    }
}

async fn mirror(mut client: Client, group: Arc<str>, mut changes: watch::Receiver<Offsets>) {
    let mut done = Offsets::new();
    let mut warned: Option<Instant> = None;
    loop {
        let last = match timeout(AGAIN, changes.changed()).await {
            Ok(changed) => changed.is_err(),
            Err(_) => {
                done.clear();
                false
            }
        };
        let offsets = changes.borrow_and_update().clone();
        let new: Offsets = offsets.into_iter().filter(|(partition, at)| done.get(partition) != Some(at)).collect();
        if !new.is_empty() {
            match commit(&mut client, &group, &new).await {
                Ok(()) => done.extend(new),
                Err(error) if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) => {
                    warned = Some(Instant::now());
                    tracing::warn!(
                        %group,
                        "offsets are not committed to the consumer group, where other tools look for them: {error}. The projection goes on: its checkpoints are in the read store"
                    );
                }
                Err(_) => {}
            }
        }
        if last {
            return;
        }
        sleep(EVERY).await;
    }
}

async fn commit(client: &mut Client, group: &Arc<str>, offsets: &Offsets) -> Result<(), KafkaError> {
    let by = Instant::now() + DEADLINE;
    let mut found = client.coordinators(&BTreeSet::from([Arc::clone(group)]), by).await?;
    let coordinator = found.remove(group).unwrap_or_else(|| Err(KafkaError::not_told(&format!("group {group}"))))?;
    client.commit(group, coordinator, offsets, by).await
}
