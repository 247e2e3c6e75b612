//! The pods that run the built-in projector: the operator's own image with the configuration mounted, placed and secured as the Projection
//! says, and else as the operator's settings say.

use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    api::WorkerPod,
    controller::parts::{Owner, Part, fingerprint, worker_selector},
    names,
    resolve::BuiltinPods,
};

/// What the operator's own settings say of the pods that run the built-in projector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerDefaults {
    /// The image that holds the built-in projector.
    pub image: String,
    /// When nodes pull it.
    pub pull_policy: String,
    /// What counts where a Projection says nothing.
    pub pods: PodDefaults,
}

/// What counts where a Projection says nothing about its workers' pods. Read from JSON.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PodDefaults {
    /// As in `spec.projector.builtin.pod`.
    #[serde(default)]
    pub pod: WorkerPod,
    /// As in `spec.projector.builtin.resources`.
    #[serde(default)]
    pub resources: Option<ResourceRequirements>,
}

impl std::str::FromStr for PodDefaults {
    type Err = serde_json::Error;

    fn from_str(json: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(json)
    }
}

/// The port of the built-in projector's health answers.
const HEALTH_PORT: u16 = 8080;
/// No user of the host has an id so high.
const WORKER_UID: u32 = 65_532;
/// The name of the built-in projector's container and volume.
const PROJECTOR: &str = "projector";
const CONFIGURATION: &str = "configuration";

/// `metadata` and `spec` of the pods.
pub(super) fn plan_builtin_pods(
    pods: &BuiltinPods,
    owner: &Owner,
    defaults: &WorkerDefaults,
) -> (Map<String, Value>, Map<String, Value>) {
    let WorkerDefaults { image, pull_policy, pods: PodDefaults { pod: default_pod, resources: default_resources } } =
        defaults;
    let BuiltinPods { configuration, resources, pod } = pods;
    let WorkerPod {
        labels,
        mut annotations,
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints,
        image_pull_secrets,
        priority_class_name,
        runtime_class_name,
        service_account_name,
        pod_security_context,
        security_context,
    } = pod.clone().or(default_pod);
    annotations.insert(names::CONFIG_HASH_ANNOTATION.to_owned(), format!("{:016x}", fingerprint(configuration)));
    let mut container = projector(resources.as_ref().or(default_resources.as_ref()), security_context);
    container["image"] = json!(image);
    container["imagePullPolicy"] = json!(pull_policy);
    let security_of_pod = pod_security_context.map_or_else(
        || json!({ "runAsNonRoot": true, "runAsUser": WORKER_UID, "runAsGroup": WORKER_UID }),
        Value::Object,
    );
    let spread = topology_spread_constraints.map_or_else(
        || {
            json!([{
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": worker_selector(&owner.run),
            }])
        },
        |given| json!(given),
    );
    let spec = json!({
        "terminationGracePeriodSeconds": 30,
        "securityContext": security_of_pod,
        "enableServiceLinks": false,
        // A worker does not speak to the API server, whatever account it runs under.
        "automountServiceAccountToken": false,
        "topologySpreadConstraints": spread,
        "containers": [container],
        "volumes": [{
            "name": CONFIGURATION,
            "configMap": { "name": Part::ConfigMap.object_name(&owner.run) },
        }],
    });
    let mut spec = fields(spec);
    let given = [
        ("nodeSelector", (!node_selector.is_empty()).then(|| json!(node_selector))),
        ("tolerations", tolerations.map(|given| json!(given))),
        ("affinity", affinity.map(Value::Object)),
        ("imagePullSecrets", image_pull_secrets.map(|given| json!(given))),
        ("priorityClassName", priority_class_name.map(Value::String)),
        ("runtimeClassName", runtime_class_name.map(Value::String)),
        ("serviceAccountName", service_account_name.map(Value::String)),
    ];
    spec.extend(given.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value))));
    (fields(json!({ "labels": labels, "annotations": annotations })), spec)
}

/// The container, but for its image.
fn projector(resources: Option<&ResourceRequirements>, security: Option<Map<String, Value>>) -> Value {
    let directory = names::PROJECTOR_CONFIG_PATH.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let resources = resources.map_or_else(
        || json!({ "requests": { "cpu": "50m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } }),
        |resources| json!(resources),
    );
    let probe = |path: &str, period: u32| json!({ "httpGet": { "path": path, "port": "health", "scheme": "HTTP" }, "periodSeconds": period, "timeoutSeconds": 3 });
    json!({
        "name": PROJECTOR,
        "args": ["projector"],
        "ports": [{ "name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP" }],
        "livenessProbe": probe("/healthz", 10),
        "readinessProbe": probe("/readyz", 2),
        "resources": resources,
        "securityContext": security.map_or_else(|| json!({ "readOnlyRootFilesystem": true }), Value::Object),
        // The Projection's status reports what ended a worker.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{ "name": CONFIGURATION, "mountPath": directory, "readOnly": true }],
    })
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
