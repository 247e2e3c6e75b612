//! Event stores of libraries as input: what workers are told to read of them, and a kill in the middle of it.

use projectionist::{
    api::Projection,
    projector::{Input, PostgresInput, ProjectorConfig},
    resolve::{Pods, Workload, validate},
};
use serde_json::{Value, json};
use test_cluster::eventually_is;

use crate::workshop::{APPLY, PATIENCE, Workshop};

/// What workers read for a Projection whose source is this.
pub(crate) fn input(source: &Value) -> PostgresInput {
    let mut postgres = json!({"connection": {"secretRef": {"name": "events"}}});
    postgres.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    let projection: Projection = serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1",
        "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "1", "generation": 1},
        "spec": {
            "source": {"postgres": postgres},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "reads"}}}},
            "lag": {"target": "5s"},
            "scaling": {"shards": 12},
            "projector": {"builtin": {"handlers": {"Counted": APPLY}}},
        },
    }))
    .unwrap();
    let validated = validate(&projection).unwrap();
    let Workload::Own { pods: Pods::Builtin(pods), .. } = validated.workload else { panic!("no built-in projector") };
    let config = ProjectorConfig::from_json(&pods.configuration.to_string()).unwrap();
    let Input::Postgres(input) = config.input else { panic!("another input") };
    input
}

/// Appends, kills one of two workers in the middle, and waits until the rest is done. `append` makes so many events of which all are meant.
pub(crate) async fn each_once_through_a_kill(shop: &Workshop, append: impl AsyncFn(i64), events: &str) {
    append(1_000).await;
    let workers = [shop.start_process("a"), shop.start_process("b")];
    let handled =
        || async { Ok::<_, anyhow::Error>(shop.try_ask::<i64>("select count(*) from applied").await.unwrap_or(-1)) };
    eventually_is(PATIENCE, "some events are handled", |seen| *seen >= 200, handled).await.unwrap();
    workers[0].signal("KILL");
    append(500).await;
    shop.applied(1_500).await;
    drop(workers);
    assert_eq!(shop.ask::<i64>("select count(distinct position) from applied").await, 1_500, "each once");
    shop.assert_in_order().await;
    let written: i64 = shop.events.client().query_one(events, &[]).await.unwrap().get(0);
    assert_eq!(shop.ask::<i64>("select sum(position)::bigint from applied").await, written, "no other events");
}
