//! Writes a Projection's status and publishes Events. Decides nothing: see `status` and `announce`.
//!
//! A status replaces the whole status of one known version of the Projection. So a namesake created meanwhile does not get it, what
//! others wrote into it does not stay, and a write that was given up and arrives late is refused once there is a newer one.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

use super::announce::Announcement;
use crate::{
    api::{Projection, ProjectionStatus},
    controller::parts::Owner,
    names,
    platform::errors::in_words,
};

/// How often a status is written again where the Projection changes at the same moment.
const CONFLICTS: usize = 4;

/// A status as the API server keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The status.
    pub status: ProjectionStatus,
    /// The version of the Projection that has it.
    pub version: String,
}

/// Why a status was not written.
#[derive(Debug)]
pub enum Unwritten {
    /// The Projection was deleted, and perhaps another one of its name created.
    Gone,
    /// The API server refused it or did not answer. It may have been written all the same.
    Failed(kube::Error),
}

/// Writes status and Events.
#[derive(Clone)]
pub struct Reports {
    client: Client,
    recorder: Recorder,
}

impl Reports {
    /// `identity` names the replica in the Events that it publishes.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: names::FIELD_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Replaces the whole status of this very Projection, which had `version` when it was last seen.
    pub async fn write_status(
        &self,
        owner: &Owner,
        version: &str,
        status: &ProjectionStatus,
    ) -> Result<Stored, Unwritten> {
        let api: Api<Projection> = Api::namespaced(self.client.clone(), owner.namespace());
        let mut version = version.to_owned();
        let mut tries = 0;
        loop {
            let refused = match replace(&api, owner, &version, status).await {
                Ok(stored) => return Ok(stored),
                Err(kube::Error::Api(refused)) if matches!(refused.code, 404 | 409 | 422) => refused,
                Err(error) => return Err(Unwritten::Failed(error)),
            };
            // It may have another version, be another Projection, or be deleted: only a fresh read shows that.
            let newer = match api.get_opt(owner.name()).await.map_err(Unwritten::Failed)? {
                Some(there) if there.metadata.uid.as_deref() == Some(owner.uid.as_str()) => {
                    there.metadata.resource_version
                }
                _ => return Err(Unwritten::Gone),
            };
            let newer = newer.unwrap_or_default();
            tries += 1;
            if tries > CONFLICTS || newer == version {
                return Err(Unwritten::Failed(kube::Error::Api(refused)));
            }
            version = newer;
        }
    }

    /// Publishes Events; one that cannot be published is logged, since the status says the same.
    pub async fn publish(&self, owner: &Owner, announcements: Vec<Announcement>) {
        let reference = ObjectReference {
            api_version: Some(Projection::api_version(&()).into_owned()),
            kind: Some(Projection::kind(&()).into_owned()),
            name: Some(owner.name().to_owned()),
            namespace: Some(owner.namespace().to_owned()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        for Announcement { warning, reason, action, note } in announcements {
            let type_ = if warning { EventType::Warning } else { EventType::Normal };
            let (namespace, name) = (owner.namespace(), owner.name());
            if warning {
                tracing::warn!(%namespace, projection = %name, reason, "{note}");
            } else {
                tracing::info!(%namespace, projection = %name, reason, "{note}");
            }
            let event = Event { type_, reason, note: Some(note), action, secondary: None };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::warn!(
                    "an Event about {}/{} could not be published: {}",
                    owner.namespace(),
                    owner.name(),
                    in_words(&error)
                );
            }
        }
    }
}

async fn replace(
    api: &Api<Projection>,
    owner: &Owner,
    version: &str,
    status: &ProjectionStatus,
) -> kube::Result<Stored> {
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": owner.uid },
        { "op": "replace", "path": "/metadata/resourceVersion", "value": version },
        { "op": "add", "path": "/status", "value": status },
    ]);
    let operations: json_patch::Patch = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
    let parameters =
        PatchParams { field_manager: Some(names::STATUS_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let stored = api.patch_status(owner.name(), &parameters, &Patch::Json::<Projection>(operations)).await?;
    Ok(Stored {
        version: stored.metadata.resource_version.unwrap_or_default(),
        status: stored.status.unwrap_or_default(),
    })
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
