//! The Debian packages that the test bed stands on: looks for their programs, installs what is missing when root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lock;

/// A file that must exist, and the package that brings it. Asking for files, not packages, leaves alone a machine that has them from elsewhere.
const NEEDED: &[(&[&str], &str)] = &[
    (&["/usr/bin/containerd", "/usr/local/bin/containerd"], "containerd"),
    (&["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc"], "runc"),
    (&["/usr/lib/cni/bridge"], "containernetworking-plugins"),
    (&["/usr/sbin/iptables"], "iptables"),
    (&["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"], "iproute2"),
    (&["/usr/sbin/conntrack"], "conntrack"),
    (&["/usr/sbin/ipset"], "ipset"),
    (&["/usr/sbin/ethtool"], "ethtool"),
    (&["/usr/bin/socat"], "socat"),
    (&["/usr/bin/mount", "/bin/mount"], "mount"),
    (&["/usr/bin/buildah"], "buildah"),
    (&["/usr/bin/make"], "make"),
    (&["/usr/bin/curl"], "curl"),
    (&["/usr/bin/kill", "/bin/kill"], "procps"),
    (&["/usr/bin/cc"], "gcc"),
    // Below the Kafka client of the bed's worker.
    (&["/usr/bin/c++"], "g++"),
    (&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib/aarch64-linux-gnu/libc.a"], "libc6-dev"),
    (&["/etc/ssl/certs/ca-certificates.crt"], "ca-certificates"),
];

/// PostgreSQL's server programs, newest first. Debian keeps them out of `PATH`.
///
/// # Errors
/// When none is installed and none can be.
pub fn postgres_programs() -> Result<PathBuf> {
    installed(&["postgresql"], find_postgres)
}

/// The pooler pgbouncer.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn pgbouncer() -> Result<PathBuf> {
    installed(&["pgbouncer"], || first(&["/usr/sbin/pgbouncer"]))
}

/// The server of Redis.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn redis_server() -> Result<PathBuf> {
    installed(&["redis-server"], || first(&["/usr/bin/redis-server"]))
}

/// The server of NATS.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn nats_server() -> Result<PathBuf> {
    installed(&["nats-server"], || first(&["/usr/sbin/nats-server", "/usr/bin/nats-server"]))
}

/// The server of Prometheus.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn prometheus() -> Result<PathBuf> {
    installed(&["prometheus"], || first(&["/usr/bin/prometheus"]))
}

/// The server of RabbitMQ, with the Erlang that runs it (35 MB of packages).
///
/// # Errors
/// When it is not installed and cannot be.
pub fn rabbitmq_server() -> Result<PathBuf> {
    // The one in /usr/sbin insists on a user and on a directory of its own.
    installed(&["rabbitmq-server"], || first(&["/usr/lib/rabbitmq/bin/rabbitmq-server"]))
}

/// Java's runtime and compiler, and Maven, which fetches Kafka: found in `PATH`, wherever they come from.
///
/// # Errors
/// When one is not there and cannot be installed.
pub fn java_and_maven() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    let needed = [("java", "default-jdk-headless"), ("javac", "default-jdk-headless"), ("mvn", "maven")];
    let missing = || {
        let mut missing: Vec<&str> =
            needed.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
        missing.dedup();
        missing
    };
    installed(&missing(), || missing().is_empty().then_some(()))
}

fn first(programs: &[&str]) -> Option<PathBuf> {
    programs.iter().map(PathBuf::from).find(|program| program.exists())
}

fn find_postgres() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().map(|(_, bin)| bin)
}

/// Installs whatever the cluster lacks.
///
/// # Errors
/// When something is missing and this is not root: the message holds the command to run.
pub fn ensure() -> Result<()> {
    let missing = || {
        let is_missing = |files: &[&str]| first(files).is_none();
        let of_cluster = NEEDED.iter().filter(|(files, _)| is_missing(files)).map(|(_, package)| *package);
        of_cluster.chain(find_postgres().is_none().then_some("postgresql")).collect::<Vec<&str>>()
    };
    installed(&missing(), || missing().is_empty().then_some(()))
}

/// Installs whatever is missing of the servers that Debian packages, and what fetches and runs the others.
///
/// # Errors
/// When something is missing and this is not root: the message holds the command to run.
pub fn ensure_servers() -> Result<()> {
    postgres_programs()?;
    pgbouncer()?;
    redis_server()?;
    nats_server()?;
    prometheus()?;
    rabbitmq_server()?;
    java_and_maven()
}

/// What `find` finds, installed first where it finds nothing.
fn installed<T>(packages: &[&str], find: impl Fn() -> Option<T>) -> Result<T> {
    // apt-get refuses to run beside itself, and a program may be there a moment before what it needs.
    // Only root installs, and only root may hold this lock.
    let _turn = lock::turn(Path::new("/run/lock/projectionist-packages"), "another installation").ok();
    if let Some(found) = find() {
        return Ok(found);
    }
    install(packages)?;
    find().with_context(|| {
        format!("{} was installed, but its programs are not where Debian puts them", packages.join(" "))
    })
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    // Others may install something as well.
    let command =
        format!("apt-get update && apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends {list}");
    if !rustix::process::geteuid().is_root() {
        bail!("missing Debian packages: {list}. Run as root: {command}");
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "missing programs, which Debian packages as: {list}. This machine has no apt-get: install them by its own means"
        );
    }
    crate::say(&format!("installing Debian packages: {list}"));
    let output = Command::new("sh")
        .args(["-c", &command])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("running apt-get")?;
    if !output.status.success() {
        bail!("`{command}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
