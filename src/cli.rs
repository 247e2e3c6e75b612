//! The command line: raw arguments and environment variables, and the settings they resolve to.
//!
//! Reads nothing but arguments and environment; starts nothing.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    addresses::AddressRange,
    api::{HumanDuration, ScaleOut},
    controller::PodDefaults,
    metrics_api::Rate,
    platform::delegate_client::ServiceAddress,
    simulate::Commits,
};

/// Runs CQRS projections on Kubernetes and scales them by how far behind they are.
#[derive(Debug, Parser)]
#[command(name = "projectionist", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator: measure, serve the metrics API, and, as the leader, reconcile.
    Operator(Box<OperatorArgs>),
    /// Run one worker of the built-in projector.
    Projector(ProjectorArgs),
    /// Show what a Projection's workers would do on a trace of arrivals: no cluster needed, and the same input gives the same output.
    Simulate(Box<SimulateArgs>),
    /// Print the CustomResourceDefinition as YAML.
    Crd,
    /// Remove what the operator made for Projections (a Helm pre-delete hook); Projections and the CRD stay.
    Uninstall(UninstallArgs),
    /// Print the version.
    Version,
}

/// How to log.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Lines for people, or JSON for machines.
    #[arg(long, env = "PROJECTIONIST_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Levels: `info`, or by module, such as `info,projectionist::sampler=debug`.
    #[arg(long, env = "PROJECTIONIST_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Arguments of `projectionist operator`.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// Where to serve the metrics API over TLS.
    #[arg(long, env = "PROJECTIONIST_METRICS_API_LISTEN", default_value = "[::]:6443")]
    pub metrics_api_listen: SocketAddr,
    /// Requests a second that one caller of the metrics API may make of a replica; more are answered 429. 0: no bound.
    #[arg(long, env = "PROJECTIONIST_METRICS_API_REQUESTS_PER_SECOND", default_value_t = Rate::PER_SECOND)]
    pub metrics_api_requests_per_second: u32,
    /// Requests that one caller may make at once, after a pause. Not less than 100: the API server checks several things at once.
    #[arg(long, env = "PROJECTIONIST_METRICS_API_REQUEST_BURST", default_value_t = Rate::BURST,
          value_parser = clap::value_parser!(u32).range(100..))]
    pub metrics_api_request_burst: u32,
    /// Where to serve `/healthz`, `/livez`, `/readyz` and `/metrics` over plain HTTP.
    #[arg(long, env = "PROJECTIONIST_TELEMETRY_LISTEN", default_value = "[::]:8080")]
    pub telemetry_listen: SocketAddr,
    /// The operator's own namespace, which holds its Lease and its serving certificate.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// This replica's own name, unique among the replicas.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// The Service in front of the metrics API; the serving certificate is made out to it.
    #[arg(long, env = "PROJECTIONIST_SERVICE", default_value = "projectionist")]
    pub service: String,
    /// The Secret (`tls.crt`, `tls.key`) in the operator's namespace with a serving certificate that another program, such as cert-manager, renews
    /// and puts into the APIServices. Default: one of the operator's own.
    #[arg(long, env = "PROJECTIONIST_CERTIFICATE_SECRET")]
    pub certificate_secret: Option<String>,
    /// Serve `external.metrics.k8s.io`. Off where its APIService leads elsewhere.
    #[arg(long, env = "PROJECTIONIST_EXTERNAL_METRICS", default_value_t = true, action = clap::ArgAction::Set)]
    pub external_metrics: bool,
    /// Serve `custom.metrics.k8s.io`. Off where its APIServices lead elsewhere.
    #[arg(long, env = "PROJECTIONIST_CUSTOM_METRICS", default_value_t = false, action = clap::ArgAction::Set)]
    pub custom_metrics: bool,
    /// Who is asked for metrics of these groups that are not ours.
    #[command(flatten)]
    pub delegates: DelegateArgs,
    /// Point APIServices that lead to another adapter here, and report what they led to. Needs a certificate of the operator's own.
    #[arg(long, env = "PROJECTIONIST_TAKE_OVER_API_SERVICES", default_value_t = false, action = clap::ArgAction::Set)]
    pub take_over_api_services: bool,
    /// The image that workers of the built-in projector run.
    #[arg(long, env = "PROJECTIONIST_IMAGE")]
    pub worker_image: String,
    /// When nodes pull that image.
    #[arg(long, env = "PROJECTIONIST_WORKER_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub worker_image_pull_policy: String,
    /// What counts for the pods of the built-in projector where a Projection says nothing, as JSON with the fields `pod` and `resources` of
    /// `spec.projector.builtin`.
    #[arg(long, env = "PROJECTIONIST_WORKER_DEFAULTS", default_value = "{}")]
    pub worker_defaults: PodDefaults,
    /// Addresses that sources and read stores may be asked at although they are refused by default: ranges such as `127.0.0.0/8` of loopback addresses, link-local ones (where clouds serve the credentials of machines), and the API
    /// server's.
    #[arg(long, env = "PROJECTIONIST_ALLOW_SOURCE_ADDRESSES", value_delimiter = ',')]
    pub allow_source_addresses: Vec<AddressRange>,
    /// Watch only these namespaces. Default: all.
    #[arg(long, env = "PROJECTIONIST_WATCH_NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Other adapters, and how they are asked. A service is written `NAMESPACE/NAME` or `NAMESPACE/NAME:PORT`; its certificate is verified.
#[derive(Args, Clone, Debug)]
pub struct DelegateArgs {
    /// The service that is asked for external metrics other than `projection_*`, such as `keda/keda-operator-metrics-apiserver`.
    #[arg(long, env = "PROJECTIONIST_DELEGATE_EXTERNAL", requires_all = ["delegate_external_ca_file", "delegate_service_account"])]
    pub delegate_external: Option<ServiceAddress>,
    /// The authorities (PEM), one of which has signed that service's certificate for `NAME.NAMESPACE.svc`.
    #[arg(long, env = "PROJECTIONIST_DELEGATE_EXTERNAL_CA_FILE")]
    pub delegate_external_ca_file: Option<PathBuf>,
    /// The service that is asked for metrics of objects other than Projections, such as `monitoring/prometheus-adapter`.
    #[arg(long, env = "PROJECTIONIST_DELEGATE_CUSTOM", requires_all = ["delegate_custom_ca_file", "delegate_service_account"])]
    pub delegate_custom: Option<ServiceAddress>,
    /// The authorities (PEM), one of which has signed that service's certificate for `NAME.NAMESPACE.svc`.
    #[arg(long, env = "PROJECTIONIST_DELEGATE_CUSTOM_CA_FILE")]
    pub delegate_custom_ca_file: Option<PathBuf>,
    /// The ServiceAccount in the operator's namespace under which these services are asked; it needs no right but to read their metrics.
    #[arg(long, env = "PROJECTIONIST_DELEGATE_SERVICE_ACCOUNT")]
    pub delegate_service_account: Option<String>,
}

/// Arguments of `projectionist projector`. Connection strings come by environment alone, so that no process list shows them.
#[derive(Args, Clone, Debug)]
pub struct ProjectorArgs {
    /// The configuration file.
    #[arg(long, env = "PROJECTIONIST_PROJECTOR_CONFIG", default_value = crate::names::PROJECTOR_CONFIG_PATH)]
    pub config: std::path::PathBuf,
    /// Where to serve `/healthz` and `/readyz`.
    #[arg(long, env = "PROJECTIONIST_HEALTH_LISTEN", default_value = "[::]:8080")]
    pub health_listen: SocketAddr,
    /// Whether to try handlers instead.
    #[command(flatten)]
    pub trial: TrialArgs,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How to try the handlers of a built-in projector before they are applied. No worker runs then.
#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("tried").args(["check", "dry_run"])))]
pub struct TrialArgs {
    /// Check the Projection as the API server and the operator do. With `READ_STORE_URL` of a PostgreSQL database, its handlers are prepared there.
    #[arg(long, requires = "filename", conflicts_with = "dry_run")]
    pub check: bool,
    /// Run the handlers with the events of a file in the read store that `READ_STORE_URL` names, and say what they do. Nothing of it lasts: in PostgreSQL they run in a
    /// schema of their own in one transaction that is rolled back, in Redis on keys and in Elasticsearch in indices of their own that are removed. Without
    /// `READ_STORE_URL`, commands for Redis and operations for Elasticsearch are only shown.
    #[arg(long, requires = "filename", requires = "events")]
    pub dry_run: bool,
    /// The Projection, as YAML or JSON.
    #[arg(short = 'f', long, value_name = "FILE", requires = "tried")]
    pub filename: Option<PathBuf>,
    /// Events, one JSON object a line: `{"type": "OrderPlaced", "stream": "order-1", "data": {"total": 7}}`, with `position` and `recorded_at` if wanted.
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    pub events: Option<PathBuf>,
}

/// Arguments of `projectionist simulate`.
#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// The Projection, as YAML or JSON.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub projection: PathBuf,
    /// The arrivals: CSV with the header `seconds,events_per_second`, and, if wanted, `worker_events_per_second`; or the answer of Prometheus
    /// to `query_range` with one series, a rate in events per second.
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// A behavior (`scaleUp`, `scaleDown`), instead of `spec.scaling.behavior`; or a whole HorizontalPodAutoscaler of your own that reads the
    /// Projection's metrics, instead of the operator's: with its replicas, its metrics and its behavior.
    #[arg(long, value_name = "FILE")]
    pub hpa: Option<PathBuf>,
    /// Draw a picture here.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// For people, or JSON for machines.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
    /// The version of Kubernetes: before 1.35 the autoscaler ignores changes of less than 10 %, since it has no `tolerance`.
    #[arg(long, value_name = "VERSION", default_value = "1.36", value_parser = version)]
    pub kubernetes: (u32, u32),
    /// Events per second that one busy worker handles, where the trace does not tell. Default: 100.
    #[arg(long, value_parser = positive)]
    pub worker_rate: Option<f64>,
    /// What an earlier run has learnt of that. Default: the model has to find out.
    #[arg(long, value_parser = positive)]
    pub learnt_rate: Option<f64>,
    /// From a worker's creation until it is ready.
    #[arg(long, default_value = "2s")]
    pub start_up: HumanDuration,
    /// When a worker commits what it has handled: after each `event`, after a time such as `500ms` or `5s`, or after a number such as
    /// `1000 events`. What is handled and not committed looks like lag.
    #[arg(long, value_name = "WHEN", default_value = "event")]
    pub commit_every: Commits,
    /// The rows of the checkpoint table, and what can be told from them.
    #[arg(long, value_enum, default_value_t = CheckpointRows::Builtin)]
    pub checkpoint: CheckpointRows,
    /// One worker, the oldest, is so many times slower than the others.
    #[arg(long, value_name = "TIMES", default_value_t = 1.0, value_parser = at_least_one)]
    pub slow_worker: f64,
    /// Workers at the beginning. Default: `spec.scaling.minWorkers`.
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub workers: Option<u32>,
    /// How many shards there are, where the Projection does not tell.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub shards: Option<u32>,
    /// The first shard gets so many times as many events as each other.
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub hot_shard: f64,
    /// Events that wait at the beginning.
    #[arg(long)]
    pub backlog: Option<u64>,
    /// The age of the oldest of them. Default: 1h.
    #[arg(long, requires = "backlog")]
    pub backlog_age: Option<HumanDuration>,
    /// Time between two samples. Default: as the operator does, a tenth of the target.
    #[arg(long)]
    pub sampling: Option<HumanDuration>,
    /// Time between two looks of the autoscaler.
    #[arg(long, default_value = "15s")]
    pub sync_period: HumanDuration,
    /// When it looks first; that cannot be chosen on a real cluster, and it changes the result.
    #[arg(long, default_value = "7s")]
    pub phase: HumanDuration,
    /// Who scales out, instead of `spec.scaling.scaleOut`.
    #[arg(long, value_parser = scale_out)]
    pub scale_out: Option<ScaleOut>,
    /// Width of the charts, in characters. Default: 100.
    #[arg(long, value_parser = clap::value_parser!(u16).range(40..))]
    pub width: Option<u16>,
}

/// The rows of a checkpoint table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum CheckpointRows {
    /// One a shard, as the built-in projector keeps them: a shard with nothing to do follows the head.
    Builtin,
    /// One for all: everything up to its position is handled.
    One,
    /// One a shard, each counted by itself, since the column with an event's shard is known.
    Shard,
    /// One a shard, and which event is whose is not known: the lowest row counts for all.
    ShardUnknown,
}

/// The form of results.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OutputFormat {
    /// Numbers and charts for people.
    Table,
    /// One JSON object.
    Json,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "must be a number above 0".to_owned())
}

fn at_least_one(text: &str) -> Result<f64, String> {
    positive(text).ok().filter(|number| *number >= 1.0).ok_or_else(|| "must be a number from 1".to_owned())
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let (major, minor) = text.trim_start_matches('v').split_once('.').unwrap_or_default();
    let minor = minor.split('.').next().unwrap_or_default();
    match (major.parse(), minor.parse()) {
        (Ok(1), Ok(minor @ 23..)) => Ok((1, minor)),
        (Ok(1), Ok(_)) => Err("must be 1.23 or later: autoscaling/v2 is not older".to_owned()),
        _ => Err("must be a version such as 1.34".to_owned()),
    }
}

fn scale_out(text: &str) -> Result<ScaleOut, String> {
    match text {
        "Immediate" => Ok(ScaleOut::Immediate),
        "Autoscaler" => Ok(ScaleOut::Autoscaler),
        _ => Err("must be Immediate or Autoscaler".to_owned()),
    }
}

/// Arguments of `projectionist uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// The operator's own namespace.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The operator's own Deployment, which is scaled to 0 first so that it puts nothing back.
    #[arg(long, env = "PROJECTIONIST_DEPLOYMENT", default_value = "projectionist")]
    pub deployment: String,
    /// The Service in front of the metrics API.
    #[arg(long, env = "PROJECTIONIST_SERVICE", default_value = "projectionist")]
    pub service: String,
    /// APIServices to remove if they lead to that Service: those that were taken over, which Helm does not remove.
    #[arg(long = "api-service", value_delimiter = ',')]
    pub api_services: Vec<String>,
    /// Remove only from these namespaces. Default: all.
    #[arg(long, env = "PROJECTIONIST_WATCH_NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 120)]
    pub timeout_seconds: u64,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Which namespaces the operator looks at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// All.
    Cluster,
    /// Only these, in order, each once.
    Namespaces(Vec<String>),
}

impl Scope {
    /// From the repeated option: none means all; empty names (an unset variable in a manifest) do not count.
    pub fn from_names(names: &[String]) -> Self {
        let mut names: Vec<String> =
            names.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        names.sort();
        names.dedup();
        if names.is_empty() { Self::Cluster } else { Self::Namespaces(names) }
    }

    /// One entry for each set of API requests: `None` stands for all namespaces.
    pub fn namespaces(&self) -> Vec<Option<&str>> {
        match self {
            Self::Cluster => vec![None],
            Self::Namespaces(names) => names.iter().map(|name| Some(name.as_str())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn each_metrics_group_is_switched_by_itself() {
        let groups = |further: &[&str]| {
            let usual = ["projectionist", "operator", "--namespace=x", "--identity=x", "--worker-image=x"];
            let Command::Operator(args) = Cli::try_parse_from(usual.iter().chain(further)).unwrap().command else {
                panic!("another command");
            };
            (args.external_metrics, args.custom_metrics)
        };
        assert_eq!(groups(&[]), (true, false));
        assert_eq!(groups(&["--external-metrics=false", "--custom-metrics=true"]), (false, true));
    }

    #[test]
    fn another_adapter_is_asked_only_with_its_authority_and_under_a_name() {
        let usual = ["projectionist", "operator", "--namespace=x", "--identity=x", "--worker-image=x"];
        let parsed = |further: &[&str]| Cli::try_parse_from(usual.iter().chain(further));
        let (service, ca) = ("--delegate-external=keda/metrics", "--delegate-external-ca-file=/ca");
        let name = "--delegate-service-account=delegate";
        for missing in [&[service][..], &[service, ca], &[service, name], &["--delegate-external=keda", ca, name]] {
            assert!(parsed(missing).is_err(), "{missing:?}");
        }
        let Command::Operator(args) = parsed(&[service, ca, name]).unwrap().command else { panic!("another command") };
        assert_eq!(args.delegates.delegate_external.unwrap().host(), "metrics.keda.svc");
        assert!(args.delegates.delegate_custom.is_none() && !args.take_over_api_services);
    }

    #[test]
    fn an_empty_namespace_list_means_all_namespaces() {
        assert_eq!(Scope::from_names(&[]), Scope::Cluster);
        assert_eq!(Scope::from_names(&[String::new(), " ".to_owned()]), Scope::Cluster);
        assert_eq!(
            Scope::from_names(&["b".to_owned(), "a ".to_owned(), "b".to_owned()]),
            Scope::Namespaces(vec!["a".to_owned(), "b".to_owned()])
        );
    }
}
