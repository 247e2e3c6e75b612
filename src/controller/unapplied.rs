//! Why a plan was not carried out: what the API server's errors mean. Pure.

use super::{
    known::Problem,
    live::LiveObject,
    parts::{Owner, Part},
};
use crate::{api::Reason, names, platform::errors::in_words};

/// Why a plan was not carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unapplied {
    /// A problem, which a condition reports.
    Problem(Problem),
    /// The Projection was deleted, or its namespace is: nothing is written for it any more.
    OwnerGone,
    /// An object of a deleted Projection of the same name has not been collected yet.
    Predecessor(Part),
}

impl From<Problem> for Unapplied {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// What an error means that the API server gave when `what` was tried with an object.
pub fn failed(what: &str, part: Part, owner: &Owner, name: &str, error: &kube::Error) -> Unapplied {
    problem(&format!("{what} the {} {}/{name}", part.kind(), owner.namespace()), error)
}

/// What an error means; `what` says what was tried.
pub fn problem(what: &str, error: &kube::Error) -> Unapplied {
    match error {
        kube::Error::Api(status) if is_of_a_terminating_namespace(status) => Unapplied::OwnerGone,
        kube::Error::Api(status) => Unapplied::Problem(Problem {
            reason: Reason::ApplyFailed,
            message: format!("{what}: {}", status.message),
            lasting: matches!(status.code, 400 | 403 | 404 | 405 | 413 | 422),
        }),
        // Without details of the transport: they change from time to time, and each change would be a write.
        other => {
            tracing::warn!("{what}: {}", in_words(other));
            Unapplied::Problem(Problem {
                reason: Reason::ApplyFailed,
                message: format!("{what}: the API server did not answer"),
                lasting: false,
            })
        }
    }
}

/// Nothing can be created in a namespace that is being deleted, and that cannot be undone.
fn is_of_a_terminating_namespace(status: &kube::core::Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// An object was made for a deleted Projection of the same name: the garbage collector will remove it.
pub fn is_of_a_predecessor(live: &LiveObject, owner: &Owner) -> bool {
    let body = live.parsed();
    let controllers = body.pointer("/metadata/ownerReferences").and_then(serde_json::Value::as_array);
    controllers.into_iter().flatten().any(|reference| {
        let text = |key: &str| reference.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        reference.get("controller") == Some(&serde_json::Value::Bool(true))
            && text("kind") == "Projection"
            && text("apiVersion").starts_with(names::GROUP)
            && text("name") == owner.name()
            && text("uid") != owner.uid
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::measure::RunKey;

    #[test]
    fn a_namespace_that_is_being_deleted_is_no_problem_of_the_projection() {
        let refused = |details: serde_json::Value| {
            let status = json!({"code": 403, "reason": "Forbidden", "message": "forbidden", "details": details});
            problem("could not apply x", &kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
        };
        assert_eq!(
            refused(json!({"causes": [{"reason": "NamespaceTerminating", "message": "m"}]})),
            Unapplied::OwnerGone
        );
        assert!(matches!(refused(json!({})), Unapplied::Problem(Problem { lasting: true, .. })));
    }

    #[test]
    fn a_predecessors_object_is_told_from_anothers() {
        let owner = Owner { run: RunKey::unversioned("shop", "orders"), uid: "new".to_owned() };
        let of = |kind: &str, name: &str, uid: &str| {
            let reference = json!({"apiVersion": "projectionist.dev/v1alpha1", "kind": kind, "name": name, "uid": uid, "controller": true});
            let object = json!({"metadata": {"name": "orders", "namespace": "shop", "ownerReferences": [reference]}});
            is_of_a_predecessor(&LiveObject::from_object(&serde_json::from_value(object).unwrap()), &owner)
        };
        assert!(of("Projection", "orders", "old"));
        assert!(!of("Projection", "orders", "new"));
        assert!(!of("Projection", "invoices", "old"));
        assert!(!of("Other", "orders", "old"));
    }
}
