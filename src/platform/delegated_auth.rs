//! What the metrics API asks of the cluster about its callers: which authorities to trust, whose token a request has, and what a caller may read.
//!
//! Creates reviews, which only ask and change nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::ConfigMap,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;

use crate::metrics_api::{self, Attributes, ClientAuthorities, ReviewError, Reviews, User};
use crate::platform::errors::{in_words, log_interrupted_watch};

/// The ConfigMap in which every cluster publishes the authorities that extension API servers trust.
const CONFIG_NAMESPACE: &str = "kube-system";
const CONFIG_NAME: &str = "extension-apiserver-authentication";
/// A review that takes longer has failed.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Follows the authorities until `shutdown`. `ready` turns true with the first that could be read; a later text that cannot be
/// read leaves the last good one in force.
pub async fn follow_authorities(
    client: Client,
    authorities: watch::Sender<Arc<ClientAuthorities>>,
    ready: watch::Sender<bool>,
    shutdown: impl Future<Output = ()>,
) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client, CONFIG_NAMESPACE);
    let only_it = watcher::Config::default().fields(&format!("metadata.name={CONFIG_NAME}"));
    let changes = watcher(config_maps, only_it).default_backoff().applied_objects();
    let follow = changes.for_each(|change| {
        match change {
            Ok(config_map) => match ClientAuthorities::from_config(&config_map.data.unwrap_or_default()) {
                Ok(read) => {
                    authorities.send_replace(Arc::new(read));
                    ready.send_replace(true);
                }
                Err(why) => tracing::error!(
                    "{CONFIG_NAMESPACE}/{CONFIG_NAME} cannot be read, so callers are judged by its last state: {why}"
                ),
            },
            Err(error) => log_interrupted_watch(&format!("{CONFIG_NAMESPACE}/{CONFIG_NAME}"), &error),
        }
        std::future::ready(())
    });
    tokio::pin!(shutdown);
    tokio::select! {
        () = follow => {}
        () = &mut shutdown => {}
    }
}

/// Asks the API server.
#[derive(Clone)]
pub struct ClusterReviews {
    client: Client,
}

impl ClusterReviews {
    /// Asks through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Reviews for ClusterReviews {
    fn user_of_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        Box::pin(async move {
            let status = in_time(Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review))
                .await?
                .status
                .unwrap_or_default();
            let user = status.user.filter(|_| status.authenticated == Some(true));
            Ok(user.map(|user| User {
                name: user.username.unwrap_or_default(),
                uid: user.uid,
                groups: user.groups.unwrap_or_default().into_iter().collect(),
                extra: user.extra.unwrap_or_default(),
            }))
        })
    }

    fn may<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Result<(), String>, ReviewError>> {
        let review = SubjectAccessReview { spec: access_review(user, attributes), ..SubjectAccessReview::default() };
        Box::pin(async move {
            let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
            let status = in_time(reviews.create(&PostParams::default(), &review)).await?.status;
            // Without a status the answer is no.
            let status =
                status.ok_or_else(|| ReviewError("the access review came back without an answer".to_owned()))?;
            Ok(if status.allowed { Ok(()) } else { Err(status.reason.unwrap_or_default()) })
        })
    }
}

async fn in_time<T>(review: impl Future<Output = kube::Result<T>>) -> Result<T, ReviewError> {
    match tokio::time::timeout(REVIEW_TIMEOUT, review).await {
        Ok(result) => result.map_err(|error| ReviewError(in_words(&error))),
        Err(_) => Err(ReviewError(format!("the API server did not answer within {} s", REVIEW_TIMEOUT.as_secs()))),
    }
}

fn access_review(user: &User, attributes: &Attributes) -> SubjectAccessReviewSpec {
    let extra: BTreeMap<String, Vec<String>> = user.extra.clone();
    let mut spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: user.uid.clone(),
        groups: Some(user.groups.iter().cloned().collect()),
        extra: Some(extra).filter(|extra| !extra.is_empty()),
        ..SubjectAccessReviewSpec::default()
    };
    let verb = Some(attributes.verb().to_owned());
    match attributes {
        Attributes::Resource(resource) => {
            // Destructured, so that the compiler reports a new field: leaving one out would allow what was not granted.
            let metrics_api::ResourceAttributes { group, version, namespace, resource, name, subresource } = resource;
            let said = |part: &String| Some(part.clone()).filter(|part| !part.is_empty());
            spec.resource_attributes = Some(ResourceAttributes {
                group: said(group),
                version: said(version),
                namespace: said(namespace),
                resource: said(resource),
                name: said(name),
                subresource: said(subresource),
                verb,
                ..ResourceAttributes::default()
            });
        }
        Attributes::Path(path) => {
            spec.non_resource_attributes = Some(NonResourceAttributes { path: Some(path.clone()), verb });
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_request_names_reaches_the_cluster() {
        let user = User { name: "ann".to_owned(), groups: ["team".to_owned()].into(), ..User::default() };
        let read = |name: &str, subresource: &str| {
            let attributes = Attributes::Resource(metrics_api::ResourceAttributes {
                group: "metrics.example.org".to_owned(),
                version: "v1".to_owned(),
                namespace: "shop".to_owned(),
                resource: "things".to_owned(),
                name: name.to_owned(),
                subresource: subresource.to_owned(),
            });
            let spec = access_review(&user, &attributes);
            assert_eq!((spec.user.as_deref(), spec.groups), (Some("ann"), Some(vec!["team".to_owned()])));
            assert_eq!(spec.non_resource_attributes, None);
            spec.resource_attributes.unwrap()
        };
        let expected = |verb: &str, name: Option<&str>, subresource: Option<&str>| ResourceAttributes {
            group: Some("metrics.example.org".to_owned()),
            version: Some("v1".to_owned()),
            namespace: Some("shop".to_owned()),
            resource: Some("things".to_owned()),
            name: name.map(ToOwned::to_owned),
            subresource: subresource.map(ToOwned::to_owned),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        assert_eq!(read("", ""), expected("list", None, None));
        assert_eq!(read("first", "lag"), expected("get", Some("first"), Some("lag")));
        let path = access_review(&user, &Attributes::Path("/apis".to_owned())).non_resource_attributes.unwrap();
        assert_eq!((path.path.as_deref(), path.verb.as_deref()), (Some("/apis"), Some("get")));
    }
}
