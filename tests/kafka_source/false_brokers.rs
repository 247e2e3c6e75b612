//! Servers that are no brokers, or bad ones: each is a sentence within the deadline, and memory stays flat.

use std::time::Duration;

use projectionist::{
    api::Reason,
    clients::kafka::{Client, KafkaError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::harness::{broker, open, set, settings, soon, topic};
use test_cluster::kafka::Listener;

/// A server that does `each` with every connection; its address.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    each: impl Fn(TcpStream) -> F + Send + 'static,
) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

async fn outcome(address: std::net::SocketAddr, deadline: Duration) -> KafkaError {
    let mut client = Client::new(settings(&address, &[])).unwrap();
    let error = client.topics(&set(&["any"]), Instant::now() + deadline).await.unwrap_err();
    assert!(error.message.contains(&address.to_string()), "says where: {error}");
    error
}

async fn answer(mut stream: TcpStream, bytes: Vec<u8>) {
    let mut question = [0; 1_024];
    let _ = stream.read(&mut question).await;
    let _ = stream.write_all(&bytes).await;
}

#[tokio::test]
async fn a_server_that_hangs_or_drips_is_given_up_at_the_deadline() {
    let hangs = serve(|stream| async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    })
    .await;
    assert_eq!(outcome(hangs, Duration::from_millis(300)).await.reason, Reason::TimedOut);
    let drips = serve(|mut stream| async move {
        // A believable length, and then a byte now and then.
        let _ = stream.write_all(&1_000_i32.to_be_bytes()).await;
        while stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(outcome(drips, Duration::from_millis(500)).await.reason, Reason::TimedOut);
}

#[tokio::test]
async fn lengths_are_not_believed() {
    for promised in [i32::MAX, i32::MIN, -1, 9 << 20] {
        let address = serve(move |stream| answer(stream, promised.to_be_bytes().to_vec())).await;
        let error = outcome(address, Duration::from_secs(30)).await;
        assert_eq!(error.reason, Reason::InvalidAnswer, "{promised}: {error}");
    }
    // A short answer that promises two thousand million versions.
    let mut bytes = vec![0, 0, 0, 10];
    bytes.extend([0, 0, 0, 1, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    let address = serve(move |stream| answer(stream, bytes.clone())).await;
    let error = outcome(address, Duration::from_secs(30)).await;
    assert_eq!(error.reason, Reason::InvalidAnswer, "{error}");
}

#[tokio::test]
async fn endless_bytes_garbage_and_answers_cut_short_are_errors() {
    let endless = serve(|mut stream| async move { while stream.write_all(&[0x55; 65_536]).await.is_ok() {} }).await;
    assert_eq!(outcome(endless, Duration::from_secs(30)).await.reason, Reason::InvalidAnswer);
    let web = serve(|stream| answer(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
    let error = outcome(web, Duration::from_secs(30)).await;
    assert!(error.reason == Reason::InvalidAnswer && error.message.contains("is this a Kafka broker"), "{error}");
    let cut = serve(|stream| answer(stream, vec![0, 0, 1, 0, 0, 0, 0, 1])).await;
    let error = outcome(cut, Duration::from_secs(30)).await;
    assert!(error.message.contains("closed the connection"), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(outcome(closed, Duration::from_secs(30)).await.reason, Reason::ConnectionRefused);
    let mut unknown = Client::new(settings(&"no-such-host.invalid:9092", &[])).unwrap();
    let error = unknown.topics(&set(&["any"]), soon()).await.unwrap_err();
    assert_eq!(error.reason, Reason::HostNotFound, "{error}");
}

#[tokio::test]
async fn one_dead_bootstrap_server_is_no_matter() {
    topic("bootstrap", 1, "");
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let servers = format!("{dead},{}", broker().address(Listener::Plaintext));
    let mut client = Client::new(settings(&servers, &[])).unwrap();
    assert!(client.topics(&set(&["bootstrap"]), soon()).await.unwrap()["bootstrap"].is_ok());
}

#[tokio::test]
async fn a_deadline_in_the_past_gives_up_the_connection_and_the_next_poll_makes_another() {
    topic("again", 1, "");
    let mut client = open();
    assert!(client.topics(&set(&["again"]), soon()).await.is_ok());
    let late = client.topics(&set(&["again"]), Instant::now()).await.unwrap_err();
    assert_eq!(late.reason, Reason::TimedOut);
    assert!(client.topics(&set(&["again"]), soon()).await.unwrap()["again"].is_ok());
    assert_eq!(client.connections(), 1);
}
