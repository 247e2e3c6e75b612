//! The metrics API's serving certificate: kept in a Secret, made once by whichever replica is first, renewed before it expires, and
//! made known to the aggregator through the APIService.
//!
//! Follows the one Secret and the APIServices by watches; writes only when something is missing, about to expire or wrong. An
//! APIService that points to somebody else's service is reported and never changed.
//!
//! A change of authority fails no read: the new one is announced beside the old one before anybody serves with it, and a Secret that
//! somebody deleted is written again with what is served.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
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

use crate::{
    metrics_api::certificate::{self, CertificateBundle},
    names,
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

/// Keeps the certificate until `shutdown`; `current` always holds the newest.
pub async fn run(
    client: Client,
    settings: CertificateSettings,
    current: watch::Sender<Option<Arc<CertificateBundle>>>,
    shutdown: impl Future<Output = ()>,
) {
    let keeper = Keeper { client, settings };
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
}

impl Keeper {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Something changed in the Secret or in an APIService; what, `keep` looks up itself.
    fn changes(&self) -> stream::BoxStream<'static, ()> {
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secret = watcher(self.secrets(), named(&self.settings.secret_name()));
        let mut all = vec![secret.default_backoff().applied_objects().map(drop).boxed()];
        for name in &self.settings.api_services {
            let services: Api<APIService> = Api::all(self.client.clone());
            all.push(watcher(services, named(name)).default_backoff().applied_objects().map(drop).boxed());
        }
        // A deleted Secret is noticed, too: the watch tells it, and `applied_objects` does not.
        let deleted = watcher(self.secrets(), named(&self.settings.secret_name())).default_backoff();
        all.push(
            deleted
                .try_filter(|event| std::future::ready(matches!(event, watcher::Event::Delete(_))))
                .map(drop)
                .boxed(),
        );
        stream::select_all(all).boxed()
    }

    async fn keep(&self, current: &watch::Sender<Option<Arc<CertificateBundle>>>) -> Result<(), KeepError> {
        let held = current.borrow().clone();
        let bundle = self.bundle(held.as_deref()).await?;
        let mut announced = Ok(());
        for name in &self.settings.api_services {
            announced = announced.and(self.announce(name, &bundle.ca_pem).await);
        }
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

    /// Writes our authority into an APIService that leads to us.
    async fn announce(&self, name: &str, ca_pem: &str) -> Result<(), KeepError> {
        let failed = |source| KeepError::ApiService { name: name.to_owned(), source };
        let services: Api<APIService> = Api::all(self.client.clone());
        let Some(service) = services.get_opt(name).await.map_err(failed)? else {
            tracing::warn!("there is no APIService {name}: no HorizontalPodAutoscaler can read these metrics");
            return Ok(());
        };
        match announcement(&service, &self.settings, ca_pem) {
            Announcement::InPlace => Ok(()),
            Announcement::Foreign(holder) => {
                tracing::warn!(
                    "the APIService {name} belongs to {holder}, which stays so: HorizontalPodAutoscalers read their metrics there. Remove that adapter or install with externalMetrics.enabled=false"
                );
                Ok(())
            }
            Announcement::Write => {
                let patch = json!({
                    "metadata": {"resourceVersion": service.resource_version()},
                    "spec": {"caBundle": ByteString(ca_pem.as_bytes().to_vec())},
                });
                match services.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Ok(_) => tracing::info!("the APIService {name} trusts our certificate authority"),
                    // Somebody wrote it meanwhile: the watch tells, and we look again.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => return Err(failed(error)),
                }
                Ok(())
            }
        }
    }
}

/// What to do about an APIService.
#[derive(Debug, Eq, PartialEq)]
enum Announcement {
    InPlace,
    Write,
    /// It leads to somebody else's service.
    Foreign(String),
}

fn announcement(service: &APIService, settings: &CertificateSettings, ca_pem: &str) -> Announcement {
    let spec = service.spec.clone().unwrap_or_default();
    let target = spec.service.unwrap_or_default();
    let (namespace, name) = (target.namespace.unwrap_or_default(), target.name.unwrap_or_default());
    if (namespace.as_str(), name.as_str()) != (&settings.namespace, &settings.service) {
        return Announcement::Foreign(format!("the service {namespace}/{name}"));
    }
    if spec.ca_bundle.is_some_and(|held| held.0 == ca_pem.as_bytes()) {
        Announcement::InPlace
    } else {
        Announcement::Write
    }
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
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIServiceSpec, ServiceReference};

    use super::*;

    fn settings() -> CertificateSettings {
        CertificateSettings {
            namespace: "system".to_owned(),
            service: "projectionist".to_owned(),
            api_services: Vec::new(),
        }
    }

    fn api_service(namespace: &str, name: &str, ca: Option<&str>) -> APIService {
        let service =
            ServiceReference { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), port: None };
        let ca_bundle = ca.map(|ca| ByteString(ca.as_bytes().to_vec()));
        let spec = APIServiceSpec { service: Some(service), ca_bundle, ..APIServiceSpec::default() };
        APIService { spec: Some(spec), ..APIService::default() }
    }

    #[test]
    fn an_api_service_of_ours_gets_our_authority_and_a_foreign_one_nothing() {
        let decide = |service: &APIService| announcement(service, &settings(), "ours");
        assert_eq!(decide(&api_service("system", "projectionist", None)), Announcement::Write);
        assert_eq!(decide(&api_service("system", "projectionist", Some("old"))), Announcement::Write);
        assert_eq!(decide(&api_service("system", "projectionist", Some("ours"))), Announcement::InPlace);
        let foreign = Announcement::Foreign("the service keda/keda-metrics".to_owned());
        assert_eq!(decide(&api_service("keda", "keda-metrics", None)), foreign);
        assert!(matches!(decide(&APIService::default()), Announcement::Foreign(_)));
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
