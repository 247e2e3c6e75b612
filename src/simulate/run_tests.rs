use super::*;
use crate::hpa::{Behavior, Metric, Range, Reading, TargetValue};
use crate::simulate::{Commits, trace::Point};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn trace(rates: &[f64]) -> Trace {
    let points = rates.iter().map(|arriving| Point { arriving: *arriving, per_worker: None }).collect();
    Trace::new(seconds(10), points).unwrap()
}

/// Sets the scale as told, without an autoscaler.
struct Foretold(Vec<(u64, i32)>);

impl Policy for Foretold {
    fn autoscaler(&self) -> Option<Autoscaler> {
        None
    }

    fn sample(&mut self, _: &State<'_>) {}

    fn readings(&mut self, _: &State<'_>) -> Vec<Reading> {
        Vec::new()
    }

    fn scale_to(&mut self, state: &State<'_>) -> Option<i32> {
        self.0.iter().rfind(|(at, _)| seconds(*at) <= state.now).map(|(_, replicas)| *replicas)
    }
}

/// Reads a constant for each replica, by the autoscaler alone, and notes when it was asked.
struct Constant(i64, Vec<Duration>);

impl Policy for Constant {
    fn autoscaler(&self) -> Option<Autoscaler> {
        let metrics = vec![Metric::External(TargetValue::Average(1_000))];
        Some(Autoscaler { range: Range { min: 1, max: 100 }, metrics, behavior: Some(Behavior::default()) })
    }

    fn sample(&mut self, _: &State<'_>) {}

    fn readings(&mut self, state: &State<'_>) -> Vec<Reading> {
        self.1.push(state.now);
        vec![Reading::Items(vec![self.0])]
    }
}

fn at(run: &Run, second: u64) -> Moment {
    run.moments().iter().copied().find(|moment| moment.at == seconds(second)).unwrap()
}

#[test]
fn what_arrives_faster_than_it_is_handled_waits_and_grows_old_exactly() {
    let plan = Scenario { shards: vec![], per_worker: 50.0, ..Scenario::new(trace(&[100.0, 0.0, 0.0]), seconds(5)) };
    let run = run(&plan, &mut Foretold(vec![(0, 1)]));
    // After t seconds 50 t are done, which had arrived by t / 2.
    for (second, pending, age) in [(4, 200, 2.0), (10, 500, 5.0), (15, 250, 7.5), (20, 0, 0.0)] {
        let moment = at(&run, second);
        assert!(moment.pending.abs_diff(pending) <= 1, "{moment:?}");
        assert!((moment.staleness.as_secs_f64() - age).abs() < 0.05, "{moment:?}");
    }
    let score = run.score();
    assert!((score.out_of_target_seconds - 10.0).abs() < 0.3, "{score:?}: from 10 s to 20 s");
    assert!((score.lateness - 25.0).abs() < 0.6, "{score:?}: half of 10 s × 5 s");
    assert!((score.worker_seconds - 30.0).abs() < 1e-6, "{score:?}");
}

#[test]
fn a_new_worker_helps_after_its_start_up_and_only_by_whole_shards() {
    let plan = Scenario { shards: vec![1.0; 4], per_worker: 25.0, ..Scenario::new(trace(&[100.0; 6]), seconds(5)) };
    let run = run(&plan, &mut Foretold(vec![(0, 1), (10, 3), (20, 4)]));
    // A worker does 25/s, 100/s arrive. Three have 2, 1 and 1 of four shards: the first can do half of its own.
    let pending = |second| at(&run, second).pending;
    assert!(pending(12).abs_diff(900) <= 4, "{}: no worker helps for two seconds", pending(12));
    assert!((pending(22) - pending(12)).abs_diff(250) <= 8, "25/s too few: {} and {}", pending(12), pending(22));
    assert!(pending(40).abs_diff(pending(22)) <= 8, "four keep up, and no more: {} and {}", pending(22), pending(40));
}

#[test]
fn a_backlog_waits_from_the_beginning() {
    let backlog = Backlog { events: 1_000.0, age: seconds(3_600) };
    let plan = Scenario { backlog, per_worker: 50.0, ..Scenario::new(trace(&[0.0, 0.0, 0.0]), seconds(5)) };
    let run = run(&plan, &mut Foretold(vec![(0, 2)]));
    let first = at(&run, 0);
    assert!(first.pending == 1_000 && first.staleness > seconds(3_590), "{first:?}");
    assert_eq!((at(&run, 13).pending, at(&run, 13).staleness), (0, Duration::ZERO));
}

#[test]
fn the_autoscaler_looks_at_its_phase_and_then_every_period() {
    let mut policy = Constant(30_000, Vec::new());
    let run = run(&Scenario { phase: seconds(4), ..Scenario::new(trace(&[1.0; 5]), seconds(5)) }, &mut policy);
    assert_eq!(policy.1, [4, 19, 34, 49].map(seconds));
    assert_eq!(run.changes(), [(seconds(4), 1, 5), (seconds(19), 5, 10), (seconds(34), 10, 20), (seconds(49), 20, 30)]);
}

/// Asks for so many workers at each look, without another writer.
struct ByLook {
    behavior: Option<Behavior>,
    wanted: Vec<i64>,
    looks: usize,
}

impl Policy for ByLook {
    fn autoscaler(&self) -> Option<Autoscaler> {
        let metrics = vec![Metric::External(TargetValue::Average(1_000))];
        Some(Autoscaler { range: Range { min: 1, max: 100 }, metrics, behavior: self.behavior.clone() })
    }

    fn sample(&mut self, _: &State<'_>) {}

    fn readings(&mut self, _: &State<'_>) -> Vec<Reading> {
        let wanted = self.wanted.get(self.looks).or(self.wanted.last()).copied().unwrap();
        self.looks += 1;
        vec![Reading::Items(vec![wanted * 1_000])]
    }
}

#[test]
fn what_is_one_window_or_one_period_old_is_already_older() {
    // Without behavior: a window of 300 s, which is 20 looks of 15 s.
    let mut usual = ByLook { behavior: None, wanted: vec![4, 1], looks: 0 };
    let plan = Scenario { workers: 4, phase: seconds(0), ..Scenario::new(trace(&[1.0; 40]), seconds(5)) };
    let changes = run(&plan, &mut usual).changes();
    assert!(changes.len() == 1 && changes[0].0 < seconds(301), "{changes:?}: not one look later");
    // What was taken away a period ago no longer counts, and is overwritten by what is taken away now.
    let spec = serde_json::json!({
        "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 0},
    });
    let behavior = Some(Behavior::from_spec(&serde_json::from_value(spec).unwrap()).unwrap());
    let mut two_a_minute = ByLook { behavior, wanted: vec![12, 8, 4, 1, 24], looks: 0 };
    let plan = Scenario { workers: 12, phase: seconds(0), ..Scenario::new(trace(&[1.0; 7]), seconds(5)) };
    let reached: Vec<i32> = run(&plan, &mut two_a_minute).changes().iter().map(|change| change.2).collect();
    assert_eq!(reached, [8, 4, 1, 6]);
}

#[test]
fn a_long_trace_is_sampled_as_a_short_one_is() {
    let month = Scenario::new(trace(&vec![30.0; 31 * 8_640]), seconds(5));
    assert_eq!((month.tick, month.sampling), (Duration::from_millis(100), Duration::from_millis(500)));
    let (short, long) = (trace(&[30.0; 60]), trace(&[30.0; 60 * 18]));
    let policy = || ByLook { behavior: None, wanted: vec![1], looks: 0 };
    let (mut few, mut many) = (policy(), policy());
    let short = run(&Scenario { per_worker: 50.0, ..Scenario::new(short, seconds(5)) }, &mut few);
    let long = run(&Scenario { per_worker: 50.0, ..Scenario::new(long, seconds(5)) }, &mut many);
    let hours = long.score().worker_seconds / short.score().worker_seconds;
    assert!((hours - 18.0).abs() < 1e-6, "{hours}");
    assert_eq!((few.looks, many.looks), (40, 720));
    assert!(long.moments().len() <= 100_001, "{}", long.moments().len());
}

#[test]
fn the_same_input_gives_the_same_output() {
    let plan = Scenario::new(trace(&[100.0, 900.0, 20.0]), seconds(5));
    let twice = [(); 2].map(|()| run(&plan, &mut Constant(3_000, Vec::new())));
    assert_eq!(twice[0], twice[1]);
}

/// 10 events/s for 24 shards, three workers of 50/s from the beginning: nothing ever waits for long.
fn light(kind: WorkerKind) -> Run {
    let plan = Scenario { workers: 3, per_worker: 50.0, kind, ..Scenario::new(trace(&[10.0; 12]), seconds(15)) };
    run(&plan, &mut Foretold(vec![(0, 3)]))
}

#[test]
fn how_late_a_run_is_does_not_depend_on_what_is_committed() {
    let ideal = light(WorkerKind::default());
    for commits in [Commits::Every(seconds(5)), Commits::EveryEvents(1_000)] {
        for checkpoints in [Checkpoints::One, Checkpoints::Shard, Checkpoints::ShardUnknown] {
            let real = light(WorkerKind { commits, checkpoints, slowest: 1.0 });
            assert_eq!(real.score(), ideal.score());
            let handled = |run: &Run| {
                run.moments().iter().map(|moment| (moment.pending, moment.staleness)).collect::<Vec<(u64, Duration)>>()
            };
            assert_eq!(handled(&real), handled(&ideal), "{commits:?} {checkpoints:?}");
        }
    }
}

#[test]
fn what_is_measured_comes_from_the_rows() {
    let worst = |commits: Commits, checkpoints: Checkpoints| {
        let run = light(WorkerKind { commits, checkpoints, slowest: 1.0 });
        let measured = run.moments().iter().filter(|moment| moment.at > seconds(20));
        let most = measured.clone().map(|moment| moment.measured_pending).max().unwrap();
        (most, measured.map(|moment| moment.measured_staleness.as_secs_f64()).fold(0.0, f64::max))
    };
    let half = Commits::Every(Duration::from_millis(500));
    let (most, oldest) = worst(Commits::EachEvent, Checkpoints::Shard);
    assert!(most <= 3 && oldest < 0.3, "{most}, {oldest}: each shard beyond its own row");
    let (most, oldest) = worst(half, Checkpoints::Shard);
    assert!(most <= 9 && (0.3..0.8).contains(&oldest), "{most}, {oldest}: a step of half a second");
    // A shard gets an event every 2.4 s, and its row stays there.
    let (most, oldest) = worst(half, Checkpoints::ShardUnknown);
    assert!(most >= 20 && oldest > 2.0, "{most}, {oldest}: quiet shards look like lag");
    let (most, oldest) = worst(half, Checkpoints::One);
    assert!(most <= 9 && oldest < 0.8, "{most}, {oldest}: the owner of a quiet shard knows that it is quiet");
    let (most, oldest) = worst(Commits::Every(seconds(5)), Checkpoints::Shard);
    assert!((40..=55).contains(&most) && (4.5..5.5).contains(&oldest), "{most}, {oldest}");
    let (most, _) = worst(Commits::EveryEvents(1_000), Checkpoints::Shard);
    assert!(most > 1_000, "{most}: the first thousand of each worker is not yet full");
}
