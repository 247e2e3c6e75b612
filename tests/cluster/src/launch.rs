//! Starts the program that supervises a test cluster, built first where it is older than its sources.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::instance::{Instance, target_dir, workspace};
use crate::options::ClusterOptions;
use crate::supervise::Report;

/// How many directories of earlier test clusters' logs are kept.
const KEPT_LOGS: usize = 10;

/// Starts the supervisor and waits for its verdict.
pub(crate) fn launch(
    program: &Path,
    instance: &Instance,
    options: &ClusterOptions,
    until_stdin_closes: bool,
) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(["supervise", "--name", instance.name(), "--dir"]).arg(instance.dir()).args(options.to_arguments());
    if until_stdin_closes {
        command.arg("--until-stdin-closes").stdin(Stdio::piped());
    } else {
        command.stdin(Stdio::null());
    }
    // Its standard error must not be ours: a reader of ours would wait for a cluster that stays up.
    let mut supervisor = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let reports = supervisor.stdout.take().context("the supervisor has no output")?;
    for line in BufReader::new(reports).lines() {
        match serde_json::from_str(&line?)? {
            Report::Progress(text) => crate::say(&text),
            Report::Ready => return Ok(supervisor),
            Report::Failed(text) => {
                let _ = supervisor.wait();
                bail!("the test cluster {:?} did not come up: {text}", instance.name());
            }
        }
    }
    let status = supervisor.wait()?;
    bail!(
        "the supervisor of the test cluster {:?} ended ({status}) without a word; logs: {}",
        instance.name(),
        instance.logs().display()
    )
}

/// The program `test-cluster` beside the running one, built first if its sources are newer.
///
/// # Errors
/// When cargo is missing or fails.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the running program")?;
    let profile = own
        .ancestors()
        .find(|dir| dir.join("deps").is_dir())
        .map_or_else(|| target_dir().join("debug"), Path::to_owned);
    let program = profile.join("test-cluster");
    let built = std::fs::metadata(&program).and_then(|file| file.modified()).ok();
    let sources = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).into_iter().flatten().flatten();
    let newest = sources.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    if built.is_some() && newest <= built {
        return Ok(program);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With the features that the tests have, as the Makefile does.
    cargo.args(["build", "--quiet", "--workspace", "--test", "postgres", "--bin", "test-cluster"]);
    cargo.current_dir(workspace());
    if let Some(name) = profile.file_name().filter(|name| *name != "debug") {
        cargo.arg("--profile").arg(name);
    }
    let output = cargo.stdin(Stdio::null()).output().context("running cargo")?;
    if !output.status.success() {
        bail!("building the program test-cluster failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(program)
}

/// Keeps the logs of the last few test clusters.
pub(crate) fn prune_logs(root: &Path) {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut old: Vec<(SystemTime, PathBuf)> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("test-"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    old.sort();
    for (_, path) in old.iter().rev().skip(KEPT_LOGS) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if Instance::running(&name).is_err() {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}
