//! What runs the workers and how many there may be: from a Projection as written to one that can be carried out.
//!
//! Most mistakes are refused by the API server (schema and CEL). Here is what those cannot see, and what an object from
//! before a newer rule may still hold. Every message names the field.

use k8s_openapi::api::core::v1::ResourceRequirements;
use serde_json::{Map, Value, json};

use super::{
    policy::SuspendedBy,
    postgres::read_by_builtin,
    runs::{run_of, spec_to_store},
    versions::{self, filled},
};
use crate::{
    api::{
        Autoscaler, BuiltinProjector, Connection, ElasticsearchHandlers, ExistingKind, HumanDuration, KafkaSource,
        KurrentDbSource, NatsSource, OnPoison, Ordering, PodTemplate, PostgresSource, Projection, ProjectionSpec,
        Projector, RabbitMqSource, RedisHandlers, RedisSource, ScaleOut, Scaling, WorkerPod,
    },
    hpa::{Behavior, InvalidBehavior},
    measure::RunKey,
    names,
    projector::{
        DEFAULT_KEEPING, DEFAULT_KEEPING_IN_REDIS, ElasticsearchOutput, Input, KafkaInput, KurrentDbInput,
        NatsConsumers, Output, PostgresInput, PostgresOutput, ProjectorConfig, QueueInput, QueueKind, RabbitMqQueues,
        RedisOutput, RedisStreams, check_handlers, check_input,
    },
};

/// The run that an object is made for, and the very Projection that controls the object.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// Which run of which Projection.
    pub run: RunKey,
    /// The Projection's UID.
    pub uid: String,
}

impl Owner {
    /// The Projection's namespace, which is also the object's.
    pub fn namespace(&self) -> &str {
        &self.run.projection.namespace
    }

    /// The Projection's name.
    pub fn name(&self) -> &str {
        &self.run.projection.name
    }
}

/// A Projection that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// The run that objects are made for.
    pub owner: Owner,
    /// What runs the workers.
    pub workload: Workload,
    /// How many workers there may be, and what decides their number.
    pub workers: WorkerBounds,
    /// The spec to store beside the workers, where another run may follow on this one.
    pub stored: Option<String>,
}

/// What runs the workers.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// The operator makes no workload: the Projection is only measured.
    MeasureOnly,
    /// A workload of the team's own; only its scale is touched.
    Existing {
        /// Its kind.
        kind: ExistingKind,
        /// Its name.
        name: String,
    },
    /// A Deployment that the operator makes.
    Own {
        /// Its pods.
        pods: Pods,
        /// Environment of every worker.
        environment: Box<Environment>,
        /// Never two workers at once, not even during a rollout.
        strict: bool,
    },
}

/// The pods of a Deployment that the operator makes.
#[derive(Clone, Debug, PartialEq)]
pub enum Pods {
    /// The team's own template: checked to have an object of metadata and an object of spec with containers.
    Template {
        /// Labels and annotations.
        metadata: Map<String, Value>,
        /// The pod spec.
        spec: Map<String, Value>,
    },
    /// The built-in projector.
    Builtin(Box<BuiltinPods>),
}

/// What a Projection says of its workers' pods.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltinPods {
    /// The projector's configuration, which is mounted.
    pub configuration: Value,
    /// What each worker asks of its node.
    pub resources: Option<ResourceRequirements>,
    /// Where and how it runs.
    pub pod: WorkerPod,
}

/// What every worker finds in its environment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Environment {
    /// The version of the read model, where one is given.
    pub version: Option<String>,
    /// The number of shards, where it is known.
    pub shards: Option<u32>,
    /// Where the event source's connection string is.
    pub event_source: Option<(Connection, Vec<&'static str>)>,
    /// Where the read store's connection string is.
    pub read_store: Option<(Connection, Vec<&'static str>)>,
    /// The read model's schema.
    pub schema: Option<String>,
}

/// How many workers there may be.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerBounds {
    /// Fewest. With 0 there is none while nothing waits.
    pub min: i32,
    /// Most that are of use: bounded by shards and ordering, at least `min`.
    pub max: i32,
    /// No worker is to run, since the Projection is suspended.
    pub suspended: bool,
    /// A HorizontalPodAutoscaler that the operator makes scales the workload.
    pub autoscaled: bool,
    /// Beside that autoscaler the operator scales out itself, the moment that more workers are needed.
    pub immediate: bool,
    /// The second rule of the autoscaler, where there is one.
    pub pending_per_worker: Option<i64>,
    /// The autoscaler's behavior, where the user gives it.
    pub behavior: Option<Value>,
}

/// Why a Projection cannot be carried out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// A field holds something that cannot be used.
    #[error("{field} {problem}")]
    Field {
        /// The path of the field.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The API server always sets these.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
    Invalid::Field { field: field.into(), problem: problem.into() }
}

/// Checks a Projection.
pub fn validate(projection: &Projection) -> Result<Validated, Invalid> {
    let metadata = &projection.metadata;
    let complete = [("metadata.namespace", &metadata.namespace), ("metadata.name", &metadata.name)];
    if let Some((missing, _)) = complete.into_iter().find(|(_, value)| value.is_none()) {
        return Err(Invalid::Incomplete(missing));
    }
    let uid = metadata.uid.clone().ok_or(Invalid::Incomplete("metadata.uid"))?;
    let owner = Owner { run: run_of(projection), uid };
    versions::check(&projection.spec).map_err(|(field, problem)| invalid(field, problem))?;
    let spec = &*filled(&projection.spec);
    // Label values and the names of pods are made from it.
    if owner.name().len() > 52 {
        return Err(invalid("metadata.name", "must have at most 52 characters"));
    }
    let workload = workload(spec, &owner)?;
    let suspended = SuspendedBy::of(projection)
        .map_err(|problem| invalid(format!("metadata.annotations[{}]", names::SUSPEND_ANNOTATION), problem))?;
    let workers = bounds(spec, &workload, suspended.is_some())?;
    Ok(Validated { owner, workload, workers, stored: spec_to_store(projection) })
}

fn workload(spec: &ProjectionSpec, owner: &Owner) -> Result<Workload, Invalid> {
    let Some(projector) = &spec.projector else { return Ok(Workload::MeasureOnly) };
    let pods = match projector {
        Projector { template: None, builtin: None, existing: Some(existing) } => {
            return Ok(Workload::Existing { kind: existing.kind, name: existing.name.clone() });
        }
        Projector { template: Some(template), builtin: None, existing: None } => pods_of(template)?,
        Projector { template: None, builtin: Some(builtin), existing: None } => built_in(builtin, spec, owner)?,
        _ => return Err(invalid("spec.projector", "must have exactly one of template, builtin and existing")),
    };
    let environment = Environment {
        version: spec.version.clone(),
        shards: spec.shard_count(),
        event_source: spec.source.connection(),
        read_store: spec
            .read_store
            .as_ref()
            .and_then(|store| store.connection())
            .map(|(connection, keys, _)| (connection.clone(), keys)),
        schema: read_store(spec).and_then(|store| store.schema.clone()),
    };
    Ok(Workload::Own { pods, environment: Box::new(environment), strict: spec.scaling.ordering == Ordering::Strict })
}

fn read_store(spec: &ProjectionSpec) -> Option<&crate::api::PostgresReadStore> {
    spec.read_store.as_ref().and_then(|store| store.postgres.as_ref())
}

fn built_in(builtin: &BuiltinProjector, spec: &ProjectionSpec, owner: &Owner) -> Result<Pods, Invalid> {
    if !builtin.coalesce.is_empty() && spec.scaling.ordering == Ordering::Strict {
        return Err(invalid(
            "spec.projector.builtin.coalesce",
            "must be absent with spec.scaling.ordering Strict, which promises the order of all events",
        ));
    }
    let (input, source) = input_of(builtin, spec)?;
    let (output, store) = output_of(builtin, spec)?;
    // Its workers send the credential themselves, and cannot see whether the Secret allows these servers.
    let (store_field, store) = store;
    for (field, connection) in [source, (store_field, store.clone())] {
        if connection.host.is_some() || connection.port.is_some() {
            return Err(invalid(
                field,
                "must have no host and port with spec.projector.builtin, whose workers cannot see whether the Secret allows them: put host and port into the Secret",
            ));
        }
    }
    check_input(&input, &output)
        .map_err(|error| invalid("spec.projector.builtin", format!("cannot be run: {error}")))?;
    poison_can_be_set_aside(spec, &input, &output)?;
    let name = spec.name_in_read_store(owner.run.projection.to_string());
    let configuration = ProjectorConfig::new(name, input, output, (builtin, &spec.failure));
    configuration.check().map_err(|error| invalid("spec.projector.builtin", format!("cannot be run: {error}")))?;
    let pod = builtin.pod.clone().unwrap_or_default();
    if let Some(label) = names::SELECTED_LABELS.into_iter().find(|label| pod.labels.contains_key(*label)) {
        let field = format!("spec.projector.builtin.pod.labels[{label}]");
        return Err(invalid(field, "must be absent: the operator finds the workers by it"));
    }
    let resources = builtin.resources.clone();
    Ok(Pods::Builtin(Box::new(BuiltinPods { configuration: json!(configuration), resources, pod })))
}

/// The API server refuses this, too; an object may be older than its rule.
fn poison_can_be_set_aside(spec: &ProjectionSpec, input: &Input, output: &Output) -> Result<(), Invalid> {
    if spec.failure.on_poison == OnPoison::Pause {
        return Ok(());
    }
    let problem = if matches!(input, Input::Queue(_)) || !matches!(output, Output::Postgres(_)) {
        "must be Pause: Park and Skip are for a source with positions (an event table, Kafka, KurrentDB) and handlers in SQL for a read store in PostgreSQL"
    } else if spec.scaling.ordering == Ordering::Strict {
        "must be Pause with spec.scaling.ordering Strict, which promises the order of all events"
    } else {
        return Ok(());
    };
    Err(invalid("spec.failure.onPoison", problem))
}

/// What the workers read, and the connection to it with its field.
fn input_of(builtin: &BuiltinProjector, spec: &ProjectionSpec) -> Result<(Input, (&'static str, Connection)), Invalid> {
    if let Some(RedisSource { connection, streams, lists, event }) = &spec.source.redis {
        let queue =
            QueueKind::Redis(RedisStreams { streams: streams.clone(), event: event.clone().unwrap_or_default() });
        if !lists.is_empty() {
            return Err(invalid(
                "spec.source.redis.lists",
                "must be absent with spec.projector.builtin, which reads streams",
            ));
        }
        return Ok((queue_of(builtin, spec, queue)?, ("spec.source.redis.connection", connection.clone())));
    }
    if let Some(NatsSource { connection, consumers, domain, event }) = &spec.source.nats {
        let queue = QueueKind::Nats(NatsConsumers {
            consumers: consumers.clone(),
            domain: domain.clone(),
            event: event.clone().unwrap_or_default(),
        });
        return Ok((queue_of(builtin, spec, queue)?, ("spec.source.nats.connection", connection.clone())));
    }
    if let Some(RabbitMqSource { connection, vhost, queues, streams, dead_letter_queues: _, event }) =
        &spec.source.rabbitmq
    {
        if !streams.is_empty() {
            return Err(invalid(
                "spec.source.rabbitmq.streams",
                "must be absent with spec.projector.builtin, which reads queues",
            ));
        }
        let queue = QueueKind::RabbitMq(RabbitMqQueues {
            vhost: vhost.clone(),
            queues: queues.clone(),
            event: event.clone().unwrap_or_default(),
        });
        return Ok((queue_of(builtin, spec, queue)?, ("spec.source.rabbitmq.connection", connection.clone())));
    }
    if let Some(KafkaSource { connection, topics, group, isolation, event, stored_offset: _, offset_reset: _ }) =
        &spec.source.kafka
    {
        if connection.bootstrap_servers.is_some() {
            return Err(invalid(
                "spec.source.kafka.connection.bootstrapServers",
                "must be absent with spec.projector.builtin, whose workers cannot see whether the Secret allows them: put the servers into the Secret",
            ));
        }
        let input = KafkaInput {
            topics: topics.clone(),
            group: group.clone(),
            isolation: *isolation,
            event: event.clone().unwrap_or_default(),
        };
        return Ok((Input::Kafka(input), ("spec.source.kafka.connection", connection.plain())));
    }
    if let Some(KurrentDbSource { connection, persistent_subscriptions: _, catch_up }) = &spec.source.kurrentdb {
        let subscription = catch_up.clone().ok_or_else(|| {
            invalid(
                "spec.source.kurrentdb.catchUp",
                "is required with spec.projector.builtin, which keeps the checkpoint itself: a persistent subscription keeps its own, and no order",
            )
        })?;
        let input = KurrentDbInput { subscription, shards: hashed_shards(spec) };
        return Ok((Input::KurrentDb(input), ("spec.source.kurrentdb.connection", connection.clone())));
    }
    if let (Some(outbox), Some(PostgresSource { connection, .. })) = (spec.source.outbox(), &spec.source.postgres) {
        let queue = queue_of(builtin, spec, QueueKind::Outbox(Box::new(outbox.clone())))?;
        return Ok((queue, ("spec.source.postgres.connection", connection.clone())));
    }
    let (event_table, events, connection) = read_by_builtin(spec)?;
    let input = PostgresInput { event_table, events, shards: hashed_shards(spec) };
    Ok((Input::Postgres(input), ("spec.source.postgres.connection", connection.clone())))
}

fn hashed_shards(spec: &ProjectionSpec) -> u32 {
    spec.shard_count().unwrap_or(ProjectionSpec::BUILTIN_SHARDS)
}

/// A queue, with what is kept of its messages.
fn queue_of(builtin: &BuiltinProjector, spec: &ProjectionSpec, queue: QueueKind) -> Result<Input, Invalid> {
    if spec.scaling.ordering == Ordering::PerKey {
        return Err(invalid(
            "spec.scaling.ordering",
            "must be None or Strict: workers that share a queue keep no order by key",
        ));
    }
    let keep_for = builtin.inbox.as_ref().and_then(|inbox| inbox.keep_for);
    let default = if builtin.redis.is_some() { DEFAULT_KEEPING_IN_REDIS } else { DEFAULT_KEEPING };
    Ok(Input::Queue(QueueInput {
        queue,
        keep_for: keep_for.unwrap_or(HumanDuration(default)),
        alone: spec.scaling.ordering == Ordering::Strict,
    }))
}

/// What the workers do where, and the connection to it with its field.
fn output_of<'a>(
    builtin: &BuiltinProjector,
    spec: &'a ProjectionSpec,
) -> Result<(Output, (&'static str, &'a Connection)), Invalid> {
    if let Some(RedisHandlers { handlers, shared }) = &builtin.redis {
        let store = spec.read_store.as_ref().and_then(|store| store.redis.as_ref()).ok_or_else(|| {
            invalid("spec.readStore.redis", "is required with spec.projector.builtin.redis, whose commands write there")
        })?;
        let output = Output::Redis(RedisOutput { handlers: handlers.clone(), shared: *shared });
        check_handlers(&output, &builtin.coalesce)
            .map_err(|error| invalid("spec.projector.builtin.redis", format!("cannot be run: {error}")))?;
        return Ok((output, ("spec.readStore.redis.connection", &store.connection)));
    }
    if let Some(ElasticsearchHandlers { state_index, handlers, shared }) = &builtin.elasticsearch {
        let store = spec.read_store.as_ref().and_then(|store| store.elasticsearch.as_ref()).ok_or_else(|| {
            invalid(
                "spec.readStore.elasticsearch",
                "is required with spec.projector.builtin.elasticsearch, whose documents are there",
            )
        })?;
        let (state_index, handlers) = (state_index.clone(), handlers.clone());
        let output = Output::Elasticsearch(ElasticsearchOutput { state_index, handlers, shared: *shared });
        check_handlers(&output, &builtin.coalesce)
            .map_err(|error| invalid("spec.projector.builtin.elasticsearch", format!("cannot be run: {error}")))?;
        return Ok((output, ("spec.readStore.elasticsearch.connection", &store.connection)));
    }
    let store = read_store(spec).ok_or_else(|| {
        invalid("spec.readStore.postgres", "is required with spec.projector.builtin.handlers, which write there")
    })?;
    let output = PostgresOutput {
        schema: store.schema.clone(),
        setup: builtin.setup.clone(),
        handlers: builtin.handlers.clone(),
    };
    Ok((Output::Postgres(output), ("spec.readStore.postgres.connection", &store.connection)))
}

fn pods_of(template: &PodTemplate) -> Result<Pods, Invalid> {
    let at = |path: &str| format!("spec.projector.template.{path}");
    let object = |value: Option<&Value>, path: &str| match value {
        None => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields.clone())),
        Some(_) => Err(invalid(at(path), "must be an object")),
    };
    let metadata = object(template.0.get("metadata"), "metadata")?.unwrap_or_default();
    for labels in ["labels", "annotations"] {
        object(metadata.get(labels), &format!("metadata.{labels}"))?;
    }
    let given = |label: &&str| metadata.get("labels").is_some_and(|labels| labels.get(*label).is_some());
    if let Some(label) = names::SELECTED_LABELS.into_iter().find(given) {
        let field = at(&format!("metadata.labels[{label}]"));
        return Err(invalid(field, "must be absent: the operator finds the workers by it"));
    }
    let spec = object(template.0.get("spec"), "spec")?.ok_or_else(|| invalid(at("spec"), "is required"))?;
    let policy = spec.get("restartPolicy");
    if policy.is_some_and(|policy| policy != "Always") {
        return Err(invalid(at("spec.restartPolicy"), "must be Always or absent: workers run for ever"));
    }
    object(spec.get("securityContext"), "spec.securityContext")?;
    let mut seen = std::collections::BTreeSet::new();
    for list in ["containers", "initContainers"] {
        let containers = match spec.get(list) {
            Some(Value::Array(containers)) if list == "initContainers" || !containers.is_empty() => containers,
            None if list == "initContainers" => continue,
            _ => return Err(invalid(at(&format!("spec.{list}")), "must be a list of containers, with at least one")),
        };
        for (index, container) in containers.iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            let Value::Object(fields) = container else { return Err(invalid(at(&path), "must be an object")) };
            let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
            if name.is_empty() || !seen.insert(name.to_owned()) {
                return Err(invalid(at(&format!("{path}.name")), "must be given and unique in the pod"));
            }
            let variables = fields.get("env");
            let is_list = |value: &Value| value.as_array().is_some_and(|items| items.iter().all(Value::is_object));
            if variables.is_some_and(|variables| !is_list(variables)) {
                return Err(invalid(at(&format!("{path}.env")), "must be a list of objects with name and value"));
            }
            let context = object(fields.get("securityContext"), &format!("{path}.securityContext"))?;
            object(
                context.as_ref().and_then(|context| context.get("capabilities")),
                &format!("{path}.securityContext.capabilities"),
            )?;
        }
    }
    Ok(Pods::Template { metadata, spec })
}

fn bounds(spec: &ProjectionSpec, workload: &Workload, suspended: bool) -> Result<WorkerBounds, Invalid> {
    let Scaling {
        min_workers,
        max_workers: _,
        ordering,
        idle_for: _,
        events_per_worker_second: _,
        scale_out,
        look_ahead: _,
        shards: _,
        behavior,
        autoscaler,
    } = &spec.scaling;
    let most = spec.scaling.most_workers();
    if *min_workers < 0 {
        return Err(invalid("spec.scaling.minWorkers", "must not be negative"));
    }
    if *min_workers > most {
        return Err(invalid(
            "spec.scaling.minWorkers",
            format!("must not be greater than maxWorkers, which is {most}"),
        ));
    }
    // The API server refuses these, too; an object may be older than its rules.
    if let Some(Err(InvalidBehavior { field, problem })) = behavior.as_ref().map(Behavior::from_spec) {
        return Err(invalid(format!("spec.scaling.behavior.{field}"), problem));
    }
    let useful = match ordering {
        Ordering::Strict => 1,
        Ordering::PerKey => {
            spec.shard_count().map_or(most, |shards| i32::try_from(shards).unwrap_or(i32::MAX).min(most))
        }
        Ordering::None => most,
    };
    let autoscaled = *autoscaler == Autoscaler::Managed && *workload != Workload::MeasureOnly;
    Ok(WorkerBounds {
        min: *min_workers,
        max: useful.max(*min_workers),
        suspended,
        autoscaled,
        immediate: *scale_out == ScaleOut::Immediate,
        pending_per_worker: spec.lag.pending_per_worker,
        behavior: behavior.as_ref().map(|behavior| json!(behavior)),
    })
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
