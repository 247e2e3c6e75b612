//! How many statuses are written when many Projections have news at the same moment, against a mocked API server.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    due::StatusMemory,
    read_store_tests::{next, store},
    report::{Reports, Stored},
    tests::{known, measured},
    urgency::NEWS_AT_ONCE,
    writer::{StatusWriter, Written},
};
use crate::{
    api::{ProjectionStatus, Reason},
    controller::{
        mock_api::{Answer, Asked, Server},
        parts::Owner,
    },
    measure::RunKey,
};

const PROJECTIONS: usize = 1_000;

/// Takes every status and Event.
fn willing(asked: &Asked) -> Answer {
    if !asked.path().ends_with("/status") {
        return Answer::Object(201, asked.body.clone());
    }
    let status = asked.body.as_array().unwrap().iter().find(|one| one["path"] == "/status").unwrap()["value"].clone();
    Answer::Object(
        200,
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1", "resourceVersion": "8"},
            "spec": {"source": {}, "lag": {"target": "5s"}},
            "status": status,
        }),
    )
}

/// One round of each of these Projections, whose status is `before` and would be `after`.
async fn round(
    server: &mut Server,
    writer: &StatusWriter,
    memories: &mut [StatusMemory],
    (before, after): (&ProjectionStatus, &ProjectionStatus),
) -> (Vec<Written>, usize) {
    let there = Stored { status: before.clone(), version: "7".to_owned() };
    let work = async {
        let mut outcomes = Vec::new();
        for (number, memory) in memories.iter_mut().enumerate() {
            let owner = Owner { run: RunKey::unversioned("shop", format!("orders-{number}")), uid: "u-1".to_owned() };
            outcomes.push(writer.write(&owner, before, &there, after.clone(), memory, PROJECTIONS).await);
        }
        outcomes
    };
    let (outcomes, asked) = server.during(work, willing).await;
    (outcomes, asked.iter().filter(|asked| asked.path().ends_with("/status")).count())
}

#[tokio::test]
async fn a_store_that_a_thousand_projections_share_goes_away_without_a_thousand_writes_at_once() {
    let (mut server, client) = Server::mocked();
    let reports = Reports::new(client, "replica-1");
    let writer = StatusWriter { reports, metrics: Arc::default(), slots: Mutex::default() };
    let good = measured(0, 0.0, false);
    let known = known(Ok(&good));
    let before = next(&known, Some(store(Some(Ok(3)))), &ProjectionStatus::default());
    let away = next(&known, Some(store(Some(Err(Reason::ConnectionRefused)))), &before);
    let mut memories: Vec<StatusMemory> = (0..PROJECTIONS).map(|_| StatusMemory::default()).collect();
    let at_once = usize::try_from(NEWS_AT_ONCE).unwrap();

    let began = Instant::now();
    let (outcomes, writes) = round(&mut server, &writer, &mut memories, (&before, &away)).await;
    // A slow machine has had more of the turns.
    let most = at_once + usize::try_from(50 * (began.elapsed().as_secs() + 1)).unwrap();
    assert_eq!(writes, outcomes.iter().filter(|outcome| **outcome == Written::Yes).count());
    assert!((at_once..=most).contains(&writes), "{writes}, at most {most}");
    let waits: Vec<Duration> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Written::Waits(left) => Some(*left),
            _ => None,
        })
        .collect();
    assert_eq!(waits.len(), PROJECTIONS - writes, "no other is forgotten");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(18)), "each has its turn: {waits:?}");

    // Looked at again before its turn, a Projection has no other one; and where the store is back by then there is nothing to write.
    let (waiting, others) = memories[PROJECTIONS - 20..].split_at_mut(10);
    let (again, _) = round(&mut server, &writer, waiting, (&before, &away)).await;
    assert!(
        again.iter().all(|one| matches!(one, Written::Waits(left) if *left <= Duration::from_secs(18))),
        "{again:?}"
    );
    let (back, writes) = round(&mut server, &writer, others, (&before, &before)).await;
    assert!(writes == 0 && back.iter().all(|one| *one == Written::Yes), "{back:?}");
    // What a client has just changed in a spec waits for no turn.
    let suspended = ProjectionStatus { suspended: true, ..away };
    let (now, writes) = round(&mut server, &writer, waiting, (&before, &suspended)).await;
    assert!(writes == 10 && now.iter().all(|one| *one == Written::Yes), "{now:?}");
}
