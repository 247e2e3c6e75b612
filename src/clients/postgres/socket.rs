//! The way to a server: a TCP connection that takes in no more in answer to what was asked than a bounded number of bytes. The protocol announces lengths
//! of up to 2 GiB, and a reader that believes them keeps as much.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rand::seq::SliceRandom as _;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_postgres::{Config, config::LoadBalanceHosts};

/// So much may come without anything having been asked since, in bytes.
const MOST: usize = 64 << 20;
/// What becomes of a server that sends more.
pub(super) const TOO_MUCH: &str = "the server sent more than 64 MiB in answer to one question: is it PostgreSQL?";

/// A connection, encrypted or not.
pub struct Socket {
    stream: TcpStream,
    left: usize,
}

impl Socket {
    /// Connects to the first of a server's addresses that accepts, and says which.
    ///
    /// # Errors
    /// That there is no address, or what the last address answered.
    pub(super) async fn connect(addresses: &[SocketAddr], config: &Config) -> io::Result<(Self, SocketAddr)> {
        let mut addresses = addresses.to_vec();
        if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            addresses.shuffle(&mut rand::rng());
        }
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "could not resolve any addresses");
        for address in addresses {
            match Self::connect_to(address, config).await {
                Ok(socket) => return Ok((socket, address)),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Connects to this address.
    ///
    /// # Errors
    /// What the address answered.
    pub(super) async fn connect_to(address: SocketAddr, config: &Config) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if let Some(timeout) = config.get_tcp_user_timeout() {
            let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            sockopt::set_tcp_user_timeout(&stream, milliseconds)?;
        }
        if config.get_keepalives() {
            sockopt::set_socket_keepalive(&stream, true)?;
            sockopt::set_tcp_keepidle(&stream, config.get_keepalives_idle())?;
            if let Some(interval) = config.get_keepalives_interval() {
                sockopt::set_tcp_keepintvl(&stream, interval)?;
            }
            if let Some(retries) = config.get_keepalives_retries() {
                sockopt::set_tcp_keepcnt(&stream, retries)?;
            }
        }
        Ok(Self { stream, left: MOST })
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TOO_MUCH)));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        self.left = self.left.saturating_sub(into.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.left = MOST;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_a_server_sends_without_end_is_taken_in_up_to_a_bound_for_each_question() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[0; 64 << 10]).await.is_ok() {}
        });
        let mut socket = Socket::connect_to(address, &Config::new()).await.unwrap();
        let mut piece = vec![0; 1 << 20];
        for _ in 0..2 {
            socket.write_all(b"question").await.unwrap();
            let mut taken = 0;
            let error = loop {
                match socket.read(&mut piece).await {
                    Ok(length) => taken += length,
                    Err(error) => break error,
                }
            };
            assert!((MOST..MOST + piece.len()).contains(&taken), "{taken}");
            assert_eq!(error.to_string(), TOO_MUCH);
        }
        server.abort();
    }
}
