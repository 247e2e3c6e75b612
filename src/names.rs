//! Names that more than one room must agree on: labels, annotations, field managers, environment variables, metrics.

/// The API group of the resource.
pub const GROUP: &str = "projectionist.dev";

/// Field manager of everything that the operator declares except the number of workers.
pub const FIELD_MANAGER: &str = "projectionist";
/// Field manager of `spec.replicas` alone, so that declaring the rest never takes it back from the autoscaler.
pub const SCALE_FIELD_MANAGER: &str = "projectionist-scale";
/// Field manager of the Projection's status.
pub const STATUS_FIELD_MANAGER: &str = "projectionist-status";

/// Label with the name of the Projection, on every object made for it.
pub const PROJECTION_LABEL: &str = "projectionist.dev/projection";
/// Label with the version of the read model that a worker writes, part of each selector: a Deployment's cannot be changed later, when two versions of
/// one Projection run side by side.
pub const VERSION_LABEL: &str = "projectionist.dev/version";
/// The version of a Projection that names none.
pub const UNVERSIONED: &str = "unversioned";
/// Labels by which the operator finds workers, which a pod template may not set itself.
pub const SELECTED_LABELS: [&str; 2] = [PROJECTION_LABEL, VERSION_LABEL];
/// The standard label for the tool that manages an object; its value is [`FIELD_MANAGER`].
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Pod template annotation with a hash of the built-in projector's configuration, so that a change rolls the workers.
pub const CONFIG_HASH_ANNOTATION: &str = "projectionist.dev/config-hash";

/// Annotation with a hash of what the operator last applied of an object, so that a restart need not apply everything again.
pub const APPLIED_HASH_ANNOTATION: &str = "projectionist.dev/applied-hash";

/// Annotation of a Secret with the servers that a spec may send its credential to beside those that the Secret names itself: `host:port`, separated by
/// commas.
pub const ENDPOINTS_ANNOTATION: &str = "projectionist.dev/endpoints";

/// Annotation of a Projection that suspends it like `spec.suspend`: `true`, or `false`. `kubectl annotate` sets it on all that a label or a field selects.
pub const SUSPEND_ANNOTATION: &str = "projectionist.dev/suspend";

/// Annotation of a Projection that names the version to which readers are to be led as soon as it has caught up.
pub const PROMOTE_ANNOTATION: &str = "projectionist.dev/promote";
/// Annotation of a Projection that names the version to which readers are to be led back at once.
pub const ROLLBACK_ANNOTATION: &str = "projectionist.dev/rollback";

/// Annotation of the Lease with the Projections whose status does not show what the leader asks for, as `namespace/name`, separated by commas.
pub const OUTDATED_ANNOTATION: &str = "projectionist.dev/outdated-status";

/// Label in metric selectors that names one projection.
pub const METRIC_PROJECTION_LABEL: &str = "projection";
/// Label in metric selectors that names one version of a projection.
pub const METRIC_VERSION_LABEL: &str = "version";

/// Environment variables that every worker gets.
pub mod worker_env {
    /// The Projection's name.
    pub const PROJECTION: &str = "PROJECTION_NAME";
    /// The Projection's namespace.
    pub const NAMESPACE: &str = "PROJECTION_NAMESPACE";
    /// The version of the read model, where one is given.
    pub const VERSION: &str = "PROJECTION_VERSION";
    /// The worker's own name (the pod's).
    pub const WORKER: &str = "PROJECTION_WORKER";
    /// The number of shards, where it is known.
    pub const SHARDS: &str = "PROJECTION_SHARDS";
    /// What the names of all variables about the event source begin with: `EVENT_SOURCE_URL`, `EVENT_SOURCE_PASSWORD` and so on, one for each key
    /// that a Secret may have, in capitals and with underscores.
    pub const EVENT_SOURCE: &str = "EVENT_SOURCE_";
    /// The same for the read store.
    pub const READ_STORE: &str = "READ_STORE_";
    /// Ends the name of the variable with the connection string.
    pub const URL: &str = "URL";
    /// Ends the name of the variable with the server's certificate authority (PEM), where one is given.
    pub const CA: &str = "CA";
    /// Ends the name of the variable with the client certificate (PEM), where one is given.
    pub const CLIENT_CERTIFICATE: &str = "CLIENT_CERTIFICATE";
    /// Ends the name of the variable with the client certificate's key (PEM), where one is given.
    pub const CLIENT_KEY: &str = "CLIENT_KEY";
    /// Schema of the read model, where one is given.
    pub const READ_STORE_SCHEMA: &str = "READ_STORE_SCHEMA";

    /// The variable for a key of the Secret of a connection: another one for each key, as `api-key` and `api_key`.
    pub fn of_key(prefix: &str, key: &str) -> String {
        format!("{prefix}{}", key.to_ascii_uppercase().replace('_', "__").replace('-', "_"))
    }
}

/// The keys of a Secret that say how to reach a database, as operators of databases write them.
pub mod secret_key {
    /// Keys of a connection string; the first that is there counts. `uri` and `jdbc-uri`: CloudNativePG and Crunchy Data's operator.
    pub const STRINGS: [&str; 4] = ["url", "uri", "jdbc-url", "jdbc-uri"];

    /// Keys of the parts, by the part's name in libpq. `endpoint`: Crossplane; `dbname`, `user`: CloudNativePG and others.
    pub const PARTS: [(&str, &[&str]); 6] = [
        ("host", &["host", "hostname", "endpoint"]),
        ("port", &["port"]),
        ("dbname", &["database", "dbname"]),
        ("user", &["username", "user"]),
        ("password", &["password"]),
        ("sslmode", &["sslmode"]),
    ];

    /// The keys for servers that are asked over HTTP.
    pub const HTTP: [&str; 6] = ["url", "uri", "username", "user", "password", "token"];

    /// The keys for NATS.
    pub const NATS: [&str; 15] = [
        "url", "uri", "servers", "host", "hostname", "endpoint", "port", "username", "user", "password", "token",
        "tls", "ssl", "creds", "nkey",
    ];

    /// The keys for KurrentDB (EventStoreDB).
    pub const KURRENTDB: [&str; 13] = [
        "url",
        "uri",
        "connectionString",
        "connection-string",
        "host",
        "hostname",
        "endpoint",
        "port",
        "username",
        "user",
        "password",
        "tls",
        "ssl",
    ];

    /// The keys for RabbitMQ's management API. `host`, `port`, `username`, `password`: RabbitMQ's Cluster Operator, whose port is AMQP's.
    pub const RABBITMQ: [&str; 13] = [
        "url",
        "uri",
        "host",
        "hostname",
        "endpoint",
        "port",
        "username",
        "user",
        "password",
        "tls",
        "ssl",
        "stream-port",
        "amqp-port",
    ];

    /// The keys for Elasticsearch and OpenSearch.
    pub const ELASTICSEARCH: [&str; 14] = [
        "url", "uri", "host", "hostname", "endpoint", "port", "username", "user", "password", "apiKey", "api-key",
        "api_key", "tls", "ssl",
    ];

    /// The keys for Kafka, among them Kafka's own names of properties.
    pub const KAFKA: [&str; 21] = [
        "bootstrapServers",
        "bootstrap.servers",
        "bootstrap-servers",
        "bootstrap_servers",
        "brokers",
        "securityProtocol",
        "security.protocol",
        "security-protocol",
        "security_protocol",
        "saslMechanism",
        "sasl.mechanism",
        "sasl-mechanism",
        "sasl_mechanism",
        "mechanism",
        "username",
        "user",
        "sasl.username",
        "password",
        "sasl.password",
        "token",
        "access_token",
    ];

    /// The keys for Redis. `redis-password`: Bitnami's chart.
    pub const REDIS: [&str; 14] = [
        "url",
        "uri",
        "host",
        "hostname",
        "endpoint",
        "port",
        "username",
        "user",
        "password",
        "redis-password",
        "database",
        "db",
        "tls",
        "ssl",
    ];

    /// Every key that is looked for, for PostgreSQL.
    pub fn all() -> impl Iterator<Item = &'static str> {
        STRINGS.into_iter().chain(PARTS.into_iter().flat_map(|(_, keys)| keys.iter().copied()))
    }
}

/// Where the built-in projector finds its configuration (a mounted ConfigMap).
pub const PROJECTOR_CONFIG_PATH: &str = "/etc/projectionist/projector.json";
/// The key of that file in the ConfigMap.
pub const PROJECTOR_CONFIG_KEY: &str = "projector.json";

/// The key of the ConfigMap of a run with the spec that the run was made with.
pub const STORED_SPEC_KEY: &str = "spec.json";

/// The checkpoint table of the built-in projector, in the read store.
pub const CHECKPOINT_TABLE: &str = "projectionist_checkpoints";
/// The table in which the built-in projector keeps events that it has set aside, beside the checkpoint table.
pub const PARKED_TABLE: &str = "projectionist_parked";
/// The table in which the built-in projector notes the messages of a queue that it has handled.
pub const INBOX_TABLE: &str = "projectionist_inbox";

/// The APIService of the metrics that the operator's own HorizontalPodAutoscalers read.
pub const EXTERNAL_API_SERVICE: &str = "v1beta1.external.metrics.k8s.io";

/// How the built-in projector calls itself in a read store without schemas where each version of the read model has a run of its own. All that it keeps there is
/// called so: checkpoints, leases and claims.
pub mod run_name {
    /// No name in Kubernetes holds it, and no version.
    const BETWEEN: char = '@';

    /// The run for a version of the Projection `namespace/name`.
    pub fn of(projection: &str, version: &str) -> String {
        format!("{projection}{BETWEEN}{version}")
    }

    /// The Projection, and the version where each has a run of its own.
    pub fn parts(name: &str) -> (&str, Option<&str>) {
        name.split_once(BETWEEN).map_or((name, None), |(projection, version)| (projection, Some(version)))
    }
}

/// What the built-in projector keeps in a read store in Redis.
pub mod redis_state {
    /// What the name of a field with the position of a shard begins with.
    pub const POSITION: &str = "position:";
    /// What the name of a field begins with that says before which event a shard waits: its position, a blank, and why.
    pub const FAILURE: &str = "failure:";
    /// What the name of a field begins with that names the part of the source that a shard is.
    pub const PART: &str = "part:";
    /// What the name of a field begins with that says how often a shard has changed its owner.
    pub const FENCE: &str = "fence:";
    /// What the name of a field begins with that says which handlers a shard's owner has had no event for: the fence of that owner, a blank, and the types as a
    /// JSON list.
    pub const UNCALLED: &str = "uncalled:";

    /// The key of the hash with the claims of all Projections to keys: a field for each of them, with JSON.
    pub const CLAIMS: &str = "projectionist:claims";

    /// What all keys begin with that a dry run writes.
    pub const DRY_RUN: &str = "projectionist-dry-run-";

    /// The key of the hash. What is in braces lets handlers name keys that a Redis Cluster keeps together with it.
    pub fn key(projection: &str) -> String {
        format!("projectionist:{}", braces(projection))
    }

    /// The key of the hash with the messages of a queue that cannot be handled: for each its name, and as value the time in milliseconds, a blank, and why.
    pub fn failed(projection: &str) -> String {
        format!("{}:failed", key(projection))
    }

    /// The key of the note of a message of a queue.
    pub fn seen(projection: &str, message: &str) -> String {
        format!("{}:seen:{message}", key(projection))
    }

    /// What keys must hold to be in the same slot of a Redis Cluster.
    pub fn braces(projection: &str) -> String {
        format!("{{{projection}}}")
    }
}

/// What the built-in projector keeps in a read store in Elasticsearch: documents of one index, each called after the Projection.
pub mod search_state {
    /// The index, where the Projection does not say.
    pub const INDEX: &str = "projectionist-state";
    /// The field with the position of a shard.
    pub const POSITION: &str = "position";
    /// The field with the event that a shard waits before, an object with [`POSITION`] and [`WHY`].
    pub const FAILURE: &str = "failure";
    /// Why it waits there.
    pub const WHY: &str = "why";
    /// The field that says how often a shard has changed its owner.
    pub const FENCE: &str = "fence";
    /// The field that says which handlers the shard's owner has had no event for: the fence of that owner, a blank, and the types as a JSON list.
    pub const UNCALLED: &str = "uncalled";
    /// The field of the Projection's document with the number of shards.
    pub const SHARDS: &str = "shards";
    /// The field of the Projection's document with the parts of the source that the shards are, objects with [`NAME`]; absent where they are none.
    pub const PARTS: &str = "parts";
    /// The field of the document of [`failed`] with messages, objects with [`WHY`].
    pub const FAILED: &str = "failed";
    /// The `_id` of the document with the claims of all Projections to indices. Those of Projections hold a slash.
    pub const CLAIMS: &str = "claims";
    /// The name of a part.
    pub const NAME: &str = "name";

    /// What comes between the name of an index and a random number in the name of the index that stands for it in a dry run.
    pub const DRY_RUN: &str = "-dry-run-";

    /// The `_id` of the document of a shard.
    pub fn shard(projection: &str, shard: u32) -> String {
        format!("{projection}:shard:{shard}")
    }

    /// The `_id` of the document of a shard that is a part of the source.
    pub fn part(projection: &str, part: &str) -> String {
        format!("{projection}:part:{part}")
    }

    /// The `_id` of the document with the messages of a queue that cannot be handled.
    pub fn failed(projection: &str) -> String {
        format!("{projection}:failed")
    }

    /// The `_id` of the document with the workers.
    pub fn workers(projection: &str) -> String {
        format!("{projection}:workers")
    }
}
