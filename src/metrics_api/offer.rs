//! What is offered: which of the metrics groups, in which versions, of which objects.

/// A version of a group that can be served.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ApiVersion {
    /// `external.metrics.k8s.io/v1beta1`
    ExternalV1Beta1,
    /// `custom.metrics.k8s.io/v1beta2`
    CustomV1Beta2,
    /// `custom.metrics.k8s.io/v1beta1`
    CustomV1Beta1,
}

impl ApiVersion {
    /// The group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::ExternalV1Beta1 => "external.metrics.k8s.io",
            Self::CustomV1Beta1 | Self::CustomV1Beta2 => "custom.metrics.k8s.io",
        }
    }

    /// The version within the group.
    pub const fn version(self) -> &'static str {
        match self {
            Self::ExternalV1Beta1 | Self::CustomV1Beta1 => "v1beta1",
            Self::CustomV1Beta2 => "v1beta2",
        }
    }

    /// As in `apiVersion`.
    pub const fn group_version(self) -> &'static str {
        match self {
            Self::ExternalV1Beta1 => "external.metrics.k8s.io/v1beta1",
            Self::CustomV1Beta1 => "custom.metrics.k8s.io/v1beta1",
            Self::CustomV1Beta2 => "custom.metrics.k8s.io/v1beta2",
        }
    }

    /// The name of the APIService that leads to it.
    pub fn api_service(self) -> String {
        format!("{}.{}", self.version(), self.group())
    }
}

/// The one kind of object that has metrics of its own.
#[derive(Clone, Debug)]
pub struct MeasuredKind {
    /// Its kind, such as `Projection`.
    pub kind: String,
    /// Its API version, such as `projectionist.dev/v1alpha1`.
    pub api_version: String,
    /// Its resource with its group, such as `projections.projectionist.dev`. Namespaced.
    pub resource: String,
    /// The metrics that each object has.
    pub metrics: Vec<String>,
}

/// What is offered.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Metrics that belong to no object.
    pub external: bool,
    /// Metrics of objects.
    pub objects: Option<MeasuredKind>,
}

impl Offer {
    /// The versions, those of a group together and the preferred one first. A kind without a metric is not offered: the
    /// aggregator takes a version with an empty list for broken.
    pub fn versions(&self) -> Vec<ApiVersion> {
        let external = self.external.then_some(ApiVersion::ExternalV1Beta1);
        let has_metrics = self.objects.as_ref().is_some_and(|kind| !kind.metrics.is_empty());
        let custom: &[ApiVersion] =
            if has_metrics { &[ApiVersion::CustomV1Beta2, ApiVersion::CustomV1Beta1] } else { &[] };
        external.into_iter().chain(custom.iter().copied()).collect()
    }

    /// The version by its names, if it is offered.
    pub(super) fn version(&self, group: &str, version: &str) -> Option<ApiVersion> {
        self.versions().into_iter().find(|offered| offered.group() == group && offered.version() == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(metrics: &[&str]) -> MeasuredKind {
        MeasuredKind {
            kind: "Thing".to_owned(),
            api_version: "example.org/v1".to_owned(),
            resource: "things.example.org".to_owned(),
            metrics: metrics.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_version_is_named_alike_everywhere() {
        for version in [ApiVersion::ExternalV1Beta1, ApiVersion::CustomV1Beta2, ApiVersion::CustomV1Beta1] {
            assert_eq!(version.group_version(), format!("{}/{}", version.group(), version.version()));
        }
    }

    #[test]
    fn only_what_is_offered_has_versions_and_the_preferred_one_comes_first() {
        let services = |external, objects: Option<&[&str]>| {
            let offer = Offer { external, objects: objects.map(kind) };
            offer.versions().into_iter().map(ApiVersion::api_service).collect::<Vec<_>>()
        };
        let custom = ["v1beta2.custom.metrics.k8s.io", "v1beta1.custom.metrics.k8s.io"];
        assert_eq!(services(true, None), ["v1beta1.external.metrics.k8s.io"]);
        assert_eq!(services(false, Some(&["lag"])), custom);
        assert_eq!(services(true, Some(&[])), ["v1beta1.external.metrics.k8s.io"], "no metric, no group");
        assert!(services(false, None).is_empty());
    }
}
