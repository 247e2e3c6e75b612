//! The servers, the team's namespace, and everything of examples/shop in it.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::{ByteString, api::apps::v1::Deployment, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{Api, Client};
use projectionist::api::Projection;
use serde_json::{Value, json};
use test_cluster::{
    Cluster, Elasticsearch, Kafka, Postgres, RabbitMq, Redis, ServerCertificate, eventually, kafka::Listener,
};

use crate::watch::PROJECTIONS;

/// The team's namespace, as the manifests say.
pub(crate) const NAMESPACE: &str = "shop";
/// The read store's database.
pub(crate) const READS: &str = "reads";
/// The index of the order search, as its Projection says.
const INDEX: &str = "orders";
/// The user of the search, and what that user may do: docs/projector.md has the list, beside which `shop check` reads.
const SEARCH_USER: &str = "shop";
const SEARCH_ROLE: &str = "  cluster: [monitor]\n  indices: [{names: [shop-projections, orders], privileges: [read, index, delete, create_index, maintenance]}]";
/// How long things that take seconds may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
const SCHEMA: &str = include_str!("../../../../../examples/shop/schema.sql");
const MANIFESTS: [(&str, &str); 4] = [
    ("access.yaml", include_str!("../../../../../examples/shop/manifests/access.yaml")),
    ("workers.yaml", include_str!("../../../../../examples/shop/manifests/workers.yaml")),
    ("read-models.yaml", include_str!("../../../../../examples/shop/manifests/read-models.yaml")),
    ("api.yaml", include_str!("../../../../../examples/shop/manifests/api.yaml")),
];

/// One of each, on the cluster's node.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) rabbitmq: RabbitMq,
    redis: Redis,
    kafka: Kafka,
    search: Elasticsearch,
    /// What all of them show but the search, which has one of its own.
    certificate: ServerCertificate,
}

impl Servers {
    /// Starts them side by side.
    pub(crate) fn start(cluster: &Cluster) -> Result<Self> {
        let certificate = cluster.server_certificate()?;
        thread::scope(|scope| {
            let rabbitmq = scope.spawn(|| cluster.rabbitmq_with_tls(&certificate));
            let kafka = scope.spawn(|| cluster.kafka_with_tls(&certificate));
            let search = scope.spawn(|| cluster.elasticsearch(&[(SEARCH_USER, SEARCH_ROLE)]));
            let (postgres, redis) = (cluster.postgres()?, cluster.redis_with_tls(&certificate)?);
            postgres.offer_tls(&certificate.certificate, &certificate.key)?;
            postgres.stop()?;
            postgres.start()?;
            let panicked = |_| anyhow!("a server's thread has panicked");
            Ok(Self {
                postgres,
                redis,
                rabbitmq: rabbitmq.join().map_err(panicked)??,
                kafka: kafka.join().map_err(panicked)??,
                search: search.join().map_err(panicked)??,
                certificate: certificate.clone(),
            })
        })
    }
}

/// The shop on the cluster.
pub(crate) struct Stage {
    pub(crate) client: Client,
    pub(crate) servers: Servers,
}

impl Stage {
    /// Makes everything and waits until it works.
    pub(crate) async fn open(cluster: &Cluster, servers: Servers) -> Result<Self> {
        let client = cluster.client().await?;
        let (writes, reads) =
            (servers.postgres.create_database("shop").await?, servers.postgres.create_database(READS).await?);
        servers.postgres.connect("shop").await?.batch_execute(SCHEMA).await.context("examples/shop/schema.sql")?;
        servers.kafka.ask(&["create", shop::orders::TOPIC, "3", ""])?;
        let one_node = json!({"settings": {"number_of_shards": 1, "number_of_replicas": 0}});
        servers.search.run("PUT", &format!("/{INDEX}"), &one_node)?;

        cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let authorities = [Some(servers.certificate.authority.as_str()), servers.search.authority()];
        let brokers = |listener| servers.kafka.address(listener).to_string();
        let secrets = [
            ("servers", json!({"ca.crt": authorities.into_iter().flatten().collect::<String>()})),
            ("writes", json!({"url": writes, "sslmode": "verify-full"})),
            ("reads", json!({"url": reads, "sslmode": "verify-full"})),
            ("views", json!({"url": servers.redis.url()})),
            ("search", json!({"url": servers.search.url_as(SEARCH_USER)})),
            ("kafka", json!({"bootstrapServers": brokers(Listener::Tls)})),
            ("kafka-relay", json!({"bootstrapServers": brokers(Listener::Plaintext)})),
            ("rabbitmq", json!({"url": servers.rabbitmq.url()})),
            ("rabbitmq-amqp", json!({"url": servers.rabbitmq.amqp_url_as("guest", "guest")})),
        ];
        for (name, data) in secrets {
            cluster.apply(&secret(name, &json!({"stringData": data})).to_string())?;
        }
        cluster.apply(&secret("operator", &json!({"data": {"ca": authority(&client).await?}})).to_string())?;
        for (file, text) in MANIFESTS {
            cluster.apply(text).with_context(|| format!("examples/shop/manifests/{file}"))?;
        }
        let ready = all_are_ready(&client).await;
        ready.map_err(|error| cluster.explain(&error, NAMESPACE))?;
        Ok(Self { client, servers })
    }
}

fn secret(name: &str, content: &Value) -> Value {
    let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}});
    if let (Some(secret), Some(content)) = (secret.as_object_mut(), content.as_object()) {
        secret.extend(content.clone());
    }
    secret
}

/// Who signs the operator's certificate.
async fn authority(client: &Client) -> Result<ByteString> {
    let services: Api<APIService> = Api::all(client.clone());
    let service = services.get("v1beta1.external.metrics.k8s.io").await?;
    service.spec.and_then(|spec| spec.ca_bundle).context("the APIService names no authority")
}

async fn all_are_ready(client: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let projections: Api<Projection> = Api::namespaced(client.clone(), NAMESPACE);
    eventually(PATIENCE, "the API and a worker of each Projection are ready, and their lag is known", || async {
        for name in PROJECTIONS.map(|projection| projection.name).into_iter().chain(["shop-api"]) {
            let status = deployments.get_opt(name).await?.and_then(|found| found.status).unwrap_or_default();
            if status.ready_replicas.unwrap_or(0) == 0 {
                return Ok::<_, kube::Error>(Err(format!("{name} has no ready pod")));
            }
        }
        for projection in PROJECTIONS {
            let status = projections.get(projection.name).await?.status.unwrap_or_default();
            if status.pending.is_none() {
                return Ok(Err(format!("{projection}: {}", json!(status.conditions))));
            }
        }
        Ok(Ok(()))
    })
    .await
}
