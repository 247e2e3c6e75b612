//! The Debian packages that the test bed stands on: looks for their programs, installs what is missing when root.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

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
pub fn postgres_programs() -> Result<std::path::PathBuf> {
    if let Some(found) = find_postgres() {
        return Ok(found);
    }
    install(&["postgresql"])?;
    find_postgres().context("PostgreSQL was installed, but /usr/lib/postgresql/*/bin/initdb is not there")
}

/// The pooler pgbouncer.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn pgbouncer() -> Result<&'static Path> {
    let program = Path::new("/usr/sbin/pgbouncer");
    if !program.exists() {
        install(&["pgbouncer"])?;
    }
    Ok(program)
}

/// The server of Redis.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn redis_server() -> Result<&'static Path> {
    let program = Path::new("/usr/bin/redis-server");
    if !program.exists() {
        install(&["redis-server"])?;
    }
    Ok(program)
}

/// The server of NATS.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn nats_server() -> Result<&'static Path> {
    let programs = [Path::new("/usr/sbin/nats-server"), Path::new("/usr/bin/nats-server")];
    let find = || programs.into_iter().find(|program| program.exists());
    if let Some(found) = find() {
        return Ok(found);
    }
    install(&["nats-server"])?;
    find().context("nats-server was installed, but is in neither /usr/sbin nor /usr/bin")
}

/// The server of Prometheus.
///
/// # Errors
/// When it is not installed and cannot be.
pub fn prometheus() -> Result<&'static Path> {
    let program = Path::new("/usr/bin/prometheus");
    if !program.exists() {
        install(&["prometheus"])?;
    }
    Ok(program)
}

/// The server of RabbitMQ, with the Erlang that runs it (35 MB of packages).
///
/// # Errors
/// When it is not installed and cannot be.
pub fn rabbitmq_server() -> Result<&'static Path> {
    // The one in /usr/sbin insists on a user and on a directory of its own.
    let program = Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
    if !program.exists() {
        install(&["rabbitmq-server"])?;
    }
    Ok(program)
}

/// Java's runtime and compiler, and Maven, which fetches Kafka: found in `PATH`, wherever they come from.
///
/// # Errors
/// When one is not there and cannot be installed.
pub fn java_and_maven() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    let needed = [("java", "default-jdk-headless"), ("javac", "default-jdk-headless"), ("mvn", "maven")];
    let mut missing: Vec<&str> =
        needed.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn find_postgres() -> Option<std::path::PathBuf> {
    let mut versions: Vec<(u32, std::path::PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
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
    let mut missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(files, _)| !files.iter().any(|file| Path::new(file).exists()))
        .map(|(_, package)| *package)
        .collect();
    if find_postgres().is_none() {
        missing.push("postgresql");
    }
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let command = format!("apt-get update && apt-get install -y --no-install-recommends {list}");
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
