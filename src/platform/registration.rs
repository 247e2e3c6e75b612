//! Whether the APIServices of the metrics lead to this operator, and the messages where they do not. Pure.

use std::collections::BTreeMap;

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

/// The APIServices that do not lead to this operator, each with a sentence that says where it leads and what to do.
pub type Unserved = BTreeMap<String, String>;

/// Where an APIService leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Registration {
    /// To the operator's Service.
    Ours,
    /// Nowhere: there is no such APIService.
    Missing,
    /// To another Service, or to the API server itself; the text names which.
    Foreign(String),
}

impl Registration {
    /// `service` as it is in the cluster; `namespace` and `name` are those of the operator's Service.
    pub fn of(service: Option<&APIService>, namespace: &str, name: &str) -> Self {
        let Some(service) = service else { return Self::Missing };
        let Some(target) = service.spec.as_ref().and_then(|spec| spec.service.as_ref()) else {
            return Self::Foreign("the API server itself".to_owned());
        };
        let leads_to = (target.namespace.as_deref().unwrap_or_default(), target.name.as_deref().unwrap_or_default());
        if leads_to == (namespace, name) {
            Self::Ours
        } else {
            Self::Foreign(format!("the service {}/{}", leads_to.0, leads_to.1))
        }
    }

    /// What is wrong with the APIService of this name and what to do; `None` where nothing is.
    pub fn complaint(&self, api_service: &str) -> Option<String> {
        let (group, setting) = (group(api_service), chart_value(api_service));
        match self {
            Self::Ours => None,
            Self::Missing => Some(format!(
                "there is no APIService {api_service}, so {group} is not served: run `helm upgrade`, or install with {setting}=false"
            )),
            Self::Foreign(holder) => Some(format!(
                "the APIService {api_service} leads to {holder} and is left to it, so that autoscalers read {group} there and not here: install with apiServices.takeOver=true to have it taken over (and with metricsApi.delegate to have that adapter asked for the rest), or remove that adapter with its APIService and run `helm upgrade`, or install with {setting}=false"
            )),
        }
    }
}

/// The message where the operator is configured not to serve this APIService.
pub fn switched_off(api_service: &str) -> String {
    let (group, setting) = (group(api_service), chart_value(api_service));
    format!("the operator is installed with {setting}=false and serves no {group}")
}

/// The name of an APIService is its version and its group.
fn group(api_service: &str) -> &str {
    api_service.split_once('.').map_or(api_service, |(_, group)| group)
}

/// The chart's value that switches the group on and off.
fn chart_value(api_service: &str) -> &'static str {
    if group(api_service).starts_with("custom.") { "customMetrics.enabled" } else { "externalMetrics.enabled" }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIServiceSpec, ServiceReference};

    use super::*;

    fn leading_to(namespace: &str, name: &str) -> APIService {
        let service =
            ServiceReference { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), port: None };
        APIService {
            spec: Some(APIServiceSpec { service: Some(service), ..APIServiceSpec::default() }),
            ..APIService::default()
        }
    }

    #[test]
    fn tells_ours_from_missing_and_foreign_ones() {
        let of = |service: Option<&APIService>| Registration::of(service, "system", "projectionist");
        assert_eq!(of(Some(&leading_to("system", "projectionist"))), Registration::Ours);
        assert_eq!(of(None), Registration::Missing);
        for (namespace, name) in [("keda", "keda-metrics"), ("system", "other"), ("other", "projectionist")] {
            let foreign = Registration::Foreign(format!("the service {namespace}/{name}"));
            assert_eq!(of(Some(&leading_to(namespace, name))), foreign);
        }
        assert_eq!(of(Some(&APIService::default())), Registration::Foreign("the API server itself".to_owned()));
    }

    #[test]
    fn the_advice_names_the_holder_and_the_value_of_the_group() {
        let foreign = Registration::Foreign("the service keda/keda-metrics".to_owned());
        for (api_service, group, setting) in [
            ("v1beta1.external.metrics.k8s.io", " external.metrics.k8s.io ", "externalMetrics.enabled=false"),
            ("v1beta1.custom.metrics.k8s.io", " custom.metrics.k8s.io ", "customMetrics.enabled=false"),
            ("v1beta2.custom.metrics.k8s.io", " custom.metrics.k8s.io ", "customMetrics.enabled=false"),
        ] {
            let complaint = foreign.complaint(api_service).unwrap();
            for word in [api_service, "keda/keda-metrics", group, setting] {
                assert!(complaint.contains(word), "{complaint}");
            }
            assert!(Registration::Missing.complaint(api_service).unwrap().contains(setting));
            assert!(switched_off(api_service).contains(setting));
            assert_eq!(Registration::Ours.complaint(api_service), None);
        }
    }
}
