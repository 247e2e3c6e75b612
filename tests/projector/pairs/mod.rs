//! Each source with each read store, some sources side by side on the same servers: workers are killed at random times under load and frozen, and all servers end and start
//! again; afterwards each read model is what its events say. No pair has code of its own.

mod servers;
mod sources;
mod stores;

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use test_cluster::eventually;

use self::{
    servers::Servers,
    sources::{STREAMS, Source},
    stores::{Figures, Store},
};
use crate::workshop::{PATIENCE, Process, Workshop};

/// So many events of each stream are appended at once.
const AT_ONCE: i64 = 6;
/// Each has two workers, and two cores have other tests to run as well.
const SIDE_BY_SIDE: usize = 4;

/// A source, a read store, and two workers between them.
struct Pair {
    source: Source,
    store: Store,
    name: String,
    shop: Workshop,
    /// It is frozen once, and killed at the end.
    steady: Option<Process>,
    /// It is killed in each round, and another takes its place.
    passing: Option<Process>,
    /// How many events were appended.
    events: i64,
}

impl Pair {
    async fn open(servers: &Servers, source: Source, store: Store) -> Self {
        let name = format!("pair_{source:?}_{store:?}").to_lowercase();
        let mut shop = source.open(&servers.sources, &name).await;
        store.target(&servers.stores, &name, source, &mut shop).await;
        // Of what is appended at once several batches are made, so that workers end between them.
        shop.config.batch_size = 25;
        let mut pair = Self { source, store, name, shop, steady: None, passing: None, events: 0 };
        pair.append(servers).await;
        pair.steady = Some(pair.shop.start_quiet_process("steady"));
        pair.passing = Some(pair.shop.start_quiet_process("first"));
        pair
    }

    /// The numbers of the next events, which count as appended.
    fn next_numbers(&mut self) -> Range<i64> {
        let first = self.events;
        self.events += STREAMS * AT_ONCE;
        first..self.events
    }

    async fn append(&mut self, servers: &Servers) {
        let numbers = self.next_numbers();
        self.source.append(&servers.sources, &self.name, numbers).await;
    }

    /// Appends, and meanwhile kills one of the workers wherever it is and starts another.
    async fn load(&mut self, servers: &Servers, round: usize) {
        let numbers = self.next_numbers();
        let append = self.source.append(&servers.sources, &self.name, numbers);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(rand::random_range(50..900))).await;
            drop(self.passing.take());
            self.passing = Some(self.shop.start_quiet_process(&format!("passing-{round}")));
        };
        tokio::join!(append, kill);
    }

    /// Appends, kills the other worker at that, and appends once more: what it had in hand comes again behind what is handled meanwhile.
    async fn last(&mut self, servers: &Servers) {
        self.append(servers).await;
        self.steady = None;
        self.append(servers).await;
    }

    /// Waits until the source answers again.
    async fn is_back(&self, servers: &Servers) {
        let left = || async { self.source.left(&servers.sources, &self.name).await.map(|_| true) };
        eventually(PATIENCE, &format!("{} is back", self.name), left).await.unwrap();
    }

    /// Waits until the read model is what the events so far say.
    ///
    /// # Errors
    /// Says how it differs.
    async fn is_exact(&self, servers: &Servers) -> anyhow::Result<()> {
        let expected = self.store.expected(self.source, self.events);
        let look = || async {
            // Many look at once, and at much.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let left = self.source.left(&servers.sources, &self.name).await?;
            let found = self.store.figures(&servers.stores, &self.name, self.source).await?;
            anyhow::Ok(if left == 0 { compare(&expected, &found) } else { Err(format!("{left} messages are left")) })
        };
        let what = format!("the read model of {} is what {} events say", self.name, self.events);
        eventually(PATIENCE, &what, look).await
    }

    /// A frozen worker of a queue keeps what it was given until the server takes it for dead, which no promise is about.
    fn frozen(&self) -> Option<&Process> {
        self.steady.as_ref().filter(|_| !self.source.is_queue())
    }
}

/// Says of one stream how it differs.
fn compare(expected: &Figures, found: &Figures) -> Result<(), String> {
    let only = |one: &Figures, other: &Figures| one.difference(other).next().cloned().unwrap_or_default();
    if expected == found {
        return Ok(());
    }
    let wrong = expected.difference(found).count();
    Err(format!(
        "{wrong} of {} streams differ, such as {:?} in place of {:?}",
        expected.len(),
        only(found, expected),
        only(expected, found)
    ))
}

/// Does something with all of them at once, each in a task of its own, so that what one waits for holds up no other.
async fn each<F: Future<Output = Pair> + Send + 'static>(
    pairs: Vec<Pair>,
    servers: &Arc<Servers>,
    what: impl Fn(Pair, Arc<Servers>) -> F,
) -> Vec<Pair> {
    let tasks: Vec<_> = pairs.into_iter().map(|pair| tokio::spawn(what(pair, servers.clone()))).collect();
    join_all(tasks).await.into_iter().map(Result::unwrap).collect()
}

/// Names all that differ, since which they are tells what is wrong.
async fn are_exact(pairs: Vec<Pair>, servers: &Arc<Servers>) -> Vec<Pair> {
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let pairs = each(pairs, servers, |pair, servers| {
        let wrong = wrong.clone();
        async move {
            if let Err(error) = pair.is_exact(&servers).await {
                wrong.lock().unwrap().push(format!("{error:#}"));
            }
            pair
        }
    })
    .await;
    let wrong = wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    pairs
}

async fn load(pairs: Vec<Pair>, servers: &Arc<Servers>, round: usize) -> Vec<Pair> {
    each(pairs, servers, move |mut pair, servers| async move {
        pair.load(&servers, round).await;
        pair
    })
    .await
}

/// These sources with this read store.
async fn hold(store: Store, sources: &[Source], servers: &mut Arc<Servers>) {
    let opened = sources.iter().map(|&source| {
        let servers = servers.clone();
        tokio::spawn(async move { Pair::open(&servers, source, store).await })
    });
    let pairs: Vec<Pair> = join_all(opened).await.into_iter().map(Result::unwrap).collect();
    // While workers are at what was appended last.
    let pairs = load(pairs, servers, 1).await;
    let alone = Arc::get_mut(servers).unwrap();
    tokio::task::block_in_place(|| alone.sources.restart());
    let back = |pair: Pair, servers: Arc<Servers>| async move {
        pair.is_back(&servers).await;
        pair
    };
    let pairs = each(pairs, servers, back).await;

    let pairs = load(pairs, servers, 2).await;
    pairs.iter().filter_map(Pair::frozen).for_each(|worker| worker.signal("STOP"));
    let alone = Arc::get_mut(servers).unwrap();
    tokio::task::block_in_place(|| alone.stores.restart(store));
    // Others have taken over what those held that are frozen, which then go on with it.
    let pairs = are_exact(pairs, servers).await;
    pairs.iter().filter_map(Pair::frozen).for_each(|worker| worker.signal("CONT"));

    let pairs = load(pairs, servers, 3).await;
    let last = |mut pair: Pair, servers: Arc<Servers>| async move {
        pair.last(&servers).await;
        pair
    };
    let pairs = each(pairs, servers, last).await;
    are_exact(pairs, servers).await;
}

// More threads than cores, since much of what tests ask servers blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn each_read_model_is_what_its_events_say_whatever_ends_and_starts_again_in_between() {
    let mut servers = Arc::new(Servers::start().await);
    for store in Store::ALL {
        for sources in Source::ALL.chunks(SIDE_BY_SIDE) {
            hold(store, sources, &mut servers).await;
        }
    }
}
