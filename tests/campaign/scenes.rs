//! What a user does, step by step.

use anyhow::Result;
use serde_json::{Value, json};

use crate::shop::{EXISTING, NAME, Shop};

/// One thing that a user, or the load, does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Applies the Projection with this change.
    Apply(Value),
    /// Changes it.
    Change(Value),
    /// Deletes it.
    Delete,
    /// Appends an event.
    Append,
    /// The projector handles all events.
    Commit,
}

/// What is to come of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    /// The same state as without faults.
    SameState,
    /// So many workers are asked for of this Deployment; what else there is changes with time.
    Workers(&'static str, i32),
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) act: Act,
    pub(crate) then: Then,
}

/// A sequence of steps.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// A workload is there before.
    pub(crate) existing: bool,
    pub(crate) steps: Vec<Step>,
}

impl Act {
    pub(crate) async fn perform(&self, shop: &Shop) -> Result<()> {
        match self {
            Self::Apply(change) => shop.apply(change).await.map(drop),
            Self::Change(change) => shop.change(change).await,
            Self::Delete => shop.delete().await,
            Self::Append => shop.events.append_events(1).await,
            Self::Commit => shop.commit_all().await,
        }
    }
}

fn same(act: Act) -> Step {
    Step { act, then: Then::SameState }
}

fn workers(act: Act, name: &'static str, count: i32) -> Step {
    Step { act, then: Then::Workers(name, count) }
}

fn template(image: &str) -> Value {
    json!({"template": {"spec": {"containers": [{"name": "projector", "image": image}]}}})
}

fn suspend(suspend: bool) -> Act {
    Act::Change(json!({"spec": {"suspend": suspend}}))
}

/// All of them.
pub(crate) fn scenes() -> Vec<Scene> {
    let builtin = |handler: &str| {
        json!({"spec": {
            "checkpoint": null, "readStore": {"postgres": {"schema": "orders"}},
            "projector": {"builtin": {"handlers": {"Counted": handler}}},
        }})
    };
    vec![
        Scene {
            name: "create, change, delete, create again",
            existing: false,
            steps: vec![
                same(Act::Apply(builtin("insert into seen values (:position)"))),
                same(Act::Apply(builtin("insert into seen values (:position) on conflict do nothing"))),
                same(Act::Delete),
                same(Act::Apply(builtin("insert into seen values (:position)"))),
            ],
        },
        Scene {
            name: "suspend and resume a template, scale out",
            existing: false,
            steps: vec![
                same(Act::Apply(json!({"spec": {"projector": template("a:1"), "scaling": {"minWorkers": 2}}}))),
                same(suspend(true)),
                same(suspend(false)),
                same(Act::Change(json!({"spec": {"scaling": {"minWorkers": 3}, "projector": template("a:2")}}))),
            ],
        },
        Scene {
            name: "suspend and resume a template without an autoscaler",
            existing: false,
            steps: vec![
                same(Act::Apply(json!({"spec": {"projector": template("a:1"), "scaling": {"autoscaler": "None"}}}))),
                same(suspend(true)),
                same(suspend(false)),
            ],
        },
        Scene {
            name: "suspend and resume an existing workload",
            existing: true,
            steps: vec![
                same(Act::Apply(json!({"spec": {
                    // As many as there are: how soon fewer are asked for depends on when the workers are first seen.
                    "projector": {"existing": {"kind": "Deployment", "name": EXISTING}}, "scaling": {"autoscaler": "None", "minWorkers": 3},
                }}))),
                same(suspend(true)),
                same(suspend(false)),
                same(Act::Delete),
            ],
        },
        Scene {
            name: "sleep, wake and sleep",
            existing: false,
            steps: vec![
                same(Act::Apply(json!({"spec": {
                    "projector": template("a:1"), "scaling": {"minWorkers": 0, "idleFor": "1s"},
                }}))),
                workers(Act::Append, NAME, 1),
                same(Act::Commit),
            ],
        },
    ]
}
