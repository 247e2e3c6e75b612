//! What each replica of the operator shows Prometheus.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use test_cluster::OPERATOR_NAMESPACE;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The page of each replica, at least one.
pub(crate) async fn all(client: &Client) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/component=operator");
    let mut pages = Vec::new();
    for pod in pods.list(&ours).await? {
        let address = pod.status.and_then(|status| status.pod_ip).context("a replica has no address")?;
        pages.push(page(&address).await?);
    }
    ensure!(!pages.is_empty(), "the operator has no replica");
    Ok(pages)
}

/// A counter without labels, over all replicas.
pub(crate) struct Counter {
    /// The replicas that have it.
    pub(crate) replicas: usize,
    /// Its sum.
    pub(crate) sum: u64,
}

pub(crate) async fn counter(client: &Client, name: &str) -> Result<Counter> {
    let mut found = Counter { replicas: 0, sum: 0 };
    for page in all(client).await? {
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.sum += value.with_context(|| format!("a replica does not show {name}"))?.parse::<u64>()?;
        found.replicas += 1;
    }
    Ok(found)
}

async fn page(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect((address, 8080)).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}
