//! What a path names, of what is offered.

use super::{
    awaiting::{self, RESOURCE, SUBRESOURCE},
    offer::{ApiVersion, Offer},
};

/// What a path names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Requested<'a> {
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(&'a str),
    /// `/apis/<group>/<version>`
    Resources(ApiVersion),
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiV3,
    /// `/openapi/v3/apis/<group>/<version>`
    OpenApiV3Group(ApiVersion),
    /// `/apis/<group>/<version>/namespaces/<namespace>/<metric>`
    External {
        /// The namespace.
        namespace: &'a str,
        /// The metric.
        metric: &'a str,
    },
    /// `/apis/<group>/<version>/namespaces/<namespace>/<resource>/<name>/<metric>`
    Objects(ObjectPath<'a>),
    /// A metric of an object that no offered kind can be: one without a namespace, or a namespace itself.
    OfAnother(ApiVersion),
    /// `/v1/namespaces/<namespace>/projections/<name>/await`
    Await {
        /// The namespace.
        namespace: &'a str,
        /// The Projection.
        name: &'a str,
    },
    /// Anything else.
    Nothing,
}

/// A metric of objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ObjectPath<'a> {
    /// The version in which to answer.
    pub(super) version: ApiVersion,
    /// The namespace.
    pub(super) namespace: &'a str,
    /// The resource, with its group.
    pub(super) resource: &'a str,
    /// The object; `None` for all of them.
    pub(super) name: Option<&'a str>,
    /// The metric.
    pub(super) metric: &'a str,
}

/// The name that stands for all objects.
const ALL: &str = "*";

impl<'a> Requested<'a> {
    /// Finds what the segments of a path name.
    pub(super) fn of(segments: &[&'a str], offer: &Offer) -> Self {
        // A slash at the end means the same.
        let segments = segments.strip_suffix(&[""]).unwrap_or(segments);
        match segments {
            ["healthz" | "livez" | "readyz"] => Self::Health,
            ["apis"] => Self::Groups,
            ["openapi", "v2"] => Self::OpenApiV2,
            ["openapi", "v3"] => Self::OpenApiV3,
            ["openapi", "v3", "apis", group, version] => {
                offer.version(group, version).map_or(Self::Nothing, Self::OpenApiV3Group)
            }
            ["apis", group] if offer.versions().iter().any(|version| version.group() == *group) => Self::Group(group),
            ["apis", group, version, rest @ ..] => {
                offer.version(group, version).map_or(Self::Nothing, |version| Self::within(version, rest))
            }
            [awaiting::VERSION, "namespaces", namespace, RESOURCE, name, SUBRESOURCE]
                if !namespace.is_empty() && !name.is_empty() =>
            {
                Self::Await { namespace, name }
            }
            _ => Self::Nothing,
        }
    }

    fn within(version: ApiVersion, rest: &[&'a str]) -> Self {
        if rest.iter().any(|segment| segment.is_empty()) {
            return Self::Nothing;
        }
        match (version, rest) {
            (version, []) => Self::Resources(version),
            (ApiVersion::ExternalV1Beta1, ["namespaces", namespace, metric]) => Self::External { namespace, metric },
            (
                ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2,
                ["namespaces", namespace, resource, name, metric],
            ) => {
                let name = Some(*name).filter(|name| *name != ALL);
                Self::Objects(ObjectPath { version, namespace, resource, name, metric })
            }
            // As the library of the other adapters has it: a namespace's own metrics, and those of things that are in none.
            (ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2, ["namespaces", _, "metrics", _]) => {
                Self::OfAnother(version)
            }
            (ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2, [resource, _, _]) if *resource != "namespaces" => {
                Self::OfAnother(version)
            }
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_api::offer::MeasuredKind;

    const EXTERNAL: &str = "apis/external.metrics.k8s.io/v1beta1";
    const CUSTOM: &str = "apis/custom.metrics.k8s.io/v1beta2";

    fn everything() -> Offer {
        let kind = MeasuredKind {
            kind: "Thing".to_owned(),
            api_version: "example.org/v1".to_owned(),
            resource: "things.example.org".to_owned(),
            metrics: vec!["lag".to_owned()],
        };
        Offer { external: true, objects: Some(kind) }
    }

    fn target<'a>(path: &'a str, offer: &Offer) -> Requested<'a> {
        Requested::of(&path.split('/').collect::<Vec<_>>(), offer)
    }

    #[test]
    fn each_path_names_its_target() {
        let object = |version, name| {
            let (namespace, resource, metric) = ("shop", "things.example.org", "lag");
            Requested::Objects(ObjectPath { version, namespace, resource, name, metric })
        };
        for (path, expected) in [
            ("healthz".to_owned(), Requested::Health),
            ("apis".to_owned(), Requested::Groups),
            ("apis/".to_owned(), Requested::Groups),
            ("apis/external.metrics.k8s.io".to_owned(), Requested::Group("external.metrics.k8s.io")),
            ("apis/custom.metrics.k8s.io".to_owned(), Requested::Group("custom.metrics.k8s.io")),
            (EXTERNAL.to_owned(), Requested::Resources(ApiVersion::ExternalV1Beta1)),
            (format!("{EXTERNAL}/"), Requested::Resources(ApiVersion::ExternalV1Beta1)),
            (format!("openapi/v3/{CUSTOM}"), Requested::OpenApiV3Group(ApiVersion::CustomV1Beta2)),
            (format!("{EXTERNAL}/namespaces/shop/lag"), Requested::External { namespace: "shop", metric: "lag" }),
            (
                format!("{CUSTOM}/namespaces/shop/things.example.org/first/lag"),
                object(ApiVersion::CustomV1Beta2, Some("first")),
            ),
            (
                "apis/custom.metrics.k8s.io/v1beta1/namespaces/shop/things.example.org/*/lag".to_owned(),
                object(ApiVersion::CustomV1Beta1, None),
            ),
            (
                "v1/namespaces/shop/projections/orders/await".to_owned(),
                Requested::Await { namespace: "shop", name: "orders" },
            ),
            (format!("{CUSTOM}/nodes/foo/lag"), Requested::OfAnother(ApiVersion::CustomV1Beta2)),
            (format!("{CUSTOM}/namespaces/shop/metrics/lag"), Requested::OfAnother(ApiVersion::CustomV1Beta2)),
        ] {
            assert_eq!(target(&path, &everything()), expected, "{path}");
        }
    }

    #[test]
    fn anything_else_is_nothing() {
        for path in [
            "",
            "apis//external.metrics.k8s.io",
            "apis/metrics.k8s.io",
            "apis/external.metrics.k8s.io/v1beta2",
            "apis/custom.metrics.k8s.io/v1beta3",
            "v1/namespaces/shop/projections/orders",
            "v1/namespaces/shop/projections//await",
            "v1/namespaces/shop/projections/orders/await/more",
            "v1/namespaces/shop/projections/orders/lag",
            &format!("{EXTERNAL}/nonexistent"),
            &format!("{EXTERNAL}/namespaces/shop"),
            &format!("{EXTERNAL}/namespaces//lag"),
            &format!("{EXTERNAL}/namespaces/shop/group/metric"),
            &format!("{CUSTOM}/blah"),
            &format!("{CUSTOM}/nodes/foo"),
            &format!("{CUSTOM}/namespaces/shop/pods/bar"),
            &format!("{CUSTOM}/namespaces/shop/metrics"),
            &format!("{EXTERNAL}/nodes/foo/lag"),
            &format!("{CUSTOM}/namespaces/shop/things.example.org//lag"),
            &format!("{CUSTOM}/namespaces/shop/things.example.org/first/lag/more"),
        ] {
            assert_eq!(target(path, &everything()), Requested::Nothing, "{path}");
        }
    }

    #[test]
    fn what_is_not_offered_is_nothing() {
        let only_external = Offer { external: true, objects: None };
        for path in ["apis/custom.metrics.k8s.io", CUSTOM, &format!("openapi/v3/{CUSTOM}")] {
            assert_eq!(target(path, &only_external), Requested::Nothing, "{path}");
        }
        assert_eq!(target("apis", &Offer::default()), Requested::Groups);
        assert_eq!(target(EXTERNAL, &Offer::default()), Requested::Nothing);
    }
}
