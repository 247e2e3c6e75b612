//! A real Kafka broker (KRaft, one process) of a test's own, on loopback or in a cluster's network, and a process with Kafka's own client library for what tests do to it.
//! [`Brokers`] are several that make one cluster.
//!
//! Brokers and client come from Maven Central and run on Java 17 or newer. All end with the process that started them, however that ends.

mod brokers;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::binaries::{cache_dir, short_hash};
use crate::server_certificate::ServerCertificate;
use crate::{free_port, kept, network, packages};
pub use brokers::Brokers;

const POM: &str = include_str!("../binaries/kafka/pom.xml");
const DRIVER: &str = include_str!("../binaries/kafka/Driver.java");
/// The user whom SASL PLAIN knows.
pub const PLAIN_USER: &str = "plain-user";
/// The password of that user.
pub const PLAIN_PASSWORD: &str = "plain-canary";

/// Outlives the owner by a moment: kills, starts, halts and continues the program as the pipe from the owner says, and when that closes, ends the program and
/// removes its files.
const KEEPER: &str = r#"
trap '' INT TERM HUP
root=$1
shift
start() {
    "$@" < /dev/null > "$root/log" 2>&1 &
    pid=$!
    echo $pid > "$root/pid"
}
end() {
    kill -CONT $pid 2>/dev/null
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
}
start "$@"
while read -r word; do
    case $word in
        kill) end; : > "$root/log"; : > "$root/pid" ;;
        start) start "$@" ;;
        halt) kill -STOP $pid ;;
        continue) kill -CONT $pid ;;
    esac
done
end
rm -rf "$root"
"#;

/// The ways in. Each has a port of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Listener {
    /// No TLS, no user. May do everything.
    Plaintext,
    /// SASL PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER (tokens that nothing signs, whose claim `sub` is the user) without TLS.
    Sasl,
    /// TLS without a client certificate. May do everything.
    Tls,
    /// TLS that requires a client certificate, whose subject is the user.
    MutualTls,
}

/// Those with TLS come last: a broker without certificates has none of them.
const LISTENERS: [(Listener, &str, &str); 4] = [
    (Listener::Plaintext, "OPEN", "PLAINTEXT"),
    (Listener::Sasl, "SASL", "SASL_PLAINTEXT"),
    (Listener::Tls, "TLS", "SSL"),
    (Listener::MutualTls, "MTLS", "SSL"),
];
const WITHOUT_TLS: usize = 2;

/// Certificates for the listeners with TLS, as PEM.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The broker's certificate.
    pub certificate: String,
    /// Its key (PKCS #8).
    pub key: String,
    /// The authority that client certificates are signed by.
    pub client_ca: String,
}

const BROKER_MEMORY: &str = "-Xmx320m";

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    root: PathBuf,
    place: Place,
    /// That of each listener, and of the controller.
    ports: Vec<u16>,
    keeper: Child,
    driver: Option<Driver>,
}

/// The process with Kafka's client library.
#[derive(Debug)]
struct Driver {
    process: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Driver {
    fn start(place: &Place, programs: &Path, servers: &str) -> Result<Self> {
        let mut driver = place.java(programs, BROKER_MEMORY);
        driver.args(["Driver", servers]);
        let mut process = driver.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (input, output) = process.stdin.take().zip(process.stdout.take()).context("the driver has no pipes")?;
        let driver = Self { process, pipes: Mutex::new((input, BufReader::new(output))) };
        driver.ask(&["topics"])?;
        Ok(driver)
    }

    fn ask(&self, command: &[&str]) -> Result<String> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipes.0, "{}", command.join("\t"))?;
        let mut answer = String::new();
        pipes.1.read_line(&mut answer)?;
        match answer.trim_end_matches('\n').strip_prefix("ok ") {
            Some(text) => Ok(text.to_owned()),
            None => bail!("{command:?}: {}", if answer.is_empty() { "the driver has ended" } else { answer.as_str() }),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where a broker listens.
#[derive(Clone, Debug)]
struct Place {
    network: Option<PathBuf>,
    host: IpAddr,
}

impl Place {
    /// Does something in the broker's network.
    fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        match &self.network {
            Some(network) => network::inside(network, body),
            None => Ok(body()),
        }
    }

    fn command(&self, program: &str) -> Command {
        kept::command(self.network.as_deref(), program)
    }

    fn java(&self, programs: &Path, memory: &str) -> Command {
        let mut command = self.command("java");
        let classes = format!("{}:{}/*", programs.display(), programs.display());
        command.args([memory, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &classes]).stdin(Stdio::null());
        command
    }
}

impl Kafka {
    /// A new broker on 127.0.0.1. Users other than the anonymous one may do only what [`Kafka::ask`]'s `allow` says.
    ///
    /// # Errors
    /// When Java or Maven is missing, or the broker does not start; the message holds the end of its log.
    pub fn on_loopback(certificates: &Certificates) -> Result<Self> {
        Self::create(&Place { network: None, host: Ipv4Addr::LOCALHOST.into() }, Some(certificates))
    }

    /// A new broker on 127.0.0.1 with the listeners that have no TLS.
    ///
    /// # Errors
    /// As [`Kafka::on_loopback`].
    pub fn on_loopback_without_tls() -> Result<Self> {
        Self::create(&Place { network: None, host: Ipv4Addr::LOCALHOST.into() }, None)
    }

    /// A new broker at `host` inside a network namespace, without a certificate with the listeners that have no TLS.
    ///
    /// # Errors
    /// As [`Kafka::on_loopback`].
    pub(crate) fn in_network(network: &Path, host: &str, certificate: Option<&ServerCertificate>) -> Result<Self> {
        let certificates = certificate.map(|server| Certificates {
            certificate: server.certificate.clone(),
            key: server.key.clone(),
            client_ca: server.authority.clone(),
        });
        Self::create(&Place { network: Some(network.to_owned()), host: host.parse()? }, certificates.as_ref())
    }

    fn create(place: &Place, certificates: Option<&Certificates>) -> Result<Self> {
        let programs = programs()?;
        let mut attempt = 1;
        loop {
            match Self::start(&programs, place, certificates) {
                // Another process may have taken a port between our asking and the broker's.
                Err(_) if attempt < 3 => attempt += 1,
                done => return done,
            }
        }
    }

    fn start(programs: &Path, place: &Place, certificates: Option<&Certificates>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("test-kafka-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let listeners = if certificates.is_some() { LISTENERS.len() } else { WITHOUT_TLS };
        let ports = place.inside(|| free_ports(place.host, listeners + 1))??;
        let settings = root.join("server.properties");
        fs::write(&settings, properties(&root, place.host, &ports, certificates.is_some()))?;
        if let Some(certificates) = certificates {
            fs::write(root.join("server.pem"), format!("{}{}", certificates.key, certificates.certificate))?;
            fs::write(root.join("clients.pem"), &certificates.client_ca)?;
        }
        format_storage(place, programs, &settings)?;
        let keeper = keep(&root, &broker_of(place, programs, BROKER_MEMORY, &settings))?;
        let mut kafka = Self { root, place: place.clone(), ports, keeper, driver: None };
        wait_until_it_listens(&kafka.root, place, &kafka.ports)?;
        kafka.driver = Some(Driver::start(place, programs, &kafka.address(Listener::Plaintext).to_string())?);
        Ok(kafka)
    }

    /// Where a listener is.
    #[must_use]
    pub fn address(&self, listener: Listener) -> SocketAddr {
        let found = LISTENERS.iter().zip(&self.ports).find(|((one, _, _), _)| *one == listener);
        SocketAddr::from((self.place.host, found.map_or(0, |(_, port)| *port)))
    }

    /// Has Kafka's own client library do something; `Driver.java` lists the commands. Returns what it answers.
    ///
    /// # Errors
    /// What the library says.
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        self.driver.as_ref().context("the driver has not started")?.ask(command)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        drop(self.driver.take());
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn format_storage(place: &Place, programs: &Path, settings: &Path) -> Result<()> {
    let format = place
        .java(programs, BROKER_MEMORY)
        .args(["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c"])
        .arg(settings)
        .output()
        .context("running java")?;
    if !format.status.success() {
        bail!("formatting Kafka's storage failed: {}", String::from_utf8_lossy(&format.stderr));
    }
    Ok(())
}

fn broker_of(place: &Place, programs: &Path, memory: &str, settings: &Path) -> Command {
    let mut broker = place.java(programs, memory);
    broker.arg("kafka.Kafka").arg(settings);
    broker
}

/// Starts a broker whose log and process id are in `root`.
fn keep(root: &Path, broker: &Command) -> Result<Child> {
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER, "keeper"]).arg(root).arg(broker.get_program()).args(broker.get_args());
    keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    keeper.spawn().context("starting Kafka's keeper")
}

fn wait_until_it_listens(root: &Path, place: &Place, ports: &[u16]) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(180);
    loop {
        let log = fs::read_to_string(root.join("log")).unwrap_or_default();
        let listens = || ports.iter().all(|port| TcpStream::connect((place.host, *port)).is_ok());
        if log.contains("Kafka Server started") || place.inside(listens)? {
            return Ok(());
        }
        // One that has ended is a zombie until its keeper asks for it.
        let gone = |pid: &str| {
            let state = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
            state.map_or(true, |state| state.contains(") Z "))
        };
        let ended = fs::read_to_string(root.join("pid")).is_ok_and(|pid| !pid.trim().is_empty() && gone(pid.trim()));
        if ended || Instant::now() > until {
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("Kafka does not start:\n{}", tail.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn free_ports(host: IpAddr, count: usize) -> Result<Vec<u16>> {
    (0..count).map(|_| free_port(&host.to_string())).collect()
}

/// `ports`: that of each listener, and of the controller.
fn properties(root: &Path, host: IpAddr, ports: &[u16], tls: bool) -> String {
    let (controller, ports) = ports.split_last().map_or((0, ports), |(controller, ports)| (*controller, ports));
    let each = |form: &dyn Fn(&str, &str, u16) -> String| {
        LISTENERS
            .iter()
            .zip(ports)
            .map(|((_, name, protocol), port)| form(name, protocol, *port))
            .collect::<Vec<_>>()
            .join(",")
    };
    let advertised = each(&|name, _, port| format!("{name}://{host}:{port}"));
    let protocols = each(&|name, protocol, _| format!("{name}:{protocol}"));
    let root = root.display();
    let certificates = format!(
        "ssl.keystore.type=PEM\nssl.keystore.location={root}/server.pem\nssl.truststore.type=PEM\nssl.truststore.location={root}/clients.pem\n\
         listener.name.mtls.ssl.client.auth=required\n"
    );
    let certificates = if tls { certificates.as_str() } else { "" };
    format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{host}:{controller}\n\
         listeners={advertised},CONTROLLER://{host}:{controller}\nadvertised.listeners={advertised}\n\
         listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT\ncontroller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=OPEN\nlog.dirs={root}/data\nnum.network.threads=2\nnum.io.threads=4\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=3\ntransaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\ntransaction.state.log.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nsuper.users=User:ANONYMOUS\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
         listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{PLAIN_USER}=\"{PLAIN_PASSWORD}\";\n\
         listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
         listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
         listener.name.sasl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;\n\
         listener.name.sasl.oauthbearer.sasl.server.callback.handler.class=org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler\n\
         {certificates}log.cleaner.backoff.ms=200\nlog.segment.delete.delay.ms=100\nlog.retention.check.interval.ms=500\n"
    )
}

/// Fetches what a broker needs, where this machine has not got it yet. From inside a cluster's network nothing can be fetched.
///
/// # Errors
/// When it cannot be fetched or compiled.
pub fn ensure() -> Result<()> {
    programs().map(drop)
}

/// The jars and the compiled driver, made first where this machine has not got them yet.
fn programs() -> Result<PathBuf> {
    packages::java_and_maven()?;
    let dir = cache_dir()?.join(format!("kafka-{}", short_hash(&[POM.as_bytes(), DRIVER.as_bytes()])));
    if dir.exists() {
        return Ok(dir);
    }
    let parent = dir.parent().context("the cache directory has no parent")?;
    fs::create_dir_all(parent)?;
    let _turn = crate::lock::turn(&dir.with_extension("lock"), "another download of Kafka")?;
    if dir.exists() {
        return Ok(dir);
    }
    crate::say("downloading Kafka from Maven Central, once for this machine (45 MB)");
    let partial = dir.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    fs::write(partial.join("pom.xml"), POM)?;
    fs::write(partial.join("Driver.java"), DRIVER)?;
    let mut maven = Command::new("mvn");
    maven.current_dir(&partial).args([
        "--quiet",
        "--batch-mode",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        &format!("-DoutputDirectory={}", partial.display()),
    ]);
    run(&mut maven)?;
    let mut javac = Command::new("javac");
    javac.current_dir(&partial).args(["-cp", "./*", "Driver.java"]);
    run(&mut javac)?;
    fs::rename(&partial, &dir).with_context(|| format!("moving {} into place", dir.display()))?;
    Ok(dir)
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{name} failed: {}", String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}
