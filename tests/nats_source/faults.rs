//! Servers that are away, hang, hang up, answer nonsense or without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use projectionist::{api::Reason, lag::Sample, measure::MeasureError, sources::BatchProbe as _};
use test_cluster::{Nats, free_address};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{ask, ask_within, durable, exactly, jetstream, probe, publish, question, stream};

const SHORT: Duration = Duration::from_millis(500);
const INFO: &str = "INFO {\"server_id\":\"a\",\"version\":\"2.9.10\",\"headers\":true,\"max_payload\":1048576}\r\n";

/// What a fake server says at which point.
#[derive(Clone, Default)]
struct Says {
    /// On connecting.
    first: Vec<u8>,
    /// In answer to the login.
    login: Vec<u8>,
    /// In answer to the first request; `{inbox}` stands for the subject that it is to go to.
    answer: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy, Default)]
enum Then {
    #[default]
    Hangs,
    HangsUp,
    /// Says the last part again and again.
    ForEver,
    /// Says the last part a byte now and then.
    Drips,
}

/// A fake server at this address; counts what it has sent.
async fn fake(says: Says) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://shop:hunter2@{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(stream, says.clone(), Arc::clone(&counter)));
        }
    });
    (url, sent)
}

async fn converse(mut stream: tokio::net::TcpStream, says: Says, counter: Arc<AtomicUsize>) {
    let mut heard = String::new();
    let parts = [(None, says.first), (Some("PING\r\n"), says.login), (Some("PUB "), says.answer)];
    let mut last = Vec::new();
    for (after, part) in parts {
        if part.is_empty() {
            break;
        }
        while after.is_some_and(|after| !heard.contains(after)) {
            let mut piece = [0; 4_096];
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(length) => heard.push_str(&String::from_utf8_lossy(&piece[..length])),
            }
        }
        let inbox = heard.split("PUB ").nth(1).and_then(|request| request.split(' ').nth(1)).unwrap_or_default();
        last = String::from_utf8_lossy(&part).replace("{inbox}", inbox).into_bytes();
        if matches!(says.then, Then::Drips) && after.is_none() {
            break;
        }
        counter.fetch_add(last.len(), Ordering::Relaxed);
        if stream.write_all(&last).await.is_err() {
            return;
        }
    }
    match says.then {
        Then::HangsUp => return,
        Then::Hangs => {}
        Then::ForEver => loop {
            counter.fetch_add(last.len(), Ordering::Relaxed);
            if stream.write_all(&last).await.is_err() {
                return;
            }
        },
        Then::Drips => {
            for byte in last.into_iter().cycle() {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    std::future::pending::<()>().await;
}

async fn measured(says: Says) -> Result<Sample, MeasureError> {
    let (url, _) = fake(says).await;
    ask_within(&mut probe(&url), &["s/c"], SHORT).await
}

#[tokio::test]
async fn whatever_a_server_answers_instead_the_lag_is_unknown_with_its_reason() {
    let first = |text: &str, then| Says { first: text.as_bytes().to_vec(), then, ..Says::default() };
    let login = |text: &str, then| Says { login: text.as_bytes().to_vec(), ..first(INFO, then) };
    let answer = |text: &str, then| Says { answer: text.as_bytes().to_vec(), ..login("PONG\r\n", then) };
    let json = |text: &str| format!("MSG {{inbox}} 1 {}\r\n{text}\r\n", text.len());
    for (what, says, reason) in [
        ("hangs", Says::default(), Reason::TimedOut),
        ("hangs up", first("", Then::HangsUp), Reason::SourceFailed),
        ("cut in its first line", first(&INFO[..20], Then::HangsUp), Reason::SourceFailed),
        ("hangs in its first line", first(&INFO[..20], Then::Hangs), Reason::TimedOut),
        ("a byte now and then", first(INFO, Then::Drips), Reason::TimedOut),
        ("another protocol", first("HTTP/1.1 400 Bad Request\r\n\r\n", Then::Hangs), Reason::InvalidAnswer),
        ("a line without end", first("INFO aaaaaaaaaaaaaaa", Then::ForEver), Reason::InvalidAnswer),
        ("no JSON", first("INFO {\r\n", Then::Hangs), Reason::InvalidAnswer),
        ("without headers", first("INFO {}\r\n", Then::Hangs), Reason::SourceFailed),
        ("more than its first line", first(&format!("{INFO}PONG\r\n"), Then::Hangs), Reason::InvalidAnswer),
        ("never takes the login", first(INFO, Then::Hangs), Reason::TimedOut),
        ("refused", login("-ERR 'Authorization Violation'\r\n", Then::HangsUp), Reason::AuthenticationFailed),
        ("our own password", login("-ERR 'hunter2 is wrong'\r\n", Then::Hangs), Reason::SourceFailed),
        ("full", login("-ERR 'maximum connections exceeded'\r\n", Then::HangsUp), Reason::TooManyConnections),
        ("asks without end", login("PING\r\n", Then::ForEver), Reason::TimedOut),
        ("no answer", login("PONG\r\n", Then::Hangs), Reason::TimedOut),
        ("cut in an answer", answer("MSG {inbox} 1 200\r\n{\"type\"", Then::HangsUp), Reason::SourceFailed),
        ("hangs in an answer", answer("MSG {inbox} 1 200\r\n{\"type\"", Then::Hangs), Reason::TimedOut),
        ("a huge length", answer("MSG {inbox} 1 999999999999\r\n", Then::Hangs), Reason::InvalidAnswer),
        ("a lying length", answer("MSG {inbox} 1 2\r\n{\"type\":1}\r\n", Then::Hangs), Reason::InvalidAnswer),
        ("half an answer", answer(&json("{\"num_pending\":0}"), Then::Hangs), Reason::InvalidAnswer),
        ("garbage", answer(&json("garbage"), Then::Hangs), Reason::InvalidAnswer),
        ("other messages", answer("MSG other 1 2\r\n{}\r\n", Then::ForEver), Reason::TimedOut),
    ] {
        let unknown = measured(says).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
        assert!(unknown.message.contains("NATS at 127.0.0.1:"), "{what}: {}", unknown.message);
    }
}

#[tokio::test]
async fn an_endless_answer_takes_no_memory_and_an_announced_one_ends_the_connection() {
    let large = [b"MSG {inbox} 1 33554432\r\n".to_vec(), vec![b'x'; 1 << 20]].concat();
    let says = Says { first: INFO.into(), login: b"PONG\r\n".to_vec(), answer: large, then: Then::ForEver };
    let (url, sent) = fake(says).await;
    let unknown = ask(&mut probe(&url), &["s/c"]).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::InvalidAnswer, "{}", unknown.message);
    assert!(sent.load(Ordering::Relaxed) < 64 << 20);
}

/// What a real server says of a consumer that has nothing before it.
const CAUGHT_UP: &str = r#"{"created":"2026-11-26T05:18:16Z","config":{},"delivered":{"consumer_seq":1,"stream_seq":1},"ack_floor":{"consumer_seq":1,"stream_seq":1},"num_ack_pending":0,"num_pending":0}"#;

/// A server that answers the first request, with that.
fn answers_once(then: Then) -> Says {
    Says {
        first: INFO.into(),
        login: b"PONG\r\n".to_vec(),
        answer: format!("MSG {{inbox}} 1 {}\r\n{CAUGHT_UP}\r\n", CAUGHT_UP.len()).into_bytes(),
        then,
    }
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_opened_again() {
    let (url, _) = fake(answers_once(Then::HangsUp)).await;
    let mut probe = probe(&url);
    for _ in 0..3 {
        assert_eq!(ask(&mut probe, &["a/c"]).await.unwrap().pending, exactly(0));
    }
}

#[tokio::test]
async fn one_that_is_never_answered_does_not_keep_the_others_waiting() {
    // As of a server whose other stream has no leader.
    let (url, _) = fake(answers_once(Then::Hangs)).await;
    let questions = [question(&["a/c"]), question(&["b/c"])];
    let questions: Vec<_> = questions.iter().collect();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    let answers = probe(&url).answer(&questions, deadline).await;
    let [one, other] = answers.try_into().unwrap();
    assert_eq!(one.unwrap().pending, exactly(0));
    let other = other.unwrap_err();
    assert_eq!(other.reason, Reason::TimedOut);
    assert!(other.message.contains("without a leader"), "{}", other.message);
    assert!(tokio::time::Instant::now() < deadline);
}

#[tokio::test]
async fn a_server_that_is_away_or_hangs_is_unknown_and_comes_back() {
    let mut own = Nats::on_loopback().unwrap();
    let context = jetstream(&own.url()).await;
    stream(&context, "s").await.create_consumer(durable("c")).await.unwrap();
    let mut probe = probe(&own.url());
    assert_eq!(ask(&mut probe, &["s/c"]).await.unwrap().pending, exactly(0));
    own.pause();
    let hung = ask_within(&mut probe, &["s/c"], SHORT).await.unwrap_err();
    assert_eq!(hung.reason, Reason::TimedOut, "{}", hung.message);
    own.resume();
    publish(&context, "s.a", 1).await;
    assert_eq!(ask(&mut probe, &["s/c"]).await.unwrap().pending, exactly(1), "no late answer is taken for a new one");
    own.kill();
    let away = ask(&mut probe, &["s/c"]).await.unwrap_err();
    assert!(matches!(away.reason, Reason::ConnectionRefused | Reason::SourceFailed), "{}", away.message);
    let away = ask(&mut probe, &["s/c"]).await.unwrap_err();
    assert_eq!(away.reason, Reason::ConnectionRefused, "{}", away.message);
    let nowhere = ask(&mut super::harness::probe("nats://nowhere.invalid"), &["s/c"]).await.unwrap_err();
    assert_eq!(nowhere.reason, Reason::HostNotFound, "{}", nowhere.message);
}

#[tokio::test]
async fn of_several_servers_one_that_is_away_is_passed_over() {
    let own = Nats::on_loopback().unwrap();
    let context = jetstream(&own.url()).await;
    stream(&context, "s").await.create_consumer(durable("c")).await.unwrap();
    let closed = free_address().unwrap();
    let url = format!("nats://{closed},{}", own.address());
    assert_eq!(ask(&mut probe(&url), &["s/c"]).await.unwrap().pending, exactly(0));
}
