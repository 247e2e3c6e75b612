//! Faults that take a story of their own.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use projectionist::names;
use serde_json::{Value, json};

use crate::api_proxy::Rules;
use crate::bed::{Bed, PATIENCE, bed};
use crate::shop::{NAME, Shop};
use crate::state::state;

fn play<F>(body: impl FnOnce(&'static Bed) -> F)
where
    F: Future<Output = Result<()>>,
{
    let bed = bed();
    bed.play(body(bed));
}

fn template(image: &str) -> serde_json::Value {
    json!({"spec": {"projector": {"template": {"spec": {"containers": [{"name": "projector", "image": image}]}}}}})
}

async fn is_ready(shop: &mut Shop) -> Result<()> {
    shop.until(PATIENCE, async |shop| {
        let status = shop.projections().get(NAME).await?.status.unwrap_or_default();
        let ready = status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        Ok(if ready { Ok(()) } else { Err(format!("{status:?}")) })
    })
    .await
}

/// Deletes each object while the answer to a change of it is held back for ten seconds.
#[test]
fn an_answer_that_arrives_after_the_deletion_does_not_bring_the_object_back() {
    play(|bed| async move {
        let mut shop = Shop::open(bed, Rules::default()).await?;
        let late = |name: &str| Rules { late: Some((name.to_owned(), Duration::from_secs(10))), ..Rules::default() };
        shop.apply(&template("a:1")).await?;
        is_ready(&mut shop).await?;
        shop.proxy.rule(late("PATCH deployments"));
        let before = shop.proxy.writes().len();
        shop.apply(&template("a:2")).await?;
        shop.until(PATIENCE, async |shop| {
            let writes = shop.proxy.writes();
            let mut news = writes[before..].iter();
            let applied = news.any(|write| write.object == "deployments/orders" && write.code == Some(200));
            Ok(if applied { Ok(()) } else { Err("the Deployment is not changed yet".to_owned()) })
        })
        .await?;
        let old = shop.deployments().get(NAME).await?.metadata.uid;
        shop.deployments().delete(NAME, &DeleteParams::background()).await?;
        shop.proxy.rule(Rules::default());
        shop.until(PATIENCE, async |shop| {
            let there = shop.deployments().get_opt(NAME).await?.and_then(|deployment| deployment.metadata.uid);
            Ok(if there.is_some() && there != old { Ok(()) } else { Err(format!("the Deployment is {there:?}")) })
        })
        .await?;
        is_ready(&mut shop).await
    });
}

#[test]
fn a_status_that_another_writer_changed_is_put_right() {
    play(|bed| async move {
        let mut shop = Shop::open(bed, Rules::default()).await?;
        shop.apply(&template("a:1")).await?;
        is_ready(&mut shop).await?;
        shop.until(PATIENCE, async |shop| {
            Ok(if shop.proxy.quiet_for() > Duration::from_secs(4) {
                Ok(())
            } else {
                Err("it keeps writing".to_owned())
            })
        })
        .await?;
        let good = state(&shop).await?;
        for change in [
            json!({"workers": {"required": 4}}),
            json!({"phase": "Suspended", "suspended": true}),
            json!({"stalenessSeconds": 4000.5}),
            json!({"workers": null, "conditions": null}),
        ] {
            let patch = Patch::Merge(json!({"status": change}));
            shop.projections().patch_status(NAME, &PatchParams::default(), &patch).await?;
            shop.until(PATIENCE, async |shop| {
                let status = shop.projections().get(NAME).await?.status.unwrap_or_default();
                let wrong = status.staleness_seconds.is_some_and(|age| age > 4000.0);
                Ok(if !wrong && state(shop).await? == good { Ok(()) } else { Err(format!("{status:?}")) })
            })
            .await
            .map_err(|error| error.context(format!("after {change}")))?;
        }
        Ok(())
    });
}

#[test]
fn create_and_delete_cycles_create_each_object_once_also_where_watches_lag() {
    play(|bed| async move {
        for (lag, cycles) in [(None, 40), (Some(Duration::from_millis(300)), 10)] {
            let mut shop = Shop::open(bed, Rules { lag, ..Rules::default() }).await?;
            for _ in 0..cycles {
                shop.apply(&template("a:1")).await?;
                shop.until(PATIENCE, async |shop| {
                    // Those of the last cycle may still be there.
                    let objects = state(shop).await?;
                    let mine = |object: &&Value| object.get("owned").is_none_or(|owned| *owned == json!([true]));
                    let mine = objects.as_object().map_or(0, |objects| objects.values().filter(mine).count());
                    Ok(if mine == 4 { Ok(()) } else { Err(format!("{mine} of 4 objects")) })
                })
                .await?;
                shop.delete().await?;
                shop.until(PATIENCE, async |shop| {
                    let gone = shop.projections().get_opt(NAME).await?.is_none();
                    Ok(if gone { Ok(()) } else { Err("it is still there".to_owned()) })
                })
                .await?;
            }
            shop.until(PATIENCE, async |shop| {
                let objects = state(shop).await?;
                let quiet = shop.proxy.quiet_for() > Duration::from_secs(3);
                let over = quiet && objects.as_object().is_some_and(serde_json::Map::is_empty);
                Ok(if over { Ok(()) } else { Err(format!("{objects}")) })
            })
            .await?;
            for (object, (created, deleted)) in shop.proxy.counts() {
                ensure!(
                    created == cycles && deleted == 0,
                    "{object}: {created} created, {deleted} deleted in {cycles} cycles"
                );
            }
            let writes = shop.proxy.writes();
            ensure!(writes.len() < cycles * 15, "{} writes in {cycles} cycles", writes.len());
        }
        Ok(())
    });
}

/// The other replicas read it there, and then answer with their own number.
#[test]
fn a_leader_that_cannot_write_a_status_says_so_in_its_lease() {
    play(|bed| async move {
        let mut shop = Shop::open(bed, Rules::default()).await?;
        shop.apply(&template("a:1")).await?;
        is_ready(&mut shop).await?;
        let leases: Api<Lease> = Api::namespaced(shop.client.clone(), &shop.namespace);
        let outdated = async || {
            let lease = leases.get("projectionist").await?;
            Ok::<_, kube::Error>(lease.metadata.annotations.unwrap_or_default().remove(names::OUTDATED_ANNOTATION))
        };
        ensure!(outdated().await?.is_none(), "the status is written");
        shop.proxy.rule(Rules { refused: Some("projections/orders/status".to_owned()), ..Rules::default() });
        shop.change(&json!({"spec": {"scaling": {"minWorkers": 3}}})).await?;
        let named = Some(format!("{}/{NAME}", shop.namespace));
        for expected in [named, None] {
            shop.until(PATIENCE, async |_| {
                let outdated = outdated().await?;
                Ok(if outdated == expected { Ok(()) } else { Err(format!("{outdated:?} and not {expected:?}")) })
            })
            .await?;
            shop.proxy.rule(Rules::default());
        }
        is_ready(&mut shop).await
    });
}
