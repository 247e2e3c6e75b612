//! The pods of a Deployment of ours: what the team wrote, or the built-in projector; with the environment that every worker
//! gets, and *restricted* Pod Security wherever the team's template is silent.
//!
//! Pure. Adds, never removes: a field that the template sets is the team's.

use serde_json::{Map, Value, json};

use super::{
    parts::Owner,
    plan_builtin_pods::{WorkerDefaults, plan_builtin_pods},
    validate::{Environment, Pods},
};
use crate::{
    api::Connection,
    names::{self, worker_env},
};

/// `spec.template` of the Deployment.
pub fn plan_pods(pods: &Pods, environment: &Environment, owner: &Owner, defaults: &WorkerDefaults) -> Value {
    let (mut metadata, mut spec) = match pods {
        Pods::Template { metadata, spec } => (metadata.clone(), spec.clone()),
        Pods::Builtin(pods) => plan_builtin_pods(pods, owner, defaults),
    };
    within(&mut metadata, "labels", |labels| {
        labels.entry(names::MANAGED_BY_LABEL).or_insert_with(|| json!(names::FIELD_MANAGER));
        labels.insert(names::PROJECTION_LABEL.to_owned(), json!(owner.name));
    });
    secure_pod(&mut spec);
    let variables = variables(environment, owner);
    let windows = spec.get("os").and_then(|os| os.get("name")).is_some_and(|name| name == "windows");
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Value::Object(container) = container else { continue };
            add_variables(container, &variables);
            if !windows {
                secure_container(container);
            }
        }
    }
    json!({ "metadata": metadata, "spec": spec })
}

/// Changes the object at `key`, made if it is absent. Validation has refused anything but an object.
fn within(fields: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    if let Value::Object(object) = fields.entry(key).or_insert_with(|| json!({})) {
        change(object);
    }
}

fn secure_pod(spec: &mut Map<String, Value>) {
    // Whoever names a service account wants its token.
    if !spec.contains_key("serviceAccountName") && !spec.contains_key("serviceAccount") {
        spec.entry("automountServiceAccountToken").or_insert(json!(false));
    }
    if spec.get("os").and_then(|os| os.get("name")).is_some_and(|name| name == "windows") {
        return;
    }
    within(spec, "securityContext", |context| {
        context.entry("seccompProfile").or_insert_with(|| json!({ "type": "RuntimeDefault" }));
        // Root, asked for by its number, is an answer, too.
        if context.get("runAsUser").and_then(Value::as_i64) != Some(0) {
            context.entry("runAsNonRoot").or_insert(json!(true));
        }
    });
}

fn secure_container(container: &mut Map<String, Value>) {
    within(container, "securityContext", |context| {
        if context.get("runAsUser").and_then(Value::as_i64) == Some(0) {
            // The pod's default would contradict it, and the node would refuse the container.
            context.entry("runAsNonRoot").or_insert(json!(false));
        }
        let added = context.get("capabilities").and_then(|all| all.get("add")).and_then(Value::as_array);
        let administers =
            added.is_some_and(|added| added.iter().any(|one| one == "SYS_ADMIN" || one == "CAP_SYS_ADMIN"));
        if context.get("privileged") == Some(&json!(true)) {
            return;
        }
        // The API server refuses the contradiction.
        if !administers {
            context.entry("allowPrivilegeEscalation").or_insert(json!(false));
        }
        within(context, "capabilities", |capabilities| {
            capabilities.entry("drop").or_insert_with(|| json!(["ALL"]));
        });
    });
}

fn variables(environment: &Environment, owner: &Owner) -> Vec<(&'static str, Value)> {
    let Environment { shards, event_source, read_store, schema } = environment;
    let value = |text: &str| json!({ "value": text });
    let secret = |name: &str, key: &str| json!({ "valueFrom": { "secretKeyRef": { "name": name, "key": key } } });
    let url = |from: &Option<Connection>| from.as_ref().map(|it| secret(&it.secret_ref.name, &it.secret_ref.key));
    let ca = |from: &Option<Connection>| {
        from.as_ref().and_then(|it| it.ca_secret_ref.as_ref()).map(|ca| secret(&ca.name, &ca.key))
    };
    let all = [
        (worker_env::PROJECTION, Some(value(&owner.name))),
        (worker_env::NAMESPACE, Some(value(&owner.namespace))),
        (
            worker_env::WORKER,
            Some(json!({ "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } })),
        ),
        (worker_env::SHARDS, shards.map(|shards| value(&shards.to_string()))),
        (worker_env::EVENT_SOURCE_URL, url(event_source)),
        (worker_env::EVENT_SOURCE_CA, ca(event_source)),
        (worker_env::READ_STORE_URL, url(read_store)),
        (worker_env::READ_STORE_CA, ca(read_store)),
        (worker_env::READ_STORE_SCHEMA, schema.as_deref().map(value)),
    ];
    all.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
}

/// Ours first, so that the team's own may refer to them; a name that the team sets stays the team's.
fn add_variables(container: &mut Map<String, Value>, variables: &[(&'static str, Value)]) {
    let theirs = container.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
    let is_theirs = |name: &str| theirs.iter().any(|variable| variable.get("name").is_some_and(|given| given == name));
    let ours = variables.iter().filter(|(name, _)| !is_theirs(name)).map(|(name, value)| {
        let mut variable = value.clone();
        variable["name"] = json!(name);
        variable
    });
    let all: Vec<Value> = ours.collect::<Vec<_>>().into_iter().chain(theirs.iter().cloned()).collect();
    container.insert("env".to_owned(), Value::Array(all));
}
