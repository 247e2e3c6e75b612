use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// So many events for each, which came in turn as long as there are some.
fn loaded(events: &[f64]) -> Vec<Shard> {
    let mut shards = vec![Shard::default(); events.len()];
    let most = events.iter().copied().fold(0.0, f64::max);
    let (mut turn, mut position) = (0.0, 1.0);
    while turn < most {
        for (shard, _) in shards.iter_mut().zip(events).filter(|(_, events)| **events > turn) {
            shard.arrive(position, 1.0);
            position += 1.0;
        }
        turn += 1.0;
    }
    shards
}

fn waiting(shards: &[Shard]) -> Vec<f64> {
    shards.iter().map(|shard| shard.waiting().round()).collect()
}

#[test]
fn shards_come_whole_and_a_worker_takes_the_oldest_of_its_own_first() {
    for (ready, able, left, why) in [
        (1, 90.0, [105.0, 105.0, 0.0], "in turn with the last shard while that has some"),
        (2, 60.0, [115.0, 85.0, 0.0], "the first worker has the first shard and the last"),
        (5, 60.0, [85.0, 85.0, 0.0], "more workers than shards idle"),
    ] {
        let mut shards = loaded(&[145.0, 145.0, if ready == 2 { 30.0 } else { 10.0 }]);
        let mut crew = Crew::ready(ready, seconds(2), WorkerKind::default());
        crew.work(&mut shards, false, able, 1.0, seconds(0));
        assert_eq!(waiting(&shards), left, "{why}");
    }
    // What came before everything else is handled before it.
    let mut shards = vec![Shard::default(); 2];
    shards[1].arrive(1.0, 50.0);
    shards[0].arrive(51.0, 50.0);
    Crew::ready(1, seconds(2), WorkerKind::default()).work(&mut shards, false, 60.0, 1.0, seconds(0));
    assert_eq!(waiting(&shards), [40.0, 0.0]);
}

#[test]
fn workers_that_compete_share_one_log() {
    let mut shards = loaded(&[100.0]);
    let mut crew = Crew::ready(3, seconds(2), WorkerKind::default());
    crew.work(&mut shards, true, 10.0, 2.0, seconds(0));
    assert_eq!(waiting(&shards), [40.0]);
    crew.work(&mut shards, true, 10.0, 2.0, seconds(2));
    assert_eq!(waiting(&shards), [0.0]);
    let busy: Vec<f64> = crew.workers().iter().map(|worker| (worker.busy_seconds * 3.0).round()).collect();
    assert_eq!(busy, [10.0; 3], "2 s, and two thirds of 2 s");
}

#[test]
fn workers_take_their_time_to_start_and_the_youngest_go_first() {
    let mut crew = Crew::ready(1, seconds(2), WorkerKind::default());
    crew.scale(3, seconds(10));
    assert_eq!((crew.count(), crew.ready_at(seconds(11)), crew.ready_at(seconds(12))), (3, 1, 3));
    crew.scale(4, seconds(20));
    crew.scale(3, seconds(21));
    assert_eq!((crew.count(), crew.ready_at(seconds(21))), (3, 3));
}

fn uncommitted(shards: &[Shard]) -> Vec<f64> {
    shards.iter().map(|shard| shard.uncommitted().round()).collect()
}

#[test]
fn commits_come_by_the_clock_by_the_count_and_when_shards_change_hands() {
    for (commits, first, why) in [
        (Commits::EachEvent, [90.0, 90.0], "each event"),
        (Commits::Every(seconds(1)), [90.0, 90.0], "the first commit of the first worker is due after 0.6 s"),
        (Commits::Every(seconds(5)), [100.0, 100.0], "it is due after 3 s"),
        (Commits::EveryEvents(21), [100.0, 100.0], "20 are handled"),
        (Commits::EveryEvents(20), [90.0, 90.0], "20 are enough"),
    ] {
        let mut shards = loaded(&[100.0, 100.0]);
        let mut crew = Crew::ready(1, seconds(2), WorkerKind { commits, ..WorkerKind::default() });
        crew.work(&mut shards, false, 20.0, 1.0, seconds(0));
        assert_eq!(waiting(&shards), [90.0, 90.0]);
        assert_eq!(uncommitted(&shards), first, "{commits:?}: {why}");
        crew.scale(2, seconds(1));
        crew.work(&mut shards, false, 0.0, 1.0, seconds(1));
        assert_eq!(uncommitted(&shards), first, "{commits:?}: the new one is not ready");
        crew.work(&mut shards, false, 0.0, 0.001, seconds(3));
        assert_eq!(uncommitted(&shards), [90.0, 90.0], "{commits:?}: a shard changes hands");
    }
}

#[test]
fn fewer_events_than_a_commit_needs_stay_uncommitted() {
    let kind = WorkerKind { commits: Commits::EveryEvents(1_000), ..WorkerKind::default() };
    let mut shards = loaded(&[1_300.0]);
    let mut crew = Crew::ready(1, seconds(2), kind);
    for second in 0..100 {
        crew.work(&mut shards, false, 50.0, 1.0, seconds(second));
    }
    assert_eq!((waiting(&shards), uncommitted(&shards)), (vec![0.0], vec![300.0]));
}

#[test]
fn one_worker_is_slower_than_the_others() {
    let kind = WorkerKind { slowest: 3.0, ..WorkerKind::default() };
    let mut shards = loaded(&[100.0; 3]);
    Crew::ready(3, seconds(2), kind).work(&mut shards, false, 30.0, 1.0, seconds(0));
    assert_eq!(waiting(&shards), [90.0, 70.0, 70.0]);
    let mut shards = loaded(&[100.0]);
    Crew::ready(3, seconds(2), kind).work(&mut shards, true, 30.0, 1.0, seconds(0));
    assert_eq!(waiting(&shards), [30.0]);
}

/// Ten events a second, in turn, for so long: `work` after each tenth of a second, then `seen`.
fn play(crew: &mut Crew, shards: &mut [Shard], length: u32, mut seen: impl FnMut(Duration, &mut Crew, &mut [Shard])) {
    let mut position = 0.0;
    for tick in 0..length * 10 {
        let now = Duration::from_millis(100) * tick;
        crew.fetch(shards, false, 50.0, position);
        position += 1.0;
        let whose = usize::try_from(tick).unwrap() % shards.len();
        shards[whose].arrive(position, 1.0);
        crew.work(shards, false, 50.0, 0.1, now);
        seen(now, crew, shards);
    }
}

#[test]
fn a_group_takes_time_to_deal_out_its_shards_and_what_changes_hands_is_committed() {
    let kind = WorkerKind { commits: Commits::EveryEvents(1_000), checkpoints: Checkpoints::One, slowest: 1.0 };
    let mut crew = Crew::ready(1, seconds(1), kind);
    let mut shards = vec![Shard::default(); 4];
    let mut left = Vec::new();
    play(&mut crew, &mut shards, 4, |now, crew, shards| {
        if now == seconds(1) {
            crew.scale(2, now);
        }
        left.push((now, shards.iter().map(Shard::waiting).sum::<f64>(), shards[0].uncommitted()));
    });
    let idle: Vec<Duration> = left.iter().filter(|(_, waiting, _)| *waiting > 0.0).map(|(now, ..)| *now).collect();
    let (first, last) = (idle.first().copied().unwrap(), idle.last().copied().unwrap());
    assert!(first >= seconds(2) && last < seconds(3), "shards that no worker has wait: from {first:?} to {last:?}");
    assert!(idle.len() >= 2, "{idle:?}");
    let committed = left.iter().find(|(now, _, uncommitted)| *now >= seconds(1) && *uncommitted < 2.0).unwrap().0;
    assert!(committed >= seconds(2), "{committed:?}: who gives up a shard commits what it has");
}

#[test]
fn those_that_stay_go_on_counting_when_others_leave() {
    let kind = WorkerKind { commits: Commits::EveryEvents(1_000), checkpoints: Checkpoints::Shard, slowest: 1.0 };
    let mut crew = Crew::ready(2, seconds(1), kind);
    let mut shards = loaded(&[100.0; 2]);
    crew.work(&mut shards, false, 50.0, 1.0, seconds(0));
    crew.scale(1, seconds(1));
    crew.work(&mut shards, false, 0.0, 0.1, seconds(2));
    assert_eq!(uncommitted(&shards), [100.0, 50.0], "the second worker has left, and committed at its end");
    crew.work(&mut shards, false, 150.0, 1.0, seconds(3));
    assert_eq!(
        (waiting(&shards), uncommitted(&shards)),
        (vec![0.0, 0.0], vec![100.0, 50.0]),
        "and the first counts on"
    );
}

#[test]
fn workers_that_count_do_not_stay_in_step_where_events_are_dealt_out_at_random() {
    let kind = WorkerKind { commits: Commits::EveryEvents(1_000), checkpoints: Checkpoints::Shard, slowest: 1.0 };
    let mut crew = Crew::ready(4, seconds(1), kind);
    let mut shards = vec![Shard::default(); 24];
    let mut deals = crate::simulate::deal::Deals::new(&[1.0; 24]);
    let (mut before, mut most_at_once, mut commits) = (vec![0.0; 24], 0, 0);
    for tick in 1..=6_000_u32 {
        let now = Duration::from_millis(100) * tick;
        deals.deal(&mut shards, now.as_secs_f64() * 100.0);
        crew.work(&mut shards, false, 50.0, 0.1, now);
        let now_there: Vec<f64> = shards.iter().map(Shard::uncommitted).collect();
        let committed = (0..4).filter(|worker| now_there[*worker] + 20.0 < before[*worker]).count();
        (before, commits, most_at_once) = (now_there, commits + committed, most_at_once.max(committed));
    }
    assert!((55..=60).contains(&commits), "{commits}: of 60,000 events each thousand");
    assert!(most_at_once < 4, "all of them never commit at the same moment");
}
