//! Keeps the metrics API's serving certificate, and sees to it that the aggregator finds the metrics API and trusts the certificate.
//!
//! Either the certificate is the operator's own (see [`own`]): kept in a Secret, issued once by the first replica that needs it, renewed before it
//! expires, and made known through the APIServices. Or it is given: another controller, such as cert-manager, keeps the Secret and the APIServices'
//! `caBundle`, and the operator writes neither.
//!
//! Watches the Secret and the APIServices; writes only when something is missing, about to expire or wrong. An APIService that leads to another
//! Service is reported (see [`herald`]), and changed only where the administrator wants it taken over (see [`takeover`]).
//!
//! A change of the operator's own authority fails no read: the new authority is announced beside the old one before any replica serves with it (see
//! [`trust`]). A deleted Secret is written again with the certificate that is served.

mod herald;
mod own;
mod takeover;
mod trust;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub use herald::tell;
pub use takeover::Taken;

use takeover::{TAKEN_EVERY, Takings};

use crate::{
    metrics_api::{
        certificate::{self, CertificateBundle},
        serving::ServingCertificate,
    },
    platform::errors::in_words,
    platform::registration::{Registration, Unserved},
};

/// How often the expiry is checked when nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// How long after a failed attempt the next one starts.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long every API server has to learn of a new authority before a replica serves with it.
const SETTLE: Duration = Duration::from_secs(5);
/// How long after its start, and after a change of authority, a replica assumes that other replicas serve with another authority.
const LINGER: Duration = Duration::from_secs(60);

/// How often an APIService is read again at once when another client has written it meanwhile.
const CONFLICTS: u32 = 4;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Which certificate to keep, and where.
#[derive(Clone, Debug)]
pub struct CertificateSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The Service in front of the metrics API.
    pub service: String,
    /// The Secret in which another controller keeps the certificate; `None`: the operator keeps one of its own.
    pub given: Option<String>,
    /// The APIServices that lead to it.
    pub api_services: Vec<String>,
    /// Whether to take over APIServices that lead to another Service.
    pub take_over: bool,
}

impl CertificateSettings {
    fn secret_name(&self) -> String {
        self.given.clone().unwrap_or_else(|| format!("{}-serving-cert", self.service))
    }
}

/// Keeps the certificate until `shutdown`. `current` always holds the newest one. `unserved` reports which APIServices do not lead to this operator,
/// once that is known, and `taken` reports which ones were taken over.
pub async fn run(
    client: Client,
    settings: CertificateSettings,
    current: watch::Sender<Option<Arc<ServingCertificate>>>,
    unserved: watch::Sender<Option<Unserved>>,
    taken: mpsc::UnboundedSender<Taken>,
    shutdown: impl Future<Output = ()>,
) {
    let takings = Takings { tell: taken, last: BTreeMap::new() };
    let lingers_until = Instant::now() + LINGER;
    let mut keeper = Keeper { client, settings, current, unserved, own: None, lingers_until, takings };
    let changes = keeper.changes();
    tokio::pin!(shutdown, changes);
    loop {
        let kept = tokio::select! {
            kept = keeper.keep() => kept,
            () = &mut shutdown => return,
        };
        let pause = match kept {
            Ok(()) if keeper.has_to_wait() => TAKEN_EVERY,
            Ok(()) => match keeper.lingers_until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => LOOK_EVERY,
                left => left,
            },
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
    #[error("Secret {name}: {}", in_words(source))]
    Secret { name: String, source: kube::Error },
    #[error(
        "there is no Secret {0}: who is to issue the certificate (cert-manager) has not done so; see its Certificate"
    )]
    NotGiven(String),
    #[error("Secret {name}: {source}")]
    Given { name: String, source: certificate::CertificateError },
    #[error("Service {name}: {}", in_words(source))]
    Service { name: String, source: kube::Error },
    #[error("APIService {name}: {}", in_words(source))]
    ApiService { name: String, source: kube::Error },
    #[error("the certificate could not be issued: {0}")]
    Issue(#[from] certificate::CertificateError),
}

struct Keeper {
    client: Client,
    settings: CertificateSettings,
    current: watch::Sender<Option<Arc<ServingCertificate>>>,
    unserved: watch::Sender<Option<Unserved>>,
    /// The certificate that is served, where it is the operator's own.
    own: Option<CertificateBundle>,
    /// Until this time another replica may serve with another authority than this one.
    lingers_until: Instant,
    takings: Takings,
}

impl Keeper {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// True while an APIService that is to be taken over still leads elsewhere.
    fn has_to_wait(&self) -> bool {
        self.settings.take_over && self.unserved.borrow().as_ref().is_some_and(|unserved| !unserved.is_empty())
    }

    /// Yields an item for each change of the Secret or of an APIService; `keep` reads what has changed.
    fn changes(&self) -> stream::BoxStream<'static, ()> {
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        // `touched_objects` reports deleted ones, too.
        let secret = watcher(self.secrets(), named(&self.settings.secret_name()));
        let mut all = vec![secret.default_backoff().touched_objects().map(drop).boxed()];
        for name in &self.settings.api_services {
            let services: Api<APIService> = Api::all(self.client.clone());
            all.push(watcher(services, named(name)).default_backoff().touched_objects().map(drop).boxed());
        }
        stream::select_all(all).boxed()
    }

    async fn keep(&mut self) -> Result<(), KeepError> {
        if self.settings.given.is_some() {
            let registered = self.register(&[]).await;
            let given = self.given().await?;
            self.serve(given);
            return registered;
        }
        let held = self.own.clone().filter(|held| held.not_after > Timestamp::now());
        let bundle = self.bundle(self.own.as_ref()).await?;
        let serving = ServingCertificate::from_pem(&bundle.cert_pem, &bundle.key_pem)?;
        let old = held.as_ref().map(CertificateBundle::authority).filter(|old| *old != bundle.authority());
        let mut needed = vec![bundle.ca_pem.as_str()];
        needed.extend(old);
        let registered = self.register(&needed).await;
        if held.is_some() && registered.is_err() {
            // The API server still trusts the certificate that is served; it may not trust the new one.
            return registered;
        }
        if old.is_some() {
            tokio::time::sleep(SETTLE).await;
            self.lingers_until = Instant::now() + LINGER;
        }
        self.serve(serving);
        self.own = Some(bundle);
        registered
    }

    fn serve(&self, newest: ServingCertificate) {
        self.current.send_if_modified(|served| {
            let news = served.as_deref() != Some(&newest);
            if news {
                *served = Some(Arc::new(newest));
            }
            news
        });
    }

    /// Reads the certificate that another controller has put into the Secret. One that cannot be used changes nothing: the one that is served may
    /// still be valid.
    async fn given(&self) -> Result<ServingCertificate, KeepError> {
        let name = self.settings.secret_name();
        let secret = self.secrets().get_opt(&name).await;
        let secret = secret.map_err(|source| KeepError::Secret { name: name.clone(), source })?;
        let data = secret.ok_or_else(|| KeepError::NotGiven(name.clone()))?.data.unwrap_or_default();
        let part = |key| text(&data, key).unwrap_or_default();
        let serving = ServingCertificate::from_pem(&part(CERTIFICATE), &part(KEY))
            .map_err(|source| KeepError::Given { name: name.clone(), source })?;
        let host = format!("{}.{}.svc", self.settings.service, self.settings.namespace);
        if !serving.is_made_out_to(&host) {
            tracing::warn!("the certificate in Secret {name} is not made out to {host}: the API server will refuse it");
        }
        if serving.not_after <= Timestamp::now() {
            tracing::warn!("the certificate in Secret {name} has expired: the API server will refuse it");
        }
        Ok(serving)
    }

    /// Reads where the APIServices lead, and makes those that lead to this operator trust these authorities. Without any, `caBundle` is left to the
    /// other controller.
    async fn register(&mut self, authorities: &[&str]) -> Result<(), KeepError> {
        let mut result = Ok(());
        let mut unserved = self.unserved.borrow().clone().unwrap_or_default();
        for name in self.settings.api_services.clone() {
            // For an APIService that cannot be read now, the last result stays.
            match self.announce(&name, authorities).await {
                Ok(Some(complaint)) => {
                    if unserved.get(&name) != Some(&complaint) {
                        tracing::warn!("{complaint}");
                    }
                    unserved.insert(name.clone(), complaint);
                }
                Ok(None) => drop(unserved.remove(&name)),
                Err(error) => result = result.and(Err(error)),
            }
        }
        self.unserved.send_if_modified(|known| known.replace(unserved.clone()) != Some(unserved));
        result
    }

    /// Returns what is wrong with an APIService that does not lead to this operator. Tries again where another client has written it meanwhile: a
    /// certificate may be served only once the API server trusts its authority.
    async fn announce(&mut self, name: &str, authorities: &[&str]) -> Result<Option<String>, KeepError> {
        for _ in 0..CONFLICTS {
            match self.try_announce(name, authorities).await {
                Err(KeepError::ApiService { source: kube::Error::Api(status), .. }) if status.code == 409 => {}
                other => return other,
            }
        }
        self.try_announce(name, authorities).await
    }

    async fn try_announce(&mut self, name: &str, authorities: &[&str]) -> Result<Option<String>, KeepError> {
        let failed = |source| KeepError::ApiService { name: name.to_owned(), source };
        let services: Api<APIService> = Api::all(self.client.clone());
        let service = services.get_opt(name).await.map_err(failed)?;
        let registration = Registration::of(service.as_ref(), &self.settings.namespace, &self.settings.service);
        let taken = match (&registration, &service) {
            _ if !self.settings.take_over => false,
            (Registration::Missing, _) => takeover::make(&services, name, &self.settings, authorities).await?,
            (Registration::Foreign(_), Some(theirs)) => {
                self.takings.take(&services, theirs, &self.settings, authorities).await?
            }
            _ => false,
        };
        if taken {
            return Ok(None);
        }
        if let Some(complaint) = registration.complaint(name) {
            return Ok(Some(complaint));
        }
        let lingering = Instant::now() < self.lingers_until;
        let wanted = service.as_ref().filter(|_| !authorities.is_empty());
        if let Some(change) = wanted.and_then(|service| distrusts(service, authorities, lingering)) {
            match services.patch(name, &PatchParams::default(), &Patch::Merge(change)).await {
                Ok(_) => tracing::info!("the APIService {name} trusts our certificate authority"),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(None)
    }
}

/// The patch that makes an APIService trust these authorities; `None` if it trusts them already.
fn distrusts(service: &APIService, authorities: &[&str], lingering: bool) -> Option<serde_json::Value> {
    let spec = service.spec.as_ref();
    let unverified = spec.and_then(|spec| spec.insecure_skip_tls_verify) == Some(true);
    let held = spec.and_then(|spec| spec.ca_bundle.as_ref()).map(|held| String::from_utf8_lossy(&held.0).into_owned());
    // An APIService that skips TLS verification can have no `caBundle`, so that this overwrites none.
    let ca_bundle = trust::ca_bundle(held.as_deref().unwrap_or_default(), authorities, lingering)?;
    Some(json!({
        "metadata": {"resourceVersion": service.resource_version()},
        "spec": {"caBundle": ByteString(ca_bundle.into_bytes()), "insecureSkipTLSVerify": unverified.then_some(false)},
    }))
}

fn text(data: &BTreeMap<String, ByteString>, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceSpec;

    use super::*;

    #[test]
    fn an_api_service_is_to_trust_our_authority_alone() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (ours, old) = (
            certificate::issue("projectionist", "system", now).unwrap(),
            certificate::issue("projectionist", "system", now).unwrap(),
        );
        let holding = |ca: Option<&str>, unverified: bool| APIService {
            spec: Some(APIServiceSpec {
                ca_bundle: ca.map(|ca| ByteString(ca.as_bytes().to_vec())),
                insecure_skip_tls_verify: unverified.then_some(true),
                ..APIServiceSpec::default()
            }),
            ..APIService::default()
        };
        let ca = ours.ca_pem.as_str();
        for (held, unverified, good) in
            [(Some(ca), false, true), (Some(&*old.ca_pem), false, false), (None, false, false), (None, true, false)]
        {
            let change = distrusts(&holding(held, unverified), &[ca], false);
            assert_eq!(change.is_none(), good, "{held:?} {unverified}");
            if let Some(change) = change {
                assert_eq!(change["spec"]["insecureSkipTLSVerify"].as_bool(), unverified.then_some(false));
            }
        }
    }
}
