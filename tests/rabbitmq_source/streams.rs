//! Streams, by the offsets that consumers store: in every state, who may read, and servers that misbehave at their port.

use std::{sync::Arc, time::Duration};

use projectionist::{
    addresses::AddressRules,
    api::{Reason, StreamReference},
    clients::rabbitmq::ConnectionSettings,
    lag::Sample,
    measure::MeasureError,
    sources::{
        BatchProbe as _,
        rabbitmq::{Question, RabbitMqProbe},
    },
};
use serde_json::{Value, json};
use test_cluster::free_port;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    certificates::signed,
    fake::{Says, fake},
    harness::{DEADLINE, ask_within, declare, exactly, handled, question, server, streams_with_tls, with_tls},
};

fn settings(url: &str, stream_port: u16) -> ConnectionSettings {
    let port = stream_port.to_string();
    ConnectionSettings::from_keys(|key| match key {
        "url" => Some(url),
        "stream-port" => Some(port.as_str()),
        _ => None,
    })
    .unwrap()
}

fn probe_as(url: &str) -> RabbitMqProbe {
    let settings = settings(url, server().streams().port());
    RabbitMqProbe::new(settings, crate::sampler::loopback(), std::time::Instant::now())
}

fn probe() -> RabbitMqProbe {
    probe_as(&server().url())
}

fn of(stream: &str, reference: &str) -> Question {
    let streams = vec![StreamReference { stream: stream.to_owned(), reference: reference.to_owned() }];
    Question { streams, ..question(&[]) }
}

/// Publishes so many messages of this size, over AMQP.
fn publish(stream: &str, messages: usize, size: usize) {
    let mut publisher = server().consumer().unwrap();
    publisher.publish(stream, vec!["x".repeat(size); messages]).unwrap();
}

/// Asks until this holds.
async fn until(
    probe: &mut RabbitMqProbe,
    question: &Question,
    holds: impl Fn(&Result<Sample, MeasureError>) -> bool,
) -> Result<Sample, MeasureError> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = ask_within(probe, question, DEADLINE).await;
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{question:?}: last seen {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn until_pending(probe: &mut RabbitMqProbe, question: &Question, events: u64) -> Sample {
    until(probe, question, |found| found.as_ref().is_ok_and(|it| it.pending.is_some_and(|it| it.events == events)))
        .await
        .unwrap()
}

async fn until_unknown(probe: &mut RabbitMqProbe, question: &Question, reason: Reason) -> MeasureError {
    until(probe, question, |found| found.as_ref().is_err_and(|it| it.reason == reason)).await.unwrap_err()
}

#[tokio::test]
async fn what_is_beyond_the_stored_offset_is_pending_and_nothing_is_known_without_one() {
    let (mut probe, list) = (probe(), of("events", "list"));
    declare(server(), "events", "stream");
    let never = until_unknown(&mut probe, &list, Reason::NeverCommitted).await;
    assert!(never.message.contains("stream events, reference list"), "{}", never.message);
    publish("events", 10, 100);
    until_unknown(&mut probe, &list, Reason::NeverCommitted).await;
    server().store_offset("events", "list", 3).unwrap();
    let behind = until_pending(&mut probe, &list, 6).await;
    assert!(behind.staleness.is_some_and(|age| age < DEADLINE * 2), "{behind:?}");
    assert_eq!(handled(&behind), 0);
    publish("events", 5, 100);
    // The offset that was stored has taken at least one of the stream's offsets itself.
    let many = |found: &Result<Sample, MeasureError>| found.as_ref().is_ok_and(|it| it.pending.unwrap().events > 11);
    let more = until(&mut probe, &list, many).await.unwrap();
    let pending = more.pending.unwrap();
    assert!(!pending.exact && more.arrived >= behind.arrived + 5 && handled(&more) == 0, "{more:?}");
    // The messages themselves wait, and none of the offsets between them.
    let certain = more.certain.unwrap().events();
    assert!((1..=11).contains(&certain) && more.upper_bound.is_some() && more.tells_rates, "{more:?}");
    server().store_offset("events", "list", 3 + pending.events).unwrap();
    let done = until_pending(&mut probe, &list, 0).await;
    assert_eq!((done.pending, done.staleness), (exactly(0), Some(Duration::ZERO)));
    assert_eq!(handled(&done), pending.events);
    // Another consumer of the same stream, and a queue beside them.
    server().store_offset("events", "bill", 9).unwrap();
    declare(server(), "beside", "classic");
    crate::harness::publish(server(), "beside", 3, &json!({}));
    let mut both = of("events", "list");
    both.streams.extend(of("events", "bill").streams);
    both.queues.push("beside".to_owned());
    until_pending(&mut probe, &both, 5 + 3).await;
    server().store_offset("events", "ahead", 100).unwrap();
    let ahead = until_unknown(&mut probe, &of("events", "ahead"), Reason::CheckpointBeyondHead).await;
    assert!(ahead.message.contains("the stored offset is 100"), "{}", ahead.message);
    // Offsets are kept in the stream itself.
    server().run("DELETE", "queues/%2F/events", &Value::Null).unwrap();
    let gone = until_unknown(&mut probe, &list, Reason::StreamNotFound).await;
    assert!(gone.message.contains("there is no such stream"), "{}", gone.message);
    declare(server(), "events", "stream");
    until_unknown(&mut probe, &list, Reason::NeverCommitted).await;
    publish("events", 2, 100);
    server().store_offset("events", "list", 0).unwrap();
    until_pending(&mut probe, &list, 1).await;
}

/// More than are asked about in one round trip.
#[tokio::test]
async fn of_hundreds_of_consumers_each_is_told_its_own() {
    let mut probe = probe();
    declare(server(), "crowd", "stream");
    publish("crowd", 10, 100);
    server().store_offset("crowd", "r17", 3).unwrap();
    server().store_offset("crowd", "r433", 5).unwrap();
    until(&mut probe, &of("crowd", "r433"), Result::is_ok).await.unwrap();
    let all: Vec<Question> = (0..450).map(|n| of("crowd", &format!("r{n}"))).collect();
    let all: Vec<&Question> = all.iter().collect();
    let told = probe.answer(&all, Instant::now() + DEADLINE).await;
    let pending = |n: usize| told[n].as_ref().unwrap().pending.unwrap().events;
    assert_eq!(pending(17), pending(433) + 2);
    let others = told.iter().enumerate().filter(|(n, _)| ![17, 433].contains(n));
    let others: Vec<_> =
        others.filter(|(_, one)| !one.as_ref().is_err_and(|it| it.reason == Reason::NeverCommitted)).collect();
    assert!(told.len() == 450 && others.is_empty(), "{others:?}");
}

#[tokio::test]
async fn over_tls_a_stream_is_read_with_the_certificates_that_queues_are() {
    declare(server(), "sealed", "stream");
    publish("sealed", 5, 100);
    server().store_offset("sealed", "list", 2).unwrap();
    let (ours, port) = with_tls();
    let (mine, mine_key) = signed(ours, "projectionist");
    let asked = |stream_port: u16| {
        let settings =
            settings(&format!("https://guest:guest@localhost:{port}"), stream_port).with_ca(ours.pem().as_bytes());
        let settings = settings.with_client_certificate(mine.as_bytes(), mine_key.as_bytes());
        RabbitMqProbe::new(settings, crate::sampler::loopback(), std::time::Instant::now())
    };
    until_pending(&mut asked(streams_with_tls()), &of("sealed", "list"), 2).await;
    let mut plain = asked(server().streams().port());
    let second = Duration::from_secs(10);
    let refused = ask_within(&mut plain, &of("sealed", "list"), second).await.unwrap_err();
    assert!(matches!(refused.reason, Reason::TlsFailed | Reason::TimedOut), "never without: {}", refused.message);
}

#[tokio::test]
async fn an_offset_that_the_server_forgot_with_its_events_is_unknown_and_says_so() {
    let arguments = json!({
        "x-queue-type": "stream", "x-max-length-bytes": 50_000, "x-stream-max-segment-size-bytes": 10_000
    });
    server().run("PUT", "queues/%2F/short", &json!({"durable": true, "arguments": arguments})).unwrap();
    publish("short", 2, 100);
    server().store_offset("short", "list", 0).unwrap();
    let (mut probe, list) = (probe(), of("short", "list"));
    until_pending(&mut probe, &list, 1).await;
    for _ in 0..30 {
        publish("short", 1, 10_000);
    }
    let forgotten = until_unknown(&mut probe, &list, Reason::NeverCommitted).await;
    assert!(forgotten.message.contains("once retention has removed"), "{}", forgotten.message);
}

#[tokio::test]
async fn a_stream_takes_the_right_to_read_it_and_nothing_else() {
    let page = include_str!("../../docs/sources/rabbitmq.md");
    assert!(page.contains("set_permissions -p / projectionist '^$' '^$' '^orders$'"), "the page lists the permissions");
    declare(server(), "readable", "stream");
    publish("readable", 3, 10);
    server().store_offset("readable", "list", 0).unwrap();
    until_pending(&mut probe(), &of("readable", "list"), 2).await;
    let user = |name: &str, read: &str| {
        server().run("PUT", &format!("users/{name}"), &json!({"password": "hunter2", "tags": "management"})).unwrap();
        let rights = json!({"configure": "^$", "write": "^$", "read": read});
        server().run("PUT", &format!("permissions/%2F/{name}"), &rights).unwrap();
        probe_as(&server().url_as(name, "hunter2"))
    };
    until_pending(&mut user("reader", "^readable$"), &of("readable", "list"), 2).await;
    let refused = until_unknown(&mut user("blind", "^$"), &of("readable", "list"), Reason::PermissionDenied).await;
    assert!(refused.message.contains("may not read the stream"), "{}", refused.message);
    assert!(!refused.message.contains("hunter2"), "{}", refused.message);
}

#[tokio::test]
async fn whatever_is_at_the_port_for_streams_queues_are_measured_and_streams_are_unknown() {
    declare(server(), "steady", "classic");
    crate::harness::until_pending(&mut crate::harness::probe(&server().url()), &["steady"], 0).await;
    let frame = |size: u32, key: u16| [size.to_be_bytes().as_slice(), &key.to_be_bytes(), &[0, 1]].concat();
    let nowhere = free_port("127.0.0.1").unwrap();
    for (what, says, reason) in [
        ("hangs", Says::Nothing, Reason::TimedOut),
        ("hangs up", Says::AndHangsUp(Vec::new()), Reason::SourceFailed),
        ("hangs in the middle", Says::Once(frame(20, 0x8011)), Reason::TimedOut),
        ("cut in the middle", Says::AndHangsUp(frame(20, 0x8011)), Reason::SourceFailed),
        ("another protocol", Says::AndHangsUp(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::InvalidAnswer),
        ("a huge frame", Says::Once(frame(u32::MAX, 0x8011)), Reason::InvalidAnswer),
        ("a huge chunk", Says::Once(frame(u32::MAX, 8)), Reason::InvalidAnswer),
        ("a frame without anything", Says::Once(vec![0; 8]), Reason::InvalidAnswer),
        ("heartbeats without end", Says::ForEver(frame(4, 23)), Reason::TimedOut),
        ("a byte now and then", Says::Dripping(frame(1_000, 0x8011).repeat(200)), Reason::TimedOut),
        ("an answer to another question", Says::Once([frame(10, 0x8011), vec![9; 6]].concat()), Reason::InvalidAnswer),
        (
            "our own password",
            Says::Once([frame(19, 22), b"\0\0\0\x01\0\x08\0\x07hunter2".to_vec()].concat()),
            Reason::AuthenticationFailed,
        ),
    ] {
        let (address, _) = fake(says).await;
        let settings = settings(&server().url(), address.port());
        let mut probe = RabbitMqProbe::new(settings, crate::sampler::loopback(), std::time::Instant::now());
        let (queue, stream) = (question(&["steady"]), of("steady", "list"));
        let mut answers = probe.answer(&[&queue, &stream], Instant::now() + Duration::from_secs(2)).await;
        let (stream, queue) = (answers.pop().unwrap(), answers.pop().unwrap());
        let unknown = stream.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(unknown.message.contains(&format!("port {} for streams", address.port())), "{}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
        assert_eq!(queue.map(|sample| sample.pending), Ok(exactly(0)), "{what}");
    }
    let probe = |port: u16, rules: Arc<AddressRules>| {
        RabbitMqProbe::new(settings(&server().url(), port), rules, std::time::Instant::now())
    };
    let away = ask_within(&mut probe(nowhere, crate::sampler::loopback()), &of("steady", "list"), DEADLINE).await;
    assert_eq!(away.unwrap_err().reason, Reason::ConnectionRefused);
}

/// The next frame that a client sends: its key, and what follows the version.
async fn frame_of(stream: &mut TcpStream) -> std::io::Result<(u16, Vec<u8>)> {
    let mut body = vec![0; usize::try_from(stream.read_u32().await?).unwrap()];
    stream.read_exact(&mut body).await?;
    Ok((u16::from_be_bytes([body[0], body[1]]), body[4..].to_vec()))
}

fn framed(key: u16, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(rest.len() + 4).unwrap();
    [length.to_be_bytes().as_slice(), &key.to_be_bytes(), &[0, 1], rest].concat()
}

/// A server with streams of which none has ever stored an offset, and of which those called `huge` deliver a chunk that is larger than any.
async fn with_a_huge_chunk(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let (key, body) = frame_of(&mut stream).await?;
        let answered = |code: u16, rest: &[u8]| framed(key | 0x8000, &[&body[..4], &code.to_be_bytes(), rest].concat());
        let answer = match key {
            // What was tuned is not answered.
            20 => continue,
            19 => [answered(1, &[]), framed(20, &[0; 8])].concat(),
            11 => answered(19, &[0; 8]),
            7 if body.windows(4).any(|part| part == b"huge") => {
                [answered(1, &[]), [u32::MAX.to_be_bytes().as_slice(), &[0, 8, 0, 1]].concat()].concat()
            }
            _ => answered(1, &[]),
        };
        stream.write_all(&answer).await?;
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_hides_no_other() {
    for name in ["huge", "sound"] {
        declare(server(), name, "stream");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(with_a_huge_chunk(stream));
        }
    });
    let settings = settings(&server().url(), port);
    let mut probe = RabbitMqProbe::new(settings, crate::sampler::loopback(), std::time::Instant::now());
    let (huge, sound) = (of("huge", "list"), of("sound", "list"));
    for look in 0..3 {
        let answers = probe.answer(&[&huge, &sound], Instant::now() + DEADLINE).await;
        let reasons: Vec<Reason> = answers.iter().map(|answer| answer.as_ref().unwrap_err().reason).collect();
        assert_eq!(reasons, [Reason::InvalidAnswer, Reason::NeverCommitted], "look {look}: {answers:?}");
    }
}
