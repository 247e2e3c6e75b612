//! TCP listeners that serve IPv4 and IPv6 alike.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel keeps for a listener that is busy.
const BACKLOG: u32 = 1_024;

/// Listens on `address`. On `[::]` connections over IPv4 are accepted as well, and on a host without IPv6 it listens on `0.0.0.0` instead, so that one
/// default serves every kind of cluster.
///
/// # Errors
/// When the address is taken, not one of this host, or needs more rights.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && has_no_ipv6(&error) => {
            tracing::info!("this host has no IPv6: listening on 0.0.0.0:{} instead of {address}", address.port());
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        result => result,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn has_no_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL].iter().any(|one| code == Some(one.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn the_default_address_is_reached_over_ipv4() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    }

    #[tokio::test]
    async fn the_default_address_is_reached_over_ipv6_where_the_host_has_it() {
        let Ok(probe) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
            assert!(listen("[::]:0".parse().unwrap()).await.unwrap().local_addr().unwrap().is_ipv4());
            return;
        };
        drop(probe);
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        TcpStream::connect((Ipv6Addr::LOCALHOST, listener.local_addr().unwrap().port())).await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error() {
        let first = listen("[::]:0".parse().unwrap()).await.unwrap();
        let error = listen(first.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
