//! How far a version has come that is being built, and what is asked of it before readers are led to it.

use super::*;

#[tokio::test]
async fn how_far_a_version_has_come_is_told_also_by_an_operator_that_begins_anew() {
    let mut cluster = Cluster::live(|_| {}).await;
    cluster.rename("v2");
    for (pending, forgetful, percent) in [(1_000, false, 0.0), (250, false, 75.0), (200, true, 80.0)] {
        cluster.forgetful = forgetful;
        cluster.counted(&[("v1", 4, 1.0), ("v2", pending, 900.0)]);
        // Numbers are written now and then.
        cluster.scene.reconciler.forget();
        cluster.settles().await;
        let runs = cluster.status().runs;
        let progress = runs[1].progress.unwrap();
        assert_eq!((progress.percent, progress.of_events, progress.events_per_second), (percent, 1_000, None));
        assert_eq!(runs[0].progress, None, "readers see it");
        let conditions = cluster.status().conditions;
        let promoted = conditions.iter().find(|condition| condition.type_ == "Promoted").unwrap();
        let so_far = format!("{percent} % of about 1000 events, and how long it takes is not known");
        assert!(promoted.message.contains(&so_far), "{}", promoted.message);
    }
}

#[tokio::test]
async fn a_version_that_failed_is_removed_where_the_spec_says_so_and_readers_keep_what_they_see() {
    let mut cluster = Cluster::live(|object| object["spec"]["rollout"]["onFailure"] = json!("Remove")).await;
    cluster.rename("v2");
    cluster.change(|object| object["spec"]["rollout"]["deadline"] = json!("0s"));
    cluster.measured(&[("v1", 1.0), ("v2", 900.0)]);
    cluster.settles().await;
    cluster.settles().await;
    assert_eq!(cluster.deployments(), of(&["orders-v1"]));
    assert_eq!(cluster.promoted(), ("False".to_owned(), "RolloutFailed".to_owned()));
    assert_eq!(cluster.status().rollout.unwrap().failed.as_deref(), Some("v2"));
    assert_eq!(cluster.led(), ["orders_v1"]);
}
