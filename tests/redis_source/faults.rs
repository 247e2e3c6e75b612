//! Servers that are away, hang, hang up, answer nonsense or without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use projectionist::{api::Reason, lag::Sample, measure::MeasureError, sources::BatchProbe as _};
use test_cluster::Redis;

use crate::{
    fake::Says,
    harness::{ask, ask_within, exactly, probe, question},
};

const SHORT: Duration = Duration::from_millis(500);

/// The URL of a fake server, and how much it has sent.
async fn fake(says: Says) -> (String, Arc<AtomicUsize>) {
    let (address, sent) = crate::fake::fake(says).await;
    (format!("redis://:hunter2@{address}"), sent)
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
async fn streams_whose_answers_are_too_large_spoil_no_other_and_are_read_once_they_are_right() {
    let own = Redis::on_loopback().unwrap();
    let body = "x".repeat(34 << 20);
    let streams = ["a", "b", "c", "d"];
    for stream in streams {
        own.run(&format!("XGROUP CREATE {stream} g 0 MKSTREAM")).unwrap();
    }
    for (stream, body) in [("a", body.as_str()), ("b", "small"), ("c", &body), ("d", "small")] {
        own.run_all(&[&["XADD", stream, "*", "body", body]]).unwrap();
    }
    let mut probe = probe(&own.url());
    let questions = streams.map(|stream| question(&[&format!("{stream}/g")]));
    let mut look = async || {
        let questions: Vec<_> = questions.iter().collect();
        probe.answer(&questions, tokio::time::Instant::now() + crate::harness::DEADLINE).await
    };
    for round in 0..3 {
        let answers = look().await;
        for (place, stream) in [(0, "a"), (2, "c")] {
            let large = answers[place].as_ref().unwrap_err();
            assert_eq!(large.reason, Reason::InvalidAnswer, "{round}: {}", large.message);
            let words = format!("stream {stream}, group g: the answer is larger than 32 MiB");
            assert!(large.message.contains(&words), "{round}: {}", large.message);
        }
        for place in [1, 3] {
            let small = answers[place].as_ref().unwrap_or_else(|why| panic!("{round}: {}", why.message));
            assert_eq!(small.pending, exactly(1), "{round}");
        }
    }
    own.run("XTRIM c MAXLEN 0").unwrap();
    for last in [false, true] {
        let answers = look().await;
        assert!(answers[0].is_err() && answers[1].is_ok() && answers[3].is_ok());
        assert!(!last || answers[2].is_ok(), "each of them is asked in turn: {:?}", answers[2]);
    }
    own.run("XTRIM a MAXLEN 0").unwrap();
    assert!(look().await.iter().all(Result::is_ok));
}
