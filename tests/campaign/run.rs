//! Plays one scene with one fault and compares the end with the run without faults.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::api_proxy::{Rules, Write};
use crate::bed::Bed;
use crate::faults::Fault;
use crate::scenes::{Scene, Step, Then};
use crate::shop::Shop;
use crate::state::{difference, state};

/// After the last step there must be no write for so long.
const QUIET: Duration = Duration::from_secs(5);
/// Without faults, a step is over when there was no write for so long.
const SETTLED: Duration = Duration::from_secs(4);
/// How long a step may take with a fault. An answer may be 12 s late, and a failure is tried again later and later.
const STEP_PATIENCE: Duration = Duration::from_secs(120);

/// What a run left behind.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// After each step.
    pub(crate) states: Vec<Value>,
    /// Creations and deletions of each object.
    pub(crate) counts: BTreeMap<String, (usize, usize)>,
    pub(crate) writes: Vec<Write>,
}

/// Plays a scene without faults.
pub(crate) async fn reference(bed: &Bed, scene: &Scene) -> Result<Outcome> {
    play(bed, scene, None, None).await
}

/// Plays a scene with a fault at the n-th write, and checks that it ends as without. Returns the write that it hit, if there was one.
pub(crate) async fn with_fault(
    bed: &Bed,
    scene: &Scene,
    reference: &Outcome,
    at: usize,
    fault: Fault,
) -> Result<Option<String>> {
    let outcome = play(bed, scene, Some((at, fault)), Some(reference)).await?;
    ensure!(
        outcome.counts == reference.counts,
        "created and deleted are {:?} and not {:?}",
        outcome.counts,
        reference.counts
    );
    Ok(outcome.writes.get(at).map(|write| write.what.clone()))
}

async fn play(bed: &Bed, scene: &Scene, fault: Option<(usize, Fault)>, reference: Option<&Outcome>) -> Result<Outcome> {
    let mut shop = Shop::open(bed, Rules { at: fault, ..Rules::default() }).await?;
    shop.stays_away = fault.is_some_and(|(_, fault)| fault == Fault::AwayAfter);
    let mut states = Vec::new();
    let played = steps(&mut shop, scene, reference, &mut states).await;
    if let Err(error) = played {
        let writes: Vec<String> =
            shop.proxy.writes().iter().map(|write| format!("{} ({:?})", write.what, write.code)).collect();
        let log = shop.operator.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        return Err(error.context(format!("writes:\n{}\nlog:\n{end}", writes.join("\n"))));
    }
    Ok(Outcome { states, counts: shop.proxy.counts(), writes: shop.proxy.writes() })
}

async fn steps(shop: &mut Shop, scene: &Scene, reference: Option<&Outcome>, states: &mut Vec<Value>) -> Result<()> {
    if scene.existing {
        shop.existing_workload().await?;
    }
    for (number, step) in scene.steps.iter().enumerate() {
        step.act.perform(shop).await?;
        if shop.operator.is_away() {
            shop.operator.resume()?;
        }
        let expected = reference.map(|reference| &reference.states[number]);
        let reached = reach(shop, step, expected).await;
        reached.map_err(|error| error.context(format!("step {}, {:?}", number + 1, step.act)))?;
        states.push(state(shop).await?);
    }
    if shop.operator.is_away() {
        shop.operator.resume()?;
        if let (Some(step), Some(reference)) = (scene.steps.last(), reference) {
            reach(shop, step, reference.states.last()).await?;
        }
    }
    // What is reached stays, without a write.
    shop.until(STEP_PATIENCE, async |shop| {
        Ok(if shop.proxy.quiet_for() >= QUIET { Ok(()) } else { Err("it keeps writing".to_owned()) })
    })
    .await?;
    let (last, expected) = (state(shop).await?, reference.and_then(|reference| reference.states.last()));
    let same = expected.and_then(|expected| difference(expected, &last));
    ensure!(same.is_none(), "in the end {}", same.unwrap_or_default());
    Ok(())
}

/// Waits until what is to come of a step has come. While the operator is away, nothing can come.
async fn reach(shop: &mut Shop, step: &Step, expected: Option<&Value>) -> Result<()> {
    let (began, mut last) = (Instant::now(), (Value::Null, Instant::now()));
    shop.until(STEP_PATIENCE, async |shop| {
        if shop.operator.is_away() {
            return Ok(Ok(()));
        }
        if let Then::Workers(name, count) = step.then {
            let workers = shop.deployments().get_opt(name).await?.and_then(|there| there.spec?.replicas);
            return Ok(if workers == Some(count) {
                Ok(())
            } else {
                Err(format!("{workers:?} workers and not {count}"))
            });
        }
        let now = state(shop).await?;
        if let Some(expected) = expected {
            return Ok(difference(expected, &now).map_or(Ok(()), Err));
        }
        if now != last.0 {
            last = (now, Instant::now());
        }
        let settled = shop.proxy.quiet_for().min(last.1.elapsed()).min(began.elapsed()) >= SETTLED;
        Ok(if settled && is_looked_at(&last.0) { Ok(()) } else { Err("it keeps changing".to_owned()) })
    })
    .await
}

/// The operator has taken the newest spec in; or there is no Projection, and nothing that was made for it.
fn is_looked_at(state: &Value) -> bool {
    match state.get("Projection") {
        Some(projection) => projection.pointer("/status/observedGeneration") == projection.get("generation"),
        None => state.as_object().is_some_and(|objects| objects.values().all(|object| object["owned"] == json!([]))),
    }
}
