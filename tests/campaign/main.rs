//! Faults at the operator's own writes: a proxy stands between one operator and the API server, and something goes wrong at the n-th write
//! of a scene. The end state and the counts of creations and deletions are those of the run without faults, and then nothing is written.
//!
//! `cargo test --test campaign` plays a sample; `make campaign` plays a fault of every kind at every write and prints a table.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod api_proxy;
mod awaiting;
mod bed;
mod faults;
mod kill_switch;
mod operator;
mod run;
mod scenes;
mod shop;
mod single;
mod state;

use std::collections::BTreeMap;

use anyhow::Result;
use futures::{StreamExt as _, stream};

use bed::{Bed, bed};
use faults::Fault;
use run::{Outcome, reference, with_fault};
use scenes::{Scene, scenes};

/// Set to `all` to play all cases.
const WHICH: &str = "PROJECTIONIST_CAMPAIGN";
/// Cases that are played at once.
const AT_ONCE: usize = 6;

struct Case<'a> {
    scene: &'a Scene,
    reference: &'a Outcome,
    at: usize,
    fault: Fault,
}

/// Every fault at every write; of these every n-th, in a sample.
fn cases<'a>(played: &'a [(Scene, Outcome)], every: usize) -> Vec<Case<'a>> {
    let all = played.iter().flat_map(|(scene, reference)| {
        let writes = 0..reference.writes.len();
        writes.flat_map(move |at| Fault::ALL.into_iter().map(move |fault| Case { scene, reference, at, fault }))
    });
    all.step_by(every).collect()
}

async fn play_all(bed: &Bed, every: Option<usize>) -> Result<()> {
    let references: Vec<Result<(Scene, Outcome)>> = stream::iter(scenes())
        .map(|scene| async move {
            let outcome = reference(bed, &scene).await.map_err(|error| error.context(scene.name))?;
            Ok((scene, outcome))
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let played = references.into_iter().collect::<Result<Vec<_>>>()?;
    for (scene, outcome) in &played {
        println!("{}: {} writes", scene.name, outcome.writes.len());
        for write in &outcome.writes {
            println!("    {}", write.what);
        }
    }
    let total: usize = played.iter().map(|(_, outcome)| outcome.writes.len() * Fault::ALL.len()).sum();
    // A step that has no divisor in common with the number of kinds, so that all kinds come up.
    let every = every.map_or(1, |wanted| (total / wanted).max(1) / 12 * 12 + 5);
    let results: Vec<(Case<'_>, Result<Option<String>>)> = stream::iter(cases(&played, every))
        .map(|case| async move {
            let result = with_fault(bed, case.scene, case.reference, case.at, case.fault).await;
            let verdict = match &result {
                Ok(_) => "ok".to_owned(),
                Err(error) => format!("FAILED: {}", error.root_cause()),
            };
            println!("{}, write {}, {}: {verdict}", case.scene.name, case.at + 1, case.fault);
            (case, result)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut table: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut failures = Vec::new();
    for (case, result) in &results {
        let row = table.entry(case.fault.to_string()).or_default();
        row.0 += 1;
        if let Err(error) = result {
            row.1 += 1;
            failures.push(format!("{}, write {}, {}: {error:?}", case.scene.name, case.at + 1, case.fault));
        }
    }
    println!("{:<26} {:>6} {:>7}", "fault", "cases", "failed");
    for (fault, (cases, failed)) in table {
        println!("{fault:<26} {cases:>6} {failed:>7}");
    }
    println!("{} of {total} cases were played, {} failed", results.len(), failures.len());
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[test]
fn a_fault_at_any_write_changes_neither_the_end_nor_what_is_created_and_deleted() {
    let all = std::env::var(WHICH).is_ok_and(|which| which == "all");
    let bed = bed();
    bed.play(play_all(bed, (!all).then_some(30)));
}
