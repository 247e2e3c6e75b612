//! Connections come and go, so that replicas share the load and can be replaced; requests do not notice.

use std::{sync::atomic::Ordering, time::Duration};

use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use projectionist::metrics_api::{Offer, Rate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{METRIC, Server, things};

fn request() -> Request<Full<Bytes>> {
    Request::get(format!("https://metrics.system.svc{METRIC}")).body(Full::default()).unwrap()
}

/// A connection on which it is known of each request whether it was sent.
type Sender = h2::client::SendRequest<Bytes>;

async fn connect(server: &Server) -> Sender {
    let stream = server.tls(Some(server.users.client("ann")), "h2").await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// One request as clients make it: what could not be sent, or what GOAWAY says will not be looked at (RFC 9113, 6.8), goes to a new
/// connection; what fails in any other way has failed. Returns how many new connections it took.
async fn ask(server: &Server, sender: &mut Sender) -> Result<usize, String> {
    let mut moves = 0;
    loop {
        let sent = match sender.clone().ready().await {
            Ok(ready) => {
                *sender = ready;
                sender.send_request(request().map(drop), true)
            }
            Err(error) => Err(error),
        };
        if let Ok((answer, _)) = sent {
            match answer.await {
                Ok(answer) if answer.status() == 200 => {
                    let mut body = answer.into_body();
                    while let Some(part) = body.data().await {
                        part.map_err(|error| format!("an answer was cut off: {error}"))?;
                    }
                    return Ok(moves);
                }
                Ok(answer) => return Err(format!("answered {}", answer.status())),
                Err(error) if error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) => {}
                Err(error) => return Err(format!("a request that was sent failed: {error}")),
            }
        }
        *sender = connect(server).await;
        moves += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_moved_from_connection_to_connection_and_no_request_fails() {
    const MOVES: usize = 5;
    let offer = Offer { external: true, objects: Some(things()) };
    let server = Server::with(offer, |options| {
        options.connection_age = Duration::from_millis(300);
        options.rate = Rate { per_second: 0, burst: 0 };
    })
    .await;
    // Several at once, each busy all the time, so that ends fall into every moment of a request.
    let callers = (0..8).map(|_| async {
        let mut connection = connect(&server).await;
        let (mut moves, mut asked) = (0, 0_u64);
        while moves < MOVES {
            moves += ask(&server, &mut connection).await?;
            asked += 1;
        }
        Ok::<_, String>(asked)
    });
    let all = futures::future::try_join_all(callers);
    let asked = tokio::time::timeout(Duration::from_secs(120), all).await.expect("no connection is moved");
    let asked: u64 = asked.expect("a request failed").into_iter().sum();
    assert!(asked > 100, "only {asked} requests were made: that shows nothing");
}

#[tokio::test]
async fn a_server_that_stops_answers_what_is_under_way_and_takes_nothing_new_on_that_connection() {
    let mut server = Server::start().await;
    let mut open = server.connect(Some(server.users.client("ann"))).await;
    let cluster = server.cluster.clone();
    cluster.slow.store(true, Ordering::Relaxed);
    let under_way = tokio::spawn(open.0.send_request(request()));
    while cluster.asked.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop.take().unwrap().send(()).unwrap();
    // GOAWAY arrives while the request is still under way: a new one comes back unsent.
    for tried in 0.. {
        assert!(tried < 100, "the connection still takes requests");
        match tokio::time::timeout(Duration::from_millis(50), open.0.try_send_request(request())).await {
            Ok(Err(mut error)) => {
                assert!(error.take_message().is_some(), "{}", error.into_error());
                break;
            }
            Ok(Ok(answer)) => panic!("answered {}", answer.status()),
            Err(_) => {}
        }
    }
    assert!(!under_way.is_finished());
    cluster.slow.store(false, Ordering::Relaxed);
    assert_eq!(under_way.await.unwrap().expect("it was cut off").status(), 200);
    tokio::time::timeout(Duration::from_secs(60), server.task).await.expect("the server did not stop").unwrap();
}

#[tokio::test]
async fn who_has_just_come_when_the_server_stops_gets_an_answer() {
    let mut server = Server::start().await;
    let mut fresh = server.connect(Some(server.users.client("ann"))).await;
    server.stop.take().unwrap().send(()).unwrap();
    while tokio::net::TcpStream::connect(server.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Time for a connection that is not waited for to end.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fresh.get(METRIC, &[]).await.0, 200);
    tokio::time::timeout(Duration::from_secs(60), server.task).await.expect("the server did not stop").unwrap();
}

#[tokio::test]
async fn a_connection_on_which_nothing_happens_ends_when_it_is_old_whichever_client_has_it() {
    let offer = Offer { external: true, objects: Some(things()) };
    let server = Server::with(offer, |options| options.connection_age = Duration::from_millis(300)).await;
    let mut idle = server.connect(Some(server.users.client("ann"))).await;
    assert_eq!(idle.get(METRIC, &[]).await.0, 200);
    let mut older = server.tls(Some(server.users.client("ann")), "http/1.1").await;
    older.write_all(format!("GET {METRIC} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let ended = async {
        let mut answer = Vec::new();
        let _ = older.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
        while idle.0.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it is still open");
}
