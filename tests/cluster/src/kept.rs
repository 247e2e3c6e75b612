//! A server of one process in a temporary directory, kept: it ends, and its files are removed, with the process that started it, however that ends.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{free_port, network, processes};

/// Outlives the owner by a moment: waits until the pipe from it closes, then ends the server and removes its files.
const KEEPER: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
[ "$(readlink "/proc/$1/cwd")" = "$2" ] && kill -KILL "$1"
rm -rf "$2"
"#;
/// A server that does not answer by then does not start.
const START: Duration = Duration::from_secs(60);

/// A new, empty directory for a server called `name`.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let root = std::env::temp_dir().join(format!("test-{name}-{}-{count}", std::process::id()));
    // One of that name is of an earlier process with this number.
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    Ok(root.canonicalize()?)
}

/// An address at `host` whose port is free, in this network or another one.
pub(crate) fn free_address(network: Option<&Path>, host: &str) -> Result<SocketAddr> {
    let port = match network {
        Some(network) => network::inside(network, || free_port(host))?,
        None => free_port(host),
    }?;
    Ok(SocketAddr::new(host.parse()?, port))
}

/// A program in this network, or in another one.
pub(crate) fn command(network: Option<&Path>, program: impl AsRef<OsStr>) -> Command {
    match network {
        Some(network) => network::command_inside(network, program),
        None => Command::new(program),
    }
}

/// A running (or paused) server with its keeper.
#[derive(Debug)]
pub(crate) struct Kept {
    root: PathBuf,
    server: Child,
    keeper: Child,
}

impl Kept {
    /// Starts `command` in `root`, which is of [`directory`], with what it says going to the file `log` there.
    pub(crate) fn start(root: PathBuf, command: &mut Command) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(root.join("log"))?;
        let server = command
            .current_dir(&root)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper", &server.id().to_string()])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server's keeper")?;
        Ok(Self { root, server, keeper })
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer within a minute; the message holds its log.
    pub(crate) fn wait_until(&mut self, what: &str, answers: impl Fn(&Self) -> bool) -> Result<()> {
        let until = Instant::now() + START;
        while !answers(self) {
            if Instant::now() > until || self.server.try_wait()?.is_some() {
                bail!("{what}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Stops the server where it is: connections stay open and nothing answers. Returns once each of its threads has stopped.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let until = Instant::now() + START;
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
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends the server at once.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.server.wait();
    }

    /// Ends the server at once and starts it again with `command`, on the files that it left.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn restart(&mut self, command: &mut Command) -> Result<()> {
        self.kill();
        // The keeper would remove the files.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        std::mem::forget(std::mem::replace(self, Self::start(self.root.clone(), command)?));
        Ok(())
    }

    /// What the server wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.server.id()) {
            processes::signal(pid, signal);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kill();
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::redis::Answer;
    use crate::{Nats, Prometheus, Redis};

    #[test]
    fn servers_answer_stand_still_and_leave_nothing_behind() {
        let redis = Redis::on_loopback().unwrap();
        assert_eq!(redis.run("PING").unwrap(), Answer::Text("PONG".to_owned()));
        redis.pause();
        redis.resume();
        assert_eq!(redis.run("PING").unwrap(), Answer::Text("PONG".to_owned()));
        let nats = Nats::on_loopback().unwrap();
        assert!(nats.log().contains("Server is ready"), "{}", nats.log());
        let mut prometheus = Prometheus::scraping(nats.address()).unwrap();
        prometheus.kill();
        drop((redis, nats, prometheus));
        let own = format!("-{}-", std::process::id());
        let left: Vec<_> =
            fs::read_dir(std::env::temp_dir()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        let left: Vec<_> = left.into_iter().filter(|name| name.to_string_lossy().contains(&own)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
