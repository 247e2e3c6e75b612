//! How far a version has come that is being built, and what is asked of it before readers are led to it.

use super::*;

#[tokio::test]
async fn how_far_a_version_has_come_is_told_also_by_an_operator_that_begins_anew() {
    let mut cluster = Cluster::live(|_| {}).await;
    cluster.rename("v2");
    for (pending, percent) in [(1_000, 0.0), (250, 75.0)] {
        cluster.counted(&[("v1", 4, 1.0), ("v2", pending, 900.0)]);
        cluster.scene.reconciler.forget();
        let told = |cluster: &Cluster| cluster.status().runs.get(1).and_then(|run| run.progress).map(|it| it.percent);
        // Numbers are written now and then.
        for _ in 0..600 {
            cluster.round().await;
            cluster.shows();
            if told(&cluster) == Some(percent) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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

#[tokio::test]
async fn an_operator_that_begins_anew_before_each_round_does_the_same() {
    let mut cluster = Cluster::with(versioned(|object| object["spec"]["rollout"]["keepOld"] = json!("0s")));
    cluster.forgetful = true;
    cluster.measured(&[("v1", 1.0)]);
    cluster.settles().await;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    cluster.settles().await;
    assert_eq!(cluster.led(), ["orders_v1", "orders_v2"]);
    assert_eq!(cluster.deployments(), of(&["orders-v2"]));
    assert_eq!(cluster.events.iter().filter(|event| *event == "Promoted").count(), 2, "{:?}", cluster.events);
}

/// What both versions are asked.
const QUERY: &str = "select 1 as n";
const TOLERANCE: f64 = 0.01;

/// The second version has caught up beside the first, and is to answer as that does.
async fn compared(on_failure: &str, found: Option<Compared>) -> Cluster {
    let mut cluster = Cluster::live(|object| {
        object["spec"]["rollout"]["onFailure"] = json!(on_failure);
        object["spec"]["rollout"]["promote"]["parity"] = json!({"query": QUERY, "tolerance": TOLERANCE});
    })
    .await;
    assert!(cluster.scene.views.0.lock().unwrap().asked.is_empty(), "the first version is compared with none");
    cluster.scene.views.0.lock().unwrap().compared = found;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    for _ in 0..10 {
        cluster.round().await;
        cluster.shows();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster
}

#[tokio::test]
async fn readers_are_led_to_a_version_that_holds_the_same_and_it_is_asked_in_both_schemas() {
    let cluster = compared("Keep", Some(Compared::Same)).await;
    assert_eq!(
        (cluster.led(), cluster.promoted().0),
        (vec!["orders_v1".to_owned(), "orders_v2".to_owned()], "True".to_owned())
    );
    let asked = cluster.scene.views.0.lock().unwrap().asked.clone();
    let [Comparison { live, candidate, query, tolerance, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((&**query, *tolerance), (QUERY, TOLERANCE));
    let sides = [live, candidate].map(|side| (&*side.version, &*side.schema, &*side.checkpoint.table));
    assert_eq!(sides, [("v1", "orders_v1", "orders_v1.checkpoints"), ("v2", "orders_v2", "orders_v2.checkpoints")]);
}

#[tokio::test]
async fn readers_keep_what_they_see_until_it_is_known_that_a_version_holds_the_same_or_a_person_decides() {
    for (found, why) in [
        (None, "no answer in time"),
        (Some(Compared::NeverAtOnePosition("one was at 5, the other at 6".to_owned())), "there has been no moment"),
    ] {
        let mut cluster = compared("Remove", found).await;
        assert_eq!(cluster.promoted(), ("False".to_owned(), "ParityUnknown".to_owned()));
        let conditions = cluster.status().conditions;
        let said = &conditions.iter().find(|condition| condition.type_ == "Promoted").unwrap().message;
        assert!(said.contains(why), "{said}");
        assert_eq!(
            (cluster.led(), cluster.deployments()),
            (vec!["orders_v1".to_owned()], of(&["orders-v1", "orders-v2"]))
        );
        cluster.change(|object| object["metadata"]["annotations"] = json!({PROMOTE_ANNOTATION: "v2"}));
        cluster.settles().await;
        assert_eq!(cluster.led(), ["orders_v1", "orders_v2"], "by hand");
    }
}

#[tokio::test]
async fn a_version_that_differs_is_told_with_what_differs_and_the_one_before_is_left_as_it_is() {
    let cluster = compared("Remove", Some(Compared::Differs("\"7\" (total)".to_owned()))).await;
    assert_eq!(cluster.promoted(), ("False".to_owned(), "ParityBroken".to_owned()), "once may be a mistake");
    assert_eq!((cluster.led(), cluster.deployments()), (vec!["orders_v1".to_owned()], of(&["orders-v1", "orders-v2"])));
    assert_eq!(cluster.events, ["Promoted", "ParityBroken"]);
    let conditions = cluster.status().conditions;
    let said = &conditions.iter().find(|condition| condition.type_ == "Promoted").unwrap().message;
    assert!(said.contains("\"7\" (total)"), "{said}");
}

#[tokio::test]
async fn a_version_that_has_failed_for_what_it_holds_is_removed_also_by_an_operator_that_begins_anew() {
    let mut cluster = compared("Remove", Some(Compared::Differs("\"7\" (total)".to_owned()))).await;
    cluster.scene.views.0.lock().unwrap().compared = Some(Compared::Same);
    let by = crate::resolve::ParityRule { query: QUERY.into(), tolerance: TOLERANCE }.hash();
    cluster.change(|object| {
        object["status"]["rollout"]["failed"] = json!("v2");
        object["status"]["rollout"]["differs"] = json!("\"7\" (total)");
        object["status"]["rollout"]["differsBy"] = json!(by);
    });
    cluster.scene.reconciler.forget();
    cluster.settles().await;
    assert_eq!((cluster.led(), cluster.deployments()), (vec!["orders_v1".to_owned()], of(&["orders-v1"])));
    assert_eq!(cluster.promoted(), ("False".to_owned(), "RolloutFailed".to_owned()));
    assert_eq!(cluster.status().rollout.unwrap().differs.as_deref(), Some("\"7\" (total)"));
}
