//! Rebuilding a read model beside the one that readers see: what each run is for, and the one thing to do next. Pure.
//!
//! Which version readers see is what the read store says, and never what was remembered. Every step follows from what is there, so that a step that was cut off is
//! the next step again, and one whose end was not heard of is found done.

mod parity;
mod progress;
mod readers;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

pub use self::{
    parity::{Answer, Cell, Compared, Comparison, Parity, Side, apart, difference},
    progress::{Backlog, Pace, in_words, progress},
    readers::{LeadError, ReadersOf, SwitchReaders},
};
use crate::{
    api::{ProjectionStatus, RolloutStatus, RunRole},
    names::ROLLBACK_ANNOTATION,
    resolve::{ParityRule, RolloutRules},
};

/// What the next step is decided from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What the spec and the annotations ask for.
    pub rules: &'a RolloutRules,
    /// The versions that there are runs of.
    pub runs: &'a [Arc<str>],
    /// The version that readers see, by the read store; `None`: they see none yet.
    pub shown: Option<&'a str>,
    /// What was remembered.
    pub status: &'a ProjectionStatus,
    /// For how long the version that the spec names has been fresh without a break; `None` where it is not, or that is not known.
    pub fresh_for: Option<Duration>,
    /// Whether that version holds the same as the one that readers see.
    pub parity: &'a Parity,
    /// The spec names a version again that was made with another spec, and is not heeded for it.
    pub comes_back_changed: bool,
    /// Now.
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Nothing: all is as it should be, or something else has to happen first.
    Wait,
    /// Lead readers from one version, or none, to another.
    Switch {
        /// What they see now.
        from: Option<Arc<str>>,
        /// What they are to see.
        to: Arc<str>,
    },
    /// Remove the workers of a version that readers do not see, and what was made for them.
    Remove(Arc<str>),
}

/// How far the version that the spec names has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Readers see it.
    Promoted,
    /// It has not caught up.
    CatchingUp,
    /// It is fresh, and will be promoted when it has been for so much longer.
    Proving(Duration),
    /// It has been fresh for long enough, and it is not known whether it holds the same as what readers see: why, where that has been tried.
    Comparing(Option<String>),
    /// It does not hold the same: in what.
    Differs(String),
    /// It is fresh and waits for the annotation.
    AwaitingPromotion,
    /// Readers were taken back from it.
    RolledBack,
    /// It was not promoted in time, or does not hold what readers see.
    Failed,
    /// The Projection is suspended, so that no readers are led to it.
    Suspended,
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// What to do now.
    pub step: Step,
    /// What each run is for, and since when.
    pub roles: BTreeMap<Arc<str>, (RunRole, Timestamp)>,
    /// The version that the Projection's status and its metrics without a version are about.
    pub serving: Arc<str>,
    /// What to remember.
    pub remember: RolloutStatus,
    /// How far the version that the spec names has come.
    pub stage: Stage,
    /// Why the annotation that asks for a rollback leads to nothing.
    pub no_rollback: Option<String>,
    /// Whether it holds the same as what readers see is what decides now.
    pub compares: bool,
    /// Look again after this time at the latest.
    pub again: Option<Duration>,
}

/// Whether there is anything to decide: a version that readers do not see, or more than one run.
pub fn concerns(rules: &RolloutRules, runs: &[Arc<str>], status: &ProjectionStatus) -> bool {
    let only = runs.len() == 1 && runs.first() == Some(&rules.wanted);
    !only || status.live_version() != Some(&*rules.wanted)
}

/// Decides.
pub fn next(facts: &Facts<'_>) -> Next {
    let Facts { rules, runs, shown, status, fresh_for, parity, comes_back_changed, now } = *facts;
    let serving = serving(facts);
    let roles: BTreeMap<Arc<str>, (RunRole, Timestamp)> =
        runs.iter().map(|run| (Arc::clone(run), role(facts, run))).collect();
    let wanted = &rules.wanted;
    let described = status.rollout.as_ref().and_then(|rollout| rollout.described.clone());
    let described = described.filter(|_| comes_back_changed).unwrap_or_else(|| wanted.to_string());
    let promoted = shown == Some(&**wanted);
    let asked = rules.promote.as_deref() == Some(&**wanted);
    let remembered = RolloutStatus { described: Some(described), ..rolled_back(facts) };
    let mut remember = failed(facts, &roles, remembered);
    let taken_back = remember.rolled_back_from.as_deref() == Some(&**wanted);
    let has_failed = remember.failed.is_some() && !asked;
    let left = rules.promote_after.map(|after| fresh_for.map_or(after, |fresh| after.saturating_sub(fresh)));
    let is_there = runs.contains(wanted);
    // A person who promotes a version knows what changes with it. The first version is compared with none.
    let has_parity = rules.parity.is_some() && shown.is_some() && !asked && is_there;
    let mut compares = false;
    let stage = match (fresh_for, left) {
        _ if promoted => Stage::Promoted,
        _ if taken_back => Stage::RolledBack,
        _ if has_failed => Stage::Failed,
        _ if rules.suspended => Stage::Suspended,
        (None, _) => Stage::CatchingUp,
        (Some(_), _) if asked => Stage::Proving(Duration::ZERO),
        (Some(_), None) => Stage::AwaitingPromotion,
        (Some(_), Some(Duration::ZERO)) if has_parity => {
            compares = true;
            match parity {
                Parity::Holds => Stage::Proving(Duration::ZERO),
                Parity::NotCompared => Stage::Comparing(None),
                Parity::Unknown(why) => Stage::Comparing(Some(why.clone())),
                Parity::Broken { told, .. } => Stage::Differs(told.clone()),
            }
        }
        (Some(_), Some(left)) => Stage::Proving(left),
    };
    let back = rules.roll_back.as_deref().filter(|to| shown != Some(*to));
    // Readers were taken back there before, and the annotation is still there.
    let heeded = back.filter(|to| remember.rolled_back_to.as_deref() == Some(*to));
    let back = back.filter(|_| heeded.is_none());
    let old = |run: &str| roles.get(run).is_some_and(|(role, _)| *role == RunRole::Old);
    let no_rollback = match (back.filter(|to| shown.is_some() && !old(to)), heeded) {
        (Some(to), _) => Some(format!(
            "readers cannot be led back to version {to}: it is no version that they saw before and whose workers are still there"
        )),
        (None, Some(to)) => Some(format!(
            "the annotation {ROLLBACK_ANNOTATION} led readers back to version {to} before and is heeded once: to lead them there again, remove it, wait until status.rollout.rolledBackTo is gone, and set it again"
        )),
        (None, None) => None,
    };
    let from = shown.map(Arc::from);
    let abandoned = runs.iter().find(|run| is_replaced(facts, run));
    let outlived = roles.iter().find(|(_, (role, since))| {
        *role == RunRole::Old && left_of(rules.keep_old, *since, now).is_zero() && shown.is_some()
    });
    let step = match back.filter(|to| old(to) && shown.is_some()) {
        Some(to) => Step::Switch { from, to: to.into() },
        None if stage == Stage::Proving(Duration::ZERO) && is_there => Step::Switch { from, to: Arc::clone(wanted) },
        None => match abandoned.or(outlived.map(|(run, _)| run)) {
            Some(run) => Step::Remove(Arc::clone(run)),
            // The only run there is stays: readers see none yet, and it may still be promoted by hand.
            None if stage == Stage::Failed && rules.remove_failed && is_there && shown.is_some() => {
                Step::Remove(Arc::clone(wanted))
            }
            None => Step::Wait,
        },
    };
    if promoted {
        (remember.failed, remember.differs, remember.differs_by) = (None, None, None);
    }
    let again = again(facts, &roles, &stage);
    Next { step, roles, serving, remember, stage, no_rollback, compares, again }
}

/// What readers see or, before they see any version, what the status was about, or what the spec names.
fn serving(facts: &Facts<'_>) -> Arc<str> {
    let Facts { rules, runs, shown, status, .. } = *facts;
    let is_there = |version: &&str| runs.iter().any(|run| **run == **version) && !is_replaced(facts, version);
    let said = status.version.as_deref();
    // One that readers see and whose spec was lost is not passed over in silence.
    shown
        .filter(|shown| is_there(shown) || said == Some(*shown))
        .or(said.filter(is_there))
        .map_or_else(|| Arc::clone(&rules.wanted), Arc::from)
}

/// What a run is for, and since when. A candidate that another has replaced stays one until it is removed.
fn role(facts: &Facts<'_>, run: &str) -> (RunRole, Timestamp) {
    let Facts { rules, shown, status, now, .. } = *facts;
    let said = status.runs.iter().find(|said| said.version == run);
    // The time that a version may take to be promoted begins again once it is no longer held.
    let held = |rollout: &RolloutStatus| rollout.rolled_back_from.as_deref() == Some(run);
    let released = run == &*rules.wanted
        && ((status.suspended && !rules.suspended)
            || (status.rollout.as_ref().is_some_and(held) && !held(&rolled_back(facts))));
    let said = said.filter(|said| !(released && said.role == RunRole::Candidate));
    let since = |role: RunRole| (role, said.filter(|said| said.role == role).map_or(now, |said| said.since.0));
    if shown == Some(run) {
        return since(RunRole::Live);
    }
    if run == &*rules.wanted || is_replaced(facts, run) {
        return since(RunRole::Candidate);
    }
    since(RunRole::Old)
}

/// It was to be promoted, and the spec names another version now. One of which nothing was remembered may be what readers saw before.
fn is_replaced(Facts { rules, shown, status, .. }: &Facts<'_>, run: &str) -> bool {
    let said = status.runs.iter().find(|said| said.version == run);
    *shown != Some(run) && run != &*rules.wanted && said.is_some_and(|said| said.role == RunRole::Candidate)
}

/// Whether readers were taken back, from where and to where. Forgotten once the annotation is gone or names another version. An annotation that names what readers
/// see holds them there, also where it is not remembered that they were taken back.
fn rolled_back(Facts { rules, shown, status, .. }: &Facts<'_>) -> RolloutStatus {
    let before = status.rollout.clone().unwrap_or_default();
    let asked = rules.roll_back.as_deref();
    let moved = status.live_version().filter(|live| Some(*live) != *shown);
    match (moved, *shown) {
        (Some(from), Some(to)) if asked == Some(to) => RolloutStatus {
            rolled_back_from: Some(from.to_owned()),
            rolled_back_to: Some(to.to_owned()),
            ..RolloutStatus::default()
        },
        _ if before.rolled_back_to.is_some() && before.rolled_back_to.as_deref() == asked => before,
        (_, Some(to)) if asked == Some(to) && to != &*rules.wanted => RolloutStatus {
            rolled_back_from: Some(rules.wanted.to_string()),
            rolled_back_to: Some(to.to_owned()),
            ..RolloutStatus::default()
        },
        _ => RolloutStatus::default(),
    }
}

/// What is remembered, and the version that the spec names where it was not promoted in time or does not hold what readers see, and in what it differs.
fn failed(
    facts: &Facts<'_>,
    roles: &BTreeMap<Arc<str>, (RunRole, Timestamp)>,
    remember: RolloutStatus,
) -> RolloutStatus {
    let Facts { rules, status, parity, now, .. } = *facts;
    let wanted = &*rules.wanted;
    let asked_by = rules.parity.as_ref().map(ParityRule::hash);
    let before = status.rollout.as_ref().filter(|rollout| rollout.failed.as_deref() == Some(wanted));
    // What another query found is asked again.
    if let Some(before) = before.filter(|before| before.differs.is_none() || before.differs_by == asked_by) {
        let RolloutStatus { failed, differs, differs_by, .. } = before.clone();
        return RolloutStatus { failed, differs, differs_by, ..remember };
    }
    if remember.rolled_back_from.as_deref() == Some(wanted) || rules.suspended {
        return remember;
    }
    let late = match (roles.get(wanted), rules.deadline) {
        (Some((RunRole::Candidate, since)), Some(deadline)) => left_of(deadline, *since, now).is_zero(),
        _ => false,
    };
    let asked = rules.promote.as_deref() == Some(wanted);
    match parity {
        Parity::Broken { told, for_good: true } if asked_by.is_some() && !asked => RolloutStatus {
            failed: Some(wanted.to_owned()),
            differs: Some(told.clone()),
            differs_by: asked_by,
            ..remember
        },
        _ => RolloutStatus { failed: late.then(|| wanted.to_owned()), ..remember },
    }
}

fn again(
    Facts { rules, now, .. }: &Facts<'_>,
    roles: &BTreeMap<Arc<str>, (RunRole, Timestamp)>,
    stage: &Stage,
) -> Option<Duration> {
    let of_runs = roles.values().filter_map(|(role, since)| match role {
        RunRole::Old => Some(left_of(rules.keep_old, *since, *now)),
        RunRole::Candidate => rules.deadline.map(|deadline| left_of(deadline, *since, *now)),
        RunRole::Live => None,
    });
    let proving = match stage {
        Stage::Proving(left) => Some(*left),
        _ => None,
    };
    of_runs.chain(proving).filter(|left| !left.is_zero()).min()
}

/// What is left of this time since then.
fn left_of(time: Duration, since: Timestamp, now: Timestamp) -> Duration {
    time.saturating_sub(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}
