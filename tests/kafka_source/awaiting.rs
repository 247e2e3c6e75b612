//! Requests that wait until a read model has a record: told by partition and offset.

use std::time::{Duration, Instant};

use projectionist::metrics_api::AwaitError;

use crate::{
    harness::{commit, produce, topic},
    running::SOON,
    sampler::Running,
};

/// Asks again and again until it is there.
async fn reached_at_last(sampler: &Running, name: &str, position: &str) -> String {
    let until = Instant::now() + SOON;
    loop {
        match sampler.reached(name, position, "10s").await {
            Ok(position) => return position,
            Err(AwaitError::TimedOut { .. } | AwaitError::Unknown(_)) if Instant::now() < until => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_reached_when_the_offset_behind_it_is_committed_in_its_partition() {
    topic("awaited", 2, "");
    topic("awaited-too", 1, "");
    produce("awaited", 0, 5, Duration::ZERO);
    produce("awaited", 1, 3, Duration::ZERO);
    commit("awaited-group", "awaited", 0, 2);
    let mut sampler = Running::start();
    sampler.declare("one", &["awaited"], "awaited-group", |_| {});
    sampler.declare("two", &["awaited", "awaited-too"], "awaited-group", |_| {});
    assert_eq!(reached_at_last(&sampler, "one", "0:1").await, "0:1");
    assert_eq!(reached_at_last(&sampler, "two", "awaited-0:1").await, "awaited-0:1");
    let next = sampler.reached("one", "0:2", "500ms").await;
    assert!(matches!(&next, Err(AwaitError::TimedOut { position: Some(at), .. }) if at == "0:1"), "{next:?}");
    // Nothing is committed there, or there is no such partition.
    for partition in ["1:0", "7:0"] {
        let unknown = sampler.reached("one", partition, "500ms").await;
        assert!(matches!(&unknown, Err(AwaitError::TimedOut { position: None, .. })), "{unknown:?}");
    }
    for (name, position) in [("one", "2"), ("one", "others-0:1"), ("two", "0:1"), ("one", "0:x")] {
        let refused = sampler.reached(name, position, "5s").await;
        assert!(matches!(&refused, Err(AwaitError::BadRequest(why)) if why.contains("offset")), "{refused:?}");
    }
    commit("awaited-group", "awaited", 0, 5);
    commit("awaited-group", "awaited", 1, 3);
    assert_eq!(reached_at_last(&sampler, "one", "0:2").await, "0:4");
    assert_eq!(reached_at_last(&sampler, "one", "1:2").await, "1:2");
    let beyond = sampler.reached("one", "1:3", "500ms").await;
    assert!(matches!(&beyond, Err(AwaitError::TimedOut { position: Some(at), .. }) if at == "1:2"), "{beyond:?}");
}
