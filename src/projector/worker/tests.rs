//! The worker between a source and a read model that only tests have.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::api::OnPoison;
use crate::projector::{
    event::{Event, SourceIdentity},
    input::Fetched,
    output::{Advance, Again, Applied, ApplyError, Membership, Poisoned, SetAside},
    sharding::Sharding,
};

/// One event at position 1 of the only shard.
struct OneEvent;

impl EventReader for OneEvent {
    fn sharding(&self) -> Sharding {
        Sharding::Hashed { shards: 1, start: 0 }
    }

    fn notifies(&self) -> bool {
        false
    }

    async fn identity(&mut self) -> Result<SourceIdentity, ProjectorError> {
        Ok(SourceIdentity { place: "one event".to_owned(), server: None })
    }

    async fn look(&mut self, _: &[(u32, i64)]) -> Result<Horizon, ProjectorError> {
        Ok(Horizon { safe: vec![1], head: vec![1], blocked_by: None, grown: false })
    }

    async fn fetch(&mut self, range: &Range, _: usize) -> Result<Fetch, ProjectorError> {
        if range.is_empty() {
            return Ok(Fetch::Nothing);
        }
        let event = Event {
            position: 1,
            since: 1,
            before: 0,
            shown_position: 1,
            behind_parked: None,
            shard: 0,
            event_type: "Counted".to_owned(),
            stream: None,
            recorded_at: None,
            data: None,
        };
        Ok(Fetch::Events(Fetched { events: vec![event], reach: vec![1], cut: false }))
    }

    async fn woken(&mut self) {
        std::future::pending::<()>().await;
    }
}

type Answer = fn() -> Result<Applied, ApplyError>;

/// A read model whose only shard is this worker's, and which answers the same whenever something is to be written.
struct Answers {
    tried: Arc<AtomicUsize>,
    answer: Answer,
    /// After how many tries an event was set aside.
    aside: Arc<Mutex<Vec<(usize, u32)>>>,
}

impl Answers {
    fn new(answer: Answer) -> Self {
        Self { tried: Arc::default(), answer, aside: Arc::default() }
    }
}

struct Alone;

impl Membership for Alone {
    async fn keep(self, _: &watch::Sender<View>) -> ProjectorError {
        std::future::pending().await
    }
}

impl ReadModel for Answers {
    type Membership = Alone;

    async fn join(&self, _: &str) -> Result<Alone, ProjectorError> {
        Ok(Alone)
    }

    async fn take(&mut self, shards: &[u32]) -> Result<Vec<(u32, Held)>, ProjectorError> {
        Ok(shards.iter().map(|shard| (*shard, Held { fence: 1, committed: 0, position: 0 })).collect())
    }

    async fn mine(&mut self) -> Result<Vec<(u32, Held)>, ProjectorError> {
        self.take(&[0]).await
    }

    async fn release(&mut self, _: &[(u32, Held)]) -> Result<(), ProjectorError> {
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), ProjectorError> {
        Ok(())
    }

    async fn apply(
        &mut self,
        _: &[Event],
        _: &(dyn Fn(usize) -> Vec<Advance> + Sync),
        _: &(dyn Fn() -> bool + Sync),
    ) -> Result<Applied, ApplyError> {
        self.tried.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1)).await;
        (self.answer)()
    }

    async fn set_aside(&mut self, poisoned: &Poisoned<'_>, advance: Advance) -> Result<SetAside, ProjectorError> {
        assert_eq!((poisoned.position, advance.position, advance.before), (1, 1, 0));
        self.aside.lock().unwrap().push((self.tried.load(Ordering::Relaxed), poisoned.attempts));
        Ok(SetAside::Done)
    }

    async fn advance(&mut self, _: &[Advance]) -> Result<bool, ProjectorError> {
        Ok(true)
    }

    async fn record_failure(&mut self, _: (u32, Held), _: i64, _: &str) -> Result<(), ProjectorError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_refused_again_and_again_is_tried_ever_more_seldom() {
    let model = Answers::new(|| Ok(Applied::ReadAgain(Again::Lost)));
    let tried = Arc::clone(&model.tried);
    run(model, Poison::default(), Duration::from_secs(10)).await;
    let tried = tried.load(Ordering::Relaxed);
    assert!((20..100).contains(&tried), "{tried} times in ten seconds");
}

/// A failure that is no matter of the event alone.
#[tokio::test(start_paused = true)]
async fn a_shard_that_is_held_goes_no_further_and_one_that_is_held_later_goes_on() {
    for (hold, handled) in [(Some(0), false), (Some(1), true), (None, true)] {
        let model = Answers::new(|| Ok(Applied::Committed(1)));
        let tried = Arc::clone(&model.tried);
        run_held(model, Poison::default(), Duration::from_secs(10), vec![hold]).await;
        assert_eq!(tried.load(Ordering::Relaxed) > 0, handled, "{hold:?}");
    }
}

fn other() -> Result<Applied, ApplyError> {
    Err(ApplyError::Event { index: 0, message: "no such table".to_owned() })
}

/// A failure that is the event's own.
fn poison() -> Result<Applied, ApplyError> {
    Err(ApplyError::Poison { index: 0, message: "division by zero".to_owned(), class: "22012".to_owned() })
}

#[tokio::test(start_paused = true)]
async fn an_event_is_tried_three_times_alone_before_it_is_set_aside_and_only_where_it_is_its_own_fault() {
    let park = Poison { on_poison: OnPoison::Park, ..Poison::default() };
    let skip = Poison { on_poison: OnPoison::Skip, ..park };
    let cases = [
        (poison as Answer, park, vec![(3, 3)]),
        (poison as Answer, skip, vec![(3, 3)]),
        (poison as Answer, Poison::default(), vec![]),
        (other as Answer, park, vec![]),
    ];
    for (answer, policy, expected) in cases {
        let model = Answers::new(answer);
        let (tried, aside) = (Arc::clone(&model.tried), Arc::clone(&model.aside));
        run(model, policy, Duration::from_secs(60)).await;
        assert_eq!(*aside.lock().unwrap(), expected, "{policy:?}");
        assert!(expected.len() == 1 || tried.load(Ordering::Relaxed) > 4, "it is tried again");
    }
}

/// Runs a worker on one event for so long.
async fn run(model: Answers, poison: Poison, time: Duration) {
    run_held(model, poison, time, Vec::new()).await;
}

/// The same where shards are held.
async fn run_held(model: Answers, poison: Poison, time: Duration, holds: Vec<Option<i64>>) {
    let batching = Batching {
        shards: 1,
        batch_size: 10,
        coalesce: Coalesce::default(),
        poison,
        uncalled: UncalledHandlers::default(),
    };
    let mut worker = Worker::new("me".to_owned(), OneEvent, model, Health::default(), batching);
    // Later than when the worker was made, so that it counts.
    tokio::time::advance(Duration::from_millis(1)).await;
    let view = View { since: Some(Instant::now()), members: vec!["me".to_owned()], owners: vec![None], holds };
    let (_views, mut seen) = watch::channel(view);
    let (_stopping, mut stop) = watch::channel(false);
    let ran = tokio::time::timeout(time, worker.run(&mut seen, &mut stop)).await;
    assert!(ran.is_err(), "it goes on");
}
