//! The network namespace that a whole cluster lives in, and how to get into it.
//!
//! Endpoints may not be loopback addresses, so the node's address is that of a bridge, to which the pods connect as well.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::instance::Instance;

/// The node: API server, DNS and the real servers beside them listen here.
pub const NODE_ADDRESS: &str = "10.250.0.1";
/// Where pods get their addresses from.
pub const POD_SUBNET: &str = "10.250.0.0/24";
/// Where Services get theirs from.
pub const SERVICE_SUBNET: &str = "10.0.0.0/24";
/// The first address of the Service subnet, which the API server takes for itself.
pub const API_SERVICE_ADDRESS: &str = "10.0.0.1";
/// The Service of the cluster's DNS.
pub const DNS_ADDRESS: &str = "10.0.0.10";
/// The bridge of node and pods.
pub const BRIDGE: &str = "cni0";

/// Makes the instance's network namespace and moves the calling thread into it.
///
/// # Errors
/// When `unshare` or `ip` fails, mostly for want of root.
pub fn create_and_enter(instance: &Instance) -> Result<()> {
    let path = instance.network_namespace();
    fs::write(&path, "").with_context(|| format!("creating {}", path.display()))?;
    // Not `ip netns add`: that leaves a mount of its own at /run/netns behind, for good.
    run("unshare", &[&format!("--net={}", path.display()), "true"])?;
    enter(&path)?;
    run("ip", &["link", "set", "lo", "up"])?;
    run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
    // Without an address of its own a bridge takes that of its lowest port, which changes as pods come and go, and live
    // connections of other pods die silently.
    run("ip", &["link", "set", BRIDGE, "address", "02:00:0a:fa:00:01"])?;
    run("ip", &["address", "add", &format!("{NODE_ADDRESS}/24"), "dev", BRIDGE])?;
    run("ip", &["link", "set", BRIDGE, "up"])?;
    // The node itself picks a route before kube-proxy's rules choose the endpoint, so that there has to be one.
    run("ip", &["route", "add", SERVICE_SUBNET, "dev", BRIDGE])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("switching on IP forwarding in the cluster's namespace")
}

/// Moves the calling thread into the network namespace at `path`. Threads and processes that it starts afterwards are inside too.
///
/// # Errors
/// When there is no such namespace, or for want of root.
pub fn enter(path: &Path) -> Result<()> {
    let file = fs::File::open(path).with_context(|| format!("opening the network namespace {}", path.display()))?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering the network namespace {} (it takes root)", path.display()))
}

/// Runs `body` on a thread of its own inside the network namespace at `path` and hands back its result.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn inside<T: Send>(path: &Path, body: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter(path).map(|()| body()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A command that runs inside the network namespace at `path`.
///
/// `nsenter`, because `ip netns exec` also mounts another /sys, which hides the cgroups.
#[must_use]
pub fn command_inside(path: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path.display())).arg("--").arg(program);
    command
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
