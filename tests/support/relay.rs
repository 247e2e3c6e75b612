//! A relay between a probe and a server, which counts what passes: for the tests of what measuring costs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What has passed so far.
#[derive(Default)]
pub struct Passed {
    connections: AtomicUsize,
    requests: AtomicUsize,
    received: AtomicUsize,
}

impl Passed {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What the client has asked for.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes that the server has sent.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }
}

/// Passes everything on to `server` and back. `request` is what each request holds once; where it is cut between two pieces the request is not counted.
pub async fn relay(server: SocketAddr, request: &'static str) -> (SocketAddr, Arc<Passed>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let passed = Arc::new(Passed::default());
    let counts = Arc::clone(&passed);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            counts.connections.fetch_add(1, Ordering::Relaxed);
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = TcpStream::connect(server).await.unwrap().into_split();
            let asked = Arc::clone(&counts);
            tokio::spawn(pass(near_in, far_out, move |piece| {
                let requests = piece.windows(request.len()).filter(|window| *window == request.as_bytes()).count();
                asked.requests.fetch_add(requests, Ordering::Relaxed);
            }));
            let answered = Arc::clone(&counts);
            tokio::spawn(pass(far_in, near_out, move |piece| {
                answered.received.fetch_add(piece.len(), Ordering::Relaxed);
            }));
        }
    });
    (address, passed)
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: impl Fn(&[u8])) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        count(&piece[..length]);
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
