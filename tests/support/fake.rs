//! Servers that hang, hang up, drip, or talk nonsense without end, for the tests of every client.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What a fake server says to each client, after it has read something.
#[derive(Clone)]
pub enum Says {
    Nothing,
    Once(Vec<u8>),
    /// Once, and then it hangs up.
    AndHangsUp(Vec<u8>),
    ForEver(Vec<u8>),
    /// One thing first, and then another without end.
    Endless {
        first: Vec<u8>,
        then: Vec<u8>,
    },
    /// A byte now and then.
    Dripping(Vec<u8>),
}

/// A fake server at this address; counts the bytes that it has sent.
pub async fn fake(says: Says) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(stream, says.clone(), Arc::clone(&counter)));
        }
    });
    (address, sent)
}

async fn converse(mut stream: TcpStream, says: Says, counter: Arc<AtomicUsize>) {
    let mut heard = [0; 4_096];
    let _ = stream.read(&mut heard).await;
    let send = async |stream: &mut TcpStream, bytes: &[u8]| {
        counter.fetch_add(bytes.len(), Ordering::Relaxed);
        stream.write_all(bytes).await
    };
    match says {
        Says::Nothing => {}
        Says::Once(bytes) => drop(send(&mut stream, &bytes).await),
        Says::AndHangsUp(bytes) => {
            let _ = send(&mut stream, &bytes).await;
            return;
        }
        Says::ForEver(bytes) => while send(&mut stream, &bytes).await.is_ok() {},
        Says::Endless { first, then } => {
            if send(&mut stream, &first).await.is_ok() {
                while send(&mut stream, &then).await.is_ok() {}
            }
        }
        Says::Dripping(bytes) => {
            for byte in bytes.into_iter().cycle() {
                if send(&mut stream, &[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    std::future::pending::<()>().await;
}
