//! Which Events a change of status deserves: a condition that turns bad and back, a changed number of workers. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::{ConditionType, Phase, ProjectionStatus, Reason};

/// An Event to publish.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// Something is wrong.
    pub warning: bool,
    /// One word for machines. The same reason is counted up, not repeated.
    pub reason: String,
    /// What was done or seen; distinguishes Events with the same reason.
    pub action: String,
    /// The message.
    pub note: String,
}

/// Reasons that deserve an Event although their condition is True. How many events are parked is announced by itself.
const REMARKABLE: [Reason; 10] = [
    Reason::EventTimeInFuture,
    Reason::HeadJumped,
    Reason::OnlyUpperBound,
    Reason::PooledConnection,
    Reason::DeliveryStopped,
    Reason::HeldByIdleConsumer,
    Reason::NoConsumer,
    Reason::Estimated,
    Reason::ParkedUnknown,
    Reason::HandlerNeverCalled,
];

/// Longer notes are refused.
const LONGEST_NOTE: usize = 1_000;

/// Compares two statuses.
pub fn announcements(before: &ProjectionStatus, after: &ProjectionStatus) -> Vec<Announcement> {
    let mut all: Vec<Announcement> = Vec::new();
    for type_ in ConditionType::ALL.into_iter().rev() {
        let find = |status: &ProjectionStatus| find(status, type_).cloned();
        let Some(now) = find(after) else { continue };
        let announcement = change(type_, find(before).as_ref(), &now);
        // Ready repeats what another condition says.
        all.extend(announcement.filter(|one| !all.iter().any(|other| other.reason == one.reason)));
    }
    all.extend(led(before, after));
    all.extend(parked(before, after));
    all.extend(scaled(before, after));
    all
}

/// Readers were led to another version.
fn led(before: &ProjectionStatus, after: &ProjectionStatus) -> Option<Announcement> {
    let (was, now) = (before.live_version(), after.live_version()?);
    if was == Some(now) {
        return None;
    }
    let instead = was.map_or_else(String::new, |was| format!(" instead of {was}"));
    let back = after.rollout.as_ref().and_then(|rollout| rollout.rolled_back_to.as_deref()) == Some(now);
    let (reason, verb) = if back { (Reason::RolledBack, "again ") } else { (Reason::Promoted, "") };
    Some(Announcement {
        warning: false,
        reason: reason.as_str().to_owned(),
        action: format!("Show{now}"),
        note: format!("readers {verb}see version {now}{instead}"),
    })
}

/// More events are set aside than before.
fn parked(before: &ProjectionStatus, after: &ProjectionStatus) -> Option<Announcement> {
    let now = after.parked.filter(|now| *now > before.parked.unwrap_or(0))?;
    let note = match before.parked {
        Some(was) => format!("{now} events are set aside after failing, {was} before"),
        None => format!("{now} events are set aside after failing"),
    };
    Some(Announcement {
        warning: true,
        reason: Reason::EventsParked.as_str().to_owned(),
        action: "ObserveParked".to_owned(),
        note,
    })
}

fn find(status: &ProjectionStatus, type_: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_.as_str())
}

fn change(type_: ConditionType, before: Option<&Condition>, now: &Condition) -> Option<Announcement> {
    let was = before.map(|before| before.status.as_str());
    if type_ == ConditionType::HeldBack {
        // The only condition of which True is the exception.
        let news = now.status == "True" && was != Some("True");
        return news.then(|| announcement(true, &now.reason, type_, &now.message));
    }
    if type_ == ConditionType::Promoted {
        // That readers are led to another version is told by itself, and that it takes its time is no news.
        let remarkable = [
            Reason::RolloutFailed,
            Reason::SwitchFailed,
            Reason::ParityBroken,
            Reason::AwaitingPromotion,
            Reason::NotOwned,
        ];
        let of = remarkable.into_iter().find(|reason| reason.as_str() == now.reason)?;
        let said = before.is_some_and(|before| before.reason == now.reason);
        return (!said).then(|| announcement(of != Reason::AwaitingPromotion, &now.reason, type_, &now.message));
    }
    if now.status == "False" {
        if was == Some("False") && before.is_some_and(|before| before.reason == now.reason) {
            return None;
        }
        // Pods are replaced because a user changed the spec; what goes wrong meanwhile has a reason of its own.
        if now.reason == Reason::RollingOut.as_str() {
            return None;
        }
        // Every workload begins without a ready worker.
        if now.reason == Reason::NoWorkerReady.as_str() && find_true(before).is_none() {
            return None;
        }
        return Some(announcement(true, &now.reason, type_, &now.message));
    }
    if now.status == "True" && REMARKABLE.map(Reason::as_str).contains(&now.reason.as_str()) {
        let said = before.is_some_and(|before| before.reason == now.reason);
        return (!said).then(|| announcement(true, &now.reason, type_, &now.message));
    }
    // Ready says it when all is well again; the others' being well is part of that.
    let well_again = type_ == ConditionType::Ready && now.status == "True" && was.is_some() && was != Some("True");
    well_again.then(|| announcement(false, ConditionType::Ready.as_str(), type_, &now.message))
}

fn find_true(condition: Option<&Condition>) -> Option<&Condition> {
    condition.filter(|condition| condition.status == "True")
}

fn scaled(before: &ProjectionStatus, after: &ProjectionStatus) -> Option<Announcement> {
    let desired = |status: &ProjectionStatus| status.workers.as_ref().and_then(|workers| workers.desired);
    let (from, to) = (desired(before)?, desired(after)?);
    if from == to {
        return None;
    }
    let workers = after.workers.as_ref();
    let required = workers.and_then(|workers| workers.reason.clone()).map(|why| format!("required: {why}"));
    let suspended = |status: &ProjectionStatus| status.phase == Some(Phase::Suspended);
    let why = match (suspended(before), suspended(after)) {
        (_, true) if to == 0 => Some("suspended".to_owned()),
        (true, _) if from == 0 => Some("not suspended any more".to_owned()),
        _ => required,
    };
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    // What is asked for need not come: a quota, a full cluster.
    let ready = workers.and_then(|workers| workers.ready).filter(|ready| *ready < to);
    let ready = ready.map_or_else(String::new, |ready| format!(", {ready} of them ready now"));
    Some(Announcement {
        warning: false,
        reason: Reason::Scaled.as_str().to_owned(),
        action: format!("ScaleTo{to}"),
        note: short(&format!(
            "asked for {to} {workers} instead of {from}{ready}{why}",
            workers = if to == 1 { "worker" } else { "workers" }
        )),
    })
}

fn announcement(warning: bool, reason: &str, type_: ConditionType, note: &str) -> Announcement {
    Announcement { warning, reason: reason.to_owned(), action: format!("Observe{}", type_.as_str()), note: short(note) }
}

/// The limit is in bytes; a character has at most four.
fn short(note: &str) -> String {
    if note.len() <= LONGEST_NOTE {
        note.to_owned()
    } else {
        note.chars().take(LONGEST_NOTE / 4).chain(['…']).collect()
    }
}
