//! Where the cluster's API server is, so that it is not asked on behalf of a Projection's author.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use kube::{Client, Config};
use tokio::{net::lookup_host, time::timeout};

use super::errors::in_words;

/// What takes longer is left out.
const DEADLINE: Duration = Duration::from_secs(5);
/// The API server's Service in every cluster.
const SERVICE: (&str, u16) = ("kubernetes.default.svc", 443);

/// The addresses that the operator's configuration, the cluster's DNS and the API server itself tell; what cannot be found is left out.
pub async fn addresses(client: &Client) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    if let Ok(config) = Config::infer().await
        && let Some(host) = config.cluster_url.host()
    {
        let host = host.trim_matches(['[', ']']);
        found.extend(resolved(host, config.cluster_url.port_u16().unwrap_or(443)).await);
    }
    found.extend(resolved(SERVICE.0, SERVICE.1).await);
    match timeout(DEADLINE, client.list_core_api_versions()).await {
        Ok(Ok(versions)) => {
            let told = versions.server_address_by_client_cidrs;
            found.extend(told.iter().filter_map(|entry| entry.server_address.parse::<SocketAddr>().ok()));
        }
        Ok(Err(error)) => tracing::warn!("the API server does not tell its address: {}", in_words(&error)),
        Err(_) => tracing::warn!("the API server did not tell its address in time"),
    }
    found
}

async fn resolved(host: &str, port: u16) -> Vec<SocketAddr> {
    let found = timeout(DEADLINE, lookup_host((host, port))).await;
    found.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default()
}
