//! The metrics API's serving certificate, and that the aggregator finds it and trusts it.
//!
//! Either it is our own (see [`own`]): kept in a Secret, made once by whichever replica is first, renewed before it expires, and made known
//! through the APIServices. Or it is given: somebody else, such as cert-manager, keeps the Secret and the APIServices' `caBundle`, and
//! neither is written here.
//!
//! Follows the one Secret and the APIServices by watches; writes only when something is missing, about to expire or wrong. An
//! APIService that points to somebody else's service is reported (see [`herald`]), and changed only where the administrator wants it taken over
//! (see [`takeover`]).
//!
//! A change of our authority fails no read: the new one is announced beside the old one before anybody serves with it (see [`trust`]), and a
//! Secret that somebody deleted is written again with what is served.

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

/// How often expiry is looked at when nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// How soon a failed attempt is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long every API server has to hear of a new authority before anybody serves with it.
const SETTLE: Duration = Duration::from_secs(5);
/// How long after its start, and after a change of authority, a replica takes into account that others serve with another one.
const LINGER: Duration = Duration::from_secs(60);

/// So often an APIService is looked at again at once when somebody else wrote it meanwhile.
const CONFLICTS: u32 = 4;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Whose certificate, and where it is kept.
#[derive(Clone, Debug)]
pub struct CertificateSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The Service in front of the metrics API.
    pub service: String,
    /// The Secret that somebody else keeps the certificate in; `None`: we keep one of our own.
    pub given: Option<String>,
    /// The APIServices that lead to it.
    pub api_services: Vec<String>,
    /// Point those here that lead to somebody else.
    pub take_over: bool,
}

impl CertificateSettings {
    fn secret_name(&self) -> String {
        self.given.clone().unwrap_or_else(|| format!("{}-serving-cert", self.service))
    }
}

/// Keeps the certificate until `shutdown`; `current` always holds the newest. `unserved` tells which APIServices do not lead to us, once
/// that is known, and `taken` which were taken over.
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
    /// What is served, where it is our own.
    own: Option<CertificateBundle>,
    /// Until then, somebody may serve with another authority than we do.
    lingers_until: Instant,
    takings: Takings,
}

impl Keeper {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Something leads elsewhere that is to be taken over, only not at once.
    fn has_to_wait(&self) -> bool {
        self.settings.take_over && self.unserved.borrow().as_ref().is_some_and(|unserved| !unserved.is_empty())
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
            // What is served is still trusted: no reason to serve with what may not be.
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

    /// What somebody else put into the Secret. What cannot be used changes nothing: what is served may still be good.
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

    /// Looks where the APIServices lead, and has those that lead to us trust these authorities; none: that is somebody else's matter.
    async fn register(&mut self, authorities: &[&str]) -> Result<(), KeepError> {
        let mut result = Ok(());
        let mut unserved = self.unserved.borrow().clone().unwrap_or_default();
        for name in self.settings.api_services.clone() {
            // What cannot be read now is as it was.
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

    /// Answers what is wrong with an APIService that does not lead to us. Where somebody wrote it meanwhile, looks again: nothing may be served
    /// yet that the API server does not trust.
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

/// The patch with which an APIService trusts these authorities; `None` if it does.
fn distrusts(service: &APIService, authorities: &[&str], lingering: bool) -> Option<serde_json::Value> {
    let spec = service.spec.as_ref();
    let anybody = spec.and_then(|spec| spec.insecure_skip_tls_verify) == Some(true);
    let held = spec.and_then(|spec| spec.ca_bundle.as_ref()).map(|held| String::from_utf8_lossy(&held.0).into_owned());
    // Who trusts anybody may have no authority beside, so that nothing is lost.
    let ca_bundle = trust::ca_bundle(held.as_deref().unwrap_or_default(), authorities, lingering)?;
    Some(json!({
        "metadata": {"resourceVersion": service.resource_version()},
        "spec": {"caBundle": ByteString(ca_bundle.into_bytes()), "insecureSkipTLSVerify": anybody.then_some(false)},
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
    fn an_api_service_is_to_trust_our_authority_and_nobody_else() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (ours, old) = (
            certificate::issue("projectionist", "system", now).unwrap(),
            certificate::issue("projectionist", "system", now).unwrap(),
        );
        let holding = |ca: Option<&str>, anybody: bool| APIService {
            spec: Some(APIServiceSpec {
                ca_bundle: ca.map(|ca| ByteString(ca.as_bytes().to_vec())),
                insecure_skip_tls_verify: anybody.then_some(true),
                ..APIServiceSpec::default()
            }),
            ..APIService::default()
        };
        let ca = ours.ca_pem.as_str();
        for (held, anybody, good) in
            [(Some(ca), false, true), (Some(&*old.ca_pem), false, false), (None, false, false), (None, true, false)]
        {
            let change = distrusts(&holding(held, anybody), &[ca], false);
            assert_eq!(change.is_none(), good, "{held:?} {anybody}");
            if let Some(change) = change {
                assert_eq!(change["spec"]["insecureSkipTLSVerify"].as_bool(), anybody.then_some(false));
            }
        }
    }
}
