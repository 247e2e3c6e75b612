//! Servers that are no brokers, or bad ones: each is a sentence within the deadline, and memory stays flat.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use projectionist::{
    api::Reason,
    clients::kafka::{Client, KafkaError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    harness::{broker, set, settings, soon, topic},
    running::loopback,
};

use test_cluster::{free_address, kafka::Listener};

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
    let mut client = Client::new(settings(&address, &[]), loopback()).unwrap();
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
    let closed = free_address().unwrap();
    assert_eq!(outcome(closed, Duration::from_secs(30)).await.reason, Reason::ConnectionRefused);
    let mut unknown = Client::new(settings(&"no-such-host.invalid:9092", &[]), loopback()).unwrap();
    let error = unknown.topics(&set(&["any"]), soon()).await.unwrap_err();
    assert_eq!(error.reason, Reason::HostNotFound, "{error}");
}

#[tokio::test]
async fn one_dead_bootstrap_server_is_no_matter() {
    topic("bootstrap", 1, "");
    let dead = free_address().unwrap();
    let servers = format!("{dead},{}", broker().address(Listener::Plaintext));
    let mut client = Client::new(settings(&servers, &[]), loopback()).unwrap();
    assert!(client.topics(&set(&["bootstrap"]), soon()).await.unwrap()["bootstrap"].is_ok());
}

/// Passes on what the broker says, as long as `passes` says so; then `after` bytes of each answer and no more.
async fn relay(passes: Arc<AtomicBool>, after: usize) -> std::net::SocketAddr {
    let to = broker().address(Listener::Plaintext);
    serve(move |client| {
        let passes = Arc::clone(&passes);
        async move {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_broker, mut to_broker) = TcpStream::connect(to).await.unwrap().into_split();
            let questions = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_broker).await });
            let mut buffer = vec![0; 65_536];
            while let Ok(count @ 1..) = from_broker.read(&mut buffer).await {
                let passed = if passes.load(Ordering::SeqCst) { count } else { after.min(count) };
                let _ = to_client.write_all(&buffer[..passed]).await;
                if passed < count && after > 0 {
                    break;
                }
            }
            questions.abort();
        }
    })
    .await
}

#[tokio::test]
async fn a_connection_that_hangs_is_given_up_and_another_broker_is_asked() {
    topic("again", 1, "");
    let passes = Arc::new(AtomicBool::new(true));
    let mut client = Client::new(settings(&relay(Arc::clone(&passes), 0).await, &[]), loopback()).unwrap();
    assert!(client.topics(&set(&["again"]), soon()).await.is_ok());
    passes.store(false, Ordering::SeqCst);
    // The way that was given hangs; the brokers that the metadata named are reached by themselves.
    let by = Instant::now() + Duration::from_secs(10);
    assert!(client.topics(&set(&["again"]), by).await.unwrap()["again"].is_ok());
    assert_eq!(client.connections(), 1);
    // Before any metadata there is no other way, until it goes on.
    let mut fresh = Client::new(settings(&relay(Arc::clone(&passes), 0).await, &[]), loopback()).unwrap();
    let error = fresh.topics(&set(&["again"]), Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert_eq!((error.reason, fresh.connections()), (Reason::TimedOut, 0), "{error}");
    passes.store(true, Ordering::SeqCst);
    assert!(fresh.topics(&set(&["again"]), soon()).await.unwrap()["again"].is_ok());
}

#[tokio::test]
async fn a_connection_that_is_cut_in_an_answer_is_given_up_and_another_broker_is_asked() {
    topic("cut", 1, "");
    let passes = Arc::new(AtomicBool::new(true));
    let mut client = Client::new(settings(&relay(Arc::clone(&passes), 9).await, &[]), loopback()).unwrap();
    assert!(client.topics(&set(&["cut"]), soon()).await.is_ok());
    passes.store(false, Ordering::SeqCst);
    // The way that was given is cut; the brokers that the metadata named are reached by themselves.
    assert!(client.topics(&set(&["cut"]), soon()).await.unwrap()["cut"].is_ok());
    // Before any metadata there is no other way.
    let mut fresh = Client::new(settings(&relay(passes, 9).await, &[]), loopback()).unwrap();
    let error = fresh.topics(&set(&["cut"]), soon()).await.unwrap_err();
    assert!(error.message.contains("closed the connection"), "{error}");
}
