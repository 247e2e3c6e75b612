//! Each source with each read store, side by side on the same servers: workers are killed at random times under load and frozen, and all servers end and start
//! again; afterwards each read model is what its events say. No pair has code of its own.

mod servers;
mod sources;
mod stores;

use std::{ops::Range, time::Duration};

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

async fn each<'a, F: Future<Output = ()>>(pairs: &'a mut [Pair], what: impl FnMut(&'a mut Pair) -> F) {
    join_all(pairs.iter_mut().map(what)).await;
}

/// Names all that differ, since which they are tells what is wrong.
async fn are_exact(pairs: &[Pair], servers: &Servers) {
    let seen = join_all(pairs.iter().map(|pair| pair.is_exact(servers))).await;
    let wrong: Vec<String> = seen.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_read_model_is_what_its_events_say_whatever_ends_and_starts_again_in_between() {
    let mut servers = Servers::start().await;
    let all = Source::ALL.iter().flat_map(|source| Store::ALL.map(|store| (*source, store)));
    let mut pairs = join_all(all.map(|(source, store)| Pair::open(&servers, source, store))).await;
    each(&mut pairs, |pair| pair.load(&servers, 1)).await;

    // While workers are at what was appended last.
    each(&mut pairs, |pair| pair.load(&servers, 2)).await;
    tokio::task::block_in_place(|| servers.sources.restart());
    each(&mut pairs, |pair| pair.is_back(&servers)).await;

    each(&mut pairs, |pair| pair.load(&servers, 3)).await;
    pairs.iter().filter_map(Pair::frozen).for_each(|worker| worker.signal("STOP"));
    tokio::task::block_in_place(|| servers.stores.restart());
    // Others have taken over what those held that are frozen, which then go on with it.
    are_exact(&pairs, &servers).await;
    pairs.iter().filter_map(Pair::frozen).for_each(|worker| worker.signal("CONT"));

    each(&mut pairs, |pair| pair.load(&servers, 4)).await;
    each(&mut pairs, |pair| pair.last(&servers)).await;
    are_exact(&pairs, &servers).await;
}
