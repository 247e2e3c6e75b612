//! Finding and ending the processes of one instance, and no other: by pid file and start time, by network namespace, by cgroup.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::instance::Instance;

/// Notes that the program `name` runs as process `pid`.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn note_pid(instance: &Instance, name: &str, pid: u32) -> Result<()> {
    let dir = instance.run().join("pids");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let pid = i32::try_from(pid)?;
    let started = start_time(pid).unwrap_or(0);
    fs::write(dir.join(name), format!("{pid} {started}\n")).with_context(|| format!("noting the pid of {name}"))
}

/// The process that runs the program `name`, if it is alive.
pub(crate) fn noted_pid(instance: &Instance, name: &str) -> Option<i32> {
    live_pid(&instance.run().join("pids").join(name))
}

/// Every living process of the instance except this one and those it descends from, such as a shell inside the cluster's network.
pub(crate) fn of_instance(instance: &Instance) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = BTreeSet::new();
    let pid_files = fs::read_dir(instance.run().join("pids")).into_iter().flatten().flatten();
    found.extend(pid_files.filter_map(|entry| live_pid(&entry.path())));
    let namespace = fs::metadata(instance.network_namespace()).ok().map(|file| (file.dev(), file.ino()));
    let socket = instance.containerd_socket().display().to_string();
    for pid in all() {
        let here = fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|file| (file.dev(), file.ino()));
        if (namespace.is_some() && here == namespace) || is_shim(pid, &socket) {
            found.insert(pid);
        }
    }
    for cgroup in cgroups(instance) {
        collect_cgroup(&cgroup, &mut found);
    }
    let mut own = Some(i32::try_from(std::process::id()).unwrap_or(0));
    while let Some(pid) = own.filter(|pid| *pid > 1) {
        found.remove(&pid);
        own = parent(pid);
    }
    found.retain(|pid| is_alive(*pid));
    found
}

/// The processes in a pod's containers, which have its name for their host's.
pub(crate) fn of_pod(instance: &Instance, pod: &str) -> Vec<i32> {
    let host = format!("HOSTNAME={pod}");
    let is_there = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == host.as_bytes())
    };
    of_instance(instance).into_iter().filter(is_there).collect()
}

/// Kills all processes of the instance and waits until they are gone, for 15 seconds at most. Returns those that would not go.
pub(crate) fn kill_all(instance: &Instance) -> BTreeSet<i32> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        // Again and again: one of them may have been just about to start another.
        let left = of_instance(instance);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        for pid in &left {
            signal(*pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The instance's cgroups, one for each hierarchy that is mounted.
pub(crate) fn cgroups(instance: &Instance) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|root| root.join(instance.unique_name())).filter(|path| path.is_dir()).collect()
}

/// The roots of the mounted cgroup hierarchies: one for version 2, one a controller for version 1.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// All processes whose parent is `pid`.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    all().into_iter().filter(|child| parent(*child) == Some(pid)).collect()
}

/// Whether the process runs; one that only waits to be reaped does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields.first().map(String::as_str), Some("Z" | "X")))
}

fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn live_pid(file: &Path) -> Option<i32> {
    let text = fs::read_to_string(file).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let pid = pid.parse().ok()?;
    // A pid alone may by now be another's.
    (start_time(pid) == started.parse().ok() && is_alive(pid)).then_some(pid)
}

fn is_shim(pid: i32, socket: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"))
            && words.contains(&socket.as_bytes())
    })
}

fn collect_cgroup(dir: &Path, found: &mut BTreeSet<i32>) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_cgroup(&entry.path(), found);
        }
    }
}

/// The fields of /proc/pid/stat from the state on (the third in proc(5)): the name before them may itself hold spaces.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn start_time(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}
