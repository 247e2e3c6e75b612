//! Servers that are away, hang, hang up, answer nonsense or without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use projectionist::{api::Reason, lag::Sample, measure::MeasureError};
use test_cluster::Redis;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{ask, ask_within, exactly, probe, question};

const SHORT: Duration = Duration::from_millis(500);

/// What a fake server says to whoever connects, after it has read something.
#[derive(Clone)]
enum Says {
    Nothing,
    Once(Vec<u8>),
    /// Once, and then it hangs up.
    AndHangsUp(Vec<u8>),
    ForEver(Vec<u8>),
    /// A byte now and then.
    Dripping(Vec<u8>),
}

/// A fake server at this address; counts what it has sent.
async fn fake(says: Says) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:hunter2@{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (says, counter) = (says.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let send = async |stream: &mut tokio::net::TcpStream, bytes: &[u8]| {
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
            });
        }
    });
    (url, sent)
}

/// What logging in and looking at the server come to, as a real one says it.
const HELLO: &str = "*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n";

async fn measured(says: Says) -> Result<Sample, MeasureError> {
    let (url, _) = fake(says).await;
    ask_within(&mut probe(&url), &["s/g"], SHORT).await
}

#[tokio::test]
async fn whatever_a_server_answers_instead_the_lag_is_unknown_with_its_reason() {
    let text = |text: &str| text.as_bytes().to_vec();
    let oversized = |kind: &str| text(&format!("{kind}9223372036854775807\r\n"));
    for (what, says, reason) in [
        ("hangs", Says::Nothing, Reason::TimedOut),
        ("hangs up", Says::AndHangsUp(Vec::new()), Reason::SourceFailed),
        ("cut in the middle", Says::AndHangsUp(text(&HELLO[..40])), Reason::SourceFailed),
        ("hangs in the middle", Says::Once(text(&HELLO[..40])), Reason::TimedOut),
        ("another protocol", Says::AndHangsUp(text("HTTP/1.1 400 Bad Request\r\n\r\n")), Reason::InvalidAnswer),
        ("a huge length", Says::Once(oversized("$")), Reason::InvalidAnswer),
        ("a huge count", Says::Once(oversized("*")), Reason::TimedOut),
        ("a line without end", Says::ForEver(vec![b'+'; 4_096]), Reason::InvalidAnswer),
        ("answers without end", Says::ForEver(text("+OK\r\n")), Reason::InvalidAnswer),
        ("arrays in arrays", Says::ForEver(text("*1\r\n")), Reason::InvalidAnswer),
        ("a byte now and then", Says::Dripping(text(HELLO)), Reason::TimedOut),
        ("loading", Says::Once(text("-LOADING Redis is loading the dataset in memory\r\n")), Reason::SourceFailed),
        (
            "too many clients",
            Says::AndHangsUp(text("-ERR max number of clients reached\r\n")),
            Reason::TooManyConnections,
        ),
        ("our own password", Says::Once(text("-WRONGPASS hunter2 is wrong\r\n")), Reason::AuthenticationFailed),
    ] {
        let unknown = measured(says).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
        assert!(unknown.message.contains("Redis at 127.0.0.1:"), "{what}: {}", unknown.message);
    }
}

#[tokio::test]
async fn an_endless_answer_ends_the_connection_after_32_mib() {
    let piece = ":1\r\n".repeat(1 << 16).into_bytes();
    let says = Says::ForEver([b"*9223372036854775807\r\n".as_slice(), &piece].concat());
    let (url, sent) = fake(says).await;
    let unknown = ask(&mut probe(&url), &["s/g"]).await.unwrap_err();
    // Its second beginning is no element of the first.
    assert_eq!(unknown.reason, Reason::InvalidAnswer, "{}", unknown.message);
    assert!(sent.load(Ordering::Relaxed) < 64 << 20);
}

#[tokio::test]
async fn a_server_that_is_away_or_hangs_is_unknown_and_comes_back() {
    let mut own = Redis::on_loopback().unwrap();
    own.run("XGROUP CREATE s g 0 MKSTREAM").unwrap();
    let mut probe = probe(&own.url());
    assert_eq!(ask(&mut probe, &["s/g"]).await.unwrap().pending, exactly(0));
    own.run("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    assert_eq!(
        ask(&mut probe, &["s/g"]).await.unwrap().pending,
        exactly(0),
        "a connection that was closed is opened again"
    );
    own.pause();
    let hung = ask_within(&mut probe, &["s/g"], SHORT).await.unwrap_err();
    assert_eq!(hung.reason, Reason::TimedOut, "{}", hung.message);
    own.resume();
    own.run("XADD s * a b").unwrap();
    assert_eq!(ask(&mut probe, &["s/g"]).await.unwrap().pending, exactly(1), "no late answer is taken for a new one");
    own.kill();
    let away = ask(&mut probe, &["s/g"]).await.unwrap_err();
    assert!(matches!(away.reason, Reason::ConnectionRefused | Reason::SourceFailed), "{}", away.message);
    let away = ask(&mut probe, &["s/g"]).await.unwrap_err();
    assert_eq!(away.reason, Reason::ConnectionRefused, "{}", away.message);
    let nowhere = ask(&mut super::harness::probe("redis://nowhere.invalid"), &["s/g"]).await.unwrap_err();
    assert_eq!(nowhere.reason, Reason::HostNotFound, "{}", nowhere.message);
}

#[tokio::test]
async fn a_stream_whose_answer_is_too_large_spoils_the_others_once_at_most() {
    let own = Redis::on_loopback().unwrap();
    let body = "x".repeat(34 << 20);
    for stream in ["a", "b"] {
        own.run(&format!("XGROUP CREATE {stream} g 0 MKSTREAM")).unwrap();
    }
    own.run_all(&[&["XADD", "a", "*", "body", &body], &["XADD", "b", "*", "body", "small"]]).unwrap();
    let mut probe = probe(&own.url());
    let questions = [question(&["a/g"]), question(&["b/g"])];
    for round in 0..2 {
        let questions: Vec<_> = questions.iter().collect();
        let mut answers = probe.answer(&questions, tokio::time::Instant::now() + crate::harness::DEADLINE).await;
        let (small, large) = (answers.pop().unwrap(), answers.pop().unwrap());
        let large = large.unwrap_err();
        assert_eq!(large.reason, Reason::InvalidAnswer, "{}", large.message);
        assert!(large.message.contains("stream a, group g: the answer is larger than 32 MiB"), "{}", large.message);
        if round == 1 {
            assert_eq!(small.unwrap().pending, exactly(1), "asked for before the large one");
        }
    }
}
