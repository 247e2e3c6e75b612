//! Resident memory of the operator's processes, which run on this kernel.

use std::{fmt, fs, time::Duration};

use anyhow::{Result, ensure};

/// Resident sizes in KiB, one a replica.
pub(crate) struct Resident(Vec<u64>);

impl fmt::Display for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> =
            self.0.iter().map(|size| format!("{}.{} MiB", size / 1024, size % 1024 * 10 / 1024)).collect();
        f.write_str(&sizes.join(", "))
    }
}

/// After some seconds without work.
pub(crate) async fn settled() -> Result<Resident> {
    tokio::time::sleep(Duration::from_secs(10)).await;
    now()
}

/// As it is.
pub(crate) fn now() -> Result<Resident> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        if words.next() == Some(b"/projectionist") && words.next() == Some(b"operator") {
            sizes.extend(resident(&fs::read_to_string(entry.path().join("status")).unwrap_or_default()));
        }
    }
    ensure!(!sizes.is_empty(), "no process of the operator was found");
    Ok(Resident(sizes))
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
