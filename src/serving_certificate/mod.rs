//! The metrics API's serving certificate: kept in a Secret, made once by whichever replica is first, renewed before it expires, and
//! made known to the aggregator through the APIService.
//!
//! Follows the one Secret and the APIServices by watches; writes only when something is missing, about to expire or wrong. An
//! APIService that points to somebody else's service is reported (see [`herald`]) and never changed.
//!
//! A change of authority fails no read: the new one is announced beside the old one before anybody serves with it, and a Secret that
//! somebody deleted is written again with what is served.

mod herald;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, Service},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::sync::watch;

pub use herald::tell;

use crate::{
    metrics_api::certificate::{self, CertificateBundle},
    names,
    registration::{Registration, Unserved},
};

/// How often expiry is looked at when nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// How soon a failed attempt is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long every API server has to hear of a new authority before anybody serves with it.
const SETTLE: Duration = Duration::from_secs(5);

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Whose certificate, and where it is kept.
#[derive(Clone, Debug)]
pub struct CertificateSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The Service in front of the metrics API.
    pub service: String,
    /// The APIServices that lead to it.
    pub api_services: Vec<String>,
}

impl CertificateSettings {
    fn secret_name(&self) -> String {
        format!("{}-serving-cert", self.service)
    }
}

/// What to do about the Secret.
#[derive(Debug)]
enum Plan {
    /// It holds a certificate that will do.
    Keep(CertificateBundle),
    /// There is none, or none that can be read, and what is served will do: write it again, so that nobody has to learn a new authority.
    Restore(CertificateBundle),
    /// There is none anywhere: issue everything.
    Issue,
    /// The certificate expires soon or is made out to other names: issue another one under the same authority, so that
    /// nobody has to learn a new one.
    Renew(CertificateBundle),
}

/// Keeps the certificate until `shutdown`; `current` always holds the newest. `unserved` tells which APIServices do not lead to us, once
/// that is known.
pub async fn run(
    client: Client,
    settings: CertificateSettings,
    current: watch::Sender<Option<Arc<CertificateBundle>>>,
    unserved: watch::Sender<Option<Unserved>>,
    shutdown: impl Future<Output = ()>,
) {
    let keeper = Keeper { client, settings, unserved };
    let changes = keeper.changes();
    tokio::pin!(shutdown, changes);
    loop {
        let kept = tokio::select! {
            kept = keeper.keep(&current) => kept,
            () = &mut shutdown => return,
        };
        let pause = match kept {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!("the serving certificate is not in place yet: {error}");
                RETRY_AFTER
            }
        };
        tokio::select! {
            _ = changes.next() => {}
            () = tokio::time::sleep(pause) => {}
            () = &mut shutdown => return,
        }
    }
}

/// Why the certificate is not in place.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {name}: {source}")]
    Secret { name: String, source: kube::Error },
    #[error("Service {name}: {source}")]
    Service { name: String, source: kube::Error },
    #[error("APIService {name}: {source}")]
    ApiService { name: String, source: kube::Error },
    #[error("the certificate could not be issued: {0}")]
    Issue(#[from] certificate::CertificateError),
}

struct Keeper {
    client: Client,
    settings: CertificateSettings,
    unserved: watch::Sender<Option<Unserved>>,
}

impl Keeper {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Something changed in the Secret or in an APIService; what, `keep` looks up itself.
    fn changes(&self) -> stream::BoxStream<'static, ()> {
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        // Of a deleted one, too.
        let secret = watcher(self.secrets(), named(&self.settings.secret_name()));
        let mut all = vec![secret.default_backoff().touched_objects().map(drop).boxed()];
        for name in &self.settings.api_services {
            let services: Api<APIService> = Api::all(self.client.clone());
            all.push(watcher(services, named(name)).default_backoff().touched_objects().map(drop).boxed());
        }
        stream::select_all(all).boxed()
    }

    async fn keep(&self, current: &watch::Sender<Option<Arc<CertificateBundle>>>) -> Result<(), KeepError> {
        let held = current.borrow().clone();
        let bundle = self.bundle(held.as_deref()).await?;
        let mut announced = Ok(());
        let mut unserved = self.unserved.borrow().clone().unwrap_or_default();
        for name in &self.settings.api_services {
            // What cannot be read now is as it was.
            match self.announce(name, &bundle.ca_pem).await {
                Ok(Some(complaint)) => drop(unserved.insert(name.clone(), complaint)),
                Ok(None) => drop(unserved.remove(name)),
                Err(error) => announced = announced.and(Err(error)),
            }
        }
        self.unserved.send_if_modified(|known| known.replace(unserved.clone()) != Some(unserved));
        if let Some(held) = held.as_deref().filter(|held| held.not_after > Timestamp::now()) {
            // What is served is still trusted: no reason to serve with what may not be.
            announced?;
            if held.authority() != bundle.authority() {
                tokio::time::sleep(SETTLE).await;
            }
            announced = Ok(());
        }
        current.send_if_modified(|held| {
            let news = held.as_ref().is_none_or(|held| held.cert_pem != bundle.cert_pem);
            if news {
                *held = Some(Arc::new(bundle));
            }
            news
        });
        announced
    }

    /// What the Secret holds, after making or renewing it where that is due.
    async fn bundle(&self, held: Option<&CertificateBundle>) -> Result<CertificateBundle, KeepError> {
        let name = self.settings.secret_name();
        let failed = |source| KeepError::Secret { name: name.clone(), source };
        let secrets = self.secrets();
        loop {
            let secret = secrets.get_opt(&name).await.map_err(failed)?;
            let now = Timestamp::now();
            let (done, bundle) = match plan(secret.as_ref(), held, &self.settings, now) {
                Plan::Keep(bundle) => return Ok(bundle),
                Plan::Restore(bundle) => ("wrote the serving certificate's Secret again", bundle),
                Plan::Issue => {
                    let issued = certificate::issue(&self.settings.service, &self.settings.namespace, now)?;
                    ("issued a serving certificate", issued)
                }
                Plan::Renew(bundle) => {
                    let renewed = certificate::renew(&bundle, &self.settings.service, &self.settings.namespace, now)?;
                    ("renewed the serving certificate", renewed)
                }
            };
            let written = match secret {
                None => {
                    let metadata = ObjectMeta { owner_references: self.owner().await?, ..ObjectMeta::default() };
                    secrets.create(&PostParams::default(), &self.secret(&bundle, metadata)).await
                }
                // With its resource version: of two replicas, one writes and the other reads again.
                Some(old) => secrets.replace(&name, &PostParams::default(), &self.secret(&bundle, old.metadata)).await,
            };
            match written {
                Ok(_) => tracing::info!("{done}, valid until {}", bundle.not_after),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// The Service, whose certificate goes when it goes: an uninstallation leaves no key behind.
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

    /// Writes our authority into an APIService if it leads to us; otherwise answers what is wrong with it.
    async fn announce(&self, name: &str, ca_pem: &str) -> Result<Option<String>, KeepError> {
        let failed = |source| KeepError::ApiService { name: name.to_owned(), source };
        let services: Api<APIService> = Api::all(self.client.clone());
        let service = services.get_opt(name).await.map_err(failed)?;
        let registration = Registration::of(service.as_ref(), &self.settings.namespace, &self.settings.service);
        if let Some(complaint) = registration.complaint(name) {
            tracing::warn!("{complaint}");
            return Ok(Some(complaint));
        }
        if let Some(service) = service.filter(|service| !trusts(service, ca_pem)) {
            let patch = json!({
                "metadata": {"resourceVersion": service.resource_version()},
                // Who trusts anybody may have no authority beside.
                "spec": {"caBundle": ByteString(ca_pem.as_bytes().to_vec()), "insecureSkipTLSVerify": null},
            });
            match services.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => tracing::info!("the APIService {name} trusts our certificate authority"),
                // Somebody wrote it meanwhile: the watch tells, and we look again.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(None)
    }
}

/// Whether an APIService trusts this authority and nobody else.
fn trusts(service: &APIService, ca_pem: &str) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.insecure_skip_tls_verify != Some(true)
        && spec.ca_bundle.as_ref().is_some_and(|held| held.0 == ca_pem.as_bytes())
}

fn plan(
    secret: Option<&Secret>,
    held: Option<&CertificateBundle>,
    settings: &CertificateSettings,
    now: Timestamp,
) -> Plan {
    let stored = secret.and_then(|secret| secret.data.as_ref()).and_then(read);
    let lasts =
        |bundle: &CertificateBundle| !certificate::needs_renewal(bundle, &settings.service, &settings.namespace, now);
    match (stored, held) {
        (Some(bundle), _) if lasts(&bundle) => Plan::Keep(bundle),
        (None, Some(held)) if lasts(held) => Plan::Restore(held.clone()),
        (Some(bundle), _) => Plan::Renew(bundle),
        (None, Some(held)) => Plan::Renew(held.clone()),
        (None, None) => Plan::Issue,
    }
}

fn read(data: &BTreeMap<String, ByteString>) -> Option<CertificateBundle> {
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    CertificateBundle::from_pem(text(CA_CERTIFICATE)?, text(CA_KEY)?, text(CERTIFICATE)?, text(KEY)?).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceSpec;

    use super::*;

    fn settings() -> CertificateSettings {
        CertificateSettings {
            namespace: "system".to_owned(),
            service: "projectionist".to_owned(),
            api_services: Vec::new(),
        }
    }

    #[test]
    fn an_api_service_is_to_trust_our_authority_and_nobody_else() {
        let holding = |ca: Option<&str>, anybody: bool| APIService {
            spec: Some(APIServiceSpec {
                ca_bundle: ca.map(|ca| ByteString(ca.as_bytes().to_vec())),
                insecure_skip_tls_verify: anybody.then_some(true),
                ..APIServiceSpec::default()
            }),
            ..APIService::default()
        };
        for (ca, anybody, good) in
            [(Some("ours"), false, true), (Some("old"), false, false), (None, false, false), (None, true, false)]
        {
            assert_eq!(trusts(&holding(ca, anybody), "ours"), good, "{ca:?} {anybody}");
        }
    }

    #[test]
    fn a_secret_is_kept_renewed_or_issued_anew() {
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
        assert!(matches!(plan(Some(&whole), None, &settings(), now), Plan::Keep(_)));
        let later = now.checked_add(jiff::SignedDuration::from_hours(24 * 300)).unwrap();
        assert!(matches!(plan(Some(&whole), None, &settings(), later), Plan::Renew(_)));
        assert!(matches!(plan(None, None, &settings(), now), Plan::Issue));
        assert!(matches!(plan(Some(&garbage), None, &settings(), now), Plan::Issue));
        // Deleted or spoilt while it is served: the very same goes back, since the aggregator trusts its authority.
        for secret in [None, Some(&garbage)] {
            assert!(
                matches!(plan(secret, Some(&bundle), &settings(), now), Plan::Restore(held) if held.cert_pem == bundle.cert_pem)
            );
            assert!(matches!(plan(secret, Some(&bundle), &settings(), later), Plan::Renew(_)));
        }
        // What another replica stored counts more than what this one holds.
        let other = certificate::issue("projectionist", "system", now).unwrap();
        assert!(
            matches!(plan(Some(&whole), Some(&other), &settings(), now), Plan::Keep(kept) if kept.cert_pem == bundle.cert_pem)
        );
    }
}
