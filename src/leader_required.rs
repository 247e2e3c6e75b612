//! Which number of required workers counts at a replica that does not lead: the leader's, from the Projection's status, as long as the leader vouches
//! for that status. Pure.
//!
//! The status is written only when it changes, so that its age says nothing. The leader renews its Lease all the time: in the Lease it names the
//! Projections whose status has not shown its number for some time, because the status cannot be written or another client keeps changing it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::ResourceExt as _;

use crate::{
    api::{PassedOverStatus, Projection, ProjectionStatus},
    field_managers::managers_of,
    measure::{ProjectionKey, RunKey},
    names,
    resolve::run_of,
    snapshot::Snapshot,
};

/// A status that differs from what the leader asks for is outdated after this time. It is usually written within milliseconds.
const OUTDATED_AFTER: Duration = Duration::from_secs(10);
/// More Projections than these are not named one by one.
const NAMED: usize = 500;
/// Annotation of this replica's copy of a Projection whose number another client wrote.
const FOREIGN: &str = "projectionist.dev/required-by-others";
/// Annotation of this replica's copy of a Projection whose late events another client wrote.
const FOREIGN_PASSED_OVER: &str = "projectionist.dev/passed-over-by-others";
/// The fields of the status that these annotations are about, by their places in `managedFields`.
const NOTED: [(&str, &str); 4] = [
    (FOREIGN, "/f:status/f:workers/f:required"),
    (FOREIGN_PASSED_OVER, "/f:status/f:passedOver/f:eventTable"),
    (FOREIGN_PASSED_OVER, "/f:status/f:passedOver/f:positions"),
    (FOREIGN_PASSED_OVER, "/f:status/f:passedOver/f:more"),
];
/// Stands for all Projections.
const ALL: &str = "*";

/// The Projections whose status does not show the number of workers that the leader asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outdated {
    /// These, as `namespace/name`.
    These(Arc<BTreeSet<String>>),
    /// More than can be named.
    All,
}

impl Default for Outdated {
    fn default() -> Self {
        Self::These(Arc::default())
    }
}

impl Outdated {
    /// As the leader writes it into an annotation of its Lease; `None` where there is nothing to write.
    pub fn to_annotation(&self) -> Option<String> {
        match self {
            Self::These(names) if names.is_empty() => None,
            Self::These(names) => Some(names.iter().map(String::as_str).collect::<Vec<_>>().join(",")),
            Self::All => Some(ALL.to_owned()),
        }
    }

    /// As a replica reads it there.
    pub fn from_annotation(text: Option<&str>) -> Self {
        match text {
            Some(ALL) => Self::All,
            text => Self::These(Arc::new(
                text.into_iter().flat_map(|text| text.split(',')).map(ToOwned::to_owned).collect(),
            )),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::These(names) => names.contains(name),
            Self::All => true,
        }
    }
}

/// What a replica knows of the leader.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Following {
    /// Another replica leads.
    pub another_leads: bool,
    /// Whose status that one does not vouch for.
    pub outdated: Outdated,
}

impl Following {
    /// The workers that the leader asks for; `None` where this replica's own number counts.
    pub fn required(&self, projection: &Projection) -> Option<u32> {
        if !self.another_leads || projection.annotations().contains_key(FOREIGN) {
            return None;
        }
        let required = projection.status.as_ref()?.required_workers()?;
        (!self.outdated.contains(&name_of(projection))).then_some(required)
    }

    /// The same of the run of this version, beside the one that serves readers.
    pub fn required_of(&self, projection: &Projection, version: &str) -> Option<u32> {
        if !self.another_leads || self.outdated.contains(&name_of(projection)) {
            return None;
        }
        projection.status.as_ref()?.required_workers_of(version)
    }
}

/// Notes on a Projection as it came from the watch whether a client other than the operator wrote the number in its status, or the late events. The
/// leader corrects that; until then this replica does not serve the number. The note is on this replica's copy only.
pub fn note_who_wrote(projection: &mut Projection) {
    let by_another = |manager| manager != Some(names::STATUS_FIELD_MANAGER);
    let foreign = NOTED.map(|(_, field)| managers_of(&projection.metadata, field).any(by_another));
    let annotations = projection.annotations_mut();
    annotations.retain(|name, _| NOTED.iter().all(|(note, _)| name != note));
    let noted = NOTED.iter().zip(foreign).filter(|(_, foreign)| *foreign);
    annotations.extend(noted.map(|((note, _), _)| ((*note).to_owned(), String::new())));
}

/// The late events in the status, where the operator wrote them.
pub fn passed_over_by_operator(projection: &Projection) -> Option<&PassedOverStatus> {
    let status = projection.status.as_ref().filter(|_| !projection.annotations().contains_key(FOREIGN_PASSED_OVER))?;
    status.passed_over.as_ref()
}

/// What the leader remembers of statuses that differ from its own numbers.
#[derive(Debug, Default)]
pub struct Disagreements(HashMap<String, Instant>);

impl Disagreements {
    /// Compares the statuses, as the watch shows them at `now`, with what this replica asks for.
    pub fn update(&mut self, projections: &[Arc<Projection>], snapshot: &Snapshot, now: Instant) -> Outdated {
        let before = std::mem::take(&mut self.0);
        for projection in projections {
            if disagrees(projection, snapshot, now) {
                let name = name_of(projection);
                let since = before.get(&name).copied().unwrap_or(now);
                self.0.insert(name, since);
            }
        }
        let old = |since: &Instant| now.saturating_duration_since(*since) >= OUTDATED_AFTER;
        let outdated: BTreeSet<String> =
            self.0.iter().filter(|(_, since)| old(since)).map(|(name, _)| name.clone()).collect();
        if outdated.len() > NAMED { Outdated::All } else { Outdated::These(Arc::new(outdated)) }
    }
}

fn disagrees(projection: &Projection, snapshot: &Snapshot, now: Instant) -> bool {
    let status = projection.status.as_ref();
    let serving = run_of(projection);
    let said = status.and_then(ProjectionStatus::required_workers);
    let beside = status.into_iter().flat_map(|status| &status.runs);
    let beside = beside.map(|run| RunKey { version: Some(run.version.as_str().into()), ..serving.clone() });
    said != asked_for(projection, &serving, snapshot, now)
        || beside.filter(|run| *run != serving).any(|run| {
            let said = run.version.as_deref().and_then(|version| status?.required_workers_of(version));
            said != asked_for(projection, &run, snapshot, now)
        })
}

fn asked_for(projection: &Projection, run: &RunKey, snapshot: &Snapshot, now: Instant) -> Option<u32> {
    let observation = snapshot.get(run)?;
    let same = projection.metadata.uid.as_deref() == Some(&observation.uid);
    let measured = observation.current(now).ok().filter(|_| same)?;
    Some(measured.assessment.required.workers)
}

fn name_of(projection: &Projection) -> String {
    ProjectionKey::of(projection).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn projection(required: Option<i32>) -> Projection {
        serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u"},
            "spec": {"source": {}, "lag": {"target": "5s"}},
            "status": {"workers": {"required": required, "boundBy": "None"}},
        }))
        .unwrap()
    }

    #[test]
    fn a_number_that_another_wrote_into_the_status_is_not_repeated() {
        let following = Following { another_leads: true, outdated: Outdated::default() };
        let required = json!({"f:status": {"f:workers": {"f:required": {}}}});
        let reason = json!({"f:status": {"f:workers": {"f:reason": {}}}});
        for (entries, repeated) in [
            (json!([]), true),
            (json!([["projectionist-status", required]]), true),
            (json!([["projectionist-status", required], ["kubectl-patch", reason]]), true),
            (json!([["projectionist-status", reason], ["kubectl-patch", required]]), false),
        ] {
            let entry = |entry: &serde_json::Value| json!({"manager": entry[0], "operation": "Update", "subresource": "status", "fieldsV1": entry[1]});
            let mut projection = projection(Some(4));
            let managed: Vec<_> = entries.as_array().unwrap().iter().map(entry).collect();
            projection.metadata.managed_fields = serde_json::from_value(json!(managed)).unwrap();
            note_who_wrote(&mut projection);
            assert_eq!(following.required(&projection).is_some(), repeated, "{entries}");
            // The leader has put it right.
            projection.metadata.managed_fields = None;
            note_who_wrote(&mut projection);
            assert_eq!(following.required(&projection), Some(4));
        }
    }

    #[test]
    fn a_leader_is_repeated_unless_it_does_not_vouch_for_the_status() {
        let following = |another_leads, text| Following { another_leads, outdated: Outdated::from_annotation(text) };
        for (another_leads, annotation, expected) in [
            (true, None, Some(4)),
            (false, None, None),
            (true, Some("shop/orders"), None),
            (true, Some("a/b,shop/orders"), None),
            (true, Some("shop/order,a/b"), Some(4)),
            (true, Some("*"), None),
        ] {
            let answer = following(another_leads, annotation).required(&projection(Some(4)));
            assert_eq!(answer, expected, "{another_leads} {annotation:?}");
        }
        assert_eq!(following(true, None).required(&projection(None)), None);
    }

    #[test]
    fn a_status_is_outdated_when_it_has_differed_for_some_time() {
        let (mut disagreements, began) = (Disagreements::default(), Instant::now());
        // Nothing is measured, so that nothing is asked for.
        let mut look = |seconds, required| {
            let now = began + Duration::from_secs(seconds);
            disagreements.update(&[Arc::new(projection(required))], &Snapshot::default(), now).to_annotation()
        };
        assert_eq!(look(0, Some(4)), None);
        assert_eq!(look(9, Some(4)), None);
        assert_eq!(look(10, Some(5)).as_deref(), Some("shop/orders"));
        assert_eq!(look(15, None), None, "put right");
        assert_eq!(look(20, Some(4)), None, "from the beginning");
    }

    #[test]
    fn an_annotation_is_read_as_it_was_written() {
        let these = Outdated::These(Arc::new(["a/b".to_owned(), "c/d".to_owned()].into()));
        for outdated in [Outdated::default(), these, Outdated::All] {
            assert_eq!(Outdated::from_annotation(outdated.to_annotation().as_deref()), outdated);
        }
    }
}
