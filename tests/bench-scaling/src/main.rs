//! Replays traces against ways to scale by, side by side: the same workers, the same start-up time, 24 shards that come whole, the exact
//! algorithm of the HorizontalPodAutoscaler in several phases. Prints how late each was and what it cost. Deterministic; needs no cluster.

#![allow(clippy::print_stdout, reason = "the table is the product")]

mod foresight;
mod rivals;
mod table;
mod traces;

use std::{sync::Mutex, time::Duration};

use projectionist::simulate::{Plan, Policy, Score, run};

use crate::{
    foresight::Foresight,
    rivals::Rival,
    traces::{Case, Cost},
};

/// When the autoscaler looks first. It looks every 15 s, and where in those a load rises changes the result.
const PHASES: [u64; 3] = [1, 6, 11];
/// Freshness objectives, in seconds.
const TARGETS: [u64; 2] = [5, 15];

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

fn plan(case: &Case, target: Duration, phase: u64) -> Plan {
    Plan {
        backlog: case.backlog,
        shards: case.shards.clone(),
        per_worker: traces::PER_WORKER,
        phase: Duration::from_secs(phase),
        // What the operator does for these targets.
        sampling: (target / 10).clamp(Duration::from_millis(500), Duration::from_secs(5)),
        ..Plan::new(case.trace.clone(), target)
    }
}

fn by(case: &Case, target: Duration, rival: Rival) -> Cell {
    let scores: Vec<Score> =
        PHASES.iter().map(|phase| run(&plan(case, target, *phase), rival.policy(target).as_mut()).score()).collect();
    cell(&scores)
}

fn by_foresight(case: &Case, target: Duration) -> Cell {
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
        let rows = rows(&cases, Duration::from_secs(target));
        table::print(target, cost, &rows);
    }
}

/// All rows, computed by as many threads as there are processors.
fn rows(cases: &[Case], target: Duration) -> Vec<Row> {
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
                        Some(rival) => by(case, target, *rival),
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
