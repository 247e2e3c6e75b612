//! Pages that the pods of a workload show: which pods, at which port and path. Addresses are no part of it, since pods come and go.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::{
    api::{ExistingKind, ExistingWorkload, Reason},
    clients::{Endpoint, ServerSettings, http_settings::HttpSettings},
    measure::{MeasureError, ProjectionKey, RunKey},
    worker_pods::Workload,
};

/// The pages of one workload's pods.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PodPages {
    /// Whose pods.
    pub workload: Workload,
    /// The port at which each of them serves its page.
    pub port: u16,
    /// The page's path, beginning with a slash.
    pub path: String,
}

/// The keys by which a spec says it.
const KEYS: [&str; 7] = ["namespace", "projection", "version", "deployment", "statefulset", "port", "path"];

impl fmt::Display for PodPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods of {}, port {}, path {}", self.workload.run, self.port, self.path)
    }
}

impl PodPages {
    /// The page of the pod at this address.
    ///
    /// # Errors
    /// `ConnectionStringInvalid` for a path that no URL can hold.
    pub fn of_pod(&self, address: IpAddr) -> Result<HttpSettings, MeasureError> {
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let url = format!("http://{host}:{}{}", self.port, self.path);
        HttpSettings::from_keys(|key| (key == "url").then_some(url.as_str()))
    }
}

impl ServerSettings for PodPages {
    fn keys() -> Vec<&'static str> {
        KEYS.to_vec()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        let invalid = |message: &str| MeasureError { reason: Reason::InvalidSpec, message: message.to_owned() };
        let text = |key: &str| value(key).unwrap_or_default();
        let existing = |kind, name: &str| ExistingWorkload { kind, name: name.to_owned() };
        let deployment = value("deployment").map(|name| existing(ExistingKind::Deployment, name));
        let existing =
            deployment.or_else(|| value("statefulset").map(|name| existing(ExistingKind::StatefulSet, name)));
        let port = text("port").parse().ok().filter(|port| *port > 0);
        let projection = ProjectionKey { namespace: text("namespace").into(), name: text("projection").into() };
        let run = RunKey { projection, version: value("version").map(Arc::from) };
        Ok(Self {
            workload: Workload { run, existing },
            port: port.ok_or_else(|| invalid("the port must be a number from 1 to 65535"))?,
            path: text("path").to_owned(),
        })
    }

    fn trusting(self, _: &[u8]) -> Result<Self, &'static str> {
        Err("pods are asked without TLS")
    }

    fn showing(self, _: &[u8], _: &[u8]) -> Result<Self, &'static str> {
        Err("pods are asked without TLS")
    }

    /// No credential goes to a pod.
    fn servers(&self) -> Vec<String> {
        Vec::new()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::WorkerPods(self.clone())
    }
}
