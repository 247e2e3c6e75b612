//! A real Elasticsearch or OpenSearch of a test's own, on loopback or in a cluster's network, from the zips that their makers publish on Maven Central for tests.
//!
//! Runs on Java 17, as an unprivileged user where the test runs as root, and ends with the process that started it, however that ends. These zips hold
//! the server without most of its modules; that of Elasticsearch has the module for users and roles, which are kept in files here, and speaks TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::binaries::cache_dir;
use crate::server_certificate::ServerCertificate;
use crate::{kept, network, packages};

/// Outlives the owner by a moment: waits until the pipe from it closes, then ends the server with all its processes and removes its files. At each line
/// that comes before, the server is killed and started again.
const KEEPER: &str = r#"
trap '' INT TERM HUP
root=$1
shift
begin() {
  setsid "$@" < /dev/null > "$root/log" 2>&1 &
  pid=$!
  echo $pid > "$root/pid"
}
end() {
  kill -s CONT -- "-$pid" 2>/dev/null
  kill -s KILL -- "-$pid" 2>/dev/null
  wait $pid 2>/dev/null
}
begin "$@"
while read -r again; do
  end
  begin "$@"
done
end
rm -rf "$root"
"#;
/// The password of all users.
pub const PASSWORD: &str = "hunter2";
/// What files keep of it.
const HASH: &str = "$2a$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";
/// `admin:hunter2`
const ADMIN: &str = "Basic YWRtaW46aHVudGVyMg==";

/// Which server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Distribution {
    /// Elasticsearch 8.17.0.
    Elasticsearch,
    /// OpenSearch 2.19.3, without users.
    OpenSearch,
}

impl Distribution {
    fn name(self) -> &'static str {
        match self {
            Self::Elasticsearch => "elasticsearch",
            Self::OpenSearch => "opensearch",
        }
    }

    fn artifact(self) -> &'static str {
        match self {
            Self::Elasticsearch => "org.elasticsearch.distribution.integ-test-zip:elasticsearch:8.17.0:zip",
            Self::OpenSearch => "org.opensearch.distribution.integ-test-zip:opensearch:2.19.3:zip",
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Elasticsearch {
    root: PathBuf,
    network: Option<PathBuf>,
    address: SocketAddr,
    distribution: Distribution,
    tls: Option<Tls>,
    keeper: Child,
}

/// How a server is reached that shows a certificate for `localhost`, and in a network namespace for the address that it listens at.
#[derive(Debug)]
struct Tls {
    /// Of the authority, in PEM.
    authority: String,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// Writes a certificate and its key into a directory.
    fn prepare(config: &Path, hosts: &[&str]) -> Result<Self> {
        let shown = ServerCertificate::for_hosts(hosts)?;
        shown.write(config)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(shown.authority.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        Ok(Self { authority: shown.authority, client })
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Elasticsearch {
    /// A new server on 127.0.0.1. Elasticsearch has the user `admin`, who may do everything, and each of `users` with the privileges given as lines of
    /// `roles.yml` for a role of that name.
    ///
    /// # Errors
    /// When Java or Maven is missing, or the server does not start; the message holds the end of its log.
    pub fn on_loopback(distribution: Distribution, users: &[(&str, &str)]) -> Result<Self> {
        Self::create(None, "127.0.0.1", distribution, users)
    }

    /// A new Elasticsearch at `host` inside a network namespace.
    ///
    /// # Errors
    /// As [`Elasticsearch::on_loopback`].
    pub(crate) fn in_network(network: &Path, host: &str, users: &[(&str, &str)]) -> Result<Self> {
        Self::create(Some(network.to_owned()), host, Distribution::Elasticsearch, users)
    }

    fn create(
        network: Option<PathBuf>,
        host: &str,
        distribution: Distribution,
        users: &[(&str, &str)],
    ) -> Result<Self> {
        let programs = programs(distribution)?;
        let name = distribution.name();
        let root = kept::directory(name)?;
        for part in ["config", "data", "logs", "tmp"] {
            fs::create_dir_all(root.join(part)).with_context(|| format!("creating {}", root.display()))?;
        }
        let free = || kept::free_address(network.as_deref(), host);
        let (address, transport) = (free()?, free()?.port());
        let config = root.join("config");
        for entry in fs::read_dir(programs.join("config"))? {
            let from = entry?.path();
            if let Some(file) = from.file_name().filter(|_| from.is_file()) {
                fs::copy(&from, config.join(file))?;
            }
        }
        let at = root.display();
        let mut settings = format!(
            "discovery.type: single-node\nhttp.port: {}\ntransport.port: {}\nnetwork.host: {host}\npath.data: {at}/data\npath.logs: {at}/logs\n\
             cluster.routing.allocation.disk.threshold_enabled: false\nindexing_pressure.memory.limit: 16mb\n",
            address.port(),
            transport
        );
        let hosts: &[&str] = if network.is_some() { &["localhost", host] } else { &["localhost"] };
        let tls = (distribution == Distribution::Elasticsearch).then(|| Tls::prepare(&config, hosts)).transpose()?;
        let mut java =
            format!("-Xms512m\n-Xmx512m\n-XX:+UseSerialGC\n-XX:TieredStopAtLevel=1\n-Djava.io.tmpdir={at}/tmp\n");
        match distribution {
            Distribution::Elasticsearch => {
                settings.push_str("xpack.security.enabled: true\nxpack.security.transport.ssl.enabled: false\nxpack.security.authc.api_key.enabled: true\n");
                settings
                    .push_str("xpack.security.http.ssl: {enabled: true, certificate: server.crt, key: server.key}\n");
                let names = std::iter::once("admin").chain(users.iter().map(|(user, _)| *user));
                fs::write(config.join("users"), names.map(|user| format!("{user}:{HASH}\n")).collect::<String>())?;
                let own = users.iter().map(|(user, _)| format!("{user}:{user}\n"));
                fs::write(config.join("users_roles"), format!("superuser:admin\n{}", own.collect::<String>()))?;
                let roles = users.iter().map(|(user, role)| format!("{user}:\n{role}\n"));
                fs::write(config.join("roles.yml"), roles.collect::<String>())?;
            }
            Distribution::OpenSearch => java.push_str("-Djava.security.manager=allow\n"),
        }
        fs::write(config.join(format!("{name}.yml")), settings)?;
        fs::write(config.join("jvm.options"), java)?;
        let mut server = vec![programs.join("bin").join(name).display().to_string()];
        server.insert(0, "bash".to_owned());
        if rustix::process::getuid().is_root() {
            let owned = Command::new("chown").args(["-R", "nobody"]).arg(&root).status().context("running chown")?;
            if !owned.success() {
                bail!("{} cannot be given to the user nobody", root.display());
            }
            let user = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"];
            server.splice(0..0, user.map(str::to_owned));
        }
        let mut keeper = kept::command(network.as_deref(), Path::new("sh"));
        keeper.args(["-c", KEEPER, "keeper"]).arg(&root).args(server).current_dir(&root).process_group(0);
        for prefix in ["ES", "OPENSEARCH"] {
            keeper.env(format!("{prefix}_PATH_CONF"), &config).env(format!("{prefix}_TMPDIR"), root.join("tmp"));
            keeper.env(format!("{prefix}_JAVA_HOME"), java_home()?);
        }
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = keeper.spawn().with_context(|| format!("starting the keeper of {name}"))?;
        let server = Self { root, network, address, distribution, tls, keeper };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    fn wait_until_it_answers(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(240);
        loop {
            if self.call("GET", "/_cluster/health", &Value::Null).is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            let ended = fs::read_to_string(self.root.join("pid"))
                .is_ok_and(|pid| !pid.trim().is_empty() && !Path::new("/proc").join(pid.trim()).exists());
            if ended || Instant::now() > until {
                let log = fs::read_to_string(self.root.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("{:?} does not start:\n{}", self.distribution, tail.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Kills the server and starts it again with its data.
    ///
    /// # Errors
    /// As [`Elasticsearch::on_loopback`].
    pub fn restart(&mut self) -> Result<()> {
        let pid = || fs::read_to_string(self.root.join("pid")).unwrap_or_default();
        let before = pid();
        let mut keeper = self.keeper.stdin.as_ref().context("the keeper has ended")?;
        keeper.write_all(b"again\n").context("telling the keeper")?;
        while pid() == before || pid().trim().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait_until_it_answers()
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority that signed the server's certificate, in PEM; absent where it speaks no TLS.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.authority.as_str())
    }

    /// `localhost`, or the address in a network namespace, and the port.
    #[must_use]
    pub fn place(&self) -> String {
        match self.network {
            Some(_) => self.address.to_string(),
            None => format!("localhost:{}", self.address.port()),
        }
    }

    /// `https://…` or `http://…` for the user `admin`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_as("admin")
    }

    /// The same for another user.
    #[must_use]
    pub fn url_as(&self, user: &str) -> String {
        self.url_with(&format!("{user}:{PASSWORD}@"))
    }

    /// The same with another credential, which ends with an `@`, or none.
    #[must_use]
    pub fn url_with(&self, credential: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{credential}{}", self.place())
    }

    /// Asks the server as `admin`; returns the status and the JSON.
    ///
    /// # Errors
    /// When the server is away.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, &body)
    }

    /// As [`Elasticsearch::call`], with this text.
    ///
    /// # Errors
    /// When the server is away.
    pub fn send(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        let (status, body) = self.text(method, path, body)?;
        Ok((status, serde_json::from_str(&body).unwrap_or_default()))
    }

    /// As [`Elasticsearch::send`]; returns the body as the server writes it.
    ///
    /// # Errors
    /// When the server is away.
    pub fn text(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let dial = || TcpStream::connect(self.address);
        let stream = match &self.network {
            Some(network) => network::inside(network, dial)?,
            None => dial(),
        }?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from("localhost")?;
                Box::new(StreamOwned::new(ClientConnection::new(Arc::clone(&tls.client), name)?, stream))
            }
        };
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: test\r\nAuthorization: {ADMIN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            // It hangs up without a word of TLS.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            read => drop(read?),
        }
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer in HTTP")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Ok((status, if is_chunked { joined(body).context("a chunk is cut off")? } else { body.to_owned() }))
    }

    /// As [`Elasticsearch::call`], for what must succeed.
    ///
    /// # Errors
    /// When the server is away or refuses it.
    pub fn run(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        match self.call(method, path, body)? {
            (200..=299, answer) => Ok(answer),
            (status, answer) => bail!("{method} {path}: {status}: {answer}"),
        }
    }
}

/// The text that comes in chunks.
fn joined(mut chunks: &str) -> Option<String> {
    let mut text = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(text);
        }
        text.push_str(rest.get(..size)?);
        chunks = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

impl Drop for Elasticsearch {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Where the Java that is found in the path is installed.
fn java_home() -> Result<PathBuf> {
    let found =
        Command::new("sh").args(["-c", "readlink -f \"$(command -v java)\""]).output().context("looking for java")?;
    let program = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    let home = program.parent().and_then(Path::parent).context("java is not installed")?;
    Ok(home.to_owned())
}

/// Fetches the servers that this machine has not got yet. From inside a cluster's network nothing can be fetched.
///
/// # Errors
/// When one cannot be fetched.
pub fn ensure() -> Result<()> {
    for distribution in [Distribution::Elasticsearch, Distribution::OpenSearch] {
        programs(distribution)?;
    }
    Ok(())
}

/// The unpacked server, fetched first where this machine has not got it yet.
fn programs(distribution: Distribution) -> Result<PathBuf> {
    packages::java_and_maven()?;
    let artifact = distribution.artifact();
    let version = artifact.split(':').nth(2).context("an artifact has a version")?;
    let name = format!("{}-{version}", distribution.name());
    // Not in the cache of the user, which another user may not read.
    let shared = if rustix::process::getuid().is_root() {
        PathBuf::from("/var/cache/projectionist-tests")
    } else {
        cache_dir()?
    };
    let dir = shared.join(&name);
    if dir.exists() {
        return Ok(dir.join(&name));
    }
    fs::create_dir_all(&shared)?;
    let _turn = crate::lock::turn(&dir.with_extension("lock"), "another download")?;
    if dir.exists() {
        return Ok(dir.join(&name));
    }
    crate::say(&format!("downloading {name} from Maven Central, once for this machine"));
    let partial = dir.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "dependency:unpack", &format!("-Dartifact={artifact}")]);
    maven.arg(format!("-DoutputDirectory={}", partial.display())).current_dir(&shared);
    let output = maven.stdin(Stdio::null()).output().context("mvn cannot be run")?;
    if !output.status.success() {
        bail!("mvn failed: {}", String::from_utf8_lossy(&output.stdout).trim());
    }
    let readable = Command::new("chmod").args(["-R", "a+rX"]).arg(&partial).status().context("running chmod")?;
    if !readable.success() {
        bail!("{} cannot be made readable", partial.display());
    }
    fs::rename(&partial, &dir).with_context(|| format!("moving {} into place", dir.display()))?;
    Ok(dir.join(&name))
}
