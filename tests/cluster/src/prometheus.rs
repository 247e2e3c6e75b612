//! A real Prometheus of a test's own, on loopback or in a cluster's network, which scrapes one target.
//!
//! It runs in a temporary directory and ends with the process that started it, however that ends.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::kept::{self, Kept};
use crate::{network, packages};

/// A running (or paused) server.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    /// The file in which it finds its targets.
    targets: PathBuf,
    kept: Kept,
}

/// How a server is set up besides its target.
#[derive(Clone, Debug, Default)]
pub struct PrometheusOptions {
    /// What is in its web configuration: TLS and users. Empty: neither. `{root}` stands for its directory.
    pub web: String,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Prometheus {
    /// A new server on 127.0.0.1, at a port that was free, that scrapes `target` five times a second. Needs no root and no cluster.
    ///
    /// # Errors
    /// When Prometheus is not installed or does not start; the message holds the end of its log.
    pub fn scraping(target: SocketAddr) -> Result<Self> {
        Self::with(target, &PrometheusOptions::default())
    }

    /// The same, set up in another way.
    ///
    /// # Errors
    /// As [`Prometheus::scraping`].
    pub fn with(target: SocketAddr, options: &PrometheusOptions) -> Result<Self> {
        Self::create(None, "127.0.0.1", target, options)
    }

    /// A new server at `host` inside a network namespace, in which the target is, too.
    ///
    /// # Errors
    /// As [`Prometheus::scraping`].
    pub(crate) fn in_network(network: &Path, host: &str, target: SocketAddr) -> Result<Self> {
        Self::create(Some(network), host, target, &PrometheusOptions::default())
    }

    fn create(network: Option<&Path>, host: &str, target: SocketAddr, options: &PrometheusOptions) -> Result<Self> {
        let root = kept::directory("prometheus")?;
        let address = kept::free_address(network, host)?;
        let targets = root.join("targets.json");
        write_targets(&targets, &[target])?;
        let configuration = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n- job_name: test\n  file_sd_configs: [{{files: [\"{}\"], refresh_interval: 1s}}]\n",
            targets.display()
        );
        fs::write(root.join("prometheus.yml"), configuration)?;
        fs::write(root.join("web.yml"), options.web.replace("{root}", &root.display().to_string()))?;
        let mut command = kept::command(network, &packages::prometheus()?);
        command
            .arg(format!("--config.file={}", root.join("prometheus.yml").display()))
            .arg(format!("--web.config.file={}", root.join("web.yml").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--storage.tsdb.path={}", root.join("data").display()))
            .args(&options.arguments);
        let mut kept = Kept::start(root, &mut command)?;
        // It listens before it answers queries.
        let listens = || TcpStream::connect(address).is_ok();
        kept.wait_until(&format!("prometheus does not listen at {address}"), |kept| {
            network.map_or_else(listens, |network| network::inside(network, listens).unwrap_or(false))
                && kept.log().contains("Server is ready to receive")
        })?;
        Ok(Self { address, targets, kept })
    }

    /// From now on it scrapes these targets and no others. Debian's build cannot find pods by itself.
    ///
    /// # Errors
    /// When the file with the targets cannot be written.
    pub fn scrape(&self, targets: &[SocketAddr]) -> Result<()> {
        write_targets(&self.targets, targets)
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://…` without a user.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the server where it is: connections stay open and nothing answers. Returns once each of its threads has stopped.
    pub fn pause(&self) {
        self.kept.pause();
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.kept.resume();
    }

    /// Ends the server at once.
    pub fn kill(&mut self) {
        self.kept.kill();
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.kept.log()
    }
}

/// Writes the file whole or not at all: the server looks at any time.
fn write_targets(file: &Path, targets: &[SocketAddr]) -> Result<()> {
    let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
    let partial = file.with_extension("partial");
    fs::write(&partial, json!([{"targets": targets}]).to_string())?;
    fs::rename(&partial, file).with_context(|| format!("writing {}", file.display()))
}
