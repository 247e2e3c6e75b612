//! However many Projections share a database, the operator holds one connection to it.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

#[test]
fn a_second_projection_on_the_same_database_adds_no_connection() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "sharing").await?;
        shop.events.append_events(10).await?;
        shop.commit("first", 4).await?;
        shop.commit("second", 7).await?;
        shop.apply(&shop.measured("first", &json!({})))?;
        shop.projection_is("first", "the first is measured", |projection| pending(projection) == Some(6)).await?;
        let connections = || async {
            let by_application = "select count(*) from pg_stat_activity where datname = $1 and application_name like 'projectionist-sampler%'";
            let row = shop.events.client().query_one(by_application, &[&shop.database]).await?;
            Ok::<i64, anyhow::Error>(row.get(0))
        };
        // Each of the two replicas samples for itself.
        test_cluster::eventually_is(PATIENCE, "each replica has its connection", |count| *count == 2, connections)
            .await?;
        shop.apply(&shop.measured("second", &json!({})))?;
        shop.projection_is("second", "the second is measured", |projection| pending(projection) == Some(3)).await?;
        let after = connections().await?;
        ensure!(after == 2, "{after} connections for two projections");
        Ok(())
    });
}

fn pending(projection: &projectionist::api::Projection) -> Option<i64> {
    projection.status.as_ref().and_then(|status| status.pending.as_ref()).map(|pending| pending.value)
}

#[test]
fn a_hundred_bad_projections_do_not_stop_a_good_one() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "crowd").await?;
        let bad: Vec<String> = (0..100)
            .map(|index| {
                let change = match index % 4 {
                    0 => json!({"source": {"postgres": {"connection": {"secretRef": {"name": "missing"}}}}}),
                    1 => json!({"source": {"postgres": {"connection": {"secretRef": {"key": "missing"}}}}}),
                    2 => json!({"source": {"postgres": {"eventTable": {"table": format!("missing_{index}")}}}}),
                    _ => json!({"source": {"postgres": {"connection": {"secretRef": {"name": "nowhere"}}}}}),
                };
                shop.measured(&format!("bad-{index}"), &json!({"spec": change})).to_string()
            })
            .collect();
        let nowhere = "--from-literal=url=postgres://user:password@10.0.0.222:5432/nowhere";
        shop.stage.cluster.kubectl(&["create", "secret", "generic", "nowhere", "-n", &shop.namespace, nowhere])?;
        shop.commit("good", 0).await?;
        shop.events.append_events(5).await?;
        shop.stage.cluster.apply(&bad.join("\n---\n"))?;
        shop.apply(&shop.measured("good", &json!({})))?;
        let measured = || async { shop.metric("projection_pending_events", "good").await.map(|value| value == "5") };
        test_cluster::eventually(PATIENCE, "the good one is measured", measured).await?;
        shop.condition_is("good", "LagKnown", "True", "").await?;
        for (name, reason) in [("bad-0", "SecretNotFound"), ("bad-1", "SecretKeyMissing"), ("bad-2", "TableNotFound")] {
            shop.condition_is(name, "SourceReachable", "False", reason).await?;
        }
        Ok::<(), anyhow::Error>(()) as Result<()>
    });
}
