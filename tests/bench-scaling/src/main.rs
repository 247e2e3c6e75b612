//! Replays traces against ways to scale by, side by side: the same workers, the same start-up time, 24 shards that come whole, the exact
//! algorithm of the HorizontalPodAutoscaler in several phases. Prints how late each was and what it cost. Deterministic; needs no cluster.

#![allow(clippy::print_stdout, reason = "the table is the product")]

mod table;

use std::{sync::Mutex, time::Duration};

use bench_scaling::{
    foresight::Foresight,
    rivals::Rival,
    traces::{self, Case, Cost},
};
use projectionist::simulate::{Policy, Scenario, Score, run};

/// When the autoscaler looks first. It looks every 15 s, and where in those a load rises changes the result.
const PHASES: [u64; 3] = [1, 6, 11];
/// Freshness objectives, in seconds.
const TARGETS: [u64; 2] = [5, 15];
/// The kinds of workers are compared at this target, in seconds, and with one phase.
const KINDS_TARGET: u64 = 15;
const KINDS_PHASES: [u64; 1] = [6];

/// One cell of the table: the mean of the phases, and the most reversals of any.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// The integral of staleness beyond the target, in s·s.
    lateness: f64,
    /// Part of the time out of target.
    late: f64,
    worker_seconds: f64,
    /// How often a change was undone within a minute.
    reversals: usize,
}

fn cell(scores: &[Score]) -> Cell {
    let mean = |of: fn(&Score) -> f64| scores.iter().map(of).sum::<f64>() / PHASES.len().min(scores.len()) as f64;
    Cell {
        lateness: mean(|score| score.lateness),
        late: mean(|score| score.out_of_target),
        worker_seconds: mean(|score| score.worker_seconds),
        reversals: scores.iter().map(|score| score.reversals).max().unwrap_or(0),
    }
}

fn plan(case: &Case, target: Duration, phase: u64) -> Scenario {
    Scenario {
        backlog: case.backlog,
        shards: case.shards.clone(),
        kind: case.kind,
        start_up: case.start_up,
        per_worker: traces::PER_WORKER,
        phase: Duration::from_secs(phase),
        // What the operator does for these targets.
        sampling: (target / 10).clamp(Duration::from_millis(500), Duration::from_secs(5)),
        ..Scenario::new(case.trace.clone(), target)
    }
}

fn by(case: &Case, target: Duration, phases: &[u64], rival: Rival) -> Cell {
    let scores: Vec<Score> =
        phases.iter().map(|phase| run(&plan(case, target, *phase), rival.policy(target).as_mut()).score()).collect();
    cell(&scores)
}

/// Nothing where shards or workers differ: what is best there is not known.
fn by_foresight(case: &Case, target: Duration) -> Cell {
    if case.kind.slowest > 1.0 || case.shards.iter().any(|shard| (shard - case.shards[0]).abs() > f64::EPSILON) {
        return Cell::default();
    }
    let plan = plan(case, target, 0);
    let mut policy: Box<dyn Policy> = Box::new(Foresight::new(&plan));
    cell(&[run(&plan, policy.as_mut()).score()])
}

/// One case's row: each rival in the order of [`Rival::ALL`], then foresight.
struct Row {
    name: &'static str,
    hopeless: bool,
    cells: Vec<Cell>,
}

fn main() {
    for (target, cost) in TARGETS.into_iter().flat_map(|target| [(target, Cost::Known), (target, Cost::Doubles)]) {
        let cases = traces::all(cost);
        let rows = rows(&cases, Duration::from_secs(target), &PHASES);
        table::print(target, cost, &rows);
    }
    let rows: Vec<Row> = traces::kinds()
        .into_iter()
        .map(|(name, cases)| {
            let rows = rows(&cases, Duration::from_secs(KINDS_TARGET), &KINDS_PHASES);
            Row { name, hopeless: false, cells: table::sums(&rows.iter().collect::<Vec<&Row>>()) }
        })
        .collect();
    table::print_kinds(KINDS_TARGET, &rows);
    println!("\n## Ours on steady loads from 20 to 545 events/s, 40 minutes each\n");
    for target in TARGETS {
        steadiness(Duration::from_secs(target));
    }
}

/// Loads from 20 to 545 events/s, each the same for 40 minutes: how often ours changes its mind once it has settled, and how late it is.
fn steadiness(target: Duration) {
    let loads = (0..36_u32).map(|step| 20 + step * 15);
    let (mut changes, mut lateness) = (0, 0.0);
    for load in loads.clone() {
        let case = traces::always(f64::from(load), u64::from(load));
        let run = run(&plan(&case, target, 6), Rival::Ours.policy(target).as_mut());
        changes += run.changes().iter().filter(|(at, _, _)| *at > Duration::from_secs(300)).count();
        lateness += run.score().lateness;
    }
    println!(
        "- target {} s: {changes} changes after the first 5 minutes, {lateness:.0} s·s late, in {} loads together",
        target.as_secs(),
        loads.count()
    );
}

/// All rows, computed by as many threads as there are processors.
fn rows(cases: &[Case], target: Duration, phases: &[u64]) -> Vec<Row> {
    let columns = Rival::ALL.len() + 1;
    let left = Mutex::new(0..cases.len() * columns);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = left.lock().ok().and_then(|mut left| left.next());
                    let Some(job) = next else { return };
                    let case = &cases[job / columns];
                    let cell = match Rival::ALL.get(job % columns) {
                        Some(rival) => by(case, target, phases, *rival),
                        None => by_foresight(case, target),
                    };
                    if let Ok(mut found) = found.lock() {
                        found.push((job, cell));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_default();
    found.sort_by_key(|(job, _)| *job);
    let row = |(case, cells): (&Case, &[(usize, Cell)])| Row {
        name: case.name,
        hopeless: case.hopeless,
        cells: cells.iter().map(|(_, cell)| *cell).collect(),
    };
    cases.iter().zip(found.chunks(columns)).map(row).collect()
}
