//! A Projection as YAML in, objects out.

use serde_json::{Value, json};

use super::{
    Plan,
    autoscaler::ServerAbilities,
    builtin_pods::WorkerDefaults,
    plan,
    scale::{ScalePlan, ScaleView},
};
use crate::{api::Projection, controller::parts::Part, names, resolve::validate};

const HEAD: &str = r"
apiVersion: projectionist.dev/v1alpha1
kind: Projection
metadata: {name: orders, namespace: shop, uid: u-1}
spec:
  source: {postgres: {connection: {secretRef: {name: events-db}}, eventTable: {}}}
  readStore: {postgres: {connection: {secretRef: {name: read-db, key: dsn}}, schema: sales}}
  lag: {target: 30s}
";
const BUILTIN: &str = "  projector: {builtin: {handlers: {Placed: insert}}}\n";
const TEMPLATE: &str = "  checkpoint: {readStore: {table: checkpoints}}\n  projector: {template: {spec: {containers: [{name: worker, image: team:1}]}}}\n";

fn projection(rest: &str) -> Projection {
    serde_saphyr::from_str(&format!("{HEAD}{rest}")).unwrap()
}

fn planned_on(rest: &str, server: ServerAbilities) -> Plan {
    let image = WorkerDefaults {
        image: "projectionist:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        ..WorkerDefaults::default()
    };
    let view = ScaleView { replicas: None, required: None, was_suspended: false, ceiling: None };
    plan(&validate(&projection(rest)).unwrap(), view, &image, server)
}

fn planned(rest: &str) -> Plan {
    planned_on(rest, ServerAbilities { autoscaler_tolerance: true })
}

fn part(plan: &Plan, part: Part) -> &Value {
    &plan.desired.iter().find(|desired| desired.part == part).unwrap().body
}

fn parts(plan: &Plan) -> Vec<Part> {
    plan.desired.iter().map(|desired| desired.part).collect()
}

fn container(plan: &Plan) -> &Value {
    &part(plan, Part::Deployment)["spec"]["template"]["spec"]["containers"][0]
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name)
}

#[test]
fn each_kind_of_projector_makes_its_own_objects() {
    use Part::{ConfigMap, Deployment, HorizontalPodAutoscaler, PodDisruptionBudget};
    let checkpoint = "  checkpoint: {readStore: {table: checkpoints}}\n";
    let existing = format!("{checkpoint}  projector: {{existing: {{kind: StatefulSet, name: theirs}}}}\n");
    let manual = format!("{TEMPLATE}  scaling: {{autoscaler: None}}\n");
    for (rest, expected) in [
        (BUILTIN, vec![ConfigMap, Deployment, PodDisruptionBudget, HorizontalPodAutoscaler]),
        (TEMPLATE, vec![Deployment, PodDisruptionBudget, HorizontalPodAutoscaler]),
        (&existing, vec![HorizontalPodAutoscaler]),
        (&manual, vec![Deployment, PodDisruptionBudget]),
        (checkpoint, vec![]),
    ] {
        assert_eq!(parts(&planned(rest)), expected, "{rest}");
    }
    let autoscaler = planned(&existing);
    assert_eq!(
        part(&autoscaler, HorizontalPodAutoscaler)["spec"]["scaleTargetRef"],
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "theirs"})
    );
    assert_eq!(autoscaler.scale, ScalePlan::Leave, "an absent workload of others is not made");
}

#[test]
fn the_number_of_workers_is_never_among_the_declared_fields() {
    for rest in [BUILTIN, TEMPLATE] {
        assert_eq!(part(&planned(rest), Part::Deployment)["spec"].get("replicas"), None);
    }
}

#[test]
fn the_autoscaler_reads_the_required_workers_of_this_projection() {
    let plan = planned(&format!("{BUILTIN}  scaling: {{minWorkers: 2, maxWorkers: 40, shards: 12}}\n"));
    let spec = &part(&plan, Part::HorizontalPodAutoscaler)["spec"];
    assert_eq!((&spec["minReplicas"], &spec["maxReplicas"]), (&json!(2), &json!(12)), "shards bound it");
    assert_eq!(
        spec["metrics"],
        json!([{"type": "External", "external": {
            "metric": {"name": "projection_required_workers", "selector": {"matchLabels": {"projection": "orders"}}},
            "target": {"type": "AverageValue", "averageValue": "1"},
        }}])
    );
    assert_eq!(
        spec["behavior"],
        json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "tolerance": "0", "policies": [{"type": "Pods", "value": 12, "periodSeconds": 15}]},
            "scaleDown": {"stabilizationWindowSeconds": 15, "tolerance": "0"},
        })
    );
}

#[test]
fn an_older_server_gets_no_tolerance_and_a_users_own_stays() {
    let old = planned_on(BUILTIN, ServerAbilities::default());
    let behavior = &part(&old, Part::HorizontalPodAutoscaler)["spec"]["behavior"];
    assert_eq!(behavior["scaleUp"].get("tolerance"), None);
    assert_eq!(behavior["scaleDown"].get("tolerance"), None);
    let own = planned(&format!(
        "{BUILTIN}  scaling: {{behavior: {{scaleUp: {{tolerance: '0.2'}}, scaleDown: {{selectPolicy: Disabled}}}}}}\n"
    ));
    let behavior = &part(&own, Part::HorizontalPodAutoscaler)["spec"]["behavior"];
    assert_eq!(
        *behavior,
        json!({"scaleUp": {"tolerance": "0.2"}, "scaleDown": {"selectPolicy": "Disabled", "tolerance": "0"}})
    );
}

#[test]
fn a_direction_that_the_spec_does_not_speak_of_keeps_ours() {
    let plan = planned(&format!("{BUILTIN}  scaling: {{behavior: {{scaleDown: {{selectPolicy: Disabled}}}}}}\n"));
    let behavior = &part(&plan, Part::HorizontalPodAutoscaler)["spec"]["behavior"];
    assert_eq!(behavior["scaleUp"]["policies"][0], json!({"type": "Pods", "value": 10, "periodSeconds": 15}));
    assert_eq!(behavior["scaleDown"], json!({"selectPolicy": "Disabled", "tolerance": "0"}));
}

#[test]
fn pending_per_worker_is_a_second_metric() {
    let rest = format!("{HEAD}{BUILTIN}").replace("{target: 30s}", "{target: 30s, pendingPerWorker: 2000}");
    let validated = validate(&serde_saphyr::from_str(&rest).unwrap()).unwrap();
    let image = WorkerDefaults::default();
    let view = ScaleView { replicas: None, required: None, was_suspended: false, ceiling: None };
    let plan = plan(&validated, view, &image, ServerAbilities::default());
    let second = &part(&plan, Part::HorizontalPodAutoscaler)["spec"]["metrics"][1]["external"];
    assert_eq!(second["metric"]["name"], "projection_queue_length");
    assert_eq!(second["target"], json!({"type": "AverageValue", "averageValue": "2k"}));
}

#[test]
fn strict_order_means_one_worker_and_never_two_during_a_rollout() {
    let plan = planned(&format!("{BUILTIN}  scaling: {{ordering: Strict}}\n"));
    assert_eq!(part(&plan, Part::HorizontalPodAutoscaler)["spec"]["maxReplicas"], 1);
    assert_eq!(part(&plan, Part::Deployment)["spec"]["strategy"], json!({"type": "Recreate"}));
    let usual = planned(BUILTIN);
    let strategy = &part(&usual, Part::Deployment)["spec"]["strategy"];
    assert_eq!(*strategy, json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}));
}

#[test]
fn every_worker_meets_the_restricted_level_unless_its_template_speaks() {
    for rest in [BUILTIN, TEMPLATE] {
        let plan = planned(rest);
        let spec = &part(&plan, Part::Deployment)["spec"]["template"]["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let context = &container(&plan)["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    }
    let builtin = planned(BUILTIN);
    assert_eq!(container(&builtin)["securityContext"]["readOnlyRootFilesystem"], true);
    let uid = &part(&builtin, Part::Deployment)["spec"]["template"]["spec"]["securityContext"]["runAsUser"];
    assert!(uid.as_i64().unwrap() >= 10_000);
    let own = planned(&TEMPLATE.replace(
        "image: team:1",
        "image: team:1, securityContext: {privileged: true, runAsUser: 0, capabilities: {drop: [NET_RAW]}}",
    ));
    assert_eq!(
        container(&own)["securityContext"],
        json!({"privileged": true, "runAsUser": 0, "runAsNonRoot": false, "capabilities": {"drop": ["NET_RAW"]}})
    );
}

#[test]
fn every_container_gets_the_environment_and_secrets_only_by_reference() {
    let plan = planned(&TEMPLATE.replace("containers: [", "initContainers: [{name: init, image: x}], containers: ["));
    let spec = &part(&plan, Part::Deployment)["spec"]["template"]["spec"];
    for container in [&spec["initContainers"][0], &spec["containers"][0]] {
        assert_eq!(variable(container, "PROJECTION_NAME").unwrap()["value"], "orders");
        assert_eq!(variable(container, "PROJECTION_NAMESPACE").unwrap()["value"], "shop");
        assert_eq!(variable(container, "READ_STORE_SCHEMA").unwrap()["value"], "sales");
        assert_eq!(
            *variable(container, "EVENT_SOURCE_URL").unwrap(),
            json!({"name": "EVENT_SOURCE_URL", "valueFrom": {"secretKeyRef": {"name": "events-db", "key": "url", "optional": true}}}),
            "where no key is named each is passed on that the operator looks for"
        );
        assert_eq!(
            variable(container, "EVENT_SOURCE_PASSWORD").unwrap()["valueFrom"]["secretKeyRef"],
            json!({"name": "events-db", "key": "password", "optional": true})
        );
        assert_eq!(
            variable(container, "EVENT_SOURCE_JDBC_URI").unwrap()["valueFrom"]["secretKeyRef"]["key"],
            "jdbc-uri"
        );
        assert_eq!(
            variable(container, "READ_STORE_URL").unwrap()["valueFrom"]["secretKeyRef"],
            json!({"name": "read-db", "key": "dsn"}),
            "a key that is named must be there"
        );
        assert!(variable(container, "READ_STORE_PASSWORD").is_none(), "the named key is all that is read");
        assert_eq!(
            variable(container, "PROJECTION_WORKER").unwrap()["valueFrom"]["fieldRef"]["fieldPath"],
            "metadata.name"
        );
        assert!(variable(container, "PROJECTION_SHARDS").is_none(), "unknown is absent");
        assert!(variable(container, "PROJECTION_VERSION").is_none(), "none is given");
    }
}

#[test]
fn a_version_reaches_the_workers_and_names_their_schema_and_makes_no_other_objects() {
    let in_version = |version: &str| {
        let head = HEAD.replace("schema: sales", "schema: 'sales_{version}'");
        let projection: Projection = serde_saphyr::from_str(&format!("{head}  version: {version}\n{BUILTIN}")).unwrap();
        let view = ScaleView { replicas: None, required: None, was_suspended: false, ceiling: None };
        plan(&validate(&projection).unwrap(), view, &WorkerDefaults::default(), ServerAbilities::default())
    };
    let (first, second) = (in_version("v1"), in_version("v2"));
    assert_eq!(variable(container(&first), "PROJECTION_VERSION").unwrap()["value"], "v1");
    assert_eq!(variable(container(&first), "READ_STORE_SCHEMA").unwrap()["value"], "sales_v1");
    let file = part(&first, Part::ConfigMap)["data"][names::PROJECTOR_CONFIG_KEY].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(file).unwrap()["output"]["postgres"]["schema"], "sales_v1");
    let names = |plan: &Plan| plan.desired.iter().map(|desired| desired.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first), names(&second), "the workers are restarted in place");
    assert_ne!(part(&first, Part::Deployment)["spec"], part(&second, Part::Deployment)["spec"]);
}

#[test]
fn workers_on_redis_get_the_keys_that_are_looked_for_there() {
    let spec = "apiVersion: projectionist.dev/v1alpha1\nkind: Projection\nmetadata: {name: orders, namespace: shop, uid: u-1}\nspec:\n  \
        source: {redis: {connection: {secretRef: {name: streams}, port: 7000}, streams: [{key: orders, group: list}]}}\n  lag: {target: 30s}\n  \
        projector: {template: {spec: {containers: [{name: worker, image: team:1}]}}}\n";
    let projection: Projection = serde_saphyr::from_str(spec).unwrap();
    let view = ScaleView { replicas: None, required: None, was_suspended: false, ceiling: None };
    let server = ServerAbilities { autoscaler_tolerance: true };
    let plan = plan(&validate(&projection).unwrap(), view, &WorkerDefaults::default(), server);
    let container = container(&plan);
    for (name, key) in
        [("EVENT_SOURCE_URL", "url"), ("EVENT_SOURCE_REDIS_PASSWORD", "redis-password"), ("EVENT_SOURCE_TLS", "tls")]
    {
        assert_eq!(
            variable(container, name).unwrap()["valueFrom"]["secretKeyRef"],
            json!({"name": "streams", "key": key, "optional": true})
        );
    }
    assert_eq!(variable(container, "EVENT_SOURCE_PORT").unwrap()["value"], "7000");
    assert!(variable(container, "EVENT_SOURCE_JDBC_URI").is_none() && variable(container, "READ_STORE_URL").is_none());
}

#[test]
fn workers_that_read_kafka_get_each_key_of_its_secret_once_and_what_to_read() {
    let projection: Projection = serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "u-1"},
        "spec": {
            "source": {"kafka": {
                "connection": {"secretRef": {"name": "kafka"}, "caSecretRef": {"name": "ca", "key": "ca.crt"}},
                "topics": ["orders"], "group": "view", "event": {"type": {"field": "kind"}},
            }},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
            "projector": {"builtin": {"handlers": {"Placed": "insert"}}},
            "lag": {"target": "5s"},
        },
    }))
    .unwrap();
    let view = ScaleView { replicas: None, required: None, was_suspended: false, ceiling: None };
    let server = ServerAbilities { autoscaler_tolerance: true };
    let plan = plan(&validate(&projection).unwrap(), view, &WorkerDefaults::default(), server);
    let container = container(&plan);
    let given: Vec<&str> =
        container["env"].as_array().unwrap().iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(given.iter().collect::<std::collections::BTreeSet<_>>().len(), given.len(), "none twice: {given:?}");
    for (name, key) in [
        ("EVENT_SOURCE_BOOTSTRAPSERVERS", "bootstrapServers"),
        ("EVENT_SOURCE_BOOTSTRAP.SERVERS", "bootstrap.servers"),
        ("EVENT_SOURCE_BOOTSTRAP_SERVERS", "bootstrap-servers"),
        ("EVENT_SOURCE_BOOTSTRAP__SERVERS", "bootstrap_servers"),
        ("EVENT_SOURCE_PASSWORD", "password"),
    ] {
        let reference = &variable(container, name).unwrap()["valueFrom"]["secretKeyRef"];
        assert_eq!(*reference, json!({"name": "kafka", "key": key, "optional": true}));
    }
    assert_eq!(variable(container, "EVENT_SOURCE_CA").unwrap()["valueFrom"]["secretKeyRef"]["name"], "ca");
    assert!(variable(container, "PROJECTION_SHARDS").is_none(), "partitions may be added");
    let file = part(&plan, Part::ConfigMap)["data"][names::PROJECTOR_CONFIG_KEY].as_str().unwrap();
    let input = serde_json::from_str::<Value>(file).unwrap()["input"]["kafka"].clone();
    let expected = json!({"topics": ["orders"], "group": "view", "isolation": "ReadCommitted", "event": {"type": {"field": "kind"}}});
    assert_eq!(input, expected);
}

#[test]
fn a_variable_that_the_team_sets_stays_theirs_and_comes_after_ours() {
    let plan = planned(&TEMPLATE.replace(
        "image: team:1",
        "image: team:1, env: [{name: EVENT_SOURCE_URL, value: theirs}, {name: ME, value: $(PROJECTION_NAME)}]",
    ));
    let env = container(&plan)["env"].as_array().unwrap();
    assert_eq!(env.iter().filter(|variable| variable["name"] == "EVENT_SOURCE_URL").count(), 1);
    assert_eq!(variable(container(&plan), "EVENT_SOURCE_URL").unwrap()["value"], "theirs");
    assert_eq!(env.last().unwrap()["name"], "ME", "a reference works only backwards");
}

#[test]
fn unknown_fields_and_labels_of_a_template_survive() {
    let plan = planned(&TEMPLATE.replace(
        "{template: {spec: {",
        "{template: {metadata: {labels: {team: sales, app.kubernetes.io/managed-by: them}, annotations: {a: b}}, spec: {fieldOfTomorrow: {deep: 1}, ",
    ));
    let template = &part(&plan, Part::Deployment)["spec"]["template"];
    assert_eq!(
        template["metadata"],
        json!({"labels": {"team": "sales", names::MANAGED_BY_LABEL: "them", names::PROJECTION_LABEL: "orders", names::VERSION_LABEL: names::UNVERSIONED}, "annotations": {"a": "b"}})
    );
    assert_eq!(template["spec"]["fieldOfTomorrow"]["deep"], 1);
}

#[test]
fn a_changed_configuration_rolls_the_workers() {
    let hash = |rest: &str| {
        let plan = planned(rest);
        part(&plan, Part::Deployment)["spec"]["template"]["metadata"]["annotations"][names::CONFIG_HASH_ANNOTATION]
            .clone()
    };
    assert_eq!(hash(BUILTIN), hash(BUILTIN));
    assert_ne!(hash(BUILTIN), hash(&BUILTIN.replace("insert", "update")));
    let plan = planned(BUILTIN);
    let file = part(&plan, Part::ConfigMap)["data"][names::PROJECTOR_CONFIG_KEY].as_str().unwrap();
    let configuration: Value = serde_json::from_str(file).unwrap();
    assert_eq!(configuration["projection"], "shop/orders");
    assert_eq!(configuration["input"]["postgres"]["shards"], 24);
    assert_eq!(configuration["output"]["postgres"]["handlers"], json!({"Placed": "insert"}));
    assert_eq!(configuration["output"]["postgres"]["schema"], "sales");
}

#[test]
fn what_the_api_server_cannot_see_is_refused_with_the_field() {
    let checkpoint = "  checkpoint: {readStore: {table: c}}\n";
    for (projector, field) in [
        ("template: {spec: {containers: [{name: a, image: x}, {name: a, image: y}]}}", "spec.containers[1].name"),
        ("template: {spec: {containers: [{name: a, image: x, env: text}]}}", "spec.containers[0].env"),
        (
            "template: {spec: {containers: [{name: a, image: x, securityContext: no}]}}",
            "spec.containers[0].securityContext",
        ),
        ("template: {spec: {containers: text}}", "spec.containers"),
        ("template: {spec: {restartPolicy: Never, containers: [{name: a, image: x}]}}", "spec.restartPolicy"),
        (
            "template: {metadata: {labels: {projectionist.dev/projection: x}}, spec: {containers: [{name: a, image: x}]}}",
            "metadata.labels",
        ),
        ("template: {spec: text}", "spec.projector.template.spec"),
    ] {
        let error =
            validate(&projection(&format!("{checkpoint}  projector: {{{projector}}}\n"))).unwrap_err().to_string();
        assert!(error.contains(field), "{error} does not name {field}");
    }
    for (secret, connection) in [
        ("events-db}", "spec.source.postgres.connection"),
        ("read-db, key: dsn}", "spec.readStore.postgres.connection"),
    ] {
        let spec = format!("{HEAD}{BUILTIN}").replace(secret, &format!("{secret}, host: other"));
        let error = validate(&serde_saphyr::from_str(&spec).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{connection} must have no host")), "{error}");
    }
    let error = validate(&projection(&format!("{checkpoint}  scaling: {{minWorkers: 20}}\n"))).unwrap_err().to_string();
    assert!(error.contains("spec.scaling.minWorkers"), "{error}");
}

#[test]
fn the_built_in_workers_run_where_and_as_the_projection_says_and_else_as_the_operator_says() {
    let defaults = r#"{
        "pod": {
            "labels": {"team": "platform", "cost": "1"},
            "nodeSelector": {"pool": "batch"},
            "tolerations": [{"key": "batch", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "registry"}],
            "podSecurityContext": {"fsGroup": 7},
            "priorityClassName": "low"
        },
        "resources": {"requests": {"cpu": "10m"}}
    }"#;
    let defaults = WorkerDefaults { pods: defaults.parse().unwrap(), ..WorkerDefaults::default() };
    let pod_of = |rest: &str| {
        let view = ScaleView { replicas: None, required: None, was_suspended: false, ceiling: None };
        let plan = plan(&validate(&projection(rest)).unwrap(), view, &defaults, ServerAbilities::default());
        part(&plan, Part::Deployment)["spec"]["template"].clone()
    };
    let pod = pod_of(BUILTIN);
    assert_eq!(pod["metadata"]["labels"]["team"], "platform");
    assert_eq!(pod["spec"]["nodeSelector"], json!({"pool": "batch"}));
    assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(pod["spec"]["containers"][0]["resources"], json!({"requests": {"cpu": "10m"}}));
    assert_eq!(pod["spec"]["containers"][0]["terminationMessagePolicy"], "FallbackToLogsOnError");
    let platform = json!({"fsGroup": 7, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(pod["spec"]["securityContext"], platform, "the platform assigns the user id, and root stays refused");

    let own = BUILTIN.replace(
        "builtin: {",
        "builtin: {pod: {labels: {team: sales}, nodeSelector: {disk: ssd}, tolerations: [], priorityClassName: high,
            serviceAccountName: projector, annotations: {a: b}, podSecurityContext: {}, securityContext: {runAsUser: 5},
            topologySpreadConstraints: [], affinity: {nodeAffinity: {}}}, resources: {limits: {memory: 1Gi}}, ",
    );
    let pod = pod_of(&own);
    assert_eq!(pod["metadata"]["labels"]["team"], "sales");
    assert_eq!(pod["metadata"]["labels"]["cost"], "1");
    assert_eq!(pod["metadata"]["labels"][names::PROJECTION_LABEL], "orders");
    assert_eq!(pod["metadata"]["annotations"]["a"], "b");
    assert!(pod["metadata"]["annotations"][names::CONFIG_HASH_ANNOTATION].is_string());
    let spec = &pod["spec"];
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd", "pool": "batch"}));
    assert_eq!((&spec["tolerations"], &spec["topologySpreadConstraints"]), (&json!([]), &json!([])));
    assert_eq!((&spec["priorityClassName"], &spec["serviceAccountName"]), (&json!("high"), &json!("projector")));
    assert_eq!(spec["automountServiceAccountToken"], false, "also under an account of its own");
    assert_eq!(spec["affinity"], json!({"nodeAffinity": {}}));
    assert_eq!(spec["containers"][0]["securityContext"]["runAsUser"], 5);
    assert_eq!(spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(spec["containers"][0]["resources"], json!({"limits": {"memory": "1Gi"}}));

    let reserved = BUILTIN.replace("builtin: {", "builtin: {pod: {labels: {projectionist.dev/projection: x}}, ");
    let refused = validate(&projection(&reserved)).unwrap_err().to_string();
    assert!(refused.contains("spec.projector.builtin.pod.labels[projectionist.dev/projection]"), "{refused}");
    assert!("{\"pods\": {}}".parse::<super::builtin_pods::PodDefaults>().is_err(), "an unknown setting is an error");
}
