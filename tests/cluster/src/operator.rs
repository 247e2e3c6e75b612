//! The operator, installed by Helm as a user does it.

use anyhow::Result;

use crate::{cluster::Cluster, instance::workspace};

/// Where [`Cluster::install_operator`] installs it.
pub const OPERATOR_NAMESPACE: &str = "projectionist";

impl Cluster {
    /// `helm upgrade --install` of the chart with the image that the node has (see [`Cluster::import_image`]), with further arguments for
    /// Helm, until every replica is ready and the API server reaches the metrics API.
    ///
    /// # Errors
    /// When Helm fails or the metrics API does not become available; the message holds the namespace's state.
    pub fn install_operator(&self, further: &[&str]) -> Result<()> {
        let chart = workspace().join("charts/projectionist").display().to_string();
        let mut args = vec!["upgrade", "--install", "projectionist", &chart, "--namespace", OPERATOR_NAMESPACE];
        args.extend(["--create-namespace", "--wait", "--timeout=180s"]);
        args.extend(["--set=image.repository=docker.io/library/projectionist", "--set=image.tag=dev"]);
        args.push("--set=image.pullPolicy=Never");
        args.extend(further);
        let available = "apiservice/v1beta1.external.metrics.k8s.io";
        let wait = ["wait", "--for=condition=Available", "--timeout=60s", available];
        let installed = self.helm(&args).and_then(|_| self.kubectl(&wait));
        installed.map(drop).map_err(|error| self.explain(&error, OPERATOR_NAMESPACE))
    }
}
