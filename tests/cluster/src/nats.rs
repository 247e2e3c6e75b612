//! A real NATS server of a test's own, on loopback or in a cluster's network, with JetStream.
//!
//! It runs in a temporary directory and ends with the process that started it, however that ends.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::kept::{self, Kept};
use crate::{network, packages};

/// A running (or paused) server.
#[derive(Debug)]
pub struct Nats {
    address: SocketAddr,
    network: Option<PathBuf>,
    configuration: PathBuf,
    kept: Kept,
}

impl Nats {
    /// A new server on 127.0.0.1, at a port that was free. Needs no root and no cluster.
    ///
    /// # Errors
    /// When NATS is not installed or does not start; the message holds the end of its log.
    pub fn on_loopback() -> Result<Self> {
        Self::with("jetstream: {store_dir: {root}/jetstream}")
    }

    /// A new server with these lines of configuration, in which `{root}` stands for its directory. Without `jetstream` in them it has none.
    ///
    /// # Errors
    /// As [`Nats::on_loopback`].
    pub fn with(configuration: &str) -> Result<Self> {
        Self::create(None, "127.0.0.1", configuration)
    }

    /// A new server at `host` inside a network namespace, with lines of configuration as in [`Nats::with`].
    ///
    /// # Errors
    /// As [`Nats::on_loopback`].
    pub(crate) fn in_network(network: &Path, host: &str, configuration: &str) -> Result<Self> {
        Self::create(Some(network), host, configuration)
    }

    fn create(network: Option<&Path>, host: &str, configuration: &str) -> Result<Self> {
        let root = kept::directory("nats")?;
        let address = kept::free_address(network, host)?;
        let configuration = configuration.replace("{root}", &root.display().to_string());
        let settings =
            format!("host: {host}\nport: {}\nlogfile: \"{}/log\"\n{configuration}\n", address.port(), root.display());
        let configuration = root.join("nats.conf");
        fs::write(&configuration, settings)?;
        let kept = Kept::start(root, &mut program(network, &configuration)?)?;
        let mut server = Self { address, network: network.map(Path::to_owned), configuration, kept };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> Result<()> {
        let address = self.address;
        let listens = || TcpStream::connect(address).is_ok();
        let network = self.network.as_deref();
        self.kept.wait_until(&format!("nats-server does not listen at {address}"), |_| {
            network.map_or_else(listens, |network| network::inside(network, listens).unwrap_or(false))
        })
    }

    /// Ends the server at once and starts it again with what it has stored.
    ///
    /// # Errors
    /// As [`Nats::on_loopback`].
    pub fn restart(&mut self) -> Result<()> {
        self.kept.restart(&mut program(self.network.as_deref(), &self.configuration)?)?;
        self.wait()
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `nats://…` without a user.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// `nats://…` for a user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("nats://{user}:{password}@{}", self.address)
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

fn program(network: Option<&Path>, configuration: &Path) -> Result<Command> {
    let mut command = kept::command(network, &packages::nats_server()?);
    command.arg("-c").arg(configuration);
    Ok(command)
}
