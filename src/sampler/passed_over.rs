//! Where the late events of each projection are remembered. A process begins with what the status tells of them; the sources' probes keep it up to date.

use std::collections::{HashMap, HashSet};

use crate::{
    api::{EventTable, Projection},
    lag::{PassedOver, Position},
    leader_required::passed_over_by_operator,
    measure::{ProjectionKey, RunKey},
    resolve::{Resolved, ResolvedSource, run_of},
    sources::postgres::PassedOverMemory,
};

/// One memory for each projection, for as long as it is the same Projection and reads the same event table.
#[derive(Default)]
pub(super) struct Memories(HashMap<RunKey, Kept>);

struct Kept {
    uid: String,
    event_table: String,
    memory: PassedOverMemory,
}

impl Memories {
    /// Forgets the projections that are gone.
    pub(super) fn retain<'a>(&mut self, projections: impl IntoIterator<Item = &'a Projection>) {
        let there: HashSet<RunKey> = projections.into_iter().map(run_of).collect();
        self.0.retain(|key, _| there.contains(key));
    }

    /// Begins a memory for this projection where its source is audited, unless there is one: the status is read once, since what comes later is found here sooner.
    pub(super) fn begin(&mut self, resolved: &Resolved, projection: &Projection) {
        let ResolvedSource::Postgres { question, .. } = &resolved.source else { return };
        let Some(EventTable { table, .. }) = question.event_table() else { return };
        let same = |kept: &&Kept| *kept.uid == *resolved.uid && kept.event_table == *table;
        if self.0.get(&resolved.key).filter(same).is_some() {
            return;
        }
        let memory = PassedOverMemory::new(told_before(projection, table));
        let kept = Kept { uid: resolved.uid.to_string(), event_table: table.clone(), memory };
        self.0.insert(resolved.key.clone(), kept);
    }

    /// The memory of a projection; an empty one where none was begun.
    pub(super) fn of(&self, key: &RunKey) -> PassedOverMemory {
        self.0.get(key).map(|kept| kept.memory.clone()).unwrap_or_default()
    }
}

/// What the operator last told of late events in this table. A text that is no position was not written by the operator.
fn told_before(projection: &Projection, event_table: &str) -> PassedOver {
    let there = projection.status.as_ref().and_then(|status| status.passed_over.as_ref());
    let told = passed_over_by_operator(projection).filter(|told| told.event_table == event_table);
    let Some(told) = told else {
        if there.is_some() {
            let projection = ProjectionKey::of(projection);
            tracing::warn!(%projection, "status.passedOver is left: another writer wrote it, or it is about another event table");
        }
        return PassedOver::default();
    };
    let positions = told.positions.iter().filter_map(|position| position.parse().ok().map(Position));
    PassedOver { positions: positions.collect(), more: u64::try_from(told.more).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{leader_required::note_who_wrote, resolve::resolve};

    fn projection(uid: &str, table: &str, manager: &str) -> Projection {
        let fields = json!({"f:status": {"f:passedOver": {".": {}, "f:positions": {}}}});
        let mut projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"namespace": "shop", "name": "orders", "uid": uid, "managedFields": [
                {"manager": manager, "operation": "Update", "subresource": "status", "fieldsV1": fields},
            ]},
            "spec": {
                "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {"table": table}}},
                "checkpoint": {"readStore": {}},
                "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
                "lag": {"target": "5s"},
            },
            "status": {"passedOver": {"eventTable": "events", "positions": ["2", "40", "x"], "more": 0}},
        }))
        .unwrap();
        note_who_wrote(&mut projection);
        projection
    }

    fn begin(memories: &mut Memories, projection: &Projection) -> PassedOverMemory {
        let resolved = resolve(projection).unwrap();
        memories.begin(&resolved, projection);
        memories.of(&resolved.key)
    }

    fn positions(memory: &PassedOverMemory) -> Vec<i64> {
        memory.load().positions.into_iter().map(|position| position.0).collect()
    }

    #[test]
    fn it_begins_with_what_the_operator_told_of_this_table() {
        for (table, manager, expected) in [
            ("events", "projectionist-status", &[2, 40][..]),
            ("events", "kubectl-edit", &[]),
            ("others", "projectionist-status", &[]),
        ] {
            let memory = begin(&mut Memories::default(), &projection("u", table, manager));
            assert_eq!(positions(&memory), expected, "{table} {manager}");
        }
    }

    #[test]
    fn the_status_is_read_once_for_each_projection_and_table() {
        let mut memories = Memories::default();
        let status = "projectionist-status";
        let first = begin(&mut memories, &projection("u", "events", status));
        first.store(PassedOver::default());
        let again = begin(&mut memories, &projection("u", "events", status));
        assert_eq!((again == first, positions(&again)), (true, vec![]), "the older word does not come back");
        let elsewhere = begin(&mut memories, &projection("u", "others", status));
        assert!(elsewhere != first);
        let namesake = begin(&mut memories, &projection("v", "others", status));
        assert!(namesake != elsewhere);
        memories.retain([]);
        assert!(begin(&mut memories, &projection("v", "others", status)) != namesake, "it was gone");
    }
}
