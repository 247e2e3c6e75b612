//! Takes an instance down so that nothing stays but its logs and kubeconfig, whether it was running well or its owner was killed.
//!
//! No program is asked to end in an orderly way: all of it is thrown away. Each step works alone, so that half an instance goes too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::instance::{Instance, Lock};
use crate::processes;

/// Takes the running or left-over instance down, whichever process owns it.
///
/// # Errors
/// When something would not go; the message lists it.
pub fn down(instance: &Instance) -> Result<()> {
    if let Some(owner) = Lock::owner(instance) {
        processes::signal(owner, Signal::TERM);
    }
    let lock = match Lock::wait(instance, Duration::from_secs(20)) {
        Ok(lock) => lock,
        Err(_) => {
            // The owner hangs. It has no state worth asking for.
            if let Some(owner) = Lock::owner(instance) {
                processes::signal(owner, Signal::KILL);
            }
            Lock::wait(instance, Duration::from_secs(5))?
        }
    };
    clean(instance, lock)
}

/// Takes down every instance whose owner is gone. What cannot be cleaned is said and left.
pub(crate) fn sweep() {
    for name in Instance::all_names() {
        let Ok(instance) = Instance::new(&name, None) else {
            continue;
        };
        let Ok(lock) = Lock::take(&instance) else {
            continue;
        };
        if instance.run().exists() || instance.state().exists() {
            crate::say(&format!("cleaning up the test cluster {name:?}, whose owner is gone"));
        }
        if let Err(error) = clean(&instance, lock) {
            crate::say(&format!("{error:#}"));
        }
    }
}

/// Removes everything of the instance, then its lock.
///
/// # Errors
/// When something would not go; the message lists it.
pub(crate) fn clean(instance: &Instance, lock: Lock) -> Result<()> {
    remove_all(instance)?;
    lock.remove();
    Ok(())
}

/// Removes everything of the instance but its lock.
pub(crate) fn remove_all(instance: &Instance) -> Result<()> {
    let instance = &match instance.recorded_dir() {
        Some(dir) => Instance::new(instance.name(), Some(dir))?,
        None => instance.clone(),
    };
    let stubborn = processes::kill_all(instance);
    let (shims, sandboxes) = (shim_sockets(instance), sandboxes(instance));
    unmount_below(&[instance.run(), instance.state()]);
    for socket in shims {
        let _ = fs::remove_file(socket);
    }
    remove_cgroups(instance);
    remove_traces(instance, &sandboxes);
    for dir in [instance.run(), instance.state()] {
        let _ = fs::remove_dir_all(dir);
    }
    let left = remains(instance, &stubborn);
    if left.is_empty() {
        return Ok(());
    }
    bail!("the test cluster {:?} left behind: {}", instance.name(), left.join(", "))
}

/// Everything of the instance that is still on this machine, other than logs and kubeconfig.
#[must_use]
pub fn remains(instance: &Instance, processes: &BTreeSet<i32>) -> Vec<String> {
    let mut left: Vec<String> = processes.iter().map(|pid| format!("process {pid}")).collect();
    left.extend(
        mounts_below(&[instance.run(), instance.state()]).iter().map(|path| format!("mount {}", path.display())),
    );
    left.extend(processes::cgroups(instance).iter().map(|path| format!("cgroup {}", path.display())));
    left.extend(
        [instance.run(), instance.state()].iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()),
    );
    left
}

/// Everything of the instance that is still on this machine, with its processes.
#[must_use]
pub fn everything_left(instance: &Instance) -> Vec<String> {
    remains(instance, &processes::of_instance(instance))
}

/// containerd's shims keep their sockets in a directory that all containerds share; each bundle names its own.
fn shim_sockets(instance: &Instance) -> Vec<PathBuf> {
    let tasks = instance.run().join("containerd/io.containerd.runtime.v2.task/k8s.io");
    let bundles = fs::read_dir(tasks).into_iter().flatten().flatten();
    let addresses = bundles.filter_map(|bundle| fs::read_to_string(bundle.path().join("address")).ok());
    addresses.filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from)).collect()
}

fn unmount_below(dirs: &[PathBuf]) {
    for path in mounts_below(dirs) {
        let _ = unmount(&path, UnmountFlags::DETACH);
    }
}

/// Mount points below `dirs`, those mounted last first.
fn mounts_below(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    points.filter(|path| dirs.iter().any(|dir| path.starts_with(dir))).map(Path::to_owned).collect()
}

fn remove_cgroups(instance: &Instance) {
    // The kernel lets go of a dead process's cgroup a moment after the process.
    for _ in 0..50 {
        let left = processes::cgroups(instance);
        if left.is_empty() {
            return;
        }
        for cgroup in left {
            remove_cgroup(&cgroup);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// The identifiers of the instance's pods at their container runtime.
fn sandboxes(instance: &Instance) -> Vec<String> {
    let kept = instance.state().join("containerd/io.containerd.grpc.v1.cri/sandboxes");
    let entries = fs::read_dir(kept).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Files that the kubelet and the network plugins keep at fixed places, whatever they are told.
fn remove_traces(instance: &Instance, sandboxes: &[String]) {
    let pods = instance.logs().join("pods");
    for entry in fs::read_dir("/var/log/containers").into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&pods)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for entry in fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{}-", instance.unique_name())) || sandboxes.iter().any(|id| name.contains(id)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    if Instance::all_names().iter().any(|name| name != instance.name()) {
        // The rest is shared with those that are still up.
        return;
    }
    let devices = Path::new("/var/lib/kubelet/device-plugins");
    if std::os::unix::net::UnixStream::connect(devices.join("kubelet.sock")).is_err() {
        let _ = fs::remove_file(devices.join("kubelet.sock"));
    }
    for dir in [
        "/var/log/containers",
        "/var/lib/cni/results",
        "/var/lib/cni",
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet",
        "/run/containerd/s",
        "/run/containerd",
    ] {
        // Only if empty: others may use them too.
        let _ = fs::remove_dir(dir);
    }
}
