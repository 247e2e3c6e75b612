//! What is reported of the runs of a Projection, and of the version that readers see. Pure.

use jiff::Timestamp;

use super::{
    condition_state::{ConditionState, fails, holds},
    next_status,
};
use crate::{
    api::{ConditionStatus, ConditionType, ProjectionStatus, Reason, RunProgress, RunRole, RunStatus, RunWorkers},
    controller::known::{Known, Led, RunsView},
    names::{PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION},
    rebuild::{Stage, in_words, progress},
};

/// The same run with what is known of it now.
pub fn run_status(run: &RunStatus, known: &Known<'_>, now: Timestamp) -> RunStatus {
    let status = next_status(known, &ProjectionStatus::default(), now);
    let ready = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready.as_str());
    let message =
        ready.filter(|ready| ready.status != ConditionStatus::True.as_str()).map(|ready| ready.message.clone());
    RunStatus { message, ..with_numbers(run, &status, known) }
}

/// All runs. The numbers of the one that `status` is about are those of `status`.
pub(super) fn runs(view: &RunsView, status: &ProjectionStatus, known: &Known<'_>) -> Vec<RunStatus> {
    let serving = |run: &RunStatus| status.version.as_deref() == Some(run.version.as_str());
    view.runs.iter().map(|run| if serving(run) { with_numbers(run, status, known) } else { run.clone() }).collect()
}

fn with_numbers(run: &RunStatus, status: &ProjectionStatus, known: &Known<'_>) -> RunStatus {
    let workers = status.workers.as_ref();
    let pending = status.pending.as_ref().and_then(|pending| u64::try_from(pending.value).ok());
    let most = run.progress.and_then(|before| u64::try_from(before.of_events).ok());
    // While it is not known what waits, only how much there was to do is kept.
    let unknown = run.progress.map(|before| RunProgress { events_per_second: None, seconds_left: None, ..before });
    RunStatus {
        staleness_seconds: status.staleness_seconds,
        pending: status.pending.as_ref().map(|pending| pending.value),
        drain_seconds: status.rates.and_then(|rates| rates.drain_seconds),
        progress: match run.role {
            RunRole::Candidate => pending.map(|pending| progress(pending, most, known.pace)).or(unknown),
            RunRole::Live | RunRole::Old => None,
        },
        slowed: known.measured.as_ref().ok().and_then(|it| it.assessment.required.throttled).map(|it| it.to_string()),
        workers: RunWorkers {
            required: workers.and_then(|workers| workers.required),
            desired: workers.and_then(|workers| workers.desired),
            ready: workers.and_then(|workers| workers.ready),
        },
        ..run.clone()
    }
}

/// Whether readers see the version that the spec names.
pub(super) fn promoted(view: &RunsView) -> ConditionState {
    let RunsView { wanted, stage, led, no_rollback, remember, .. } = view;
    let and = no_rollback.as_ref().map_or_else(String::new, |why| format!("; {why}"));
    match led {
        Led::NotKnown((reason, why)) => {
            let message = format!("which version readers see is not known, so that nothing is changed: {why}");
            return ConditionState { status: ConditionStatus::Unknown, reason: *reason, message };
        }
        Led::Failed(why) => {
            return fails(
                Reason::SwitchFailed,
                format!("readers still see what they saw before, and it is tried again: {why}"),
            );
        }
        Led::Known => {}
    }
    // It was named before and made with another spec, which its run keeps.
    if remember.described.as_deref() != Some(&**wanted) {
        return fails(
            Reason::InvalidSpec,
            format!(
                "spec.version is {wanted} again, and the rest of the spec is not what that version was made with: it is not heeded, and the workers of {wanted} keep theirs. Apply the whole spec that the version was made with, or name another version{and}"
            ),
        );
    }
    let (reason, message) = match stage {
        Stage::Promoted => return holds(&format!("readers see version {wanted}{and}")),
        Stage::CatchingUp => {
            let so_far = so_far(view).map_or_else(String::new, |so_far| format!(": {so_far}"));
            let slowed = view.runs.iter().find(|run| *run.version == **wanted).and_then(|run| run.slowed.as_ref());
            let slowed = slowed.map_or_else(String::new, |why| format!("; it is slowed down, since {why}"));
            (Reason::CatchingUp, format!("version {wanted} has not caught up yet{so_far}{slowed}"))
        }
        Stage::Proving(_) => (
            Reason::CatchingUp,
            format!(
                "version {wanted} has caught up: readers are led to it once it has stayed so for spec.rollout.promote.for"
            ),
        ),
        Stage::AwaitingPromotion => (
            Reason::AwaitingPromotion,
            format!(
                "version {wanted} has caught up: the annotation {PROMOTE_ANNOTATION} with the value {wanted} leads readers to it"
            ),
        ),
        Stage::Comparing(None) => (
            Reason::CatchingUp,
            format!("version {wanted} has caught up, and is compared with the one that readers see"),
        ),
        Stage::Comparing(Some(why)) => (
            Reason::ParityUnknown,
            format!(
                "version {wanted} has caught up, and whether it holds the same as what readers see (spec.rollout.promote.parity) is not known: {why}. The annotation {PROMOTE_ANNOTATION} with the value {wanted} leads readers to it all the same"
            ),
        ),
        Stage::Differs(what) => (
            Reason::ParityBroken,
            format!(
                "version {wanted} and the one that readers see have handled the same events, and answer spec.rollout.promote.parity.query differently, and readers see what they saw before: {what}. The annotation {PROMOTE_ANNOTATION} with the value {wanted} leads readers to it all the same"
            ),
        ),
        Stage::RolledBack => (
            Reason::RolledBack,
            format!(
                "the annotation {ROLLBACK_ANNOTATION} keeps readers from version {wanted}, which is not promoted while it stays: name another version, or remove the annotation"
            ),
        ),
        Stage::Failed => (
            Reason::RolloutFailed,
            remember.differs.as_ref().map_or_else(|| format!(
                "version {wanted} was not promoted within spec.rollout.deadline, and readers see what they saw before: status.runs says how far it came. Name another version"
            ), |what| format!(
                "version {wanted} and the one that readers see had handled the same events, and answered spec.rollout.promote.parity.query differently, and readers see what they saw before: {what}. Name another version"
            )),
        ),
        Stage::Suspended => {
            (Reason::Suspended, format!("no readers are led to version {wanted} while the Projection is suspended"))
        }
    };
    fails(reason, format!("{message}{and}"))
}

/// How far the version that the spec names has come, where that is known.
fn so_far(RunsView { wanted, runs, .. }: &RunsView) -> Option<String> {
    let run = runs.iter().find(|run| run.version == **wanted && run.pending.is_some())?;
    Some(in_words(run.progress.as_ref()?))
}
