//! Watches that feed what the operator knows: the store of Projections, and the index of objects made for them. Reads only.
//!
//! A list is taken over as a whole, so that what vanished while a watch was interrupted is noticed. A Projection that cannot be
//! read is logged and left as it was; it never stalls the others.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use futures::{Stream, StreamExt as _, stream::SelectAll};
use kube::{
    Api, Client, ResourceExt as _,
    core::{DeserializeGuard, DynamicObject},
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use tokio::sync::{mpsc, watch};

use super::{
    index::LiveIndex,
    live::{LiveObject, made_for},
    parts::Part,
};
use crate::{
    api::Projection,
    leader_required::note_who_wrote,
    measure::ProjectionKey,
    names::{self, PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION, SUSPEND_ANNOTATION},
    platform::errors::log_interrupted_watch,
};

/// The annotations of a Projection that change what is done for it.
const HEEDED: [&str; 3] = [SUSPEND_ANNOTATION, PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION];

/// One watch, over all namespaces (`None`) or one.
type Scoped<K> = (Option<String>, watcher::Result<Event<K>>);

/// Follows Projections into `writer`. `changed` counts changes; `triggers` gets those that concern reconciling; `synced` turns
/// true when all have been listed.
pub async fn follow_projections(
    client: Client,
    namespaces: Vec<Option<String>>,
    mut writer: Writer<Projection>,
    changed: watch::Sender<u64>,
    triggers: mpsc::UnboundedSender<ProjectionKey>,
    synced: watch::Sender<bool>,
) {
    let mut events: SelectAll<_> = namespaces
        .iter()
        .map(|namespace| scoped(api_of(&client, namespace.as_deref()), watcher::Config::default(), namespace.clone()))
        .collect();
    let store = writer.as_reader();
    let mut lists: HashMap<Option<String>, Vec<Projection>> = HashMap::new();
    let mut first: Vec<Vec<Projection>> = Vec::new();
    let mut waiting: HashSet<Option<String>> = namespaces.into_iter().collect();
    while let Some((scope, event)) = events.next().await {
        let mut news: Vec<Event<Projection>> = Vec::new();
        match event {
            Err(error) => log_interrupted_watch("Projections", &error),
            Ok(Event::Init) => drop(lists.insert(scope, Vec::new())),
            Ok(Event::InitApply(guarded)) => {
                // What it was when it could be read still stands.
                let known = guarded
                    .namespace()
                    .and_then(|space| store.get(&ObjectRef::new(&guarded.name_any()).within(&space)));
                let projection = readable(guarded).or_else(|| known.map(|known| (*known).clone()));
                lists.entry(scope).or_default().extend(projection);
            }
            Ok(Event::InitDone) => {
                let listed = lists.remove(&scope).unwrap_or_default();
                if waiting.remove(&scope) {
                    first.push(listed);
                    if waiting.is_empty() {
                        news.push(Event::Init);
                        news.extend(std::mem::take(&mut first).into_iter().flatten().map(Event::InitApply));
                        news.push(Event::InitDone);
                    }
                } else if waiting.is_empty() {
                    news.extend(vanished(&store, scope.as_deref(), &listed).into_iter().map(Event::Delete));
                    news.extend(listed.into_iter().map(Event::Apply));
                } else {
                    first.push(listed);
                }
            }
            Ok(Event::Apply(guarded)) => news.extend(readable(guarded).map(Event::Apply)),
            Ok(Event::Delete(guarded)) => news.extend(last_word(guarded, &store).map(Event::Delete)),
        }
        let mut any = false;
        for one in news {
            any = true;
            let concerned = concerned(&store, &one);
            writer.apply_watcher_event(&one);
            if matches!(one, Event::InitDone) {
                synced.send_replace(true);
            }
            if let Some(key) = concerned {
                // The driver ends only with the process.
                let _ = triggers.send(key);
            }
        }
        if any {
            changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Follows the objects of one kind that carry the operator's label into `index`.
pub async fn follow_part(
    client: Client,
    namespaces: Vec<Option<String>>,
    part: Part,
    index: LiveIndex,
    triggers: mpsc::UnboundedSender<ProjectionKey>,
    synced: watch::Sender<bool>,
) {
    let ours = watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY_LABEL, names::FIELD_MANAGER));
    let resource = part.api_resource();
    let mut events: SelectAll<_> = namespaces
        .iter()
        .map(|namespace| {
            let api: Api<DynamicObject> = match namespace {
                None => Api::all_with(client.clone(), &resource),
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            };
            scoped(api, ours.clone(), namespace.clone())
        })
        .collect();
    let mut listed: HashMap<Option<String>, HashSet<(String, String)>> = HashMap::new();
    let mut waiting: HashSet<Option<String>> = namespaces.into_iter().collect();
    while let Some((scope, event)) = events.next().await {
        let mut concerned = None;
        match event {
            Err(error) => log_interrupted_watch(&format!("{}s", part.kind()), &error),
            Ok(Event::Init) => drop(listed.insert(scope, HashSet::new())),
            Ok(Event::InitApply(object)) => {
                let address = address(&object);
                concerned = take(&index, part, &object);
                listed.entry(scope).or_default().insert(address);
            }
            Ok(Event::InitDone) => {
                let all = listed.remove(&scope).unwrap_or_default();
                for gone in index.retain(part, scope.as_deref(), &all, Instant::now()) {
                    if let Some(key) = &gone.made_for {
                        let _ = triggers.send(key.clone());
                    }
                }
                waiting.remove(&scope);
                if waiting.is_empty() {
                    synced.send_replace(true);
                }
            }
            Ok(Event::Apply(object)) => concerned = take(&index, part, &object),
            Ok(Event::Delete(object)) => {
                let (namespace, name) = address(&object);
                index.deleted(part, &namespace, &name, &object.uid().unwrap_or_default(), Instant::now());
                concerned = made_for(&object);
            }
        }
        if let Some(key) = concerned {
            let _ = triggers.send(key);
        }
    }
}

fn api_of(client: &Client, namespace: Option<&str>) -> Api<DeserializeGuard<Projection>> {
    match namespace {
        None => Api::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
    }
}

fn scoped<K>(
    api: Api<K>,
    config: watcher::Config,
    scope: Option<String>,
) -> futures::stream::BoxStream<'static, Scoped<K>>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    // Lists are cut into pages, and a refused watch is tried again later and later, with jitter.
    let events: std::pin::Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>> =
        Box::pin(watcher::watcher(api, config).default_backoff());
    events.map(move |event| (scope.clone(), event)).boxed()
}

fn address(object: &DynamicObject) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Puts an object into the index; returns the Projection to reconcile if anything that matters changed.
fn take(index: &LiveIndex, part: Part, object: &DynamicObject) -> Option<ProjectionKey> {
    let (namespace, name) = address(object);
    let live = LiveObject::from_object(object);
    let key = live.made_for.clone();
    index.watched(part, &namespace, &name, live).then_some(key).flatten()
}

fn readable(guarded: DeserializeGuard<Projection>) -> Option<Projection> {
    match guarded.0 {
        Ok(mut projection) => {
            note_who_wrote(&mut projection);
            // What `managedFields` says is not needed any more, and large.
            projection.metadata.managed_fields = None;
            Some(projection)
        }
        Err(invalid) => {
            tracing::error!(
                "the Projection {}/{} cannot be read and stays as it was: {}",
                invalid.metadata.namespace.as_deref().unwrap_or_default(),
                invalid.metadata.name.as_deref().unwrap_or_default(),
                invalid.error
            );
            None
        }
    }
}

/// A deleted Projection may be unreadable: then its last known state is what was deleted.
fn last_word(guarded: DeserializeGuard<Projection>, store: &Store<Projection>) -> Option<Projection> {
    let known = guarded.namespace().and_then(|space| store.get(&ObjectRef::new(&guarded.name_any()).within(&space)));
    guarded.0.ok().or_else(|| known.map(|known| (*known).clone()))
}

fn vanished(store: &Store<Projection>, scope: Option<&str>, listed: &[Projection]) -> Vec<Projection> {
    let still: HashSet<(Option<String>, String)> =
        listed.iter().map(|projection| (projection.namespace(), projection.name_any())).collect();
    let gone = store.state().into_iter().filter(|known| {
        scope.is_none_or(|scope| known.namespace().as_deref() == Some(scope))
            && !still.contains(&(known.namespace(), known.name_any()))
    });
    gone.map(|known| (*known).clone()).collect()
}

/// The Projection to reconcile after an event. A changed status counts, too: another client may have changed it, or a write of this replica that had
/// been given up has arrived.
fn concerned(store: &Store<Projection>, event: &Event<Projection>) -> Option<ProjectionKey> {
    match event {
        Event::Init | Event::InitDone => None,
        Event::InitApply(projection) | Event::Delete(projection) => Some(ProjectionKey::of(projection)),
        Event::Apply(projection) => {
            let key = ProjectionKey::of(projection);
            let before = store.get(&ObjectRef::new(&key.name).within(&key.namespace));
            before.is_none_or(|before| !same_to_reconcile(&before, projection)).then_some(key)
        }
    }
}

fn same_to_reconcile(before: &Projection, after: &Projection) -> bool {
    let (old, new) = (&before.metadata, &after.metadata);
    old.uid == new.uid
        && old.generation == new.generation
        && HEEDED.iter().all(|name| before.annotations().get(*name) == after.annotations().get(*name))
        && old.deletion_timestamp == new.deletion_timestamp
        && before.status == after.status
}

#[cfg(test)]
#[path = "watches_tests.rs"]
mod tests;
