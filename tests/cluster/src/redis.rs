//! A real Redis server of a test's own: in a cluster's network, where pods reach it, or on loopback for tests without a cluster.
//!
//! It runs in a temporary directory and ends with the process that started it, however that ends. Nothing is written to disk.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{network, packages, processes};

/// Outlives the owner by a moment: waits until the pipe from it closes, then ends the server and removes its files.
pub(crate) const KEEPER: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
[ "$(readlink "/proc/$1/cwd")" = "$2" ] && kill -KILL "$1"
rm -rf "$2"
"#;

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
    root: PathBuf,
    network: Option<PathBuf>,
    address: SocketAddr,
    server: Child,
    keeper: Child,
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
        Self::create(None, "127.0.0.1", configuration, &[])
    }

    /// A node of a cluster that is to be made, with further lines of configuration: it holds no slot and knows no other node. Returns its port for other
    /// nodes as well.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn cluster_node(configuration: &str) -> Result<(Self, u16)> {
        // Unless it is told, that port is 10,000 above the other, where there may be none.
        let bus = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let configuration = format!("cluster-enabled yes\ncluster-port {bus}\n{configuration}");
        Ok((Self::create(None, "127.0.0.1", &configuration, &[])?, bus))
    }

    /// A Sentinel that watches nothing.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub fn sentinel() -> Result<Self> {
        Self::create(None, "127.0.0.1", "", &["--sentinel"])
    }

    /// A new server at `address` inside a network namespace, open to all that is in it.
    ///
    /// # Errors
    /// As [`Redis::on_loopback`].
    pub(crate) fn in_network(network: &Path, address: &str) -> Result<Self> {
        Self::create(Some(network.to_owned()), address, "protected-mode no", &[])
    }

    fn create(network: Option<PathBuf>, host: &str, configuration: &str, arguments: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let program = packages::redis_server()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("test-redis-{}-{count}", std::process::id()));
        // One of that name is of an earlier process with this number.
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let root = root.canonicalize()?;
        let ask = || TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
        let address = match &network {
            Some(network) => network::inside(network, ask)?,
            None => ask(),
        }
        .with_context(|| format!("finding a free port at {host}"))?;
        let port = address.port().to_string();
        let settings = format!(
            "bind {host}\nport {port}\nsave \"\"\nappendonly no\ndir {}\nlogfile {}\n{}\n",
            root.display(),
            root.join("log").display(),
            configuration.replace("{port}", &port),
        );
        fs::write(root.join("redis.conf"), settings)?;
        let mut server = match &network {
            Some(network) => network::command_inside(network, program),
            None => Command::new(program),
        };
        let server = server
            .arg(root.join("redis.conf"))
            .args(arguments)
            .current_dir(&root)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting redis-server")?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper", &server.id().to_string()])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server's keeper")?;
        let mut redis = Self { root, network, address, server, keeper };
        let until = Instant::now() + Duration::from_secs(60);
        while redis.dial().is_err() {
            if Instant::now() > until || redis.server.try_wait()?.is_some() {
                bail!("redis-server does not listen at {address}: {}", redis.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(redis)
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `redis://…` for the default user.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// `redis://…` for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@{}", self.address)
    }

    /// Runs one command as the default user, its words separated by blanks, over a connection of its own.
    ///
    /// # Errors
    /// When the server is away or refuses it.
    pub fn run(&self, command: &str) -> Result<Answer> {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.run_all(&[&words])?.pop().context("no answer")
    }

    /// Runs commands in one round trip.
    ///
    /// # Errors
    /// When the server is away or refuses one of them.
    pub fn run_all(&self, commands: &[&[&str]]) -> Result<Vec<Answer>> {
        let mut stream = self.dial()?;
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
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// Connects from whichever network the caller is in: a socket stays in the network that it was made in.
    fn dial(&self) -> Result<TcpStream> {
        let dial = || TcpStream::connect_timeout(&self.address, Duration::from_secs(10));
        let stream = match &self.network {
            Some(network) => network::inside(network, dial)?,
            None => dial(),
        };
        stream.with_context(|| format!("connecting to Redis at {}", self.address))
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.server.id()) {
            processes::signal(pid, signal);
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
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
