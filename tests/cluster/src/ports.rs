//! Ports for servers that have to be told where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// Above the ports of Kubernetes' own programs and below those of its Services on nodes. The kernel gives none of these to a connection or to who asks for any
/// port (`ip_local_port_range` begins at 32768): one that was free a moment ago would be taken again before the server listens.
const RANGE: Range<u16> = 11_000..30_000;

/// A port on which nothing listens at `host`. No other call of this process returns it before all others were returned.
///
/// # Errors
/// When all are taken, or `host` is no address of this network.
pub fn free_port(host: &str) -> Result<u16> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let mut last = None;
    for _ in RANGE {
        // Processes that run side by side begin at different places.
        let place = std::process::id().wrapping_mul(211).wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed));
        let port = RANGE.start + u16::try_from(place % u32::from(RANGE.end - RANGE.start))?;
        match TcpListener::bind((host, port)) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error).with_context(|| format!("looking for a free port at {host}")),
        }
    }
    bail!("no port is free at {host}: {last:?}")
}

/// An address of this machine's own at which nothing listens.
///
/// # Errors
/// When all ports are taken.
pub fn free_address() -> Result<SocketAddr> {
    let host = Ipv4Addr::LOCALHOST;
    Ok((host, free_port(&host.to_string())?).into())
}
