//! The kill switch: all Projections with a label are suspended at once, and resumed. Their workers go to zero, and their lag stays measured.
//!
//! ```text
//! KillSwitch::new(client, "shop").throw("team=orders").await?;
//! ```
//!
//! The same by hand: `kubectl annotate projections -l team=orders projectionist.dev/suspend=true`. The ServiceAccount needs `list` and `patch` on `projections`. Where the
//! manifests are kept in Git, have the tool that applies them leave `spec.suspend` alone, or it releases the switch.

use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::json;

/// Suspends and resumes Projections of a namespace.
#[derive(Clone)]
pub struct KillSwitch {
    projections: Api<DynamicObject>,
}

/// What became of the Projections with a label.
#[derive(Debug, Default)]
pub struct Switched {
    /// Those that are as was asked for.
    pub done: Vec<String>,
    /// Those that could not be changed, and why. The others are changed all the same.
    pub failed: Vec<(String, kube::Error)>,
}

impl KillSwitch {
    /// A switch for the Projections of this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        let kind = GroupVersionKind::gvk("projectionist.dev", "v1alpha1", "Projection");
        let resource = ApiResource::from_gvk_with_plural(&kind, "projections");
        Self { projections: Api::namespaced_with(client, namespace, &resource) }
    }

    /// Suspends all that `selector` selects, such as `team=orders`.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn throw(&self, selector: &str) -> Result<Switched, kube::Error> {
        self.set(selector, true).await
    }

    /// Resumes them.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn release(&self, selector: &str) -> Result<Switched, kube::Error> {
        self.set(selector, false).await
    }

    async fn set(&self, selector: &str, suspend: bool) -> Result<Switched, kube::Error> {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        let mut switched = Switched::default();
        for projection in self.projections.list(&ListParams::default().labels(selector)).await? {
            let name = projection.name_any();
            match self.projections.patch(&name, &PatchParams::default(), &patch).await {
                Ok(_) => switched.done.push(name),
                Err(error) => switched.failed.push((name, error)),
            }
        }
        Ok(switched)
    }
}
