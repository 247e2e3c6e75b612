//! What waits for workers of the built-in projector, whose shards have a checkpoint each.

use projectionist::{
    clients::kurrentdb::{shard_of, stream_hash},
    lag::{CheckpointState, Position},
    read_stores::Checkpoint,
};

use crate::{
    harness::{about, ago, ask, at, exactly, is_old, log, probe, stream},
    server::Fake,
};

const SHARDS: u32 = 3;

/// The shards have come to these positions.
fn rows(positions: [i64; 3]) -> Checkpoint {
    Checkpoint { state: CheckpointState::Committed(positions.map(Position).to_vec()), ..at(None) }
}

/// Streams of the shards 0, 1 and 2.
fn streams() -> [String; 3] {
    [0, 1, 2].map(|shard| {
        let mut names = (0..).map(|n| format!("cart-{n}"));
        names.find(|name| shard_of(stream_hash(name.as_bytes()), SHARDS) == shard).unwrap()
    })
}

#[tokio::test]
async fn events_of_a_category_wait_for_the_shard_of_the_stream_that_their_links_lead_to() {
    let (fake, streams) = (Fake::start().await, streams());
    fake.database(|database| {
        database.links_categories = true;
        for round in 0..4 {
            streams.iter().for_each(|stream| database.append(stream, 1, ago(900 - 100 * round)));
        }
    });
    let (mut probe, question) = (probe(&fake), stream("$ce-cart"));
    // Links 0 to 11: those of shard 0 have the revisions 0, 3, 6, 9.
    let none = ask(&mut probe, &question, Some(&rows([-1, -1, -1]))).await.unwrap();
    assert_eq!(none.pending, exactly(12));
    let apart = ask(&mut probe, &question, Some(&rows([3, 11, 8]))).await.unwrap();
    assert_eq!(apart.pending, exactly(3), "6 and 9, and 11");
    assert!(apart.upper_bound.is_none());
    is_old(&apart, 700);
    let done = ask(&mut probe, &question, Some(&rows([9, 11, 11]))).await.unwrap();
    assert_eq!((done.pending, done.staleness), (exactly(0), Some(std::time::Duration::ZERO)));
    assert_eq!(done.checkpoint, CheckpointState::Committed([9, 11, 11].map(Position).to_vec()));
    // What is gone before any shard has come to it was deleted before it was handled; the rest may have been handled.
    fake.database(|database| database.truncate("$ce-cart", 6));
    let gone = ask(&mut probe, &question, Some(&rows([0, 1, 2]))).await.unwrap();
    assert_eq!((gone.pending, gone.faults.deleted), (exactly(6), 3));
}

#[tokio::test]
async fn beyond_a_page_all_that_comes_counts_as_waiting() {
    let (fake, [first, second, _]) = (Fake::start().await, streams());
    fake.database(|database| {
        database.links_categories = true;
        database.append(&first, 400, ago(900));
        database.append(&second, 400, ago(600));
    });
    let (mut probe, question) = (probe(&fake), stream("$ce-cart"));
    let apart = ask(&mut probe, &question, Some(&rows([399, 99, 99]))).await.unwrap();
    assert_eq!(apart.pending, about(400), "of revisions 100 to 599 those from 400, and all behind");
    assert_eq!(apart.certain.unwrap().events(), 200);
    assert!(apart.upper_bound.as_ref().unwrap().contains("more events wait"));
    is_old(&apart, 600);
}

#[tokio::test]
async fn events_of_all_wait_for_the_shard_of_their_stream() {
    let (fake, streams) = (Fake::start().await, streams());
    fake.database(|database| {
        for round in 0..4 {
            streams.iter().for_each(|stream| database.append(stream, 1, ago(900 - 100 * round)));
        }
    });
    let commit = |stream: usize, revision| fake.database(|database| database.commit_of(&streams[stream], revision));
    let mut probe = probe(&fake);
    let end = commit(2, 3);
    let apart = ask(&mut probe, &log(), Some(&rows([commit(0, 1), end, commit(2, 2)]))).await.unwrap();
    assert_eq!(apart.pending, exactly(3));
    is_old(&apart, 700);
    let begun = ask(&mut probe, &log(), Some(&rows([-1, -1, -1]))).await.unwrap();
    assert_eq!(begun.pending, exactly(12));
    let done = ask(&mut probe, &log(), Some(&rows([commit(0, 3), end, end]))).await.unwrap();
    assert_eq!(done.pending, exactly(0));
}
