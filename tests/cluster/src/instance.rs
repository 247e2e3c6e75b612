//! One named instance of the test cluster: where its files are, and the lock that says who owns it.
//!
//! Two instances share nothing: network namespace, cgroup, container state and files all carry the name. Everything that has to
//! vanish lives under `/run/test-cluster` and `/var/lib/test-cluster`; logs and kubeconfig live in the caller's directory and stay.
//! This module starts and stops nothing.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Sockets, pid files, mounts of network namespaces, locks. Short, because a Unix socket's path holds 107 bytes at most.
pub const RUN_ROOT: &str = "/run/test-cluster";
/// What needs a disk: container layers, pod volumes, the cluster's store and keys.
pub const STATE_ROOT: &str = "/var/lib/test-cluster";

/// The name of an instance and the directory that keeps its logs and kubeconfig.
#[derive(Debug, Clone)]
pub struct Instance {
    name: String,
    dir: PathBuf,
}

impl Instance {
    /// An instance called `name` that keeps its logs and kubeconfig in `dir`, by default `target/test-cluster/<name>`.
    ///
    /// # Errors
    /// When the name is not 1 to 40 lower-case letters, digits and dashes: it becomes part of paths and of a cgroup's name.
    pub fn new(name: &str, dir: Option<PathBuf>) -> Result<Self> {
        let fits = (1..=40).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !fits {
            bail!("the cluster name {name:?} does not fit: use 1 to 40 lower-case letters, digits and dashes");
        }
        let dir = dir.unwrap_or_else(|| target_dir().join("test-cluster").join(name));
        Ok(Self { name: name.to_owned(), dir: std::path::absolute(&dir).unwrap_or(dir) })
    }

    /// The running instance called `name`, with the directory that it was started with.
    ///
    /// # Errors
    /// When no instance of that name is up.
    pub fn running(name: &str) -> Result<Self> {
        let instance = Self::new(name, None)?;
        if Lock::owner(&instance).is_none() {
            bail!(
                "no test cluster called {name:?} is up: start it with `make cluster` or `test-cluster up --name {name}`"
            );
        }
        Ok(Self { dir: instance.recorded_dir().unwrap_or(instance.dir), ..instance })
    }

    /// The names of all instances that left anything on this machine, running or not.
    #[must_use]
    pub fn all_names() -> Vec<String> {
        let mut names: Vec<String> = [RUN_ROOT, STATE_ROOT]
            .iter()
            .flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| name.trim_end_matches(".lock").to_owned())
            .filter(|name| Self::new(name, None).is_ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// What the instance is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of logs and kubeconfig, which outlives the instance.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of all logs: one file a component, and `pods/` with the containers' own.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The kubeconfig of a cluster administrator. Its server answers only inside [`Instance::network_namespace`].
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The runtime directory: sockets, pid files and mounts.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.name)
    }

    /// The state directory: container layers, pod volumes, store, keys.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.name)
    }

    /// The file that keeps the network namespace alive, for `nsenter --net=`.
    #[must_use]
    pub fn network_namespace(&self) -> PathBuf {
        self.run().join("net")
    }

    /// The socket of the instance's own containerd.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.run().join("containerd.sock")
    }

    /// The name of the cgroup above all of the instance's pods, and of its pod network.
    #[must_use]
    pub fn unique_name(&self) -> String {
        format!("test-cluster-{}", self.name)
    }

    /// Remembers the directory for those who know only the name.
    pub(crate) fn record_dir(&self) -> Result<()> {
        let path = self.run().join("dir");
        fs::write(&path, self.dir.as_os_str().as_encoded_bytes()).with_context(|| format!("writing {}", path.display()))
    }

    /// The directory that the instance was started with, where that is still known.
    pub(crate) fn recorded_dir(&self) -> Option<PathBuf> {
        fs::read_to_string(self.run().join("dir")).ok().map(PathBuf::from)
    }

    fn lock_path(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(format!("{}.lock", self.name))
    }
}

/// The proof that this process owns an instance. The kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the instance's lock, or says which process holds it.
    ///
    /// # Errors
    /// When another process owns the instance, or this one may not write to `/run`.
    pub fn take(instance: &Instance) -> Result<Self> {
        fs::create_dir_all(RUN_ROOT).with_context(|| format!("creating {RUN_ROOT} (the test cluster needs root)"))?;
        let path = instance.lock_path();
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let owner = read_owner(&mut file);
                bail!(
                    "the test cluster {name:?} is already up, owned by {owner}: use it (PROJECTIONIST_CLUSTER={name}), \
                     take it down (`test-cluster down --name {name}`), or choose another --name",
                    name = instance.name
                );
            }
            // The one before may have removed the file between our opening and locking it: then we hold the lock of nothing.
            let same = fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
            if same {
                let mut lock = Self { file, path };
                lock.sign()?;
                return Ok(lock);
            }
        }
    }

    /// Takes the lock as soon as its holder lets go of it.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub fn wait(instance: &Instance, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::take(instance) {
                Ok(lock) => return Ok(lock),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The pid that owns the instance, if any does.
    #[must_use]
    pub fn owner(instance: &Instance) -> Option<i32> {
        let mut file = File::open(instance.lock_path()).ok()?;
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None;
        }
        read_owner(&mut file).strip_prefix("pid ")?.split_whitespace().next()?.parse().ok()
    }

    /// Removes the lock's file, then the directories of all instances if this was the last.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
        crate::kernel::put_back();
        let _ = fs::remove_dir(RUN_ROOT);
        let _ = fs::remove_dir(STATE_ROOT);
    }

    fn sign(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        let place = std::env::current_dir().unwrap_or_default();
        writeln!(self.file, "pid {} in {}", std::process::id(), place.display())?;
        Ok(())
    }
}

fn read_owner(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "a process that is only starting".to_owned(),
    }
}

/// The root of the workspace that this crate was built in.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Cargo's target directory.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}
