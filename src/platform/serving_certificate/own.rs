//! The operator's own Secret with the serving certificate: issues it, renews it, and writes it again where it is missing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, Service},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Resource as _, api::PostParams};

use super::{CERTIFICATE, CertificateSettings, KEY, KeepError, Keeper, text};
use crate::{
    metrics_api::certificate::{self, CertificateBundle},
    names,
};

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";

/// What to do about the Secret.
#[derive(Debug)]
enum CertificateAction {
    /// The Secret holds a certificate that can be used.
    Keep(CertificateBundle),
    /// The Secret is missing or cannot be read, and the certificate that is served can still be used: write that one again, so that no API server has
    /// to learn a new authority.
    Restore(CertificateBundle),
    /// There is no certificate to use: issue an authority and a certificate.
    Issue,
    /// The certificate expires soon or is for other names: issue another one under the same authority, so that no API server has to learn a new one.
    Renew(CertificateBundle),
}

impl Keeper {
    /// Returns the certificate in the Secret, after issuing or renewing it where that is due.
    pub(super) async fn bundle(&self, held: Option<&CertificateBundle>) -> Result<CertificateBundle, KeepError> {
        let name = self.settings.secret_name();
        let failed = |source| KeepError::Secret { name: name.clone(), source };
        let secrets = self.secrets();
        loop {
            let secret = secrets.get_opt(&name).await.map_err(failed)?;
            let now = Timestamp::now();
            let (done, bundle) = match plan(secret.as_ref(), held, &self.settings, now) {
                CertificateAction::Keep(bundle) => return Ok(bundle),
                CertificateAction::Restore(bundle) => ("wrote the serving certificate's Secret again", bundle),
                CertificateAction::Issue => {
                    let issued = certificate::issue(&self.settings.service, &self.settings.namespace, now)?;
                    ("issued a serving certificate", issued)
                }
                CertificateAction::Renew(bundle) => {
                    let renewed = certificate::renew(&bundle, &self.settings.service, &self.settings.namespace, now)?;
                    ("renewed the serving certificate", renewed)
                }
            };
            let written = match secret {
                None => {
                    let metadata = ObjectMeta { owner_references: self.owner().await?, ..ObjectMeta::default() };
                    secrets.create(&PostParams::default(), &self.secret(&bundle, metadata)).await
                }
                // The update contains the resource version: of two replicas, one writes and the other reads again.
                Some(old) => secrets.replace(&name, &PostParams::default(), &self.secret(&bundle, old.metadata)).await,
            };
            match written {
                Ok(_) => tracing::info!("{done}, valid until {}", bundle.not_after),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// The Service owns the Secret, so that both are deleted together: an uninstallation leaves no key behind.
    async fn owner(&self) -> Result<Option<Vec<OwnerReference>>, KeepError> {
        let name = self.settings.service.clone();
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let service = services.get_opt(&name).await.map_err(|source| KeepError::Service { name, source })?;
        Ok(service.and_then(|service| service.owner_ref(&())).map(|owner| vec![owner]))
    }

    fn secret(&self, bundle: &CertificateBundle, metadata: ObjectMeta) -> Secret {
        let entries = [
            (CA_CERTIFICATE, &bundle.ca_pem),
            (CA_KEY, &bundle.ca_key_pem),
            (CERTIFICATE, &bundle.cert_pem),
            (KEY, &bundle.key_pem),
        ];
        let mut labels = metadata.labels.unwrap_or_default();
        labels.insert(names::MANAGED_BY_LABEL.to_owned(), names::FIELD_MANAGER.to_owned());
        Secret {
            metadata: ObjectMeta { name: Some(self.settings.secret_name()), labels: Some(labels), ..metadata },
            data: Some(entries.map(|(key, pem)| (key.to_owned(), ByteString(pem.clone().into_bytes()))).into()),
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        }
    }
}

fn plan(
    secret: Option<&Secret>,
    held: Option<&CertificateBundle>,
    settings: &CertificateSettings,
    now: Timestamp,
) -> CertificateAction {
    let stored = secret.and_then(|secret| secret.data.as_ref()).and_then(read);
    let lasts =
        |bundle: &CertificateBundle| !certificate::needs_renewal(bundle, &settings.service, &settings.namespace, now);
    match (stored, held) {
        (Some(bundle), _) if lasts(&bundle) => CertificateAction::Keep(bundle),
        (None, Some(held)) if lasts(held) => CertificateAction::Restore(held.clone()),
        (Some(bundle), _) => CertificateAction::Renew(bundle),
        (None, Some(held)) => CertificateAction::Renew(held.clone()),
        (None, None) => CertificateAction::Issue,
    }
}

fn read(data: &BTreeMap<String, ByteString>) -> Option<CertificateBundle> {
    let part = |key| text(data, key);
    CertificateBundle::from_pem(part(CA_CERTIFICATE)?, part(CA_KEY)?, part(CERTIFICATE)?, part(KEY)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> CertificateSettings {
        CertificateSettings {
            namespace: "system".to_owned(),
            service: "projectionist".to_owned(),
            given: None,
            api_services: Vec::new(),
            take_over: false,
        }
    }

    #[test]
    fn a_secret_is_kept_renewed_or_issued() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let bundle = certificate::issue("projectionist", "system", now).unwrap();
        let keep = |data: &[(&str, &str)]| {
            let data =
                data.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
            Secret { data: Some(data), ..Secret::default() }
        };
        let whole = keep(&[
            (CA_CERTIFICATE, &bundle.ca_pem),
            (CA_KEY, &bundle.ca_key_pem),
            (CERTIFICATE, &bundle.cert_pem),
            (KEY, &bundle.key_pem),
        ]);
        let garbage = keep(&[(CA_CERTIFICATE, "garbage")]);
        assert!(matches!(plan(Some(&whole), None, &settings(), now), CertificateAction::Keep(_)));
        let later = now.checked_add(jiff::SignedDuration::from_hours(24 * 300)).unwrap();
        assert!(matches!(plan(Some(&whole), None, &settings(), later), CertificateAction::Renew(_)));
        assert!(matches!(plan(None, None, &settings(), now), CertificateAction::Issue));
        assert!(matches!(plan(Some(&garbage), None, &settings(), now), CertificateAction::Issue));
        // The Secret is deleted or unreadable while its certificate is served: the same certificate goes back, since the aggregator trusts its
        // authority.
        for secret in [None, Some(&garbage)] {
            assert!(
                matches!(plan(secret, Some(&bundle), &settings(), now), CertificateAction::Restore(held) if held.cert_pem == bundle.cert_pem)
            );
            assert!(matches!(plan(secret, Some(&bundle), &settings(), later), CertificateAction::Renew(_)));
        }
        // The certificate that another replica stored takes precedence over the one that this replica holds.
        let other = certificate::issue("projectionist", "system", now).unwrap();
        assert!(
            matches!(plan(Some(&whole), Some(&other), &settings(), now), CertificateAction::Keep(kept) if kept.cert_pem == bundle.cert_pem)
        );
    }
}
