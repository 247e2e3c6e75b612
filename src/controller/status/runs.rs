//! What is reported of the runs of a Projection, and of the version that readers see. Pure.

use jiff::Timestamp;

use super::{
    condition_state::{ConditionState, fails, holds},
    next_status,
};
use crate::{
    api::{ConditionStatus, ConditionType, ProjectionStatus, Reason, RunStatus, RunWorkers},
    controller::known::{Known, Led, RunsView},
    names::{PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION},
    rebuild::Stage,
};

/// The same run with what is known of it now.
pub fn run_status(run: &RunStatus, known: &Known<'_>, now: Timestamp) -> RunStatus {
    let status = next_status(known, &ProjectionStatus::default(), now);
    let ready = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready.as_str());
    let message =
        ready.filter(|ready| ready.status != ConditionStatus::True.as_str()).map(|ready| ready.message.clone());
    RunStatus { message, ..with_numbers(run, &status) }
}

/// All runs. The numbers of the one that `status` is about are those of `status`.
pub(super) fn runs(view: &RunsView, status: &ProjectionStatus) -> Vec<RunStatus> {
    let serving = |run: &RunStatus| status.version.as_deref() == Some(run.version.as_str());
    view.runs.iter().map(|run| if serving(run) { with_numbers(run, status) } else { run.clone() }).collect()
}

fn with_numbers(run: &RunStatus, status: &ProjectionStatus) -> RunStatus {
    let workers = status.workers.as_ref();
    RunStatus {
        staleness_seconds: status.staleness_seconds,
        pending: status.pending.as_ref().map(|pending| pending.value),
        drain_seconds: status.rates.and_then(|rates| rates.drain_seconds),
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
    let RunsView { wanted, stage, led, no_rollback, remember, runs: _ } = view;
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
        Stage::CatchingUp => (Reason::CatchingUp, format!("version {wanted} has not caught up yet")),
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
        Stage::RolledBack => (
            Reason::RolledBack,
            format!(
                "the annotation {ROLLBACK_ANNOTATION} keeps readers from version {wanted}, which is not promoted while it stays: name another version, or remove the annotation"
            ),
        ),
        Stage::Failed => (
            Reason::RolloutFailed,
            format!(
                "version {wanted} was not promoted within spec.rollout.deadline, and readers see what they saw before: status.runs says how far it came. Name another version"
            ),
        ),
        Stage::Suspended => {
            (Reason::Suspended, format!("no readers are led to version {wanted} while the Projection is suspended"))
        }
    };
    fails(reason, format!("{message}{and}"))
}
