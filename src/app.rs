//! The composition root: which room gets which, and in which order they end. Decides nothing else.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Client, CustomResourceExt as _, runtime::reflector};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    addresses::AddressRules,
    api::Projection,
    cli::{Cli, Command, DelegateArgs, OperatorArgs, ProjectorArgs, Scope, UninstallArgs},
    clients::postgres::ConnectionSettings,
    controller::{
        self, ControllerInputs, ExistingWorkloads, LiveIndex, Part, ServerAbilities, WorkerCountsOfWatches,
        WorkerDefaults,
    },
    leader_required::{Disagreements, Following},
    metrics::{ControllerMetrics, Metrics},
    metrics::{ServedMetrics, measured_kind},
    metrics_api::{self, ApiMetrics, ApiVersion, ClientAuthorities, Delegate, Delegates, Offer, Rate, ServeOptions},
    names::{self, secret_key, worker_env},
    platform::api_server,
    platform::delegate_client::{AdapterClient, ServiceAccountTokens, ServiceAddress, Tokens},
    platform::delegated_auth::{ClusterReviews, follow_authorities},
    platform::errors::in_words,
    platform::leader::{self, LeaderSettings},
    platform::listen::listen,
    platform::readiness::{Readiness, may_reconcile},
    platform::registration::{Unserved, switched_off},
    platform::secrets::ClusterSecrets,
    platform::serving_certificate::{self, CertificateSettings},
    platform::shutdown::Shutdown,
    platform::telemetry,
    platform::uninstall::{self, UninstallSettings},
    projector::{self, ProjectorConfig, RunOptions},
    sampler::{self, SamplerInputs, SamplerMetrics},
    simulation,
    snapshot::SharedSnapshot,
};

/// Changes that the sampler may have reported and the controller not yet taken; the sampler waits with more.
const UNTAKEN_CHANGES: usize = 1_024;
/// The `nice` value, from 0 to 19, of measuring and reconciling, so that answering requests comes first.
const BEHIND_ANSWERS: i32 = 5;
/// The Lease that determines which replica reconciles.
const LEASE: &str = "projectionist";

/// Runs what the command line says.
///
/// # Errors
/// When it cannot; the message says what to do.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Crd => simulation::print(&crd_yaml()?),
        Command::Simulate(args) => simulation::run(&args),
        Command::Version => simulation::print(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Operator(args) => {
            telemetry::start_logging(&args.log)?;
            // Threads of their own: what keeps the others busy for some milliseconds delays no answer.
            let serving = runtime(|| {})?;
            runtime(give_way)?.block_on(operator(*args, serving.handle().clone()))
        }
        Command::Projector(args) => {
            telemetry::start_logging(&args.log)?;
            runtime(|| {})?.block_on(projector(args))
        }
        Command::Uninstall(args) => {
            telemetry::start_logging(&args.log)?;
            runtime(|| {})?.block_on(remove(args))
        }
    }
}

/// `begin` is what each of its threads does first.
fn runtime(begin: fn()) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.enable_all().on_thread_start(begin).build().context("the async runtime could not start")
}

/// Gives this thread a lower priority than those that answer: an answer takes microseconds, and need not wait for a round of samples that has just
/// begun.
fn give_way() {
    if let Err(error) = rustix::process::nice(BEHIND_ANSWERS) {
        tracing::debug!("a thread keeps its priority: {error}");
    }
}

/// The CustomResourceDefinition as YAML.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn crd_yaml() -> anyhow::Result<String> {
    serde_saphyr::to_string(&Projection::crd()).context("writing the CustomResourceDefinition as YAML")
}

async fn remove(args: UninstallArgs) -> anyhow::Result<()> {
    let UninstallArgs { namespace, deployment, service, api_services, watch_namespace, timeout_seconds, log: _ } = args;
    let watch_namespaces = match Scope::from_names(&watch_namespace) {
        Scope::Cluster => Vec::new(),
        Scope::Namespaces(names) => names,
    };
    let settings = UninstallSettings {
        namespace,
        deployment,
        service,
        api_services,
        watch_namespaces,
        timeout: Duration::from_secs(timeout_seconds),
    };
    let client = client().await?;
    Ok(uninstall::run(client, settings).await?)
}

async fn client() -> anyhow::Result<Client> {
    Client::try_default().await.context("the API server's address or credentials could not be found")
}

async fn projector(args: ProjectorArgs) -> anyhow::Result<()> {
    let ProjectorArgs { config: path, health_listen, log: _ } = args;
    let text = tokio::fs::read_to_string(&path).await;
    let text = text.with_context(|| format!("the projector's configuration {} could not be read", path.display()))?;
    let config = ProjectorConfig::from_json(&text).with_context(|| format!("in {}", path.display()))?;
    let variable = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.with_context(|| format!("the environment variable {name} is not set: the operator sets it for workers"))
    };
    let options = RunOptions {
        config,
        source: connection(worker_env::EVENT_SOURCE).context("the event source")?,
        store: connection(worker_env::READ_STORE).context("the read store")?,
        worker_name: variable(worker_env::WORKER)?,
        health_listen: Some(health_listen),
    };
    let shutdown = Shutdown::on_signals().context("signals cannot be handled")?;
    Ok(projector::run(options, shutdown.asked()).await?)
}

/// What the environment says about a connection: see [`worker_env`].
fn connection(prefix: &str) -> anyhow::Result<ConnectionSettings> {
    let named = |name: &str| std::env::var(format!("{prefix}{name}")).ok().filter(|value| !value.is_empty());
    let of_keys: BTreeMap<&str, String> =
        secret_key::all().filter_map(|key| Some((key, std::env::var(worker_env::of_key(prefix, key)).ok()?))).collect();
    let settings = ConnectionSettings::from_keys(|key| of_keys.get(key).map(String::as_str));
    let mut settings = settings.with_context(|| {
        format!("read from the environment variables {prefix}…, which the operator sets for workers")
    })?;
    if let Some(ca) = named(worker_env::CA) {
        settings = settings.with_ca(ca.as_bytes());
    }
    if let (Some(certificate), Some(key)) = (named(worker_env::CLIENT_CERTIFICATE), named(worker_env::CLIENT_KEY)) {
        settings = settings.with_client_certificate(certificate.as_bytes(), key.as_bytes());
    }
    Ok(settings)
}

async fn operator(args: OperatorArgs, serving_threads: tokio::runtime::Handle) -> anyhow::Result<()> {
    let OperatorArgs {
        metrics_api_listen,
        metrics_api_requests_per_second,
        metrics_api_request_burst,
        telemetry_listen,
        namespace,
        identity,
        service,
        certificate_secret,
        external_metrics,
        custom_metrics,
        delegates,
        take_over_api_services,
        worker_image,
        worker_image_pull_policy,
        worker_defaults,
        allow_source_addresses,
        watch_namespace,
        log: _,
    } = args;
    let namespaces: Vec<Option<String>> =
        Scope::from_names(&watch_namespace).namespaces().into_iter().map(|name| name.map(ToOwned::to_owned)).collect();
    let served = (external_metrics, custom_metrics);
    let shutdown = Shutdown::on_signals()?;
    let client = client().await?;
    let delegates = asked_for_the_rest(delegates, served, &client, &namespace)?;
    let telemetry_listener = telemetry::bind(telemetry_listen).await?;
    let metrics_api_listener = listen(metrics_api_listen)
        .await
        .with_context(|| format!("the metrics API cannot listen on {metrics_api_listen}"))?;

    let snapshot = SharedSnapshot::default();
    let index = LiveIndex::default();
    let (projections, writer) = reflector::store::<Projection>();
    let (trigger, triggers) = mpsc::unbounded_channel();
    let (change, changes) = mpsc::channel(UNTAKEN_CHANGES);
    let (changed, changed_here) = watch::channel(0);
    let (lead, leading) = watch::channel(false);
    let (follow, following) = watch::channel(Following::default());
    let (first_round, first_round_done) = watch::channel(false);
    let (certificate, certificates) = watch::channel(None);
    let off = (!external_metrics).then_some(names::EXTERNAL_API_SERVICE);
    let off = off.map(|name| Unserved::from([(name.to_owned(), switched_off(name))]));
    let (elsewhere, unserved) = watch::channel(off);
    let (believe, authorities) = watch::channel(Arc::new(ClientAuthorities::default()));
    let (reconcilable, synced) = watch::channel(false);
    let sampler_metrics = Arc::new(SamplerMetrics::default());
    let controller_metrics = Arc::new(ControllerMetrics::default());
    let api_metrics = ApiMetrics::default();
    let metrics = Metrics::new(
        &controller_metrics,
        &api_metrics,
        Arc::clone(&sampler_metrics),
        snapshot.clone(),
        projections.clone(),
    );

    let mut readiness = Readiness::default();
    let believing = readiness.condition("the request-header configuration of kube-system");
    readiness.follow("the first round of samples", first_round_done);
    let has_certificate = readiness.condition("the serving certificate");
    let mut lists = Vec::new();
    // These follow the cluster for as long as the process lives, and end with it.
    let mut followers = JoinSet::new();
    let (listed, list) = watch::channel(false);
    readiness.follow("the list of Projections", list.clone());
    lists.push(list);
    followers.spawn(controller::follow_projections(
        client.clone(),
        namespaces.clone(),
        writer,
        changed,
        trigger.clone(),
        listed,
    ));
    for part in Part::ALL {
        let (listed, list) = watch::channel(false);
        readiness.follow("the lists of workloads", list.clone());
        lists.push(list);
        followers.spawn(controller::follow_part(
            client.clone(),
            namespaces.clone(),
            part,
            index.clone(),
            trigger.clone(),
            listed,
        ));
    }
    followers.spawn(may_reconcile(lists, reconcilable));
    followers.spawn(tell_of_certificate(certificates.clone(), has_certificate));
    followers.spawn(telemetry::serve(telemetry_listener, metrics, readiness, shutdown.clone()));

    let server = server_abilities(&client, &shutdown).await;
    let addresses = AddressRules::default()
        .allowing(allow_source_addresses)
        .refusing_api_server(api_server::addresses(&client).await);
    // These end on the signal, each in its own way.
    let mut rooms = JoinSet::new();
    let offer = Offer { external: external_metrics, objects: custom_metrics.then(measured_kind) };
    let api_services = offer.versions().into_iter().map(ApiVersion::api_service).collect();
    let certificate_settings = CertificateSettings {
        namespace: namespace.clone(),
        service,
        given: certificate_secret.filter(|name| !name.is_empty()),
        api_services,
        take_over: take_over_api_services,
    };
    let (take, taken) = mpsc::unbounded_channel();
    rooms.spawn(ok(serving_certificate::tell(
        client.clone(),
        certificate_settings.clone(),
        identity.clone(),
        unserved.clone(),
        leading.clone(),
        taken,
        shutdown.asked(),
    )));
    rooms.spawn(ok(serving_certificate::run(
        client.clone(),
        certificate_settings,
        certificate,
        elsewhere,
        take,
        shutdown.asked(),
    )));
    rooms.spawn(ok(follow_authorities(client.clone(), believe, believing, shutdown.asked())));
    let sampling = SamplerInputs {
        projections: projections.clone(),
        changed: changed_here,
        following: following.clone(),
        secrets: Arc::new(ClusterSecrets::new(client.clone())),
        addresses: Arc::new(addresses),
        snapshot: snapshot.clone(),
        changes: change,
        first_round,
        metrics: sampler_metrics,
    };
    let existing = Arc::new(ExistingWorkloads::new(client.clone(), trigger));
    let counts = WorkerCountsOfWatches { index: index.clone(), existing: Arc::clone(&existing) };
    rooms.spawn(ok(sampler::run_with_workers(sampling, Some(Arc::new(counts)), shutdown.asked())));
    let serving = ServeOptions {
        certificate: certificates,
        authorities,
        offer,
        delegates,
        values: ServedMetrics::new(snapshot.clone()).knowing(projections.clone()).following(following),
        // Its connections are tended where it is made.
        reviews: ClusterReviews::new(serving_threads.spawn(self::client()).await??),
        rate: Rate { per_second: metrics_api_requests_per_second, burst: metrics_api_request_burst },
        connection_age: metrics_api::CONNECTION_AGE,
        metrics: api_metrics,
    };
    let asked = shutdown.asked();
    let served = serving_threads.spawn(async move {
        metrics_api::serve(metrics_api_listener, serving, asked).await.map_err(anyhow::Error::from)
    });
    rooms.spawn(async move { served.await.context("the metrics API ended abnormally")? });
    let outdated = {
        let (projections, snapshot, mut disagreements) =
            (projections.clone(), snapshot.clone(), Disagreements::default());
        move || disagreements.update(&projections.state(), &snapshot.load(), std::time::Instant::now())
    };
    let reconciling = ControllerInputs {
        client: client.clone(),
        identity: identity.clone(),
        projections,
        index,
        snapshot,
        existing: Arc::clone(&existing),
        triggers,
        changes,
        leading,
        synced,
        workers: WorkerDefaults { image: worker_image, pull_policy: worker_image_pull_policy, pods: worker_defaults },
        server,
        unserved,
        metrics: controller_metrics,
    };
    let controller = tokio::spawn(controller::run(reconciling, shutdown.asked()));
    let leader_settings = LeaderSettings { namespace, identity, lease_name: LEASE.to_owned() };
    // The Lease is given back only after the last write of reconciling.
    let given_up = async move {
        let _ = controller.await;
    };
    rooms.spawn(ok(leader::run(client, leader_settings, lead, follow, outdated, given_up)));

    while let Some(ended) = rooms.join_next().await {
        ended.context("a part of the operator ended abnormally")??;
        if !shutdown.is_asked() {
            anyhow::bail!("a part of the operator ended by itself; the log says which and why");
        }
    }
    Ok(())
}

/// The adapters to which requests for other metrics are forwarded.
fn asked_for_the_rest(
    args: DelegateArgs,
    (external_metrics, custom_metrics): (bool, bool),
    client: &Client,
    namespace: &str,
) -> anyhow::Result<Delegates> {
    let DelegateArgs {
        delegate_external,
        delegate_external_ca_file,
        delegate_custom,
        delegate_custom_ca_file,
        delegate_service_account,
    } = args;
    anyhow::ensure!(
        (external_metrics || delegate_external.is_none()) && (custom_metrics || delegate_custom.is_none()),
        "another adapter can be asked only for a metrics group that is served here: see --external-metrics and --custom-metrics"
    );
    let account = delegate_service_account.unwrap_or_default();
    let tokens: Arc<dyn Tokens> = Arc::new(ServiceAccountTokens::new(client.clone(), namespace, account));
    let of = |service: Option<ServiceAddress>, ca_file: Option<PathBuf>| -> anyhow::Result<Option<Arc<dyn Delegate>>> {
        let (Some(service), Some(ca_file)) = (service, ca_file) else { return Ok(None) };
        let adapter = AdapterClient::new(&service, ca_file, Arc::clone(&tokens));
        let adapter = adapter.with_context(|| format!("{} is no host", service.host()))?;
        Ok(Some(Arc::new(adapter)))
    };
    Ok(Delegates {
        external: of(delegate_external, delegate_external_ca_file)?,
        custom: of(delegate_custom, delegate_custom_ca_file)?,
        reserved: crate::metrics::PREFIX.to_owned(),
    })
}

async fn ok(room: impl Future<Output = ()>) -> anyhow::Result<()> {
    room.await;
    Ok(())
}

async fn tell_of_certificate<T>(mut certificates: watch::Receiver<Option<T>>, there: watch::Sender<bool>) {
    if certificates.wait_for(Option::is_some).await.is_ok() {
        there.send_replace(true);
    }
    there.closed().await;
}

/// Asks until the API server answers or the process is to end: a wrong guess would rewrite every autoscaler.
async fn server_abilities(client: &Client, shutdown: &Shutdown) -> ServerAbilities {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return ServerAbilities::of_version(&version.major, &version.minor),
            Err(error) => tracing::warn!("the API server does not tell its version: {}", in_words(&error)),
        }
        tokio::select! {
            () = shutdown.asked() => return ServerAbilities::default(),
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}
