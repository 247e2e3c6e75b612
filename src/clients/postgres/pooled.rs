//! Whether a server process at the other end of a connection serves only this connection, or a pooler stands between.
//!
//! A server sends a new client the number of the process that serves it, with which the client may ask to cancel a statement. A pooler makes up a
//! number of its own, since any process may serve the next transaction. So where that number is `pg_backend_pid()`, the connection goes to the
//! process itself (or through proxies that pass bytes on), and otherwise it is shared.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Client, Error,
    tls::{ChannelBinding, TlsConnect, TlsStream},
};

/// The length of the request for TLS that may come before the request to cancel.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// True when the server process serves only this connection until it ends.
///
/// # Errors
/// Those of the server.
pub(super) async fn is_ours_alone(client: &Client) -> Result<bool, Error> {
    let row = client.query_typed_one("select pg_catalog.pg_backend_pid()", &[]).await?;
    let serving: i32 = row.try_get(0)?;
    Ok(announced_process(client).await == Some(serving))
}

/// The number that was announced when the connection began. The client keeps it for requests to cancel and does not show it, so it is read
/// out of such a request, which is written to memory and goes nowhere.
async fn announced_process(client: &Client) -> Option<i32> {
    let mut written = Vec::new();
    client.cancel_token().cancel_query_raw(Memory(&mut written), Pretend).await.ok()?;
    let request = written.strip_prefix(&TLS_REQUEST).unwrap_or(&written);
    // Length, code, process, key.
    Some(i32::from_be_bytes(request.get(8..12)?.try_into().ok()?))
}

/// Keeps what is written, and answers every question with the yes to a request for TLS.
struct Memory<'a>(&'a mut Vec<u8>);

/// TLS that does nothing.
struct Pretend;

impl<'a> TlsConnect<Memory<'a>> for Pretend {
    type Stream = Memory<'a>;
    type Error = io::Error;
    type Future = Ready<io::Result<Memory<'a>>>;

    fn connect(self, stream: Memory<'a>) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Memory<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Memory<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0 {
            buffer.put_slice(b"S");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
