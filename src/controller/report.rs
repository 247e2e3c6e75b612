//! Writes a Projection's status and publishes Events. Decides nothing: see `status` and `announce`.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

use super::{announce::Announcement, parts::Owner};
use crate::{
    api::{Projection, ProjectionStatus},
    names,
};

/// Writes status and Events.
#[derive(Clone)]
pub struct Reports {
    client: Client,
    recorder: Recorder,
}

impl Reports {
    /// `identity` tells which replica published an Event.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: names::FIELD_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Replaces the whole status of this very Projection.
    pub async fn write_status(&self, owner: &Owner, status: &ProjectionStatus) -> kube::Result<()> {
        let api: Api<Projection> = Api::namespaced(self.client.clone(), &owner.namespace);
        let body = json!({
            "apiVersion": Projection::api_version(&()),
            "kind": Projection::kind(&()),
            // With the UID, a namesake created meanwhile does not get it.
            "metadata": { "name": owner.name, "namespace": owner.namespace, "uid": owner.uid },
            "status": status,
        });
        let parameters = PatchParams::apply(names::STATUS_FIELD_MANAGER).force();
        api.patch_status(&owner.name, &parameters, &Patch::Apply(body)).await.map(drop)
    }

    /// Publishes Events; one that cannot be published is logged, since the status says the same.
    pub async fn publish(&self, owner: &Owner, announcements: Vec<Announcement>) {
        let reference = ObjectReference {
            api_version: Some(Projection::api_version(&()).into_owned()),
            kind: Some(Projection::kind(&()).into_owned()),
            name: Some(owner.name.clone()),
            namespace: Some(owner.namespace.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        for Announcement { warning, reason, action, note } in announcements {
            let type_ = if warning { EventType::Warning } else { EventType::Normal };
            let (namespace, name) = (&owner.namespace, &owner.name);
            if warning {
                tracing::warn!(%namespace, projection = %name, reason, "{note}");
            } else {
                tracing::info!(%namespace, projection = %name, reason, "{note}");
            }
            let event = Event { type_, reason, note: Some(note), action, secondary: None };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::warn!("an Event about {}/{} could not be published: {error}", owner.namespace, owner.name);
            }
        }
    }
}
