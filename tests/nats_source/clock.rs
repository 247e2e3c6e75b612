//! Servers whose clock differs from the operator's. A relay moves the times that a real server tells: the kernel has one clock for all processes.

use std::{net::SocketAddr, time::Duration};

use jiff::{SignedDuration, Timestamp, civil::DateTime};
use projectionist::lag::Sample;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::harness::{ask, durable, exactly, jetstream, probe, publish, server, stream};

/// The clock of a server.
#[derive(Clone, Copy)]
struct Clock {
    /// How far it is ahead of ours.
    ahead: SignedDuration,
    /// It is told with what is told of a consumer, as NATS 2.10 and newer do.
    told: bool,
}

impl Clock {
    /// What the server would have answered. Messages that are no JSON stay as they are.
    fn moved(self, answer: &str) -> String {
        const TIME: &str = "\"time\":\"";
        let mut answer = answer.to_owned();
        if let Some(place) = answer.find(TIME).map(|found| found + TIME.len()) {
            // To the second: what follows is a fraction of one.
            let time = place..place + "2026-11-27T18:51:16".len();
            let stored: DateTime = answer[time.clone()].parse().unwrap();
            let moved = stored.checked_add(self.ahead).unwrap();
            answer.replace_range(time, &moved.strftime("%Y-%m-%dT%H:%M:%S").to_string());
        }
        if self.told && answer.contains("consumer_info_response") {
            answer.insert_str(1, &format!("\"ts\":\"{}\",", Timestamp::now() + self.ahead));
        }
        answer
    }

    /// A server with this clock.
    async fn of(self, server: SocketAddr) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut near_in, mut near_out) = listener.accept().await.unwrap().0.into_split();
                let (far_in, mut far_out) = TcpStream::connect(server).await.unwrap().into_split();
                tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
                tokio::spawn(async move {
                    let mut far_in = BufReader::new(far_in);
                    let mut line = String::new();
                    while matches!(far_in.read_line(&mut line).await, Ok(1..)) {
                        if let Some((head, length)) = line.rsplit_once(' ').filter(|_| line.starts_with("MSG ")) {
                            let mut answer = vec![0; length.trim_end().parse::<usize>().unwrap() + 2];
                            far_in.read_exact(&mut answer).await.unwrap();
                            let answer = self.moved(str::from_utf8(&answer).unwrap().trim_end());
                            line = format!("{head} {}\r\n{answer}\r\n", answer.len());
                        }
                        if near_out.write_all(line.as_bytes()).await.is_err() {
                            return;
                        }
                        line.clear();
                    }
                });
            }
        });
        url
    }
}

#[tokio::test]
async fn the_age_is_by_the_servers_clock_where_it_is_told_and_otherwise_wrong_by_the_difference() {
    let context = jetstream(&server().url()).await;
    stream(&context, "clock").await.create_consumer(durable("list")).await.unwrap();
    publish(&context, "clock.made", 2).await;
    let hour = SignedDuration::from_hours(1);
    let measured = async |ahead: SignedDuration, told: bool| -> Sample {
        let url = Clock { ahead, told }.of(server().address()).await;
        let sample = ask(&mut probe(&url), &["clock/list"]).await.unwrap();
        assert_eq!(sample.pending, exactly(2), "whatever the clock says");
        sample
    };
    let (most, nearly) = (Duration::from_secs(3_000), Duration::from_secs(3_500));
    for ahead in [-hour, SignedDuration::ZERO, hour] {
        let told = measured(ahead, true).await;
        assert!(told.staleness.unwrap() < most, "{ahead}: {:?}", told.staleness);
        assert_eq!(told.ahead_of_clock, Duration::ZERO, "{ahead}");
    }
    // As the server is that these tests have: NATS 2.9.
    let behind = measured(-hour, false).await;
    assert!(behind.staleness.unwrap() > nearly, "{:?}", behind.staleness);
    let ahead = measured(hour, false).await;
    assert_eq!(ahead.staleness, Some(Duration::ZERO));
    assert!(ahead.ahead_of_clock > most, "{:?}", ahead.ahead_of_clock);
}
