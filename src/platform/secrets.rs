//! Connection strings from the cluster's Secrets. Gets single Secrets by name; never lists or watches them, so that the operator needs
//! no more than `get`.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::{
    api::Reason,
    measure::MeasureError,
    names,
    platform::errors::in_words,
    sampler::{SecretData, Secrets},
};

/// The Secrets of the cluster that a client speaks to.
#[derive(Clone)]
pub struct ClusterSecrets {
    client: Client,
}

impl ClusterSecrets {
    /// Reads with this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<SecretData, MeasureError> {
        let unknown = |reason, message: String| MeasureError { reason, message };
        let secret = Api::<Secret>::namespaced(self.client.clone(), namespace).get(name).await;
        let secret = secret.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 404 => unknown(
                Reason::SecretNotFound,
                "there is no such Secret: create it in the Projection's namespace".to_owned(),
            ),
            kube::Error::Api(status) if status.code == 403 => unknown(
                Reason::SecretForbidden,
                "the operator may not read it: grant get on secrets in this namespace to its service account"
                    .to_owned(),
            ),
            error => unknown(Reason::SourceFailed, format!("the API server could not be asked: {}", in_words(error))),
        })?;
        let allowed_endpoints = secret.metadata.annotations.unwrap_or_default().remove(names::ENDPOINTS_ANNOTATION);
        let values = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        Ok(SecretData { values, allowed_endpoints })
    }
}

impl Secrets for ClusterSecrets {
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
        Box::pin(self.read(namespace, name))
    }
}
