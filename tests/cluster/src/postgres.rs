//! A real PostgreSQL server of a test's own: in a cluster's network, where pods reach it, or on loopback for tests without a cluster.
//!
//! It runs as an unprivileged user in a temporary directory and ends with the process that started it, however that ends. Its settings
//! suit tests: a crash of the machine may lose data.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use tokio_postgres::{Client, Config, NoTls};

use crate::{kept, network, packages, processes};

/// The superuser of every server.
pub const SUPERUSER: &str = "postgres";
/// Its password, asked for over TCP and locally alike, so that a wrong one is refused as in production.
pub const PASSWORD: &str = "projectionist";

/// Outlives the owner by a moment: waits until the pipe from it closes, then ends the server and removes its files.
const KEEPER: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; then
    kill -CONT $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
    kill -QUIT "$pid"
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.05; tries=$((tries + 1)); done
    kill -KILL "$pid" 2>/dev/null
fi
rm -rf "$1"
"#;

/// A running (or stopped, or paused) server.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    root: PathBuf,
    network: Option<PathBuf>,
    address: SocketAddr,
    account: Option<(u32, u32)>,
    keeper: Child,
}

impl Postgres {
    /// A new server on 127.0.0.1, at a port that was free. Needs no root and no cluster.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start; the message holds the end of its log.
    pub fn on_loopback() -> Result<Self> {
        Self::create(None, "127.0.0.1")
    }

    /// A new server at `address` inside a network namespace.
    ///
    /// # Errors
    /// As [`Postgres::on_loopback`].
    pub(crate) fn in_network(network: &Path, address: &str) -> Result<Self> {
        Self::create(Some(network.to_owned()), address)
    }

    /// A standby of this server, which follows it, on loopback.
    ///
    /// # Errors
    /// When this server is away or the standby does not start.
    pub fn standby(&self) -> Result<Self> {
        Self::create_from(None, "127.0.0.1", Some(&self.url(SUPERUSER)))
    }

    /// A consumer of the logical slot `slot` in `database`, which reads changes, drops them, and confirms each second how far it has come. It ends when it is
    /// dropped.
    ///
    /// # Errors
    /// When `pg_recvlogical` cannot be started.
    pub fn consume(&self, database: &str, slot: &str) -> Result<SlotConsumer> {
        let mut command = Command::new(self.programs.join("pg_recvlogical"));
        command
            .args([format!("--dbname={}", self.url(database)), format!("--slot={slot}")])
            .args(["--start", "--file=/dev/null", "--status-interval=1", "--fsync-interval=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.spawn().map(SlotConsumer).context("starting pg_recvlogical")
    }

    /// Makes the server offer TLS with this certificate and key (PEM), from the next start on.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn offer_tls(&self, certificate: &str, key: &str) -> Result<()> {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data().join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            // The server refuses a key that others may read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            self.hand_over(&path)?;
        }
        let mut settings = fs::File::options().append(true).open(self.data().join("postgresql.auto.conf"))?;
        writeln!(settings, "ssl = on")?;
        Ok(())
    }

    /// `postgres://…` for the superuser, the same for tests and pods.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, PASSWORD, database)
    }

    /// `postgres://…` for another role.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@{}/{database}", self.address)
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates a database and returns its URL for the superuser.
    ///
    /// # Errors
    /// When there is one of that name already, or the server is away.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let client = self.connect("postgres").await?;
        client
            .batch_execute(&format!("create database {}", quoted(name)))
            .await
            .with_context(|| format!("creating the database {name}"))?;
        Ok(self.url(name))
    }

    /// Creates a role that may log in with `password` and nothing else.
    ///
    /// # Errors
    /// When there is one of that name already, or the server is away.
    pub async fn create_role(&self, name: &str, password: &str) -> Result<()> {
        let client = self.connect("postgres").await?;
        let password = password.replace('\'', "''");
        let statement = format!("create role {} login password '{password}'", quoted(name));
        client.batch_execute(&statement).await.with_context(|| format!("creating the role {name}"))
    }

    /// Connects as the superuser, from whichever network the caller is in.
    ///
    /// # Errors
    /// When the server is away or has no such database.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.connect_as(SUPERUSER, PASSWORD, database).await
    }

    /// Connects as another role.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn connect_as(&self, user: &str, password: &str, database: &str) -> Result<Client> {
        let (network, address) = (self.network.clone(), self.address);
        // A socket stays in the network that it was made in, so that only this one step has to be inside.
        let dialled = tokio::task::spawn_blocking(move || {
            let dial = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
            match network {
                Some(network) => network::inside(&network, dial)?,
                None => dial(),
            }
            .with_context(|| format!("connecting to PostgreSQL at {address}"))
        });
        let stream = dialled.await??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut config = Config::new();
        config.user(user).password(password).dbname(database);
        let (client, connection) = config
            .connect_raw(tokio::net::TcpStream::from_std(stream)?, NoTls)
            .await
            .with_context(|| format!("logging in to {database} at {address} as {user}"))?;
        // The client reports what happens to its connection.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Stops the server; its data stays. Connections are cut, new ones refused.
    ///
    /// # Errors
    /// When it is not running.
    pub fn stop(&self) -> Result<()> {
        self.control(&["stop", "--mode=fast"])
    }

    /// Starts the server again at the same address.
    ///
    /// # Errors
    /// When it runs already or does not start; the message holds the end of its log.
    pub fn start(&self) -> Result<()> {
        let log = self.root.join("log").display().to_string();
        self.control(&["start", "--log", &log]).map_err(|error| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            anyhow!("{error:#}\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))
        })
    }

    /// Stops all the server's processes where they are: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn pause(&self) -> Result<()> {
        let server = self.pid()?;
        // The one that starts the others first.
        processes::signal(server, Signal::STOP);
        processes::children(server).into_iter().for_each(|pid| processes::signal(pid, Signal::STOP));
        Ok(())
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn resume(&self) -> Result<()> {
        let server = self.pid()?;
        processes::children(server).into_iter().for_each(|pid| processes::signal(pid, Signal::CONT));
        processes::signal(server, Signal::CONT);
        Ok(())
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    fn create(network: Option<PathBuf>, host: &str) -> Result<Self> {
        Self::create_from(network, host, None)
    }

    /// A server of its own, or a standby of the one at `primary`.
    fn create_from(network: Option<PathBuf>, host: &str, primary: Option<&str>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let programs = packages::postgres_programs()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("test-postgres-{}-{count}", std::process::id()));
        // One of that name is of an earlier process with this number.
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        let account = if rustix::process::geteuid().is_root() { Some(account_of(SUPERUSER)?) } else { None };
        // The kernel knows the server's directory by its real path.
        let root = root.canonicalize()?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server's keeper")?;
        let address = kept::free_address(network.as_deref(), host)?;
        let mut server = Self { programs, root, network, address, account, keeper };
        server.hand_over(&server.root)?;
        match primary {
            None => server.initialise()?,
            Some(primary) => server.copy(primary)?,
        }
        for attempt in 1.. {
            server.address = kept::free_address(server.network.as_deref(), host)?;
            server.configure()?;
            match server.start() {
                Ok(()) => break,
                // Another program may have taken the port between our asking and the server's.
                Err(error) if attempt == 3 => return Err(error),
                Err(_) => {}
            }
        }
        Ok(server)
    }

    fn initialise(&self) -> Result<()> {
        let password = self.root.join("password");
        writeln!(fs::File::create(&password)?, "{PASSWORD}")?;
        self.hand_over(&password)?;
        let arguments = [
            format!("--pgdata={}", self.data().display()),
            format!("--username={SUPERUSER}"),
            format!("--pwfile={}", password.display()),
            "--auth=scram-sha-256".to_owned(),
            "--encoding=UTF8".to_owned(),
            "--locale=C".to_owned(),
            "--no-sync".to_owned(),
        ];
        self.run("initdb", &arguments)?;
        let mut access = fs::File::options().append(true).open(self.data().join("pg_hba.conf"))?;
        writeln!(access, "host all all all scram-sha-256\nhost replication all all scram-sha-256")?;
        Ok(())
    }

    fn copy(&self, primary: &str) -> Result<()> {
        let arguments = [
            format!("--pgdata={}", self.data().display()),
            format!("--dbname={primary}"),
            "--write-recovery-conf".to_owned(),
            "--checkpoint=fast".to_owned(),
            "--no-sync".to_owned(),
        ];
        self.run("pg_basebackup", &arguments)
    }

    /// For programs that run beside the server, as the same user.
    pub(crate) fn hand_over_to_account(&self, path: &Path) -> Result<()> {
        self.hand_over(path)
    }

    /// The server runs as another user than we do.
    fn hand_over(&self, path: &Path) -> Result<()> {
        let Some((user, group)) = self.account else { return Ok(()) };
        chown(path, Some(user), Some(group)).with_context(|| format!("handing over {}", path.display()))
    }

    fn configure(&self) -> Result<()> {
        let settings = format!(
            "listen_addresses = '{}'\nport = {}\nunix_socket_directories = '{}'\nmax_connections = 1000\nshared_buffers = '64MB'\n\
             fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n",
            self.address.ip(),
            self.address.port(),
            self.root.display(),
        );
        // Written by us as root, read by the server: the later of two settings counts, and this file is read last. A standby's holds already
        // whom it follows.
        let path = self.data().join("postgresql.auto.conf");
        let file = fs::File::options().append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(settings.as_bytes()));
        written.with_context(|| format!("writing {}", path.display()))
    }

    fn control(&self, words: &[&str]) -> Result<()> {
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend([
            format!("--pgdata={}", self.data().display()),
            "--wait".to_owned(),
            "--timeout=60".to_owned(),
            "--silent".to_owned(),
        ]);
        self.run("pg_ctl", &arguments)
    }

    fn run(&self, program: &str, arguments: &[String]) -> Result<()> {
        let mut command = kept::command(self.network.as_deref(), "setpriv");
        if let Some((user, group)) = self.account {
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
        }
        command.arg("--").arg(self.programs.join(program)).args(arguments).current_dir(&self.root);
        // Variables of the caller's own PostgreSQL mean another one.
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD"] {
            command.env_remove(name);
        }
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {program}"))?;
        if !output.status.success() {
            bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn pid(&self) -> Result<i32> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).context("PostgreSQL is not running")?;
        text.lines().next().unwrap_or_default().parse().context("reading PostgreSQL's pid")
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }
}

/// A running consumer of a slot: see [`Postgres::consume`].
#[derive(Debug)]
pub struct SlotConsumer(Child);

impl Drop for SlotConsumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// An identifier as SQL takes it whatever it is made of.
#[must_use]
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn account_of(user: &str) -> Result<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let line = accounts.lines().find(|line| line.split(':').next() == Some(user));
    let mut fields =
        line.with_context(|| format!("there is no user {user}: PostgreSQL may not run as root"))?.split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok());
    number().zip(number()).with_context(|| format!("/etc/passwd has no numbers for {user}"))
}
