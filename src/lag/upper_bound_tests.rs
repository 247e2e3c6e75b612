//! One rule for all upper bounds, whatever source they come from: what is certain is planned with, and the bound only while the oldest event that
//! waits for certain is in danger.

use proptest::prelude::*;

use super::{
    foreign::{Commits, Foreign, Rows, bounds},
    *,
};
use crate::lag::{AtLeast, Certain, CheckpointState, Head, Pending, Position, Sample};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a source says where it has only a bound.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    certain: Option<Certain>,
    tells_rates: bool,
    /// The age of the oldest event is known, and it is one that waits.
    dated: bool,
    form: Form,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Log,
    SeveralRows,
    Shards,
    Unnumbered,
}

const KINDS: [Kind; 11] = {
    use Certain::{Newest, Oldest};
    const fn kind(name: &'static str, certain: Option<Certain>, tells_rates: bool, dated: bool, form: Form) -> Kind {
        Kind { name, certain, tells_rates, dated, form }
    }
    [
        kind("Kafka: compacted topic", Some(Oldest(3)), false, true, Form::Shards),
        kind("Kafka: topic with transactions", Some(Oldest(40)), true, true, Form::Shards),
        kind("Kafka: a partition without a commit", Some(Newest(20)), false, true, Form::Shards),
        kind("Redis: entries deleted ahead of the group", Some(Oldest(1_001)), false, true, Form::Unnumbered),
        kind("RabbitMQ: stream", Some(Oldest(30)), true, true, Form::Unnumbered),
        kind("KurrentDB: $all beyond a page", Some(Oldest(499)), false, true, Form::Log),
        kind("KurrentDB: persistent subscription that is behind", Some(Oldest(500)), false, true, Form::Unnumbered),
        kind("PostgreSQL: lowest of several rows", Some(Newest(40)), false, true, Form::SeveralRows),
        kind("PostgreSQL: scan that was cut", Some(Oldest(10_000)), true, true, Form::Log),
        kind("PostgreSQL: query with head and checkpoint alone", None, false, false, Form::Log),
        kind("PostgreSQL: replication slot", Some(Newest(0)), false, true, Form::Log),
    ]
};

impl Kind {
    fn least(self) -> u64 {
        self.certain.map_or(0, Certain::events)
    }

    fn tells_the_oldest(self) -> bool {
        matches!(self.certain, Some(Certain::Oldest(_)))
    }

    /// After `second` seconds `arrived` events came, and at most `events` wait, the oldest for so long. The checkpoint moves.
    fn sample(self, second: u64, arrived: u64, events: u64, age: Duration) -> Sample {
        let position = |at: u64| Position(i64::try_from(at).unwrap());
        let (head, done) = (2_000_000_000 + arrived, 1_000_000 + second);
        let events = events.max(self.least());
        let log = Head::log(position(head), position(head));
        let (head, checkpoint, by_shard) = match self.form {
            Form::Log => (log, CheckpointState::Committed(vec![position(done)]), Vec::new()),
            Form::SeveralRows => (log, CheckpointState::Committed(vec![position(10), position(done)]), Vec::new()),
            Form::Shards => {
                let heads = Head::Shards(vec![position(head); 24]);
                let rows = CheckpointState::Committed(vec![position(done); 24]);
                (heads, rows, (0..24).map(|shard| (events + shard) / 24).collect())
            }
            Form::Unnumbered => (Head::Unnumbered, CheckpointState::Handled(done), Vec::new()),
        };
        Sample {
            certain: self.certain,
            tells_rates: self.tells_rates,
            pending_by_shard: by_shard,
            staleness: self.dated.then_some(age),
            ..Sample::new(seconds(second), head, checkpoint, Some(Pending { events, exact: false }), arrived)
        }
    }
}

fn workers(ready: u32) -> Workers {
    Workers { ready, rolling: false }
}

const FIFTY_EACH: Option<f64> = Some(50.0);

#[test]
fn a_bound_of_any_source_brings_no_worker_while_nothing_that_waits_for_certain_is_in_danger() {
    // What is nearly a count is planned with like one.
    for kind in KINDS.into_iter().filter(|kind| !kind.tells_rates) {
        let asked = |events: u64| {
            let mut model = Model::remembering(None, Some(2), None);
            let bounds = Bounds { given_rate: FIFTY_EACH, ..bounds(15) };
            let looks = (1_000..1_300).map(|second| {
                let sample = kind.sample(second, 60 * second, events, seconds(2));
                model.observe(&sample, workers(2), bounds).unwrap().required.workers
            });
            looks.collect::<Vec<_>>()
        };
        let (few, many) = (asked(kind.least() + 1), asked(1_000_000));
        assert_eq!(few, many, "{}", kind.name);
        assert!(kind.least() > 700 || many.last().unwrap() <= &3, "{}: 60/s at 50/s each: {many:?}", kind.name);
    }
}

#[test]
fn the_oldest_that_waits_for_certain_brings_workers_when_it_is_in_danger_and_lets_them_go_when_it_is_not() {
    for kind in KINDS.into_iter().filter(|kind| kind.tells_the_oldest()) {
        for given_rate in [None, FIFTY_EACH] {
            let mut model = Model::remembering(None, Some(1), None);
            let bounds = Bounds { given_rate, ..bounds(15) };
            let mut ready = 1;
            let mut look = |second: u64, events: u64, age: u64| {
                let sample = kind.sample(second, 10 * second, events, seconds(age));
                let assessment = model.observe(&sample, workers(ready), bounds).unwrap();
                ready = assessment.required.workers;
                assessment
            };
            (1_000..1_060).for_each(|second| drop(look(second, 1_000_000, 1)));
            let behind = (1_060..1_120).map(|second| look(second, 1_000_000, second - 1_058)).last().unwrap();
            assert_eq!(behind.required.workers, 24, "{} {given_rate:?}: {}", kind.name, behind.required.reason);
            let why = if kind.tells_rates { "all are planned for" } else { "the oldest so long that" };
            assert!(behind.required.reason.contains(why), "{}", behind.required.reason);
            assert_eq!(
                behind.at_least,
                Some(AtLeast { events: kind.least(), age: Some(seconds(61)) }),
                "{}",
                kind.name
            );
            // All is handled, and the source counts exactly again.
            let mut done = 0;
            for second in 1_120..1_600 {
                let sample = Sample {
                    pending: Some(Pending { events: 0, exact: true }),
                    pending_by_shard: Vec::new(),
                    staleness: Some(Duration::ZERO),
                    ..kind.sample(second, 11_200, 0, Duration::ZERO)
                };
                done = model.observe(&sample, workers(ready), bounds).unwrap().required.workers;
                ready = done;
            }
            assert_eq!(done, 1, "{} {given_rate:?}: workers go", kind.name);
        }
    }
}

#[test]
fn a_scan_that_was_cut_where_positions_have_no_gaps_is_planned_with_as_a_whole_from_the_beginning() {
    let cut = KINDS.into_iter().find(|kind| kind.name == "PostgreSQL: scan that was cut").unwrap();
    let mut model = Model::remembering(None, Some(20), None);
    let bounds = Bounds { given_rate: FIFTY_EACH, ..bounds(3_600) };
    // Two million were imported five minutes ago, with an hour's time.
    for second in 1_000..1_060 {
        let sample = cut.sample(second, 20 * second, 2_000_000, seconds(300 + second - 1_000));
        let assessment = model.observe(&sample, workers(20), bounds).unwrap();
        assert!(assessment.required.workers >= 12, "{}", assessment.required.reason);
        if second > 1_030 {
            let drain = assessment.drain.unwrap();
            assert!(drain >= seconds(1_500), "{drain:?}: 2,000,000 at no more than 1,000/s");
        }
    }
}

#[test]
fn of_a_lower_bound_as_many_are_planned_with_as_came_while_the_oldest_has_waited() {
    let counted = Kind {
        name: "Akka: more than are counted",
        certain: Some(Certain::AtLeast(10_001)),
        tells_rates: false,
        dated: true,
        form: Form::Log,
    };
    let mut model = Model::remembering(None, Some(2), None);
    let bounds = Bounds { given_rate: Some(1_000.0), ..bounds(30) };
    for second in 1_000..1_060 {
        let sample = counted.sample(second, 2_000 * second, 10_001, seconds(3_600));
        let assessment = model.observe(&sample, workers(2), bounds).unwrap();
        if second > 1_030 {
            assert_eq!(assessment.required.workers, 24, "7.2 million wait: {}", assessment.required.reason);
            assert!(assessment.required.reason.contains("7,199,9"), "{}", assessment.required.reason);
            assert!(assessment.required.reason.contains("at least 10,001 pending"), "{}", assessment.required.reason);
            assert_eq!(assessment.at_least, Some(AtLeast { events: 10_001, age: Some(seconds(3_600)) }));
            let soon = assessment.drain.filter(|drain| *drain < seconds(1_000_000));
            assert_eq!(soon, None, "two workers handle no more than what comes");
        }
    }
}

#[test]
fn what_could_not_be_looked_at_keeps_its_workers_and_is_no_quiet() {
    let unseen = Kind { certain: Some(Certain::Unknown), dated: false, ..KINDS[3] };
    let mut model = Model::remembering(None, Some(4), None);
    for second in 1_000..2_000 {
        let sample = unseen.sample(second, 10_000, 1_000_000, seconds(0));
        let assessment = model.observe(&sample, workers(4), Bounds { given_rate: FIFTY_EACH, ..bounds(15) }).unwrap();
        assert!(assessment.required.workers >= 4, "{}", assessment.required.reason);
        assert_eq!(assessment.at_least, Some(AtLeast { events: 0, age: None }));
    }
}

#[test]
fn what_is_held_back_is_not_taken_from_what_was_counted_below_it() {
    let cut = KINDS.into_iter().find(|kind| kind.name == "PostgreSQL: scan that was cut").unwrap();
    let mut model = Model::remembering(None, Some(1), None);
    let mut last = None;
    for second in 1_000..1_100 {
        let sample = Sample {
            certain: Some(Certain::Oldest(500)),
            tells_rates: false,
            held_back: 50_000,
            ..cut.sample(second, 50_500, 50_500, seconds(3))
        };
        last = Some(model.observe(&sample, workers(1), Bounds { given_rate: FIFTY_EACH, ..bounds(15) }).unwrap());
    }
    let last = last.unwrap();
    assert_eq!(last.at_least, Some(AtLeast { events: 500, age: Some(seconds(3)) }));
    assert!((1..=3).contains(&last.required.workers), "500 at 50/s: {}", last.required.reason);
}

#[test]
fn what_is_not_known_to_wait_breaks_no_target_is_never_stuck_and_asks_for_no_worker() {
    for kind in KINDS.into_iter().filter(|kind| kind.least() == 0) {
        let mut model = Model::remembering(None, Some(2), None);
        let bounds = Bounds { retention: Some(seconds(3_600)), ..bounds(15) };
        for second in 1_000..2_000 {
            // Nothing comes, and the checkpoint stands still.
            let still = Sample { at: seconds(second), ..kind.sample(1_000, 0, 1_000_000, seconds(86_400)) };
            let assessment = model.observe(&still, workers(2), bounds).unwrap();
            assert_eq!((assessment.stuck, assessment.retention_risk), (false, None), "{}", kind.name);
            assert_eq!(assessment.at_least, Some(AtLeast { events: 0, age: Some(Duration::ZERO) }), "{}", kind.name);
            assert!(assessment.required.workers <= 2, "{}: {}", kind.name, assessment.required.reason);
        }
    }
}

#[test]
fn rates_are_learnt_only_where_differences_of_the_bound_count_events() {
    for kind in KINDS {
        let mut model = Model::remembering(None, Some(1), None);
        let mut rate = None;
        for second in 1_000..1_040 {
            let sample = kind.sample(second, 0, 900_000 - 500 * (second - 1_000), seconds(600));
            rate = model.observe(&sample, workers(1), bounds(15)).unwrap().rates.per_worker;
        }
        assert_eq!(rate.is_some(), kind.tells_rates, "{}: {rate:?}", kind.name);
    }
}

#[test]
fn a_source_that_says_nothing_of_what_is_certain_is_believed_nothing() {
    let sample = Sample { certain: None, tells_rates: true, ..KINDS[0].sample(1_000, 0, 500, seconds(60)) };
    let assessment = Model::remembering(None, None, None).observe(&sample, workers(1), bounds(15)).unwrap();
    assert_eq!(assessment.at_least, Some(AtLeast { events: 0, age: Some(Duration::ZERO) }));
}

#[test]
fn workers_whose_lag_is_counted_many_times_hold_the_target_and_go_when_they_have_handled_all() {
    let (times, phantoms) = (Rows::Times(10), Rows::Phantoms(100_000));
    let mut wrong = Vec::new();
    for (commits, rows, given) in [
        (Commits::Every(0.5), times, None),
        (Commits::Every(0.5), phantoms, None),
        (Commits::Every(0.5), times, FIFTY_EACH),
        (Commits::Every(0.5), phantoms, FIFTY_EACH),
        (Commits::Every(5.0), times, FIFTY_EACH),
        (Commits::Every(5.0), phantoms, FIFTY_EACH),
        (Commits::Every(5.0), times, None),
    ] {
        let mut world = Foreign::new(commits, rows, 15, 1);
        world.bounds.given_rate = given;
        world.run(300.0, 10.0);
        let most = world.answers.iter().map(|answer| answer.1).max();
        world.run(300.0, 200.0);
        let last = world.run(400.0, 10.0);
        // 10/s at 50/s each need one. Of 60,000 events a tenth may be late, or more where each doubling takes two steps.
        let late = if commits == Commits::Every(5.0) && given.is_none() { 30_000 } else { 6_000 };
        if most != Some(1) || last.required.workers > 2 || world.late > late {
            wrong.push(format!("{commits:?} {rows:?} {given:?}: {} late, {:?}", world.late, world.answers));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #[test]
    fn however_large_a_bound_is_it_changes_nothing_while_what_is_certain_is_not_in_danger(
        kind in 0..KINDS.len(),
        looks in prop::collection::vec((0..300_u64, 0..2_000_u64, 0..1_000_000_u64, 0..1_000_000_u64, 1..24_u32), 1..60),
        rate in 1..500_u32,
    ) {
        let kind = KINDS[kind];
        let bounds = Bounds { given_rate: Some(f64::from(rate)), ..bounds(15) };
        let mut models = [Model::remembering(None, None, None), Model::remembering(None, None, None)];
        let mut arrived = 0;
        for (second, (came, age, one, other, ready)) in (1_000..).zip(looks) {
            arrived += came;
            let mut asked = models.iter_mut().zip([one, other]).map(|(model, events)| {
                let sample = Sample { tells_rates: false, ..kind.sample(second, arrived, events, Duration::from_millis(age)) };
                model.observe(&sample, workers(ready), bounds).unwrap().required.workers
            });
            prop_assert_eq!(asked.next(), asked.next(), "{}", kind.name);
        }
    }

    #[test]
    fn what_is_certain_is_never_more_than_what_is_counted_and_a_bound_never_asks_for_more_than_a_count(
        kind in 0..KINDS.len(),
        events in 0..1_000_000_u64,
        came in 0..5_000_u64,
        age in 0..60_u64,
        rate in 1..500_u32,
        ready in 1..24_u32,
    ) {
        let kind = KINDS[kind];
        let bounds = Bounds { given_rate: Some(f64::from(rate)), shards: None, ..bounds(15) };
        let asked = |exact: bool| {
            let mut model = Model::remembering(None, None, None);
            let looks = (1_000..1_003).map(|second| {
                let told = kind.sample(second, came * (second - 1_000), events, seconds(age));
                let pending = told.pending.map(|pending| Pending { exact, ..pending });
                let sample = Sample { pending, tells_rates: false, pending_by_shard: Vec::new(), ..told };
                model.observe(&sample, workers(ready), bounds).unwrap()
            });
            looks.last().unwrap()
        };
        let (bound, count) = (asked(false), asked(true));
        prop_assert!(bound.at_least.unwrap().events <= bound.pending.events);
        prop_assert_eq!(count.at_least, None);
        // A count may teach that a worker does more than the spec says, which a bound never does.
        if count.rates.per_worker <= bound.rates.per_worker {
            prop_assert!(bound.required.workers <= count.required.workers, "{}: {} {}", kind.name, bound.required.reason, count.required.reason);
        }
    }
}
