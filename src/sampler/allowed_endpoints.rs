//! To which servers a Secret's credential may go: those that the Secret names, and those that its annotation lists.
//!
//! A user who may write Projections need not be one who may read Secrets. If a spec could send a credential to any host, that user would read it there.

use crate::{api::Reason, measure::MeasureError, names::ENDPOINTS_ANNOTATION};

/// Checks `servers`, to which a Secret's credential would go, against those that the Secret leads to by itself (`own`) and those that its annotation
/// lists (`allowed`). Each is `host:port`.
///
/// # Errors
/// `EndpointNotAllowed` with the first server that is in neither, and what to do.
pub(super) fn check_endpoints(servers: &[String], own: &[String], allowed: Option<&str>) -> Result<(), MeasureError> {
    let listed: Vec<&str> = allowed.unwrap_or_default().split(',').map(str::trim).collect();
    let is_allowed = |server: &str| {
        own.iter().any(|one| one.eq_ignore_ascii_case(server))
            || listed.iter().any(|one| one.eq_ignore_ascii_case(server))
    };
    match servers.iter().find(|server| !is_allowed(server)) {
        None => Ok(()),
        Some(server) => Err(MeasureError {
            reason: Reason::EndpointNotAllowed,
            message: format!(
                "the spec would send its credential to {server}, which it does not name: put the server into the Secret, or list it in the Secret's annotation {ENDPOINTS_ANNOTATION} (host:port, separated by commas)"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::BoxFuture;

    use super::*;
    use crate::{
        clients::{Endpoint, ServerKind},
        resolve::{ConnectionName, SecretName},
        sampler::secrets::{SecretData, Secrets, endpoint},
    };

    struct Always(SecretData);

    impl Secrets for Always {
        fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
            Box::pin(async { Ok(self.0.clone()) })
        }
    }

    /// The endpoint of a spec with these parts and a Secret with these values and this annotation.
    async fn read(
        server: ServerKind,
        given: &[(&'static str, &str)],
        values: &[(&str, &str)],
        annotation: Option<&str>,
    ) -> Result<Endpoint, MeasureError> {
        let secret = SecretName { namespace: "shop".into(), name: "db".to_owned(), key: None };
        let given = given.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let name = ConnectionName { server, secret: Some(secret), ca: None, client: None, given };
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        let data = SecretData { values, allowed_endpoints: annotation.map(str::to_owned) };
        let secrets: Arc<dyn Secrets> = Arc::new(Always(data));
        endpoint(&name, &secrets).await
    }

    const USER: [(&str, &str); 2] = [("username", "shop"), ("password", "hunter2")];

    /// Every kind of server with the key by which a spec could name a host, and the default port.
    const KINDS: [(ServerKind, &str, u16); 9] = [
        (ServerKind::Elasticsearch, "host", 9200),
        (ServerKind::Nats, "host", 4222),
        (ServerKind::Postgres, "host", 5432),
        (ServerKind::RabbitMq, "host", 15672),
        (ServerKind::Redis, "host", 6379),
        (ServerKind::Kafka, "bootstrapServers", 9092),
        (ServerKind::KurrentDb, "host", 2113),
        (ServerKind::Prometheus, "url", 80),
        (ServerKind::Scrape, "url", 80),
    ];

    fn place(kind: ServerKind, host: &str) -> String {
        if matches!(kind, ServerKind::Prometheus | ServerKind::Scrape) {
            format!("http://{host}")
        } else {
            host.to_owned()
        }
    }

    #[tokio::test]
    async fn a_spec_sends_a_credential_to_no_other_server_than_the_secrets() {
        for (kind, key, port) in KINDS {
            let (own, other) = (place(kind, "own"), place(kind, "other"));
            let with_host = [&USER[..], &[(key, own.as_str())]].concat();
            for (values, what) in [(with_host.as_slice(), "with a host"), (&USER, "without a host")] {
                let refused = read(kind, &[(key, &other)], values, None).await.unwrap_err();
                assert_eq!(refused.reason, Reason::EndpointNotAllowed, "{kind:?} {what}: {}", refused.message);
                assert!(
                    refused
                        .message
                        .contains(&format!("Secret shop/db: the spec would send its credential to other:{port}")),
                    "{}",
                    refused.message
                );
                assert!(!refused.message.contains("hunter2"), "{}", refused.message);
            }
            // What the Secret says by itself goes on working, and so does a spec that repeats it.
            let alone = read(kind, &[], &with_host, None).await.unwrap();
            assert_eq!(alone, read(kind, &[(key, &own)], &with_host, None).await.unwrap(), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn the_secrets_owner_may_allow_servers() {
        for (kind, key, port) in KINDS {
            let other = place(kind, "other");
            for allowed in [format!("other:{port}"), format!("first:1, OTHER:{port} ,third:3")] {
                read(kind, &[(key, &other)], &USER, Some(&allowed)).await.unwrap();
            }
            for allowed in ["other", "other:1", "", "*", "another:9092"] {
                let refused = read(kind, &[(key, &other)], &USER, Some(allowed)).await.unwrap_err();
                assert_eq!(refused.reason, Reason::EndpointNotAllowed, "{kind:?} {allowed}");
            }
        }
    }

    #[tokio::test]
    async fn another_port_is_another_server_and_another_database_is_not() {
        let own = [&USER[..], &[("host", "own")]].concat();
        let url = [("url", "postgres://shop:hunter2@own/events")];
        for kind in [ServerKind::Postgres, ServerKind::Redis, ServerKind::Nats, ServerKind::RabbitMq] {
            let refused = read(kind, &[("port", "7000")], &own, None).await.unwrap_err();
            assert_eq!(refused.reason, Reason::EndpointNotAllowed, "{kind:?}");
            read(kind, &[("port", "7000")], &own, Some("own:7000")).await.unwrap();
        }
        let refused = read(ServerKind::Postgres, &[("port", "7000")], &url, None).await.unwrap_err();
        assert_eq!(refused.reason, Reason::EndpointNotAllowed);
        read(ServerKind::Postgres, &[("database", "other")], &own, None).await.unwrap();
        read(ServerKind::Redis, &[("database", "7")], &own, None).await.unwrap();
    }

    #[tokio::test]
    async fn one_foreign_server_among_several_is_enough_to_refuse() {
        let kafka = [&USER[..], &[("bootstrapServers", "a:1,b:2")]].concat();
        let given = |servers| [("bootstrapServers", servers)];
        read(ServerKind::Kafka, &given("b:2"), &kafka, None).await.unwrap();
        let refused = read(ServerKind::Kafka, &given("a:1,c:3,b:2"), &kafka, None).await.unwrap_err();
        assert!(refused.message.contains("to c:3,"), "{}", refused.message);
        // A host that the connection string does not use leads to no other server.
        let string = [("url", "redis-sentinel://u:hunter2@a:1,b:2/primary")];
        read(ServerKind::Redis, &[("host", "other")], &string, None).await.unwrap();
    }
}
