use super::*;
use crate::simulate::{Point, Scenario, Trace, run};

fn plan(rates: &[f64], per_worker: f64) -> Scenario {
    let points = rates.iter().map(|arriving| Point { arriving: *arriving, per_worker: None }).collect();
    let trace = Trace::new(Duration::from_secs(60), points).unwrap();
    Scenario { shards: vec![], per_worker, ..Scenario::new(trace, Duration::from_secs(5)) }
}

#[test]
fn cpu_follows_how_busy_the_workers_are() {
    let run = run(&plan(&[150.0; 20], 100.0), &mut CpuPolicy::new(1..=10));
    let last = run.moments().last().unwrap();
    // One and a half workers' load is 75 % of two: within a tenth of 80 %.
    assert_eq!((last.replicas, last.pending), (2, 0), "{:?}", run.changes());
    let idle = self::run(&plan(&[0.0; 20], 100.0), &mut CpuPolicy::new(1..=10));
    assert_eq!(idle.changes(), []);
}

#[test]
fn the_queue_asks_for_workers_only_once_it_is_long() {
    let run = run(&plan(&[300.0; 5], 100.0), &mut QueueLengthPolicy::new(1..=10, 1_000));
    let first = run.changes()[0];
    assert_eq!((first.0, first.2), (Duration::from_secs(7), 2), "200/s too many for 7 s are 1,400");
    assert!(run.score().worst_staleness_seconds > 5.0);
}

#[test]
fn a_query_sees_all_and_remembers() {
    let mut last: Option<(Duration, u64)> = None;
    let query = move |state: &State<'_>| {
        let before = last.replace((state.now, state.arrived))?;
        let seconds = (state.now - before.0).as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        Some((state.arrived - before.1) as f64 / seconds / state.per_worker)
    };
    let mut policy = QueryPolicy::new(1..=10, TargetValue::Average(1_000), None, query);
    let run = run(&plan(&[380.0; 3], 100.0), &mut policy);
    assert_eq!(run.changes(), [(Duration::from_secs(7), 1, 4)]);
}

#[test]
fn what_a_query_cannot_tell_holds_the_workers() {
    let mut policy = QueryPolicy::new(1..=10, TargetValue::Average(1_000), None, |_: &State<'_>| Some(f64::NAN));
    assert_eq!(run(&plan(&[380.0; 3], 100.0), &mut policy).changes(), []);
}
