//! A server that is cut off in the middle of an answer, hangs there, drips, talks nonsense or without end: a relay before the real one.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use projectionist::api::Reason;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Running, append, commit, database, server};

/// What becomes of the server's next answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    Whole,
    /// After so many bytes the connection is closed.
    Cut(usize),
    /// After so many bytes nothing more comes.
    Hangs(usize),
    /// A byte a second.
    Drips,
    /// Bytes that are none of the protocol.
    Garbage,
    /// A message of 2 GiB.
    LongMessage,
    /// Messages without end.
    ManyMessages,
}

/// A way to the server, which does to its answers what it is told.
struct Relay {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
}

impl Relay {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(Answer::Whole));
        let does = Arc::clone(&answer);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                tokio::spawn(relay(client, server, Arc::clone(&does)));
            }
        });
        Self { address, answer }
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }
}

async fn relay(client: TcpStream, server: TcpStream, does: Arc<Mutex<Answer>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asks = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answers = async {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut piece).await {
            let answer = *does.lock().unwrap();
            let (bytes, then): (&[u8], &[u8]) = match answer {
                Answer::Whole => (&piece[..length], b""),
                Answer::Drips => (b"", b""),
                Answer::Cut(after) | Answer::Hangs(after) => (&piece[..after.min(length)], b""),
                Answer::Garbage => (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""),
                Answer::LongMessage => (b"D\x7f\xff\xff\xff", &[0; 1_024]),
                Answer::ManyMessages => (b"", b"D\0\0\0\x0a\0\x01\0\0\0\0"),
            };
            if to_client.write_all(bytes).await.is_err() || matches!(answer, Answer::Cut(_)) {
                return;
            }
            if answer == Answer::Drips {
                for byte in &piece[..length] {
                    if to_client.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            if matches!(answer, Answer::Hangs(_)) {
                std::future::pending::<()>().await;
            }
            let then = then.repeat(1_024);
            while !then.is_empty() && to_client.write_all(&then).await.is_ok() {}
        }
    };
    tokio::select! {
        () = asks => {}
        () = answers => {}
    }
}

#[tokio::test]
async fn whatever_becomes_of_an_answer_on_its_way_the_lag_is_unknown_and_comes_back() {
    let (url, client) = database(server(), "relayed").await;
    append(&client, 3).await;
    commit(&client, "a", 1).await;
    let from = url.find("127.0.0.1:").unwrap();
    let to = from + url[from..].find(['/', '?']).unwrap();
    let relay = Relay::to(url[from..to].parse().unwrap()).await;
    let mut sampler = Running::start(&[("db", &url.replace(&url[from..to], &relay.address.to_string()))]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 2).await;
    for (answer, reason) in [
        (Answer::Cut(0), Reason::SourceFailed),
        (Answer::Cut(7), Reason::SourceFailed),
        (Answer::Hangs(7), Reason::TimedOut),
        (Answer::Drips, Reason::TimedOut),
        (Answer::Garbage, Reason::TimedOut),
        (Answer::LongMessage, Reason::SourceFailed),
        (Answer::ManyMessages, Reason::SourceFailed),
    ] {
        relay.answers(answer);
        let unknown = sampler.wait_unknown("a", reason).await;
        assert!(unknown.message.contains("127.0.0.1:"), "{answer:?}: {}", unknown.message);
        assert!(sampler.observation("a").unwrap().measured.is_some(), "{answer:?}: the last measurement is kept");
        relay.answers(Answer::Whole);
        sampler.wait_pending("a", 2).await;
    }
}
