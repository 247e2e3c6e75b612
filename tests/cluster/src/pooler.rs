//! A real pgbouncer in front of a server, on loopback.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::postgres::{PASSWORD, Postgres, SUPERUSER};
use crate::{free_address, packages, processes};

/// How a pooler hands out the server's connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pooling {
    /// One for each transaction, the last one that became free first: as pgbouncer does unless told otherwise.
    Transaction,
    /// One for each transaction, all in turn: a statement outside a transaction meets another server process each time.
    TransactionInTurn,
    /// One for each client, as long as it stays.
    Session,
}

/// A running pgbouncer. Ends when dropped.
#[derive(Debug)]
pub struct Pooler {
    root: PathBuf,
    address: SocketAddr,
    process: Child,
}

impl Pooler {
    /// Starts one in front of `server`, with so many connections to each database, and waits until it listens.
    ///
    /// # Errors
    /// When pgbouncer is not installed or does not start; the message holds its log.
    pub fn before(server: &Postgres, pooling: Pooling, connections: u32) -> Result<Self> {
        let program = packages::pgbouncer()?;
        let address = free_address()?;
        let root = std::env::temp_dir().join(format!("test-pgbouncer-{}-{}", std::process::id(), address.port()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root)?;
        fs::write(root.join("users"), format!("\"{SUPERUSER}\" \"{PASSWORD}\"\n"))?;
        let mode = if pooling == Pooling::Session { "session" } else { "transaction" };
        let settings = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\nadmin_users = {SUPERUSER}\npool_mode = {mode}\n\
             default_pool_size = {connections}\nmin_pool_size = {connections}\nserver_round_robin = {}\nmax_client_conn = 500\n\
             logfile = {}\n",
            server.address().ip(),
            server.address().port(),
            address.port(),
            root.join("users").display(),
            u8::from(pooling == Pooling::TransactionInTurn),
            root.join("log").display(),
        );
        fs::write(root.join("pgbouncer.ini"), settings)?;
        let mut command = if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            server.hand_over_to_account(&root)?;
            for file in ["users", "pgbouncer.ini"] {
                server.hand_over_to_account(&root.join(file))?;
            }
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={SUPERUSER}"), format!("--regid={SUPERUSER}"), "--clear-groups".to_owned()]);
            command.args(["--pdeathsig=KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        command.arg(root.join("pgbouncer.ini")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("starting pgbouncer")?;
        let mut pooler = Self { root, address, process };
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > until || pooler.process.try_wait()?.is_some() {
                let log = fs::read_to_string(pooler.root.join("log")).unwrap_or_default();
                bail!("pgbouncer does not listen at {address}: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(pooler)
    }

    /// `postgres://…` for the superuser, through the pooler.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{PASSWORD}@{}/{database}", self.address)
    }

    /// What pgbouncer wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            processes::signal(pid, rustix::process::Signal::KILL);
        }
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}
