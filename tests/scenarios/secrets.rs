//! Passwords and tokens stay in the Secrets that hold them.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::shop::Shop;
use crate::stage::SYSTEM;

/// A part of each password and token of this run's Secrets that are made of it.
pub(crate) const CANARY: &str = "canary-7731";

impl Shop<'_> {
    /// The server refuses the credentials in this source's Secret, which the Projection `stranger`, that is only measured, says without them.
    pub(crate) async fn a_stranger_is_refused(&self, source: &Value) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"name": "stranger", "namespace": self.namespace},
            "spec": {"source": source, "lag": {"target": "10s"}},
        }))?;
        self.condition_is("stranger", "SourceReachable", "False", "AuthenticationFailed").await.map(drop)
    }

    /// No object of this namespace but its Secrets, no Event, no log line and no page of the operator holds a password or token.
    pub(crate) fn no_secret_is_told(&self) -> Result<()> {
        let cluster = &self.stage.cluster;
        let kinds = "prj,events,deployments,replicasets,pods,hpa,configmaps";
        let mut everything = vec![cluster.kubectl(&["get", kinds, "-n", &self.namespace, "-o", "yaml"])?];
        let operators = ["-n", SYSTEM, "-l", "app.kubernetes.io/name=projectionist"];
        everything.push(cluster.kubectl(&[&["logs", "--tail=-1"], &operators[..]].concat())?);
        let pods = cluster.kubectl(&[&["get", "pods", "-o", "name"], &operators[..]].concat())?;
        for pod in pods.lines().filter_map(|line| line.strip_prefix("pod/")) {
            let page = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics");
            everything.push(cluster.kubectl(&["get", "--raw", &page])?);
        }
        ensure!(everything.len() > 2, "no page of an operator was read");
        for text in everything {
            ensure!(!text.is_empty());
            let told = text.lines().find(|line| line.contains(CANARY));
            ensure!(told.is_none(), "a password or token is in {told:?}");
        }
        Ok(())
    }
}
