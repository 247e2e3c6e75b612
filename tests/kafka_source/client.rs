//! What the client reads of logs and groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use projectionist::{
    api::Reason,
    clients::kafka::{At, FirstRecord, Isolation, Offset},
};

use crate::harness::{ask, broker, commit, committed, open, partition, produce, set, soon, topic};

const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn log_ends_low_watermarks_and_commits_are_those_that_kafkas_own_client_sees() {
    topic("ends", 3, "");
    produce("ends", 0, 5, NOW);
    produce("ends", 2, 7, NOW);
    ask(&["deleterecords", "ends", "0", "2"]);
    commit("ends-group", "ends", 0, 3);
    commit("ends-group", "ends", 2, 7);
    let mut client = open();
    let leaders = client.topics(&set(&["ends"]), soon()).await.unwrap()["ends"].clone().unwrap().leaders;
    assert_eq!(leaders.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    let asked: BTreeMap<_, _> = leaders.iter().map(|(n, leader)| (partition("ends", *n), leader.unwrap())).collect();
    let offsets = async |client: &mut projectionist::clients::kafka::Client, at| -> Vec<i64> {
        client.offsets(at, &asked, soon()).await.into_values().map(|one| one.unwrap().offset).collect()
    };
    assert_eq!(offsets(&mut client, At::Latest(Isolation::ReadCommitted)).await, [5, 0, 7]);
    assert_eq!(offsets(&mut client, At::Earliest).await, [2, 0, 0]);
    for (n, expected) in [(0, "2 5"), (1, "0 0"), (2, "0 7")] {
        assert_eq!(ask(&["offsets", "ends", &n.to_string()]), expected);
    }
    assert_eq!(committed(&mut client, "ends-group", "ends", 3).await, [Some(3), None, Some(7)]);
    assert_eq!(client.connections(), 1, "bootstrap and leader are one broker, and one connection");
}

#[tokio::test]
async fn asking_creates_no_topic_and_joins_no_group() {
    topic("untouched", 1, "");
    produce("untouched", 0, 1, NOW);
    ask(&["consume", "untouched-group", "untouched", "1"]);
    let mut client = open();
    let found = client.topics(&set(&["never-made"]), soon()).await.unwrap();
    let error = found["never-made"].clone().unwrap_err();
    assert_eq!(error.reason, Reason::TableNotFound);
    assert!(error.message.contains("topic never-made") && error.message.contains("create it"), "{error}");
    assert_eq!(committed(&mut client, "untouched-group", "untouched", 1).await, [Some(1)]);
    assert_eq!(committed(&mut client, "never-made-group", "untouched", 1).await, [None]);
    assert_eq!(ask(&["members", "untouched-group"]), "Empty 0");
    assert!(!ask(&["topics"]).contains("never-made"));
}

#[tokio::test]
async fn the_first_unread_record_tells_its_time() {
    topic("aged", 2, "");
    produce("aged", 0, 3, Duration::from_secs(600));
    produce("aged", 0, 2, Duration::from_secs(60));
    let mut client = open();
    client.topics(&set(&["aged"]), soon()).await.unwrap();
    let first = async |client: &mut projectionist::clients::kafka::Client, offset| {
        let asked = BTreeMap::from([(partition("aged", 0), (1, offset))]);
        client.first_records(Isolation::ReadCommitted, &asked, soon()).await[&partition("aged", 0)].clone()
    };
    let age = |first: FirstRecord| match first {
        FirstRecord::Batch { oldest, newest, transactional: false, .. } => {
            assert!(oldest <= newest);
            (jiff::Timestamp::now().as_millisecond() - oldest) / 1_000
        }
        other => panic!("{other:?}"),
    };
    for (offset, at_least) in [(0, 600), (2, 600), (3, 60), (4, 60)] {
        let age = age(first(&mut client, offset).await.unwrap());
        assert!((at_least..at_least + 120).contains(&age), "offset {offset}: {age} s");
    }
    assert_eq!(first(&mut client, 5).await.unwrap(), FirstRecord::Nothing);
    let beyond = first(&mut client, 9).await.unwrap_err();
    assert_eq!(beyond.code.unwrap().0, 1, "{beyond}");
    let found = client
        .offsets(At::Time(0, Isolation::ReadCommitted), &BTreeMap::from([(partition("aged", 0), 1)]), soon())
        .await;
    let Offset { offset, time } = found[&partition("aged", 0)].clone().unwrap();
    assert!(offset == 0 && time.is_some());
}

#[tokio::test]
async fn transaction_markers_and_aborted_transactions_are_no_records() {
    topic("markers", 1, "");
    // Markers are written after the producer has its answer.
    let end_at = async |client: &mut projectionist::clients::kafka::Client, expected| {
        let until = soon();
        loop {
            let asked = BTreeMap::from([(partition("markers", 0), 1)]);
            let found = client.offsets(At::Latest(Isolation::ReadCommitted), &asked, until).await;
            match found[&partition("markers", 0)].clone().unwrap().offset {
                end if end == expected => break,
                end => assert!(tokio::time::Instant::now() < until, "{end} instead of {expected}"),
            }
        }
    };
    let end = async |client: &mut projectionist::clients::kafka::Client, isolation| {
        let found =
            client.offsets(At::Latest(isolation), &BTreeMap::from([(partition("markers", 0), 1)]), soon()).await;
        found[&partition("markers", 0)].clone().unwrap().offset
    };
    let first = async |client: &mut projectionist::clients::kafka::Client, isolation, offset| {
        let asked = BTreeMap::from([(partition("markers", 0), (1, offset))]);
        client.first_records(isolation, &asked, soon()).await[&partition("markers", 0)].clone().unwrap()
    };
    let mut client = open();
    client.topics(&set(&["markers"]), soon()).await.unwrap();
    ask(&["begin", "tx", "markers", "0", "3"]);
    // The transaction is open: no reader of committed records may see its records.
    assert_eq!(end(&mut client, Isolation::ReadCommitted).await, 0);
    assert_eq!(end(&mut client, Isolation::ReadUncommitted).await, 3);
    ask(&["end", "tx", "commit"]);
    // Three records and a marker.
    end_at(&mut client, 4).await;
    assert!(matches!(
        first(&mut client, Isolation::ReadCommitted, 2).await,
        FirstRecord::Batch { transactional: true, .. }
    ));
    assert_eq!(first(&mut client, Isolation::ReadCommitted, 3).await, FirstRecord::Nothing, "only the marker");
    ask(&["begin", "tx", "markers", "0", "2"]);
    ask(&["end", "tx", "abort"]);
    end_at(&mut client, 7).await;
    assert_eq!(
        first(&mut client, Isolation::ReadCommitted, 3).await,
        FirstRecord::Nothing,
        "markers and what was aborted"
    );
    assert!(matches!(first(&mut client, Isolation::ReadUncommitted, 4).await, FirstRecord::Batch { offset: 4, .. }));
    ask(&["begin", "tx", "markers", "0", "1"]);
    ask(&["end", "tx", "commit"]);
    end_at(&mut client, 9).await;
    assert!(matches!(first(&mut client, Isolation::ReadCommitted, 3).await, FirstRecord::Batch { offset: 7, .. }));
}

#[tokio::test]
async fn many_groups_cost_one_request_for_each_kind_of_question() {
    const GROUPS: usize = 200;
    topic("crowd", 5, "");
    produce("crowd", 4, 9, NOW);
    commit("crowd-0", "crowd", 4, 4);
    let mut client = open();
    committed(&mut client, "crowd-0", "crowd", 5).await;
    let groups: BTreeSet<Arc<str>> = (0..GROUPS).map(|n| Arc::from(format!("crowd-{n}"))).collect();
    let partitions: BTreeSet<_> = (0..5).map(|n| partition("crowd", n)).collect();
    let before = client.requests();
    let coordinators = client.coordinators(&groups, soon()).await.unwrap();
    assert_eq!(client.requests() - before, 1);
    let coordinators = coordinators.into_iter().map(|(group, id)| (group, id.unwrap())).collect();
    let wanted = groups.iter().map(|group| (group.clone(), partitions.clone())).collect();
    let found = client.committed(&wanted, &coordinators, soon()).await;
    assert_eq!(client.requests() - before, 2);
    assert_eq!(found.len(), GROUPS);
    assert_eq!(found["crowd-0"].clone().unwrap()[&partition("crowd", 4)], Some(4));
    assert_eq!(found["crowd-199"].clone().unwrap()[&partition("crowd", 4)], None);
    assert_eq!(broker().ask(&["members", "crowd-0"]).unwrap(), "Empty 0");
}
