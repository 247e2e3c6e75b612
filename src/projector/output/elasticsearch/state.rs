//! What the workers keep: documents of one index, each called after the Projection.
//!
//! | `_id` | what is in it |
//! |---|---|
//! | `NAMESPACE/NAME` | the number of shards, and which source the positions are of |
//! | `NAMESPACE/NAME:workers` | the workers, each with a counter that grows while it lives |
//! | `NAMESPACE/NAME:shard:N` | the shard's position, owner and fence, and an event that it waits before |
//! | `claims` | of all Projections: to which indices each of them writes |
//! | `NAMESPACE/NAME:failed` | of a queue, which has no shards: messages that cannot be handled |
//! | `NAMESPACE/NAME:part:NAME` | the same of a shard that is a part of the source, such as a partition |
//!
//! Every change is made only where the document is still as it was read (`if_seq_no`), and all are read by `_id`, as they are now. So an owner that has
//! lost a shard cannot move its checkpoint.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::{
    super::{
        super::{
            error::ProjectorError,
            event::SourceIdentity,
            sharding::{KeptPart, Part, Sharding, none_added, without_checkpoint},
        },
        Numbered,
    },
    kept::{Header, Kept, NamedPart, Shard, Unhandled, Workers, json},
    patience::Patience,
    refusals::Outcome,
    requests::{Cas, Condition, Failed, Read, Requests, append},
};
use crate::{clients::elasticsearch::ConnectionSettings, names::search_state};

/// An answer with the state is given up beyond this, in bytes: of each shard less than 5 KiB are kept.
const LARGEST: usize = 16 << 20;
/// What is being done when the state is made, for messages.
const MAKING: &str = "read store: making the checkpoints";

/// A connection to the state of a projection.
pub(super) struct State {
    requests: Requests,
    index: String,
    projection: String,
    /// Where the shards are parts of the source: their names, in the order of their numbers.
    parts: Vec<Arc<str>>,
}

/// Documents in the order in which they were asked for; `None` where one is missing.
type Sources = Vec<Option<(Cas, String)>>;

impl State {
    /// Not connected yet.
    pub(super) fn new(settings: &ConnectionSettings, index: &str, projection: &str) -> Self {
        Self {
            requests: Requests::new(settings),
            index: index.to_owned(),
            projection: projection.to_owned(),
            parts: Vec::new(),
        }
    }

    /// To try handlers with: what becomes of each document is noted. Nothing is kept.
    pub(super) fn to_try(settings: &ConnectionSettings, index: &str, projection: &str) -> Self {
        let state = Self::new(settings, index, projection);
        Self { requests: state.requests.noting(), ..state }
    }

    /// The same on a connection of its own.
    pub(super) fn another(&self) -> Self {
        Self {
            requests: self.requests.another(),
            index: self.index.clone(),
            projection: self.projection.clone(),
            parts: self.parts.clone(),
        }
    }

    /// The index that the state is in.
    pub(super) fn index(&self) -> &str {
        &self.index
    }

    /// Where the server is.
    pub(super) fn at(&self) -> String {
        self.requests.at()
    }

    /// The connection, for documents of the read model.
    pub(super) fn requests(&mut self) -> &mut Requests {
        &mut self.requests
    }

    pub(super) fn failed(&self, doing: &'static str, message: String) -> ProjectorError {
        ProjectorError::Store { doing, at: self.requests.at(), message }
    }

    pub(super) fn shard_id(&self, shard: u32) -> String {
        match self.parts.get(shard as usize) {
            Some(part) => search_state::part(&self.projection, part),
            None => search_state::shard(&self.projection, shard),
        }
    }

    pub(super) fn workers_id(&self) -> String {
        search_state::workers(&self.projection)
    }

    pub(super) fn failed_id(&self) -> String {
        search_state::failed(&self.projection)
    }

    fn gone(&self, id: &str) -> ProjectorError {
        ProjectorError::StateGone {
            projection: self.projection.clone(),
            at: self.requests.at(),
            key: format!("index {}, document {id}", self.index),
            then: "Where the whole state is gone, the workers begin again at the first event, and what is written stays as it is: documents know the last event that wrote them. Where a part of it is gone, no position is made up: set spec.suspend, delete all documents of this Projection in this index, and take it back",
        }
    }

    /// Reads documents of the state in the order in which they are asked for. `None` where one is missing, and whether the index is.
    async fn read(&mut self, doing: &'static str, ids: &[String]) -> Result<(Sources, bool), ProjectorError> {
        let mut patience = Patience::from_now();
        loop {
            let documents: Vec<(&str, &str)> = ids.iter().map(|id| (self.index.as_str(), id.as_str())).collect();
            let busy = match self.requests.read(&documents, LARGEST).await {
                Ok(all) => {
                    let busy = all.iter().find_map(|read| match read {
                        Read::Refused(Outcome::Busy(why)) => Some(why.clone()),
                        _ => None,
                    });
                    match busy {
                        None => return self.found(doing, ids, all),
                        Some(why) => why,
                    }
                }
                Err(Failed::Refused(Outcome::Busy(why))) => why,
                Err(failed) => return Err(self.told(doing, failed)),
            };
            let Some(pause) = patience.pause() else { return Err(self.failed(doing, busy)) };
            sleep(pause).await;
        }
    }

    fn found(&self, doing: &'static str, ids: &[String], all: Vec<Read>) -> Result<(Sources, bool), ProjectorError> {
        let mut no_index = false;
        let found = ids.iter().zip(all).map(|(id, read)| match read {
            Read::Found(document) => {
                let source = document.source.ok_or_else(|| self.foreign(doing, id))?;
                Ok(Some((document.cas, source.get().to_owned())))
            }
            Read::Missing => Ok(None),
            Read::NoIndex => {
                no_index = true;
                Ok(None)
            }
            Read::Refused(outcome) => Err(self.told(doing, Failed::Refused(outcome))),
        });
        let found = found.collect::<Result<_, _>>()?;
        Ok((found, no_index))
    }

    /// What keeps a request from being answered.
    pub(super) fn told(&self, doing: &'static str, failed: Failed) -> ProjectorError {
        let message = match failed {
            Failed::TooLarge => format!(
                "the documents of {} in index {} are larger than {} MiB together: did something else write there?",
                self.projection,
                self.index,
                LARGEST >> 20
            ),
            Failed::Refused(
                Outcome::Busy(why)
                | Outcome::NoIndex(why)
                | Outcome::Forbidden(why)
                | Outcome::Event(why)
                | Outcome::Server(why),
            ) => why,
            Failed::Refused(Outcome::Done | Outcome::Superseded) => String::new(),
        };
        self.failed(doing, message)
    }

    fn foreign(&self, doing: &'static str, id: &str) -> ProjectorError {
        let message = format!(
            "index {}, document {id}: it holds what no worker writes: did something else write there?",
            self.index
        );
        self.failed(doing, message)
    }

    fn value<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        id: &str,
        (cas, source): (Cas, String),
    ) -> Result<Kept<T>, ProjectorError> {
        let value = serde_json::from_str(&source).map_err(|_| self.foreign(doing, id))?;
        Ok(Kept { cas, value })
    }

    /// Reads the workers and these shards.
    ///
    /// # Errors
    /// Where one is gone.
    pub(super) async fn look(
        &mut self,
        doing: &'static str,
        shards: &[u32],
    ) -> Result<(Kept<Workers>, Vec<(u32, Kept<Shard>)>), ProjectorError> {
        let mut ids = vec![self.workers_id()];
        ids.extend(shards.iter().map(|shard| self.shard_id(*shard)));
        let (found, _) = self.read(doing, &ids).await?;
        let mut found = ids.iter().zip(found).map(|(id, found)| Ok((id, found.ok_or_else(|| self.gone(id))?)));
        let (id, workers) = found.next().unwrap_or_else(|| Err(self.gone("")))?;
        let workers = self.value(doing, id, workers)?;
        let shards = shards.iter().zip(found).map(|(shard, found)| {
            let (id, found) = found?;
            Ok((*shard, self.value(doing, id, found)?))
        });
        let shards = shards.collect::<Result<_, ProjectorError>>()?;
        Ok((workers, shards))
    }

    /// Reads the messages of a queue that cannot be handled; `None` where there has been none. Makes the index where it is missing.
    pub(super) async fn unhandled(&mut self, doing: &'static str) -> Result<Option<Kept<Unhandled>>, ProjectorError> {
        let id = self.failed_id();
        let found = self.one(doing, &id).await?;
        found.map(|found| self.value(doing, &id, found)).transpose()
    }

    /// Reads one document as it is written; `None` where there is none. Makes the index where it is missing.
    pub(super) async fn one(&mut self, doing: &'static str, id: &str) -> Result<Option<(Cas, String)>, ProjectorError> {
        let (found, no_index) = self.read(doing, &[id.to_owned()]).await?;
        if no_index {
            self.create_index().await?;
        }
        Ok(found.into_iter().next().flatten())
    }

    /// Writes documents of the state; returns what each is now, or `None` where it was not as it was read.
    pub(super) async fn write(
        &mut self,
        doing: &'static str,
        documents: &[(String, Condition, String)],
    ) -> Result<Vec<Option<Cas>>, ProjectorError> {
        let mut done: Vec<Option<Cas>> = vec![None; documents.len()];
        let mut left: Vec<usize> = (0..documents.len()).collect();
        let mut patience = Patience::from_now();
        while !left.is_empty() {
            let mut lines = String::new();
            for (id, condition, json) in left.iter().filter_map(|at| documents.get(*at)) {
                append(&mut lines, (&self.index, id), *condition, Some(json));
            }
            let (asked, mut busy) = (std::mem::take(&mut left), None);
            match self.requests.write(lines, asked.len()).await {
                Ok(all) => {
                    for (at, written) in asked.into_iter().zip(all) {
                        match written.outcome {
                            Outcome::Done => done[at] = written.cas,
                            Outcome::Superseded => {}
                            Outcome::Busy(why) => {
                                busy = Some(why);
                                left.push(at);
                            }
                            other => return Err(self.told(doing, Failed::Refused(other))),
                        }
                    }
                }
                Err(Failed::Refused(Outcome::Busy(why))) => {
                    busy = Some(why);
                    left = asked;
                }
                Err(failed) => return Err(self.told(doing, failed)),
            }
            if let Some(why) = busy {
                let Some(pause) = patience.pause() else { return Err(self.failed(doing, why)) };
                sleep(pause).await;
            }
        }
        Ok(done)
    }

    /// Makes the state where there is none, and adds parts of the source that are new.
    ///
    /// # Errors
    /// Where there is one for another number or kind of shards, or one that lacks something.
    pub(super) async fn create(&mut self, sharding: &Sharding) -> Result<Numbered, ProjectorError> {
        let (found, no_index) = self.read(MAKING, &[self.projection.clone(), self.workers_id()]).await?;
        if no_index {
            self.create_index().await?;
        }
        if found.first().is_none_or(Option::is_none) {
            self.make(sharding).await?;
        }
        let Kept { value: header, .. } = self.header(MAKING).await?;
        let table = || format!("index {}, document {}", self.index, self.projection);
        let other = |kept| ProjectorError::OtherSharding { projection: self.projection.clone(), table: table(), kept };
        let numbered = match sharding {
            Sharding::Hashed { .. } if !header.parts.is_empty() => return Err(other("partitions")),
            Sharding::Parts(_) if header.parts.is_empty() && header.shards > 0 => {
                return Err(other("hashes of streams"));
            }
            Sharding::Hashed { shards: configured, .. } if header.shards != *configured => {
                return Err(ProjectorError::ShardsChanged {
                    projection: self.projection.clone(),
                    table: table(),
                    found: i32::try_from(header.shards).unwrap_or(i32::MAX),
                    configured: *configured,
                });
            }
            Sharding::Hashed { shards, .. } => Numbered::hashed(*shards),
            Sharding::Parts(parts) => Numbered::parts(self.create_parts(parts).await?),
        };
        self.parts.clone_from(&numbered.parts);
        let all: Vec<u32> = (0..numbered.shards).collect();
        self.look(MAKING, &all).await?;
        Ok(numbered)
    }

    async fn header(&mut self, doing: &'static str) -> Result<Kept<Header>, ProjectorError> {
        let id = self.projection.clone();
        let (found, _) = self.read(doing, std::slice::from_ref(&id)).await?;
        let header = found.into_iter().next().flatten().ok_or_else(|| self.gone(&self.projection))?;
        self.value(doing, &self.projection, header)
    }

    /// Makes all documents but those of parts, that of the projection last: where it is, everything is.
    async fn make(&mut self, sharding: &Sharding) -> Result<(), ProjectorError> {
        let (shards, start) = match sharding {
            Sharding::Hashed { shards, start } => (*shards, *start),
            // They are added by their names.
            Sharding::Parts(_) => (0, 0),
        };
        let new = Shard { position: start, ..Shard::default() };
        let ids: Vec<String> = (0..shards).map(|shard| self.shard_id(shard)).collect();
        let (found, _) = self.read(MAKING, &ids).await?;
        for (id, found) in ids.iter().zip(found) {
            let Some(found) = found else { continue };
            let shard: Kept<Shard> = self.value(MAKING, id, found)?;
            if shard.value != new {
                return Err(self.gone(&self.projection));
            }
        }
        let mut documents = vec![(self.workers_id(), Condition::New, json(&Workers::default()))];
        documents.extend(ids.into_iter().map(|id| (id, Condition::New, json(&new))));
        self.write(MAKING, &documents).await?;
        let header = Header { shards, ..Header::default() };
        let made = self.write(MAKING, &[(self.projection.clone(), Condition::New, json(&header))]).await?;
        if made.first().is_some_and(Option::is_some) {
            tracing::warn!(
                index = self.index,
                "there was no state of this projection: beginning at the first event. Documents that are there already keep what is newer by their version"
            );
        }
        Ok(())
    }

    /// Adds parts that have no checkpoint, and returns all in the order of their numbers: a part keeps its number for good.
    async fn create_parts(&mut self, parts: &[Part]) -> Result<Vec<KeptPart>, ProjectorError> {
        loop {
            let Kept { cas, value: mut header } = self.header(MAKING).await?;
            let named = |part: &NamedPart| KeptPart {
                name: part.name.as_str().into(),
                identity: part.identity.as_deref().map(Arc::from),
            };
            let kept: Vec<KeptPart> = header.parts.iter().map(named).collect();
            let new = without_checkpoint(&self.projection, &kept, parts)?;
            if new.is_empty() {
                return Ok(kept);
            }
            none_added(&self.projection, &kept, &new)?;
            let documents: Vec<(String, Condition, String)> = new
                .iter()
                .map(|part| {
                    let shard = Shard { position: part.start, ..Shard::default() };
                    (search_state::part(&self.projection, &part.name), Condition::New, json(&shard))
                })
                .collect();
            // One that is there was made by a worker that did not come further, or comes further now.
            self.write(MAKING, &documents).await?;
            let added = new.into_iter().map(|part| NamedPart {
                name: part.name.to_string(),
                identity: part.identity.as_deref().map(str::to_owned),
            });
            header.parts.extend(added);
            header.shards = u32::try_from(header.parts.len()).unwrap_or(u32::MAX);
            // Where another worker was first, the next turn sees what it added.
            self.write(MAKING, &[(self.projection.clone(), Condition::Unchanged(cas), json(&header))]).await?;
        }
    }

    async fn create_index(&mut self) -> Result<(), ProjectorError> {
        let settings = serde_json::json!({
            "settings": { "index": { "number_of_shards": 1, "auto_expand_replicas": "0-1" } },
            "mappings": { "dynamic": false },
        });
        let index = self.index.clone();
        self.requests.create_index(&index, &settings).await.map_err(|failed| {
            let ProjectorError::Store { doing, at, message } = self.told(MAKING, failed) else { return self.gone("") };
            let message = format!("index {index} cannot be made: {message}");
            ProjectorError::Store { doing, at, message }
        })
    }

    /// Notes which events the positions are of.
    ///
    /// # Errors
    /// Where they are of others.
    pub(super) async fn of_source(&mut self, source: &SourceIdentity) -> Result<(), ProjectorError> {
        const DOING: &str = "read store: comparing the event source";
        loop {
            let Kept { cas, value: header } = self.header(DOING).await?;
            let differs = header.place.as_ref().is_some_and(|place| *place != source.place)
                || header.server.as_ref().zip(source.server.as_ref()).is_some_and(|(found, given)| found != given);
            if differs {
                let place = header.place.unwrap_or_default();
                return Err(ProjectorError::OtherSource {
                    projection: self.projection.clone(),
                    at: self.requests.at(),
                    key: format!("index {}, document {}", self.index, self.projection),
                    found: Box::new(SourceIdentity { place, server: header.server }),
                    configured: Box::new(source.clone()),
                    remedy: format!(
                        "Give one of them another index (stateIndex) or another name. If these are the same events at a new place, with the positions they had, take place and server out of that document: POST /{}/_update/{} {{\"doc\": {{\"place\": null, \"server\": null}}}}",
                        self.index,
                        self.projection.replace('/', "%2F"),
                    ),
                });
            }
            let place = header.place.clone().or_else(|| Some(source.place.clone()));
            let server = header.server.clone().or_else(|| source.server.clone());
            if place == header.place && server == header.server {
                return Ok(());
            }
            let noted = Header { place, server, ..header };
            let document = (self.projection.clone(), Condition::Unchanged(cas), json(&noted));
            let written = self.write(DOING, &[document]).await?;
            if written.first().is_some_and(Option::is_some) {
                return Ok(());
            }
        }
    }
}
