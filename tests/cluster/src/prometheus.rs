//! A real Prometheus of a test's own, on loopback, which scrapes one target.
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

use crate::{packages, processes, redis::KEEPER};

/// A running (or paused) server.
#[derive(Debug)]
pub struct Prometheus {
    root: PathBuf,
    address: SocketAddr,
    server: Child,
    keeper: Child,
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("test-prometheus-{}-{count}", std::process::id()));
        // One of that name is of an earlier process with this number.
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let root = root.canonicalize()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let configuration = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n- job_name: test\n  static_configs: [{{targets: [\"{target}\"]}}]\n"
        );
        fs::write(root.join("prometheus.yml"), configuration)?;
        fs::write(root.join("web.yml"), options.web.replace("{root}", &root.display().to_string()))?;
        let server = serve(&root, address, &options.arguments)?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper", &server.id().to_string()])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server's keeper")?;
        let mut prometheus = Self { root, address, server, keeper };
        let until = Instant::now() + Duration::from_secs(60);
        // It listens before it answers queries.
        while TcpStream::connect(address).is_err() || !prometheus.log().contains("Server is ready to receive") {
            if Instant::now() > until || prometheus.server.try_wait()?.is_some() {
                bail!("prometheus does not listen at {address}: {}", prometheus.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(prometheus)
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

fn serve(root: &Path, address: SocketAddr, arguments: &[String]) -> Result<Child> {
    let log = fs::File::create(root.join("log"))?;
    Command::new(packages::prometheus()?)
        .arg(format!("--config.file={}", root.join("prometheus.yml").display()))
        .arg(format!("--web.config.file={}", root.join("web.yml").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg(format!("--storage.tsdb.path={}", root.join("data").display()))
        .args(arguments)
        .current_dir(root)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting prometheus")
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.kill();
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
