//! The operator as a process of its own, which can be killed.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::process::{Child, Command};

/// The debug binary with a kubeconfig of its own.
pub(crate) struct Operator {
    namespace: String,
    identity: String,
    directory: PathBuf,
    metrics_api: String,
    child: Option<Child>,
}

impl Operator {
    /// Starts a replica in `namespace` that knows the API server by `address`; its files lie in `directory`.
    pub(crate) fn start(namespace: &str, identity: &str, address: SocketAddr, directory: &Path) -> Result<Self> {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy", "namespace": namespace}}],
        });
        fs::write(directory.join(format!("{identity}.kubeconfig")), kubeconfig.to_string())?;
        let mut operator = Self {
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            directory: directory.to_owned(),
            metrics_api: "127.0.0.1:0".to_owned(),
            child: None,
        };
        operator.resume()?;
        Ok(operator)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.identity))
    }

    /// Where it serves the metrics API from its next life on.
    pub(crate) fn serve_metrics_api_at(&mut self, address: SocketAddr) {
        self.metrics_api = address.to_string();
    }

    /// All that it has logged, over all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Starts it again after [`Operator::kill`].
    pub(crate) fn resume(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let child = Command::new(env!("CARGO_BIN_EXE_projectionist"))
            .arg("operator")
            .args(["--namespace", &self.namespace, "--watch-namespace", &self.namespace, "--identity", &self.identity])
            .args(["--metrics-api-listen", &self.metrics_api])
            .args(["--telemetry-listen=127.0.0.1:0", "--worker-image=worker:1"])
            // Another one keeps certificate and APIService.
            .args(["--certificate-secret=serving", "--log-level=info,projectionist=debug"])
            .env("KUBECONFIG", self.directory.join(format!("{}.kubeconfig", self.identity)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting the operator")?;
        self.child = Some(child);
        Ok(())
    }

    pub(crate) fn is_away(&self) -> bool {
        self.child.is_none()
    }

    /// As the kernel does it when memory is short.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// An end that was not asked for, or a panic of one of its tasks.
    pub(crate) fn fault(&mut self) -> Option<String> {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            return Some(format!("the operator ended by itself ({status}):\n{}", last.join("\n")));
        }
        let log = self.log();
        let panic = log.lines().find(|line| line.contains("panicked at") || line.contains("ended abnormally"));
        panic.map(ToOwned::to_owned)
    }
}
