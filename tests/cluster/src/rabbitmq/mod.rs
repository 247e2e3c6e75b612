//! A real RabbitMQ server of a test's own, with its management API, on loopback or in a cluster's network.
//!
//! It runs in a temporary directory and ends with the process that started it, however that ends. Takes about fifteen seconds to start and 150 MB.

mod amqp;
mod streams;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::server_certificate::ServerCertificate;
use crate::{kept, network, packages};

pub use amqp::{Consumer, Published};

/// Outlives the owner by a moment: waits until the pipe from it closes, then ends the server's processes and removes its files. Erlang's helpers are
/// in groups of their own, and end when the server is gone.
const KEEPER: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
for group in "$1" "$2"; do
    [ "$(readlink "/proc/$group/cwd")" = "$3" ] && kill -s KILL -- "-$group"
done
rm -rf "$3" || { sleep 1; rm -rf "$3"; }
"#;
/// `guest:guest`, the user that each new server has.
const GUEST: &str = "Basic Z3Vlc3Q6Z3Vlc3Q=";
/// From starting until it answers.
const START_WITHIN: Duration = Duration::from_secs(300);

/// A running (or paused) server.
#[derive(Debug)]
pub struct RabbitMq {
    root: PathBuf,
    network: Option<PathBuf>,
    /// That of Erlang's port mapper.
    mapper: u16,
    management: SocketAddr,
    amqp: SocketAddr,
    streams: SocketAddr,
    over_tls: Option<OverTls>,
    server: Child,
    port_mapper: Child,
    keeper: Child,
}

/// Where a server listens that speaks TLS as well.
#[derive(Debug)]
struct OverTls {
    management: SocketAddr,
    amqp: SocketAddr,
}

/// What the server's processes are told.
struct Environment<'a> {
    network: Option<&'a Path>,
    root: &'a Path,
    mapper: u16,
}

impl Environment<'_> {
    fn command(&self, program: &Path) -> Command {
        let mut command = kept::command(self.network, program);
        command
            .current_dir(self.root)
            .process_group(0)
            .env("HOME", self.root)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.mapper.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn server(&self, program: &Path) -> Result<Child> {
        self.command(program)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", "test@localhost")
            .env("RABBITMQ_CONFIG_FILE", self.root.join("rabbitmq.conf"))
            .env("RABBITMQ_CONFIG_FILES", self.root.join("none"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.root.join("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.root.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", self.root.join("data"))
            .env("RABBITMQ_LOG_BASE", self.root.join("log"))
            .spawn()
            .context("starting rabbitmq-server")
    }

    fn keeper(&self, server: &Child, port_mapper: &Child) -> Result<Child> {
        Command::new("sh")
            .args(["-c", KEEPER, "keeper", &server.id().to_string(), &port_mapper.id().to_string()])
            .arg(self.root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server's keeper")
    }
}

impl RabbitMq {
    /// A new server on 127.0.0.1, at ports that were free. Needs no root and no cluster. Its statistics are renewed each second.
    ///
    /// # Errors
    /// When RabbitMQ is not installed or does not start; the message holds the end of its log.
    pub fn on_loopback() -> Result<Self> {
        Self::with("")
    }

    /// A new server with further lines of configuration.
    ///
    /// # Errors
    /// As [`RabbitMq::on_loopback`].
    pub fn with(configuration: &str) -> Result<Self> {
        Self::create(None, "127.0.0.1", configuration, None)
    }

    /// A new server on 127.0.0.1 whose URLs are those with TLS.
    ///
    /// # Errors
    /// As [`RabbitMq::on_loopback`].
    pub fn on_loopback_with_tls(certificate: &ServerCertificate) -> Result<Self> {
        Self::create(None, "127.0.0.1", "", Some(certificate))
    }

    /// A new server at `host` inside a network namespace. There, too, `guest` may do everything from everywhere. With a certificate its URLs are those with
    /// TLS.
    ///
    /// # Errors
    /// As [`RabbitMq::on_loopback`].
    pub(crate) fn in_network(network: &Path, host: &str, certificate: Option<&ServerCertificate>) -> Result<Self> {
        Self::create(Some(network.to_owned()), host, "loopback_users = none", certificate)
    }

    fn create(
        network: Option<PathBuf>,
        host: &str,
        configuration: &str,
        certificate: Option<&ServerCertificate>,
    ) -> Result<Self> {
        let program = packages::rabbitmq_server()?;
        let root = kept::directory("rabbitmq")?;
        let free = |host: &str| kept::free_address(network.as_deref(), host);
        let (amqp, management, streams) = (free(host)?, free(host)?, free(host)?);
        let (distribution, mapper) = (free("127.0.0.1")?.port(), free("127.0.0.1")?.port());
        let mut settings = format!(
            "listeners.tcp.1 = {amqp}\n\
             stream.listeners.tcp.1 = {streams}\n\
             management.tcp.ip = {host}\n\
             management.tcp.port = {}\n\
             distribution.listener.interface = 127.0.0.1\n\
             distribution.listener.port_range.min = {distribution}\n\
             distribution.listener.port_range.max = {distribution}\n\
             collect_statistics_interval = 1000\n\
             log.console = false\n\
             {configuration}\n",
            management.port()
        );
        let mut over_tls = None;
        if let Some(certificate) = certificate {
            let (certificate, key) = certificate.write(&root)?;
            let (certificate, key) = (certificate.display(), key.display());
            let (management, amqp) = (free(host)?, free(host)?);
            settings.push_str(&format!(
                "listeners.ssl.1 = {amqp}\nssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\nssl_options.verify = verify_none\n\
                 management.ssl.ip = {host}\nmanagement.ssl.port = {}\nmanagement.ssl.certfile = {certificate}\nmanagement.ssl.keyfile = {key}\n",
                management.port()
            ));
            over_tls = Some(OverTls { management, amqp });
        }
        fs::write(root.join("rabbitmq.conf"), settings)?;
        fs::write(root.join("plugins"), "[rabbitmq_management, rabbitmq_stream].")?;
        let environment = Environment { network: network.as_deref(), root: &root, mapper };
        // One of its own: the server would leave one behind, and would meet other servers of that name at it.
        let port_mapper = environment.command(Path::new("epmd")).spawn().context("starting Erlang's port mapper")?;
        let server = environment.server(&program)?;
        let keeper = environment.keeper(&server, &port_mapper)?;
        let mut rabbit =
            Self { root, network, mapper, management, amqp, streams, over_tls, server, port_mapper, keeper };
        rabbit.wait_until_it_answers()?;
        Ok(rabbit)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        // Erlang starts slowly on a machine that has much else to do.
        let until = Instant::now() + START_WITHIN;
        // The management API begins before the server takes part in it.
        while !self.call("GET", "overview", &Value::Null).is_ok_and(|(status, _)| status == 200) {
            if let Some(status) = self.server.try_wait()? {
                bail!("rabbitmq-server has ended ({status}) before it answered: {}", self.log());
            }
            if Instant::now() > until {
                let (at, within) = (self.management, START_WITHIN);
                bail!("rabbitmq-server does not answer at {at} within {within:?}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends the server at once and starts it again. Durable queues keep the messages that it has confirmed and that are persistent.
    ///
    /// # Errors
    /// When the server does not start; the message holds the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        // The keeper knows the old server, and must leave the files alone.
        self.keeper.kill().context("ending the server's keeper")?;
        self.keeper.wait()?;
        let environment = Environment { network: self.network.as_deref(), root: &self.root, mapper: self.mapper };
        self.server = environment.server(&packages::rabbitmq_server()?)?;
        self.keeper = environment.keeper(&self.server, &self.port_mapper)?;
        self.wait_until_it_answers()
    }

    /// Where the protocol for streams is spoken.
    #[must_use]
    pub fn streams(&self) -> SocketAddr {
        self.streams
    }

    /// Stores a consumer's offset in a stream of the virtual host `/`, as the user `guest`.
    ///
    /// # Errors
    /// When the server refuses it, or tells another offset afterwards.
    pub fn store_offset(&self, stream: &str, reference: &str, offset: u64) -> Result<()> {
        streams::Offsets::open(self.dial(self.streams)?)?.store(stream, reference, offset)
    }

    /// Where the management API listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.management
    }

    /// Where AMQP is spoken.
    #[must_use]
    pub fn amqp(&self) -> SocketAddr {
        self.amqp
    }

    /// `http://…` or `https://…` of the management API for the user that each new server has.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_as("guest", "guest")
    }

    /// `amqp://…` or `amqps://…` for another user, in the virtual host `/`.
    #[must_use]
    pub fn amqp_url_as(&self, user: &str, password: &str) -> String {
        let (scheme, address) = match &self.over_tls {
            Some(over_tls) => ("amqps", over_tls.amqp),
            None => ("amqp", self.amqp),
        };
        format!("{scheme}://{user}:{password}@{address}/%2f")
    }

    /// `http://…` or `https://…` of the management API for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let (scheme, address) = match &self.over_tls {
            Some(over_tls) => ("https", over_tls.management),
            None => ("http", self.management),
        };
        format!("{scheme}://{user}:{password}@{address}")
    }

    /// One request to what lies below `/api/`, over a connection of its own, with a body unless that is null. Returns the status and the answer.
    ///
    /// # Errors
    /// When the server is away or answers no HTTP.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let mut stream = self.dial(self.management)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} /api/{path} HTTP/1.0\r\nAuthorization: {GUEST}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer in HTTP")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok((status, serde_json::from_str(body).unwrap_or_default()))
    }

    /// As [`RabbitMq::call`], for what must succeed.
    ///
    /// # Errors
    /// When the server is away or refuses it.
    pub fn run(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        match self.call(method, path, body)? {
            (200..=299, answer) => Ok(answer),
            (status, answer) => bail!("{method} {path}: {status}: {answer}"),
        }
    }

    /// A consumer of its own in the virtual host `/`, over AMQP.
    ///
    /// # Errors
    /// When the server is away or refuses it.
    pub fn consumer(&self) -> Result<Consumer> {
        Consumer::open(self.dial(self.amqp)?)
    }

    /// Connects from whichever network the caller is in: a socket stays in the network that it was made in.
    fn dial(&self, address: SocketAddr) -> Result<TcpStream> {
        let dial = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
        let stream = match &self.network {
            Some(network) => network::inside(network, dial)?,
            None => dial(),
        };
        stream.with_context(|| format!("connecting to RabbitMQ at {address}"))
    }

    /// Stops the server where it is: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends the server at once. Its data is lost.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.server.wait();
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log/test@localhost.log")).unwrap_or_default()
    }

    /// The script that starts the server, and the server, are one group.
    fn signal(&self, signal: Signal) {
        let group = i32::try_from(self.server.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
        let _ = self.port_mapper.kill();
        let _ = self.port_mapper.wait();
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
