//! Takes the next step of a rebuild: asks the read store which version readers see, leads them to another, or removes a run that they do not see.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    apply::Applier,
    known::{Led, RunsView},
    parity::ParityMemory,
    parts::Owner,
    unapplied::Unapplied,
};
use crate::{
    api::{Projection, ProjectionStatus, Reason, RunStatus, RunWorkers},
    measure::{ProjectionKey, RunKey},
    rebuild::{self, Comparison, Facts, LeadError, Next, ReadersOf, Side, Step, SwitchReaders, concerns},
    resolve::{RolloutRules, checkpoint_table_of, has_another_spec, led_by, place_of, rules, run_of, version_in},
    snapshot::Snapshot,
};

/// The read store tells within this time what readers see. The round of the Projection waits for it.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// And leads them to another version within this time; for readers that keep it from that for longer it is tried again.
const SWITCH_WITHIN: Duration = Duration::from_secs(2);
/// A store that did not tell is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Where nothing is to be done, the store is asked at these intervals whether readers still see what they were led to.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// A status that was remembered is written before the next step is taken.
const NEXT_STEP: Duration = Duration::from_millis(100);

/// What is remembered of a rebuild between two rounds. A new process begins to count again.
#[derive(Debug, Default)]
pub(super) struct RebuildMemory {
    /// Which version is fresh, and since when.
    fresh: Option<(Arc<str>, Instant)>,
    /// No other try to change anything before this, and what came of the last one.
    not_before: Option<(Instant, Led)>,
    /// Why the read store did not tell what readers see, and when.
    untold: Option<(Instant, (Reason, String))>,
    /// When it told last.
    told: Option<Instant>,
    /// Whether the version that the spec names holds the same as what readers see.
    parity: ParityMemory,
}

/// Takes steps.
pub(super) struct Rebuilder {
    pub(super) readers: Arc<dyn SwitchReaders>,
    pub(super) applier: Applier,
}

/// Which run is the one that the status is about, and what is known of all of them.
pub(super) struct Rebuilt {
    pub(super) serving: Arc<str>,
    /// The runs that are to be carried on with, by version, without their numbers.
    pub(super) view: RunsView,
    pub(super) again: Option<Duration>,
}

impl Rebuilder {
    /// `None` where there are no runs. `runs` are all of this Projection, `status` is the last that was reported.
    pub(super) async fn step(
        &self,
        projection: &Arc<Projection>,
        runs: &[Arc<Projection>],
        status: &ProjectionStatus,
        snapshot: &Snapshot,
        memory: &mut RebuildMemory,
    ) -> Option<Rebuilt> {
        let rules = rules(projection)?;
        let (now, at) = (Timestamp::now(), Instant::now());
        let versions: Vec<Arc<str>> = runs.iter().filter_map(|run| run_of(run).version).collect();
        memory.parity.keep_for(&rules);
        memory.parity.look(at);
        let fresh_for = memory.fresh_for(projection, &rules, snapshot, at);
        let of_wanted = runs.iter().find(|run| run_of(run).version.as_ref() == Some(&rules.wanted));
        let comes_back_changed = of_wanted.is_some_and(|run| has_another_spec(run, projection));
        let found_before = memory.parity.known().clone();
        let facts_with = |shown, parity| Facts {
            rules: &rules,
            runs: &versions,
            shown,
            status,
            fresh_for,
            parity,
            comes_back_changed,
            now,
        };
        let facts = |shown| facts_with(shown, &found_before);
        let asked_before = memory.told.map(|told| at.saturating_duration_since(told));
        let rested = asked_before.map_or(Duration::ZERO, |ago| ASK_EVERY.saturating_sub(ago));
        if !rested.is_zero() && !concerns(&rules, &versions, status) {
            let next = rebuild::next(&facts(status.live_version()));
            return Some(rebuilt(&rules, status, next, Led::Known, None).again_after(rested));
        }
        let readers = ReadersOf { run: any_of(projection, runs), by: led_by(projection)? };
        let untold = memory.untold.take().filter(|(when, _)| at.saturating_duration_since(*when) < ASK_AGAIN);
        let asked = match untold {
            Some(untold) => Err(untold),
            None => self.shown(projection, runs, &readers).await.map_err(|why| (Instant::now(), why)),
        };
        let shown = match asked {
            Ok(shown) => shown,
            Err(untold) => {
                // Nothing is changed while that is not known.
                let next = rebuild::next(&facts(status.live_version()));
                let wait = ASK_AGAIN.saturating_sub(untold.0.elapsed());
                let why = memory.untold.insert(untold).1.clone();
                return Some(rebuilt(&rules, status, next, Led::NotKnown(why), None).again_after(wait));
            }
        };
        memory.told = Some(at);
        let mut parity = found_before.clone();
        let mut next = rebuild::next(&facts(shown.version.as_deref()));
        let mut look_again = None;
        if next.compares {
            match comparison(&rules, &readers.run, &shown, runs) {
                Ok(of) => look_again = memory.parity.follow(of, &self.readers, (at, now)),
                Err(why) => memory.parity.refuse(why),
            }
            parity = memory.parity.known().clone();
            next = rebuild::next(&facts_with(shown.version.as_deref(), &parity));
        }
        let facts = |shown| facts_with(shown, &parity);
        let failed = memory.not_before.clone().filter(|(until, _)| *until > at);
        if let Some((until, led)) = failed.filter(|_| next.step != Step::Wait) {
            return Some(rebuilt(&rules, status, next, led, None).again_after(until.saturating_duration_since(at)));
        }
        let tried = match &next.step {
            Step::Wait => {
                let rebuilt = rebuilt(&rules, status, next, Led::Known, None);
                return Some(match look_again {
                    Some(wait) => rebuilt.again_after(wait),
                    None => rebuilt,
                });
            }
            Step::Switch { from: _, to } => self.switch(&readers, &shown, runs, to).await,
            Step::Remove(version) => self.remove(projection, runs, &readers, &shown, version).await,
        };
        let key = ProjectionKey::of(projection);
        match (tried, next.step.clone()) {
            (Ok(()), Step::Switch { from, to }) => {
                tracing::info!(%key, from = from.as_deref(), to = &*to, "readers are led to another version");
                let next = rebuild::next(&facts(Some(&to)));
                Some(rebuilt(&rules, status, next, Led::Known, None).again_after(NEXT_STEP))
            }
            (Ok(()), Step::Remove(version)) => {
                tracing::info!(%key, version = &*version, "the workers of a version that readers do not see were removed");
                Some(rebuilt(&rules, status, next, Led::Known, Some(&version)).again_after(NEXT_STEP))
            }
            (Ok(()), Step::Wait) => Some(rebuilt(&rules, status, next, Led::Known, None)),
            (Err(why), step) => {
                let led = match step {
                    Step::Switch { .. } => Led::Failed(why),
                    _ => {
                        tracing::warn!(%key, "a version that readers do not see was not removed: {why}");
                        Led::Known
                    }
                };
                memory.not_before = Some((Instant::now() + RETRY, led.clone()));
                Some(rebuilt(&rules, status, next, led, None).again_after(RETRY))
            }
        }
    }

    async fn shown(
        &self,
        projection: &Arc<Projection>,
        runs: &[Arc<Projection>],
        readers: &ReadersOf,
    ) -> Result<Shown, (Reason, String)> {
        let place = self.readers.shown(readers, ASK_WITHIN).await.map_err(|error| match error {
            LeadError::Failed(why) => (why.reason, why.message),
            LeadError::Refused(why) => (Reason::NotOwned, why),
        })?;
        let Some(place) = place else { return Ok(Shown { place: None, version: None }) };
        let of_run = runs.iter().find(|run| place_of(run).as_deref() == Some(place.as_str()));
        let version = of_run.and_then(|run| run_of(run).version);
        let version = version
            .or_else(|| version_in(projection, &place).map(Arc::from))
            .ok_or_else(|| (Reason::NotOwned, readers.by.stray(&place)))?;
        Ok(Shown { place: Some(place), version: Some(version) })
    }

    async fn switch(
        &self,
        readers: &ReadersOf,
        shown: &Shown,
        runs: &[Arc<Projection>],
        to: &str,
    ) -> Result<(), String> {
        let run = runs.iter().find(|run| run_of(run).version.as_deref() == Some(to));
        let Some(place) = run.and_then(|run| place_of(run)) else {
            return Err(readers.by.placeless(to));
        };
        let switched = self.readers.switch(readers, shown.place.as_deref(), &place, SWITCH_WITHIN).await;
        switched.map_err(|error| error.to_string())
    }

    /// The read store is asked once more: what readers use is never removed.
    async fn remove(
        &self,
        projection: &Arc<Projection>,
        runs: &[Arc<Projection>],
        readers: &ReadersOf,
        shown: &Shown,
        version: &Arc<str>,
    ) -> Result<(), String> {
        let now = self.shown(projection, runs, readers).await.map_err(|(_, why)| why)?;
        if now != *shown || now.version.as_ref() == Some(version) {
            return Err("readers see another version than a moment ago".to_owned());
        }
        let run = RunKey { projection: ProjectionKey::of(projection), version: Some(Arc::clone(version)) };
        let owner = Owner { run, uid: projection.metadata.uid.clone().unwrap_or_default() };
        self.applier.remove_run(&owner).await.map_err(|error| match error {
            Unapplied::Problem(problem) => problem.message,
            Unapplied::OwnerGone | Unapplied::Predecessor(_) => "the Projection was deleted".to_owned(),
        })
    }
}

/// What readers see.
#[derive(Debug, PartialEq)]
struct Shown {
    /// How the read store names it.
    place: Option<String>,
    /// Its version.
    version: Option<Arc<str>>,
}

impl RebuildMemory {
    /// For how long the version that the spec names has been fresh.
    fn fresh_for(
        &mut self,
        projection: &Projection,
        rules: &RolloutRules,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Option<Duration> {
        let run = RunKey { projection: ProjectionKey::of(projection), version: Some(Arc::clone(&rules.wanted)) };
        let observation = snapshot.get(&run).filter(|it| {
            let metadata = &projection.metadata;
            metadata.uid.as_deref() == Some(&it.uid) && metadata.generation.is_none_or(|newest| it.generation >= newest)
        });
        let measured = observation.and_then(|observation| observation.current(now).ok());
        let staleness = measured.and_then(|measured| measured.assessment.staleness);
        if staleness.is_none_or(|staleness| staleness > rules.fresh_below) {
            // What is held back to be compared is late for that alone.
            self.fresh = self.fresh.take().filter(|_| self.parity.holds_back(now));
            return None;
        }
        let since = match &self.fresh {
            Some((version, since)) if *version == rules.wanted => *since,
            _ => self.fresh.insert((Arc::clone(&rules.wanted), now)).1,
        };
        Some(now.saturating_duration_since(since))
    }
}

impl Rebuilt {
    fn again_after(self, wait: Duration) -> Self {
        Self { again: Some(self.again.map_or(wait, |again| again.min(wait))), ..self }
    }
}

/// What is compared before readers are led from what they see to the version that the spec names.
fn comparison(
    rules: &RolloutRules,
    store: &RunKey,
    shown: &Shown,
    runs: &[Arc<Projection>],
) -> Result<Comparison, String> {
    let side = |version: &Arc<str>| {
        let run = runs.iter().find(|run| run_of(run).version.as_ref() == Some(version));
        let place = run.and_then(|run| Some((place_of(run)?, checkpoint_table_of(run)?)));
        let (schema, checkpoint) = place.ok_or_else(|| {
            format!("what version {version} was made with is not stored any more, so that it cannot be compared")
        })?;
        Ok::<_, String>(Side { version: Arc::clone(version), schema, checkpoint })
    };
    let nothing = || "there is nothing to compare it with".to_owned();
    let rule = rules.parity.as_ref().ok_or_else(nothing)?;
    Ok(Comparison {
        store: store.clone(),
        live: side(shown.version.as_ref().ok_or_else(nothing)?)?,
        candidate: side(&rules.wanted)?,
        query: Arc::clone(&rule.query),
        tolerance: rule.tolerance,
    })
}

/// A run whose read store is asked: all have the same.
fn any_of(projection: &Projection, runs: &[Arc<Projection>]) -> RunKey {
    let serving = run_of(projection);
    let all: Vec<RunKey> = runs.iter().map(|run| run_of(run)).collect();
    all.iter().find(|run| **run == serving).or(all.first()).cloned().unwrap_or(serving)
}

fn rebuilt(rules: &RolloutRules, status: &ProjectionStatus, next: Next, led: Led, removed: Option<&str>) -> Rebuilt {
    let Next { step: _, roles, serving, remember, stage, no_rollback, compares: _, again } = next;
    let runs = roles.into_iter().filter(|(version, _)| Some(&**version) != removed);
    let said = |version: &str| status.runs.iter().find(|said| said.version == version);
    let runs = runs.map(|(version, (role, since))| RunStatus {
        // How much it had to do.
        progress: said(&version).filter(|said| said.role == role).and_then(|said| said.progress),
        version: version.to_string(),
        role,
        since: Time(since),
        staleness_seconds: None,
        pending: None,
        drain_seconds: None,
        slowed: None,
        workers: RunWorkers::default(),
        message: None,
    });
    let runs = runs.collect();
    let view = RunsView { wanted: Arc::clone(&rules.wanted), stage, led, no_rollback, remember, runs };
    Rebuilt { serving, view, again }
}
