//! Points an APIService that leads to another adapter to this operator, and creates it again when it is deleted together with that adapter. Does so
//! only where the administrator has allowed it, and reports it each time.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{CertificateSettings, KeepError, trust};
use crate::names;

/// The least time between two take-overs of one APIService: if another client keeps writing it, the operator reports that and does not compete.
pub(super) const TAKEN_EVERY: Duration = Duration::from_secs(60);
/// With these annotations cert-manager's injector would write another adapter's authority into the APIService for ever.
const INJECTIONS: [&str; 3] =
    ["cert-manager.io/inject-ca-from", "cert-manager.io/inject-ca-from-secret", "cert-manager.io/inject-apiserver-ca"];
/// The Service's port for TLS.
const PORT: i32 = 443;

/// An APIService that was taken over, and what it led to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Taken {
    /// Its name.
    pub(super) name: String,
    /// A sentence that says where it led before.
    pub(super) note: String,
}

/// When each APIService was last taken over, and the channel that reports take-overs.
pub(super) struct Takings {
    pub(super) tell: mpsc::UnboundedSender<Taken>,
    pub(super) last: BTreeMap<String, Instant>,
}

impl Takings {
    /// Takes an APIService over, with these authorities. Returns false where it was taken over a moment ago or there is nothing to take.
    pub(super) async fn take(
        &mut self,
        services: &Api<APIService>,
        service: &APIService,
        settings: &CertificateSettings,
        authorities: &[&str],
    ) -> Result<bool, KeepError> {
        let name = service.name_any();
        let recently = self.last.get(&name).is_some_and(|last| last.elapsed() < TAKEN_EVERY);
        let (false, Some(change)) = (recently, patch(service, settings, authorities)) else { return Ok(false) };
        match services.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await {
            Ok(_) => {}
            Err(source) => return Err(KeepError::ApiService { name, source }),
        }
        self.last.insert(name.clone(), Instant::now());
        let note = note(service, settings);
        tracing::warn!("{note}");
        // The receiver is gone only while the operator ends.
        let _ = self.tell.send(Taken { name, note });
        Ok(true)
    }
}

/// Creates a missing APIService. By server-side apply, since only then can RBAC limit the permission to create to this name.
pub(super) async fn make(
    services: &Api<APIService>,
    name: &str,
    settings: &CertificateSettings,
    authorities: &[&str],
) -> Result<bool, KeepError> {
    let Some(made) = new(name, settings, authorities) else { return Ok(false) };
    // Not forced: an APIService that another client has made meanwhile stays that client's.
    let applied = services.patch(name, &PatchParams::apply(names::FIELD_MANAGER), &Patch::Apply(made)).await;
    match applied {
        Ok(_) => tracing::info!("created the APIService {name}, which did not exist"),
        Err(source) => return Err(KeepError::ApiService { name: name.to_owned(), source }),
    }
    Ok(true)
}

fn new(name: &str, settings: &CertificateSettings, authorities: &[&str]) -> Option<Value> {
    let (version, group) = name.split_once('.')?;
    let ca_bundle = trust::ca_bundle("", authorities, false).filter(|_| !authorities.is_empty())?;
    Some(json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": name, "labels": {names::MANAGED_BY_LABEL: names::FIELD_MANAGER}},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            // As in the chart: the preferred version has the higher priority.
            "versionPriority": if version == "v1beta2" { 200 } else { 100 },
            "service": {"namespace": settings.namespace, "name": settings.service, "port": PORT},
            "caBundle": ByteString(ca_bundle.into_bytes()),
        },
    }))
}

/// `None` where there is nothing to take over: the operator has no authority, or the API server serves the API itself.
fn patch(service: &APIService, settings: &CertificateSettings, authorities: &[&str]) -> Option<Value> {
    let led_to_a_service = service.spec.as_ref().is_some_and(|spec| spec.service.is_some());
    let ca_bundle = trust::ca_bundle("", authorities, false).filter(|_| led_to_a_service && !authorities.is_empty())?;
    let no_injection: BTreeMap<&str, Value> = INJECTIONS.into_iter().map(|name| (name, Value::Null)).collect();
    Some(json!({
        "metadata": {"resourceVersion": service.resource_version(), "annotations": no_injection},
        "spec": {
            "service": {"namespace": settings.namespace, "name": settings.service, "port": PORT},
            "caBundle": ByteString(ca_bundle.into_bytes()),
            "insecureSkipTLSVerify": false,
        },
    }))
}

fn note(service: &APIService, settings: &CertificateSettings) -> String {
    let led_to = service.spec.as_ref().and_then(|spec| spec.service.as_ref());
    let part = |part: Option<&String>| part.cloned().unwrap_or_default();
    let led_to = led_to.map(|led_to| {
        let port = led_to.port.unwrap_or(PORT);
        format!("{}/{}:{port}", part(led_to.namespace.as_ref()), part(led_to.name.as_ref()))
    });
    format!(
        "the APIService {} was taken over, as apiServices.takeOver says: it led to the service {} and leads to {}/{} now; to give it back, uninstall and install the other adapter's APIService again",
        service.name_any(),
        led_to.unwrap_or_default(),
        settings.namespace,
        settings.service,
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
        kube_aggregator::pkg::apis::apiregistration::v1::{APIServiceSpec, ServiceReference},
    };

    use super::*;
    use crate::metrics_api::certificate;

    fn settings() -> CertificateSettings {
        CertificateSettings {
            namespace: "system".to_owned(),
            service: "projectionist".to_owned(),
            given: None,
            api_services: Vec::new(),
            take_over: true,
        }
    }

    fn leading_to(service: Option<ServiceReference>) -> APIService {
        let name = Some("v1beta1.external.metrics.k8s.io".to_owned());
        APIService {
            metadata: ObjectMeta { name, resource_version: Some("7".to_owned()), ..ObjectMeta::default() },
            spec: Some(APIServiceSpec { service, insecure_skip_tls_verify: Some(true), ..APIServiceSpec::default() }),
            ..APIService::default()
        }
    }

    #[test]
    fn what_is_taken_leads_here_trusts_us_alone_and_says_what_it_was() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let ca = certificate::issue("projectionist", "system", now).unwrap().ca_pem;
        let keda =
            ServiceReference { name: Some("keda-metrics".to_owned()), namespace: Some("keda".to_owned()), port: None };
        let theirs = leading_to(Some(keda));
        let change = patch(&theirs, &settings(), &[&ca]).unwrap();
        assert_eq!(change["metadata"]["resourceVersion"], "7", "nothing that was written meanwhile is lost");
        assert_eq!(change["metadata"]["annotations"]["cert-manager.io/inject-ca-from"], Value::Null);
        assert_eq!(change["spec"]["service"], json!({"namespace": "system", "name": "projectionist", "port": 443}));
        assert_eq!(change["spec"]["insecureSkipTLSVerify"], false);
        assert!(change["spec"]["caBundle"].is_string());
        let note = note(&theirs, &settings());
        assert!(note.contains("keda/keda-metrics:443") && note.contains("system/projectionist"), "{note}");
        // `None` without an authority that the aggregator could trust, and where the API server serves the API itself.
        assert_eq!(patch(&theirs, &settings(), &[]), None);
        assert_eq!(patch(&leading_to(None), &settings(), &[&ca]), None);
    }

    #[test]
    fn a_missing_api_service_is_made_as_the_chart_makes_it() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let ca = certificate::issue("projectionist", "system", now).unwrap().ca_pem;
        let made = new("v1beta2.custom.metrics.k8s.io", &settings(), &[&ca]).unwrap();
        assert_eq!(
            (&made["spec"]["group"], &made["spec"]["version"], &made["spec"]["versionPriority"]),
            (&json!("custom.metrics.k8s.io"), &json!("v1beta2"), &json!(200))
        );
        assert!(made["spec"]["caBundle"].is_string());
        assert_eq!(
            new("v1beta1.external.metrics.k8s.io", &settings(), &[]),
            None,
            "without an authority it is of no use"
        );
    }
}
