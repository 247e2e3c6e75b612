//! Writes what a batch makes of documents: reads those that are changed in part, and looks at each result by itself.

use std::collections::HashMap;

use tokio::time::sleep;

use super::{
    super::{super::event::Event, ApplyError},
    Documents,
    fold::{Change, Found, Shards, Unfit, Write, fold, to_read},
    operations::{Filled, Key},
    patience::Patience,
    refusals::Outcome,
    requests::{Condition, Failed, Read, append},
    state::State,
};
/// A bulk request has no more bytes, unless one document has,
const MOST_BYTES: usize = 4 << 20;
/// and is not made smaller for a server that has too much to do.
const LEAST_BYTES: usize = 64 << 10;
/// So many bytes of documents are read for one portion, and of one document.
const MOST_READ: usize = 16 << 20;
/// So many documents are read by one request.
const READ_AT_ONCE: usize = 200;
/// The documents of one event may have as many bytes as the largest event that is read, and this many more.
const MORE_OF_ONE_EVENT: u64 = 16 << 20;
/// Servers take no more than 100 MB in one request unless they are told to.
const MOST_OF_ONE_EVENT: usize = 95 << 20;
/// What is being done, for messages.
const WRITING: &str = "read store: writing the documents";
const READING: &str = "read store: reading the documents to change";

/// Writes documents, as many at once as the server takes.
pub(super) struct ReadModelWriter {
    documents: Documents,
    most_of_one_event: usize,
    most_bytes: usize,
    shards: Shards,
}

/// How far a batch has come.
pub(super) enum Portion {
    /// The documents of so many of its events are written: at least one.
    Written(usize),
    /// This worker may write no longer.
    Lost,
}

/// What the documents of one event may have, in bytes.
pub(super) fn most_bytes_of_one_event(max_event_bytes: u64) -> usize {
    let most = usize::try_from(max_event_bytes.saturating_add(MORE_OF_ONE_EVENT)).unwrap_or(usize::MAX);
    most.min(MOST_OF_ONE_EVENT)
}

/// What came of a set of writes.
enum Sent {
    All,
    Lost,
    /// These were refused, with why.
    Refused(Vec<(Write, String)>),
}

impl ReadModelWriter {
    pub(super) fn new(documents: Documents, max_event_bytes: u64) -> Self {
        Self {
            documents,
            most_of_one_event: most_bytes_of_one_event(max_event_bytes),
            most_bytes: MOST_BYTES,
            shards: Shards::default(),
        }
    }

    /// Writes the documents of the first of `events`, at least of one. `may_write` is asked before each request.
    ///
    /// # Errors
    /// Where the first event cannot be done, or the server cannot be asked. What is written by then is written, and changes nothing when it is repeated.
    pub(super) async fn write(
        &mut self,
        state: &mut State,
        events: &[Event],
        may_write: &(dyn Fn() -> bool + Sync),
    ) -> Result<Portion, ApplyError> {
        let (changes, mut count) = self.changes(events)?;
        loop {
            let until = changes.partition_point(|change| change.event < count);
            let changes = changes.get(..until).unwrap_or_default();
            let unfit = |unfit: Unfit| match unfit.event {
                0 => Err(ApplyError::Event { index: 0, message: unfit.message }),
                before => Ok(before),
            };
            let found = match read(state, changes).await? {
                Looked::All(found) => found,
                Looked::Until(events) => {
                    count = events;
                    continue;
                }
                Looked::Unfit(event) => {
                    count = unfit(event)?;
                    continue;
                }
            };
            let writes = match fold(events, changes, &found, &mut self.shards) {
                Ok(writes) => writes,
                Err(event) => {
                    count = unfit(event)?;
                    continue;
                }
            };
            let refused = match self.send(state, writes, may_write).await? {
                Sent::All => return Ok(Portion::Written(count)),
                Sent::Lost => return Ok(Portion::Lost),
                Sent::Refused(refused) => refused,
            };
            let first = refused.iter().filter_map(|(write, _)| write.events.first()).min().copied().unwrap_or_default();
            if first > 0 {
                // Those before it are done.
                return Ok(Portion::Written(first));
            }
            // A document that shows several events: which of them it is refused for shows without the later ones.
            let later = |(write, message): (Write, String)| match write.events[..] {
                [0] => Err(message),
                [0, second, ..] => Ok(second),
                _ => Ok(count),
            };
            match refused.into_iter().map(later).collect::<Result<Vec<usize>, String>>() {
                Err(message) => return Err(ApplyError::Event { index: 0, message }),
                Ok(counts) => count = counts.into_iter().min().unwrap_or(1).clamp(1, count.saturating_sub(1).max(1)),
            }
        }
    }

    /// The operations of as many of the events as are done at once, and of how many.
    fn changes(&self, events: &[Event]) -> Result<(Vec<Change>, usize), ApplyError> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for (index, event) in events.iter().enumerate() {
            let all = match self.documents.of(event, self.most_of_one_event) {
                Ok(all) => all,
                Err(message) if index == 0 => return Err(ApplyError::Event { index, message }),
                Err(_) => return Ok((changes, index)),
            };
            bytes += all.iter().map(Filled::size).sum::<usize>();
            if index > 0 && bytes > MOST_BYTES {
                return Ok((changes, index));
            }
            changes.extend(all.into_iter().map(|filled| Change { event: index, filled }));
        }
        Ok((changes, events.len()))
    }

    async fn send(
        &mut self,
        state: &mut State,
        writes: Vec<Write>,
        may_write: &(dyn Fn() -> bool + Sync),
    ) -> Result<Sent, ApplyError> {
        let failed = |state: &State, failed: Failed| ApplyError::Store(state.told(WRITING, failed));
        let mut left = std::collections::VecDeque::from(writes);
        let (mut refused, mut patience) = (Vec::new(), Patience::default());
        while !left.is_empty() {
            if !may_write() {
                return Ok(Sent::Lost);
            }
            let (mut lines, mut asked) = (String::new(), Vec::new());
            while let Some(write) = left.pop_front() {
                let length = write.document.as_ref().map_or(0, String::len);
                if !asked.is_empty() && lines.len() + length > self.most_bytes {
                    left.push_front(write);
                    break;
                }
                let Write { key: Key { index, id }, version, document, .. } = &write;
                append(&mut lines, (index, id), Condition::Version(*version), document.as_deref());
                asked.push(write);
            }
            let mut busy = None;
            match state.requests().write(lines, asked.len()).await {
                Ok(all) => {
                    for (write, written) in asked.into_iter().zip(all) {
                        let by = |why: &str| format!("operation {} ({}): {why}", write.by.0, write.by.1);
                        match written.outcome {
                            Outcome::Done | Outcome::Superseded => {}
                            Outcome::Busy(why) => {
                                busy = Some(why);
                                left.push_back(write);
                            }
                            Outcome::NoIndex(why) | Outcome::Event(why) => {
                                let why = by(&why);
                                refused.push((write, why));
                            }
                            // Another event may write to another index.
                            Outcome::Forbidden(why) if !write.index_is_constant => {
                                let why = by(&why);
                                refused.push((write, why));
                            }
                            Outcome::Forbidden(why) => {
                                let why = format!("index {}: {}", write.key.index, by(&why));
                                return Err(failed(state, Failed::Refused(Outcome::Server(why))));
                            }
                            Outcome::Server(why) => {
                                return Err(failed(state, Failed::Refused(Outcome::Server(by(&why)))));
                            }
                        }
                    }
                }
                Err(Failed::Refused(Outcome::Busy(why))) => {
                    busy = Some(why);
                    left.extend(asked);
                }
                Err(Failed::Refused(Outcome::Event(why))) if asked.len() == 1 => {
                    refused.extend(asked.into_iter().map(|write| (write, why.clone())));
                }
                // The request is larger than the server takes.
                Err(Failed::Refused(Outcome::Event(_))) => {
                    self.most_bytes = (self.most_bytes / 2).max(1);
                    left.extend(asked);
                    continue;
                }
                Err(error) => return Err(failed(state, error)),
            }
            let Some(why) = busy else {
                patience = Patience::default();
                self.most_bytes = (self.most_bytes * 2).clamp(LEAST_BYTES, MOST_BYTES);
                continue;
            };
            let Some(pause) = patience.pause() else {
                return Err(failed(state, Failed::Refused(Outcome::Busy(why))));
            };
            self.most_bytes = (self.most_bytes / 2).max(LEAST_BYTES);
            tracing::debug!(?pause, bytes = self.most_bytes, "{why}");
            sleep(pause).await;
        }
        Ok(if refused.is_empty() { Sent::All } else { Sent::Refused(refused) })
    }
}

/// Documents as they are.
enum Looked {
    All(HashMap<Key, Found>),
    /// They are so large that those of so many events are enough.
    Until(usize),
    Unfit(Unfit),
}

/// Reads the documents that are changed in part.
async fn read(state: &mut State, changes: &[Change]) -> Result<Looked, ApplyError> {
    let asked = to_read(changes);
    let (mut found, mut bytes, mut at, mut at_once) = (HashMap::new(), 0, 0, READ_AT_ONCE);
    let mut patience = Patience::default();
    while let Some(part) = asked.get(at..).filter(|part| !part.is_empty()) {
        let part = part.get(..at_once).unwrap_or(part);
        let first = part.first().map_or(0, |(_, event)| *event);
        if bytes > MOST_READ && first > 0 {
            return Ok(Looked::Until(first));
        }
        let keys: Vec<(&str, &str)> = part.iter().map(|(key, _)| (key.index.as_str(), key.id.as_str())).collect();
        let mut busy = None;
        match state.requests().read(&keys, MOST_READ).await {
            Ok(all) => {
                for ((key, event), read) in part.iter().zip(all) {
                    let unfit = |message: String| Ok(Looked::Unfit(Unfit { event: *event, message }));
                    let document = match read {
                        Read::Missing | Read::NoIndex => Found::Missing,
                        Read::Found(document) => match document.source {
                            Some(source) => {
                                bytes += source.get().len();
                                Found::There { version: document.version, source: source.get().to_owned() }
                            }
                            None => return unfit("the index keeps no _source, without which no part of a document can be changed: write the whole document with index".to_owned()),
                        },
                        Read::Refused(Outcome::Busy(why)) => {
                            busy = Some(why);
                            break;
                        }
                        Read::Refused(Outcome::Event(why)) => {
                            return unfit(format!("the document to change cannot be read: {why} An alias must lead to one index"));
                        }
                        Read::Refused(other) => {
                            return Err(ApplyError::Store(state.told(READING, Failed::Refused(other))));
                        }
                    };
                    found.insert((*key).clone(), document);
                }
            }
            Err(Failed::TooLarge) if part.len() > 1 => {
                at_once = part.len() / 2;
                continue;
            }
            Err(Failed::TooLarge) => {
                let message = format!("the document to change is larger than {} MiB", MOST_READ >> 20);
                return Ok(Looked::Unfit(Unfit { event: first, message }));
            }
            Err(Failed::Refused(Outcome::Busy(why))) => busy = Some(why),
            Err(failed) => return Err(ApplyError::Store(state.told(READING, failed))),
        }
        let Some(why) = busy else {
            at += part.len();
            patience = Patience::default();
            continue;
        };
        let Some(pause) = patience.pause() else {
            return Err(ApplyError::Store(state.told(READING, Failed::Refused(Outcome::Busy(why)))));
        };
        at_once = (at_once / 2).max(1);
        sleep(pause).await;
    }
    Ok(Looked::All(found))
}
