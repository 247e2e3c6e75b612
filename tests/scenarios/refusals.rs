//! A wrong Projection is refused by `kubectl apply` with a sentence that names the field.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::shop::{Shop, merge};
use crate::stage::{play, together};

/// Rules for scaling up.
fn up(rules: &Value) -> Value {
    json!({"scaling": {"behavior": {"scaleUp": rules}}})
}

/// A policy for scaling down, changed.
fn policy(change: &Value) -> Value {
    let mut policy = json!({"type": "Pods", "value": 1, "periodSeconds": 15});
    merge(&mut policy, change);
    json!({"scaling": {"behavior": {"scaleDown": {"policies": [policy]}}}})
}

#[test]
fn a_wrong_object_is_refused_with_the_field_and_the_reason() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "refusals").await?;
        let cases: Vec<(Value, &str, &str)> = vec![
            (json!({"source": {"postgres": null}}), "spec.source", "exactly one source"),
            (
                json!({"source": {"postgres": {"eventTable": null}}}),
                "spec.source.postgres",
                "exactly one kind of source",
            ),
            (json!({"readStore": {"postgres": null}}), "spec.readStore", "exactly one store"),
            (json!({"readStore": null}), "spec.readStore.postgres", "is required with spec.projector.builtin"),
            (json!({"checkpoint": {"readStore": {}}}), "spec.checkpoint", "must be absent with spec.projector.builtin"),
            (json!({"projector": null}), "spec.checkpoint", "is required"),
            (
                json!({"projector": {"existing": {"kind": "Deployment", "name": "x"}}}),
                "spec.projector",
                "exactly one of template, builtin and existing",
            ),
            (
                json!({"projector": {"builtin": {"handlers": {"Counted": null}}}}),
                "spec.projector.builtin.handlers",
                "at least 1",
            ),
            (json!({"lag": null}), "spec.lag", "Required value"),
            (json!({"lag": {"target": "soon"}}), "spec.lag.target", "must be a duration such as 30s"),
            (json!({"lag": {"target": "0s"}}), "spec.lag.target", "from 1s to 168h"),
            (json!({"lag": {"target": "200h"}}), "spec.lag.target", "from 1s to 168h"),
            (json!({"lag": {"pendingPerWorker": 0}}), "spec.lag.pendingPerWorker", "greater than or equal to 1"),
            (json!({"lag": {"onUnknown": "Fallback"}}), "spec.lag", "fallbackWorkers is required"),
            (json!({"lag": {"fallbackWorkers": 3}}), "spec.lag", "has no meaning without it"),
            (json!({"catchUp": {"within": "0s"}}), "spec.catchUp.within", "from 1s to 8760h"),
            (json!({"failure": {"stuckAfter": "200h"}}), "spec.failure.stuckAfter", "from 1s to 168h"),
            (json!({"readStore": {"limits": {}}}), "spec.readStore.limits.maxConnections", "Required value"),
            (json!({"scaling": {"idleFor": "0s"}}), "spec.scaling.idleFor", "from 1s to 168h"),
            (json!({"scaling": {"scaleOut": "Later"}}), "spec.scaling.scaleOut", "Unsupported value"),
            (json!({"scaling": {"lookAhead": "Weekly"}}), "spec.scaling.lookAhead", "Unsupported value"),
            (json!({"scaling": {"eventsPerWorkerSecond": 0}}), "spec.scaling.eventsPerWorkerSecond", "at least 0.001"),
            (json!({"scaling": {"minWorkers": -1}}), "spec.scaling.minWorkers", "greater than or equal to 0"),
            (
                json!({"scaling": {"minWorkers": 5}}),
                "spec.scaling",
                "minWorkers must not be greater than spec.scaling.maxWorkers",
            ),
            (json!({"scaling": {"ordering": "Strict"}}), "spec.scaling", "maxWorkers must be 1"),
            (
                json!({"scaling": {"ordering": "None"}}),
                "spec.scaling.ordering",
                "PerKey or Strict with spec.projector.builtin",
            ),
            (json!({"scaling": {"ordering": "Sometimes"}}), "spec.scaling.ordering", "Unsupported value"),
            (json!({"scaling": {"shards": 0}}), "spec.scaling.shards", "Auto or a number"),
            (json!({"scaling": {"shards": "Many"}}), "spec.scaling.shards", "Auto or a number"),
            (up(&json!({"stabilizationWindowSeconds": -1})), "scaleUp.stabilizationWindowSeconds", "equal to 0"),
            (up(&json!({"stabilizationWindowSeconds": 3_601})), "scaleUp.stabilizationWindowSeconds", "equal to 3600"),
            (up(&json!({"selectPolicy": "Most"})), "behavior.scaleUp.selectPolicy", "Unsupported value"),
            (up(&json!({"tolerance": "-0.1"})), "behavior.scaleUp.tolerance", "should match"),
            (up(&json!({"tolerance": -1})), "behavior.scaleUp.tolerance", "greater than or equal to 0"),
            (up(&json!({"tolerance": "lots"})), "behavior.scaleUp.tolerance", "should match"),
            (up(&json!({"policies": []})), "behavior.scaleUp.policies", "at least 1 item"),
            (policy(&json!({"type": "Workers"})), "scaleDown.policies[0].type", "Unsupported value"),
            (policy(&json!({"value": 0})), "scaleDown.policies[0].value", "greater than or equal to 1"),
            (policy(&json!({"value": 2_147_483_648_u32})), "scaleDown.policies[0].value", "2147483647"),
            (policy(&json!({"periodSeconds": 0})), "scaleDown.policies[0].periodSeconds", "equal to 1"),
            (policy(&json!({"periodSeconds": 1_801})), "scaleDown.policies[0].periodSeconds", "equal to 1800"),
            (policy(&json!({"periodSeconds": null})), "scaleDown.policies[0].periodSeconds", "Required value"),
            (json!({"scaling": {"behavior": {"scaleUpp": {}}}}), "spec.scaling.behavior.scaleUpp", "unknown field"),
            (json!({"scaling": {"autoscaler": "Keda"}}), "spec.scaling.autoscaler", "Unsupported value"),
            (
                json!({"source": {"postgres": {"eventTable": {"table": "shop.store.events"}}}}),
                "spec.source.postgres.eventTable.table",
                "should match",
            ),
            (
                json!({"source": {"postgres": {"connection": {"secretRef": {"name": ""}}}}}),
                "secretRef.name",
                "at least 1",
            ),
            (json!({"laag": {}}), "spec.laag", "unknown field"),
            (
                json!({"projector": {"builtin": {"resources": {"limits": {"memory": "lots"}}}}}),
                "spec.projector.builtin.resources.limits.memory",
                "should match",
            ),
        ];
        let mut wrong = Vec::new();
        for (change, field, sentence) in cases {
            match shop.apply(&shop.projection("wrong", &json!({"spec": change}))) {
                Ok(_) => wrong.push(format!("{change} was accepted")),
                Err(error) => {
                    let error = format!("{error:#}");
                    if !error.contains(field) || !error.contains(sentence) {
                        wrong.push(format!("{change} was refused without {field:?} and {sentence:?}:\n{error}"));
                    }
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}

#[test]
fn the_examples_are_accepted_as_they_stand() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "examples").await?;
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let readme = std::fs::read_to_string(root.join("README.md"))?;
        let annotated =
            readme.split("```yaml\n").find(|block| block.starts_with("apiVersion")).context("no example")?;
        let annotated = annotated.split("```").next().unwrap_or_default().to_owned();
        let mut all = vec![("README.md".to_owned(), annotated)];
        for example in [
            "orders/projection.yaml",
            "own-workers.yaml",
            "existing-workload.yaml",
            "rebuild-redis.yaml",
            "rebuild-elasticsearch.yaml",
        ] {
            all.push((example.to_owned(), std::fs::read_to_string(root.join("examples").join(example))?));
        }
        for (name, text) in all {
            let here = text.replace("namespace: shop", &format!("namespace: {}", shop.namespace));
            ensure!(here != text, "{name} has no namespace of its own");
            shop.stage.cluster.apply(&here).with_context(|| format!("{name} was refused"))?;
        }
        Ok(())
    });
}

fn source(table: &serde_json::Value) -> serde_json::Value {
    json!({"source": {"postgres": {"eventTable": table}}})
}

#[test]
fn what_must_not_change_cannot_be_changed() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "immutable").await?;
        shop.apply(&shop.projection("orders", &json!({"spec": {"suspend": true}})))?;
        for (change, sentence) in [
            (json!({"scaling": {"shards": 8}}), "spec.scaling.shards cannot be changed"),
            (json!({"scaling": {"shards": null}}), "spec.scaling.shards cannot be changed"),
            (json!({"scaling": {"ordering": "Strict", "maxWorkers": 1}}), "spec.scaling.ordering cannot be changed"),
            (source(&json!({"table": "other"})), "table, position and stream cannot be changed"),
            (source(&json!({"position": "seq"})), "table, position and stream cannot be changed"),
            (source(&json!({"stream": "aggregate"})), "table, position and stream cannot be changed"),
            (
                json!({"source": {"postgres": null, "kurrentdb": {"connection": {"secretRef": {"name": "x"}}, "catchUp": {"stream": "$all"}}}}),
                "spec.source cannot be changed to another kind",
            ),
            (
                json!({"source": {"postgres": null, "nats": {"connection": {"secretRef": {"name": "x"}}, "consumers": [{"stream": "x", "consumer": "x"}]}}}),
                "spec.source cannot be changed to another kind",
            ),
            (
                json!({"projector": {"builtin": null, "existing": {"kind": "Deployment", "name": "x"}}, "checkpoint": {"readStore": {}}}),
                "spec.projector cannot be changed to another kind",
            ),
        ] {
            let refused = shop.apply(&shop.projection("orders", &json!({"spec": change})));
            let error = format!("{:#}", refused.err().with_context(|| format!("{change} was accepted"))?);
            ensure!(error.contains(sentence), "{error}");
        }
        shop.apply(&shop.projection(
            "orders",
            &json!({"spec": {"suspend": true, "scaling": {"maxWorkers": 8}, "lag": {"target": "1m30s"}}}),
        ))?;
        Ok(())
    });
}
