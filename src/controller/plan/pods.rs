//! The pods of a Deployment that the operator makes: what the team wrote, or the built-in projector; with the environment that every worker gets, and
//! *restricted* Pod Security wherever the team's template sets nothing.
//!
//! Pure. Adds, never removes: a field that the template sets is the team's.

use serde_json::{Map, Value, json};

use super::builtin_pods::{WorkerDefaults, plan_builtin_pods};
use crate::{
    api::Connection,
    controller::parts::{Owner, worker_labels},
    names::{self, worker_env},
    resolve::{Environment, Pods},
};

/// `spec.template` of the Deployment.
pub fn plan_pods(pods: &Pods, environment: &Environment, owner: &Owner, defaults: &WorkerDefaults) -> Value {
    let (mut metadata, mut spec) = match pods {
        Pods::Template { metadata, spec } => (metadata.clone(), spec.clone()),
        Pods::Builtin(pods) => plan_builtin_pods(pods, owner, defaults),
    };
    within(&mut metadata, "labels", |labels| {
        labels.entry(names::MANAGED_BY_LABEL).or_insert_with(|| json!(names::FIELD_MANAGER));
        labels.extend(worker_labels(&owner.run).map(|(label, value)| (label.to_owned(), json!(value))));
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
    // A user who names a service account wants its token.
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

fn variables(environment: &Environment, owner: &Owner) -> Vec<(String, Value)> {
    let Environment { version, shards, event_source, read_store, schema } = environment;
    let value = |text: &str| json!({ "value": text });
    let field = json!({ "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } });
    let mut all = vec![
        (worker_env::PROJECTION.to_owned(), value(owner.name())),
        (worker_env::NAMESPACE.to_owned(), value(owner.namespace())),
        (worker_env::WORKER.to_owned(), field),
    ];
    all.extend(version.as_deref().map(|version| (worker_env::VERSION.to_owned(), value(version))));
    all.extend(shards.map(|shards| (worker_env::SHARDS.to_owned(), value(&shards.to_string()))));
    all.extend(event_source.iter().flat_map(|(source, keys)| connection(worker_env::EVENT_SOURCE, source, keys)));
    all.extend(read_store.iter().flat_map(|(store, keys)| connection(worker_env::READ_STORE, store, keys)));
    all.extend(schema.as_deref().map(|schema| (worker_env::READ_STORE_SCHEMA.to_owned(), value(schema))));
    all
}

/// What the operator reads of a connection, by references: no value of a Secret is copied. Where the spec names no key, which keys there are
/// is the Secret's matter, so each may be missing.
fn connection(prefix: &str, from: &Connection, keys: &[&str]) -> Vec<(String, Value)> {
    let secret = |name: &str, key: &str| json!({ "valueFrom": { "secretKeyRef": { "name": name, "key": key } } });
    let given = from.given();
    let mut all = Vec::new();
    match &from.secret_ref.key {
        Some(key) => all.push((worker_env::of_key(prefix, worker_env::URL), secret(&from.secret_ref.name, key))),
        None => {
            for key in keys.iter().filter(|key| given.iter().all(|(name, _)| name != *key)) {
                let mut reference = secret(&from.secret_ref.name, key);
                reference["valueFrom"]["secretKeyRef"]["optional"] = json!(true);
                all.push((worker_env::of_key(prefix, key), reference));
            }
        }
    }
    all.extend(given.into_iter().map(|(key, value)| (worker_env::of_key(prefix, key), json!({ "value": value }))));
    all.extend(from.ca_secret_ref.iter().map(|ca| (format!("{prefix}{}", worker_env::CA), secret(&ca.name, &ca.key))));
    if let Some(client) = &from.client_certificate_secret_ref {
        all.push((format!("{prefix}{}", worker_env::CLIENT_CERTIFICATE), secret(&client.name, "tls.crt")));
        all.push((format!("{prefix}{}", worker_env::CLIENT_KEY), secret(&client.name, "tls.key")));
    }
    all
}

/// Ours first, so that the team's own may refer to them; a name that the team sets stays the team's.
fn add_variables(container: &mut Map<String, Value>, variables: &[(String, Value)]) {
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
