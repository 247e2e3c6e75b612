//! A real Redis server of a test's own: in a cluster's network, where pods reach it, or on loopback for tests without a cluster.
//!
//! It runs in a temporary directory and ends with the process that started it, however that ends. Nothing is written to disk unless a test asks for it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kept::{self, Kept};
use crate::server_certificate::ServerCertificate;
use crate::{network, packages};

/// What the server answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// There is no such thing.
    Nil,
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
    /// Several answers.
    Array(Vec<Answer>),
}

impl Answer {
    /// The text of it.
    ///
    /// # Panics
    /// When it is something else.
    #[must_use]
    #[allow(clippy::panic)]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("no text: {other:?}"),
        }
    }
}

/// A running (or paused) server.
#[derive(Debug)]
pub struct Redis {
    network: Option<PathBuf>,
    address: SocketAddr,
    arguments: Vec<String>,
    speaks_tls: bool,
    kept: Kept,
}

impl Redis {
    /// A new server on 127.0.0.1, at a port that was free. Needs no root and no cluster.
    ///
    /// # Errors
    /// When Redis is not installed or does not start; the message holds the end of its log.
    pub fn on_loopback() -> Result<Self> {
        Self::with("")
    }

    /// A new server with further lines of configuration. With `port 0` in them, the free port is left for what they say: `{port}` stands for it.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn with(configuration: &str) -> Result<Self> {
        Self::create(None, "127.0.0.1", configuration, &[], None)
    }

    /// A node of a cluster that is to be made, with further lines of configuration: it holds no slot and knows no other node. Returns its port for other
    /// nodes as well.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn cluster_node(configuration: &str) -> Result<(Self, u16)> {
        Self::node(None, "127.0.0.1", configuration)
    }

    pub(crate) fn node(network: Option<&Path>, host: &str, configuration: &str) -> Result<(Self, u16)> {
        // Unless it is told, that port is 10,000 above the other, where there may be none.
        let bus = kept::free_address(network, host)?.port();
        let configuration = format!("cluster-enabled yes\ncluster-port {bus}\n{configuration}");
        Ok((Self::create(network.map(Path::to_owned), host, &configuration, &[], None)?, bus))
    }

    /// A Sentinel that watches nothing.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn sentinel() -> Result<Self> {
        Self::sentinel_with("")
    }

    /// The same with further lines of configuration, as for [`Redis::with`].
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn sentinel_with(configuration: &str) -> Result<Self> {
        Self::create(None, "127.0.0.1", configuration, &["--sentinel"], None)
    }

    /// A new server on 127.0.0.1 that speaks TLS alone.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn on_loopback_with_tls(certificate: &ServerCertificate) -> Result<Self> {
        Self::create(None, "127.0.0.1", "", &[], Some(certificate))
    }

    /// A new server at `address` inside a network namespace, open to all that is in it. With a certificate it speaks TLS alone.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub(crate) fn in_network(network: &Path, address: &str, certificate: Option<&ServerCertificate>) -> Result<Self> {
        Self::create(Some(network.to_owned()), address, "protected-mode no", &[], certificate)
    }

    fn create(
        network: Option<PathBuf>,
        host: &str,
        configuration: &str,
        arguments: &[&str],
        certificate: Option<&ServerCertificate>,
    ) -> Result<Self> {
        let root = kept::directory("redis")?;
        let address = kept::free_address(network.as_deref(), host)?;
        let port = address.port().to_string();
        let mut settings = format!(
            "bind {host}\nport {port}\nsave \"\"\nappendonly no\ndir {}\nlogfile {}\n{}\n",
            root.display(),
            root.join("log").display(),
            configuration.replace("{port}", &port),
        );
        if let Some(certificate) = certificate {
            let (certificate, key) = certificate.write(&root)?;
            let (certificate, key) = (certificate.display(), key.display());
            settings.push_str(&format!(
                "port 0\ntls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-auth-clients no\n"
            ));
        }
        fs::write(root.join("redis.conf"), settings)?;
        let arguments =
            [vec![root.join("redis.conf").display().to_string()], arguments.iter().map(ToString::to_string).collect()];
        let mut server = Self {
            kept: Kept::start(root, &mut program(network.as_deref(), &arguments.concat())?)?,
            network,
            address,
            arguments: arguments.concat(),
            speaks_tls: certificate.is_some(),
        };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> Result<()> {
        let (network, address) = (self.network.as_deref(), self.address);
        self.kept.wait_until(&format!("redis-server does not listen at {address}"), |_| dial(network, address).is_ok())
    }

    /// Ends the server at once and starts it again. Its data is what it has written to disk, which must be asked for: `appendonly yes`.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn restart(&mut self) -> Result<()> {
        self.kept.restart(&mut program(self.network.as_deref(), &self.arguments)?)?;
        self.wait()
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `redis://…` or `rediss://…` for the default user.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.address)
    }

    fn scheme(&self) -> &'static str {
        if self.speaks_tls { "rediss" } else { "redis" }
    }

    /// The same for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("{}://{user}:{password}@{}", self.scheme(), self.address)
    }

    /// Runs one command as the default user, its words separated by blanks, over a connection of its own.
    ///
    /// # Errors
    /// When the server is away, refuses it, or speaks TLS alone.
    pub fn run(&self, command: &str) -> Result<Answer> {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.run_all(&[&words])?.pop().context("no answer")
    }

    /// Runs commands in one round trip.
    ///
    /// # Errors
    /// When the server is away or refuses one of them.
    pub fn run_all(&self, commands: &[&[&str]]) -> Result<Vec<Answer>> {
        let mut stream = dial(self.network.as_deref(), self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut request = String::new();
        for words in commands {
            request.push_str(&format!("*{}\r\n", words.len()));
            words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        }
        let mut reader = BufReader::new(stream.try_clone()?);
        let writer = std::thread::spawn(move || stream.write_all(request.as_bytes()));
        let answers = commands.iter().map(|words| answer(&mut reader).with_context(|| format!("{words:?}"))).collect();
        let _ = writer.join();
        answers
    }

    /// Stops the server where it is: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.kept.pause();
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.kept.resume();
    }

    /// Ends the server at once. Its data is lost.
    pub fn kill(&mut self) {
        self.kept.kill();
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.kept.log()
    }
}

fn program(network: Option<&Path>, arguments: &[String]) -> Result<std::process::Command> {
    let mut program = kept::command(network, &packages::redis_server()?);
    program.args(arguments);
    Ok(program)
}

/// Connects from whichever network the caller is in: a socket stays in the network that it was made in.
fn dial(network: Option<&Path>, address: SocketAddr) -> Result<TcpStream> {
    let dial = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let stream = match network {
        Some(network) => network::inside(network, dial)?,
        None => dial(),
    };
    stream.with_context(|| format!("connecting to Redis at {address}"))
}

fn answer(reader: &mut impl BufRead) -> Result<Answer> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (kind, rest) = line.trim_end().split_at_checked(1).context("the server hung up")?;
    Ok(match kind {
        "+" => Answer::Text(rest.to_owned()),
        ":" => Answer::Integer(rest.parse()?),
        "$" if rest == "-1" => Answer::Nil,
        "$" => {
            let mut text = vec![0; rest.parse::<usize>()? + 2];
            reader.read_exact(&mut text)?;
            text.truncate(text.len() - 2);
            Answer::Text(String::from_utf8_lossy(&text).into_owned())
        }
        "*" if rest == "-1" => Answer::Nil,
        "*" => Answer::Array((0..rest.parse::<usize>()?).map(|_| answer(reader)).collect::<Result<_>>()?),
        _ => bail!("{}", line.trim_end()),
    })
}
