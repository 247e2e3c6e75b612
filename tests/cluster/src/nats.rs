//! A real NATS server of a test's own, on loopback or in a cluster's network, with JetStream.
//!
//! It runs in a temporary directory and ends with the process that started it, however that ends.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{network, packages, processes, redis::KEEPER};

/// A running (or paused) server.
#[derive(Debug)]
pub struct Nats {
    root: PathBuf,
    address: SocketAddr,
    server: Child,
    keeper: Child,
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("test-nats-{}-{count}", std::process::id()));
        // One of that name is of an earlier process with this number.
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let root = root.canonicalize()?;
        let ask = || TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
        let address = match network {
            Some(network) => network::inside(network, ask)?,
            None => ask(),
        }?;
        let configuration = configuration.replace("{root}", &root.display().to_string());
        let settings =
            format!("host: {host}\nport: {}\nlogfile: \"{}/log\"\n{configuration}\n", address.port(), root.display());
        fs::write(root.join("nats.conf"), settings)?;
        let server = serve(&root, network)?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper", &server.id().to_string()])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server's keeper")?;
        let mut nats = Self { root, address, server, keeper };
        let until = Instant::now() + Duration::from_secs(60);
        let listens = || TcpStream::connect(address).is_ok();
        while !network.map_or_else(|| Ok(listens()), |network| network::inside(network, listens))? {
            if Instant::now() > until || nats.server.try_wait()?.is_some() {
                bail!("nats-server does not listen at {address}: {}", nats.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(nats)
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
        self.signal(Signal::STOP);
        let until = Instant::now() + Duration::from_secs(60);
        while !self.has_stopped() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_stopped(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.server.id())) else { return true };
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in parentheses.
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        })
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends the server at once.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.server.wait();
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.server.id()) {
            processes::signal(pid, signal);
        }
    }
}

fn serve(root: &Path, network: Option<&Path>) -> Result<Child> {
    let program = packages::nats_server()?;
    let mut command = match network {
        Some(network) => network::command_inside(network, program),
        None => Command::new(program),
    };
    command
        .arg("-c")
        .arg(root.join("nats.conf"))
        .current_dir(root)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting nats-server")
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
