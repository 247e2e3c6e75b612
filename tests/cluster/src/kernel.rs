//! The kernel settings that a kubelet changes for the whole machine: remembered before the first cluster, put back after the last.

use std::fs;
use std::path::{Path, PathBuf};

use crate::instance::RUN_ROOT;

/// What a kubelet sets at its start, below /proc/sys.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Remembers the settings unless another cluster that is up already has.
pub(crate) fn remember() {
    if memory().exists() {
        return;
    }
    let lines =
        SETTINGS.iter().filter_map(|name| Some(format!("{name} {}", fs::read_to_string(place(name)).ok()?.trim())));
    let _ = fs::write(memory(), lines.collect::<Vec<_>>().join("\n"));
}

/// Puts the settings back if no cluster is up any more.
pub(crate) fn put_back() {
    let others = fs::read_dir(RUN_ROOT).into_iter().flatten().flatten().filter(|entry| entry.path() != memory());
    if others.count() > 0 {
        return;
    }
    for line in fs::read_to_string(memory()).unwrap_or_default().lines() {
        if let Some((name, value)) = line.split_once(' ') {
            let _ = fs::write(place(name), value);
        }
    }
    let _ = fs::remove_file(memory());
}

fn place(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// A name that no instance can have.
fn memory() -> PathBuf {
    Path::new(RUN_ROOT).join("kernel.settings")
}
