//! The operator: which part gets what from which other, and in which order they begin and end. Decides nothing else.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Client, runtime::reflector::store::Writer};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use super::shared::{Shared, share};
use crate::{
    addresses::AddressRules,
    api::Projection,
    cli::{DelegateArgs, OperatorArgs, Scope},
    controller::{self, ControllerInputs, Part, PodWatches, ServerAbilities, WorkerCountsOfWatches, WorkerDefaults},
    leader_required::{Disagreements, Following},
    measure::ProjectionKey,
    metrics::{ControllerMetrics, Metrics, ServedMetrics, measured_kind},
    metrics_api::{
        self, ApiMetrics, ApiVersion, Delegate, Delegates, MetricValues, Offer, Rate, Reviews, ServeOptions,
        serving::ServingCertificate,
    },
    names,
    platform::{
        api_server,
        delegate_client::{AdapterClient, ServiceAccountTokens, ServiceAddress, Tokens},
        delegated_auth::{ClusterReviews, follow_authorities},
        errors::in_words,
        leader::{self, LeaderSettings},
        listen::listen,
        readiness::{Readiness, may_reconcile},
        registration::{Unserved, switched_off},
        secrets::ClusterSecrets,
        serving_certificate::{self, CertificateSettings},
        shutdown::Shutdown,
        telemetry,
    },
    read_your_writes::ReadModelPositions,
    sampler::{self, SamplerInputs, SamplerMetrics},
};

/// The Lease that determines which replica reconciles.
const LEASE: &str = "projectionist";

/// The parts that end on the signal, each in its own way.
type Tasks = JoinSet<anyhow::Result<()>>;

/// Runs the operator until the process is asked to end. `serving_threads` answer the metrics API.
pub(super) async fn run(args: OperatorArgs, serving_threads: tokio::runtime::Handle) -> anyhow::Result<()> {
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
    let shutdown = Shutdown::on_signals()?;
    let client = client().await?;
    let delegates = asked_for_the_rest(delegates, (external_metrics, custom_metrics), &client, &namespace)?;
    let telemetry_listener = telemetry::bind(telemetry_listen).await?;
    let metrics_api_listener = listen(metrics_api_listen)
        .await
        .with_context(|| format!("the metrics API cannot listen on {metrics_api_listen}"))?;
    let (shared, channels) = share(client, identity, unserved_by_choice(external_metrics), shutdown);
    let (sampler_metrics, controller_metrics) = (Arc::<SamplerMetrics>::default(), Arc::<ControllerMetrics>::default());
    let api_metrics = ApiMetrics::default();

    // The watches, and the page that says whether all is ready: they follow the cluster for as long as the process lives, and end with it.
    let mut readiness = Readiness::default();
    let authorities_known = readiness.condition("the request-header configuration of kube-system");
    readiness.follow("the first round of samples", channels.first_round_rx);
    let has_certificate = readiness.condition("the serving certificate");
    let mut followers = JoinSet::new();
    let (namespaces, triggers) = (namespaces_of(&watch_namespace), channels.triggers_tx);
    let (changed, synced) =
        follow_cluster(&shared, &namespaces, channels.projections, &triggers, &mut readiness, &mut followers);
    followers.spawn(tell_of_certificate(channels.certificate_rx.clone(), has_certificate));
    let (snapshot, projections) = (shared.snapshot.clone(), shared.projections.clone());
    let page = Metrics::new(&controller_metrics, &api_metrics, Arc::clone(&sampler_metrics), snapshot, projections);
    followers.spawn(telemetry::serve(telemetry_listener, page, readiness, shared.shutdown.clone()));

    let server = server_abilities(&shared.client, &shared.shutdown).await;
    let addresses = AddressRules::default()
        .allowing(allow_source_addresses)
        .refusing_api_server(api_server::addresses(&shared.client).await);

    let mut tasks = Tasks::new();
    let offer = Offer { external: external_metrics, objects: custom_metrics.then(measured_kind) };
    let certificate_settings = CertificateSettings {
        namespace: namespace.clone(),
        service,
        given: certificate_secret.filter(|name| !name.is_empty()),
        api_services: offer.versions().into_iter().map(ApiVersion::api_service).collect(),
        take_over: take_over_api_services,
    };
    hold_certificate(&shared, certificate_settings, channels.certificate_tx, channels.unserved_tx, &mut tasks);
    let asked = shared.shutdown.asked();
    tasks.spawn(ok(follow_authorities(shared.client.clone(), channels.authorities_tx, authorities_known, asked)));
    let outputs = (channels.changes_tx, channels.first_round_tx);
    sample(&shared, changed, addresses, outputs, sampler_metrics, &mut tasks);
    let values = ServedMetrics::new(shared.snapshot.clone()).knowing(shared.projections.clone());
    let serving = ServeOptions {
        certificate: channels.certificate_rx,
        authorities: channels.authorities_rx,
        offer,
        delegates,
        values: values.following(shared.following.clone()),
        read_models: Some(Arc::new(ReadModelPositions::new(shared.runs.clone(), shared.waiters.clone()))),
        // Its connections are tended where it is made.
        reviews: ClusterReviews::new(serving_threads.spawn(self::client()).await??),
        rate: Rate { per_second: metrics_api_requests_per_second, burst: metrics_api_request_burst },
        connection_age: metrics_api::CONNECTION_AGE,
        metrics: api_metrics,
    };
    serve(&shared, metrics_api_listener, serving, &serving_threads, &mut tasks);
    let workers = WorkerDefaults { image: worker_image, pull_policy: worker_image_pull_policy, pods: worker_defaults };
    let inputs = (channels.triggers_rx, channels.changes_rx, synced);
    let controller = control(&shared, inputs, workers, server, controller_metrics);
    lead(&shared, namespace, channels.leading_tx, channels.following_tx, controller, &mut tasks);
    until_all_have_ended(tasks, &shared.shutdown).await
}

/// Starts measuring, with the workers that the watches tell. `outputs`: which Projections have news, and whether all have been asked once.
fn sample(
    shared: &Shared,
    changed: watch::Receiver<u64>,
    addresses: AddressRules,
    (changes, first_round): (mpsc::Sender<ProjectionKey>, watch::Sender<bool>),
    metrics: Arc<SamplerMetrics>,
    tasks: &mut Tasks,
) {
    let inputs = SamplerInputs {
        runs: shared.runs.clone(),
        read_stores: shared.read_stores.clone(),
        changed,
        following: shared.following.clone(),
        secrets: Arc::new(ClusterSecrets::new(shared.client.clone())),
        addresses: Arc::new(addresses),
        snapshot: shared.snapshot.clone(),
        changes,
        first_round,
        metrics,
        waiters: shared.waiters.clone(),
    };
    let counts = WorkerCountsOfWatches { index: shared.index.clone(), existing: Arc::clone(&shared.existing) };
    let pods = Arc::new(PodWatches::new(shared.client.clone()));
    tasks.spawn(ok(sampler::run_with_watches(inputs, Some(Arc::new(counts)), pods, shared.shutdown.asked())));
}

/// Starts the controller. It gets `triggers` of the watches, `changes` of the sampler, and the word that all has been listed.
fn control(
    shared: &Shared,
    (triggers, changes, synced): (
        mpsc::UnboundedReceiver<ProjectionKey>,
        mpsc::Receiver<ProjectionKey>,
        watch::Receiver<bool>,
    ),
    workers: WorkerDefaults,
    server: ServerAbilities,
    metrics: Arc<ControllerMetrics>,
) -> JoinHandle<()> {
    tokio::spawn(controller::run(
        ControllerInputs {
            client: shared.client.clone(),
            identity: shared.identity.clone(),
            projections: shared.projections.clone(),
            runs: shared.runs.clone(),
            readers: Arc::new(shared.read_stores.clone()),
            index: shared.index.clone(),
            existing: Arc::clone(&shared.existing),
            snapshot: shared.snapshot.clone(),
            triggers,
            changes,
            leading: shared.leading.clone(),
            synced,
            workers,
            server,
            unserved: shared.unserved.clone(),
            metrics,
        },
        shared.shutdown.asked(),
    ))
}

/// Starts answering the metrics API, on threads of its own.
fn serve<V: MetricValues, R: Reviews>(
    shared: &Shared,
    listener: TcpListener,
    options: ServeOptions<V, R>,
    threads: &tokio::runtime::Handle,
    tasks: &mut Tasks,
) {
    let asked = shared.shutdown.asked();
    let served =
        threads.spawn(async move { metrics_api::serve(listener, options, asked).await.map_err(anyhow::Error::from) });
    tasks.spawn(async move { served.await.context("the metrics API ended abnormally")? });
}

/// A client of the API server, by the kubeconfig or the pod's service account.
pub(super) async fn client() -> anyhow::Result<Client> {
    Client::try_default().await.context("the API server's address or credentials could not be found")
}

/// The namespaces to watch; `None` stands for all of them.
fn namespaces_of(watch_namespace: &[String]) -> Vec<Option<String>> {
    Scope::from_names(watch_namespace).namespaces().into_iter().map(|name| name.map(ToOwned::to_owned)).collect()
}

/// What is known of the APIServices before any is looked at: one that is switched off does not lead here.
fn unserved_by_choice(external_metrics: bool) -> Option<Unserved> {
    let off = (!external_metrics).then_some(names::EXTERNAL_API_SERVICE);
    off.map(|name| Unserved::from([(name.to_owned(), switched_off(name))]))
}

/// Starts the watches. Returns what changes its value with each change of a Projection, and what becomes true when all has been listed.
fn follow_cluster(
    shared: &Shared,
    namespaces: &[Option<String>],
    projections: Writer<Projection>,
    triggers: &mpsc::UnboundedSender<ProjectionKey>,
    readiness: &mut Readiness,
    followers: &mut JoinSet<()>,
) -> (watch::Receiver<u64>, watch::Receiver<bool>) {
    let (changed_tx, changed_rx) = watch::channel(0);
    let (synced_tx, synced_rx) = watch::channel(false);
    let mut lists = Vec::new();
    let mut list = |what| {
        let (listed_tx, listed_rx) = watch::channel(false);
        readiness.follow(what, listed_rx.clone());
        lists.push(listed_rx);
        listed_tx
    };
    let (client, triggers) = (&shared.client, || triggers.clone());
    let listed = list("the list of Projections");
    let scopes = || namespaces.to_vec();
    followers.spawn(controller::follow_projections(
        client.clone(),
        scopes(),
        projections,
        changed_tx.clone(),
        triggers(),
        listed,
    ));
    for part in Part::ALL {
        let listed = list("the lists of workloads");
        let index = shared.index.clone();
        followers.spawn(controller::follow_part(client.clone(), scopes(), part, index, triggers(), listed));
    }
    followers.spawn(may_reconcile(lists, synced_tx));
    followers.spawn(tell_of_runs(synced_rx.clone(), changed_tx));
    (changed_rx, synced_rx)
}

/// Starts keeping the serving certificate and the APIServices that lead to it, and telling of those that lead elsewhere.
fn hold_certificate(
    shared: &Shared,
    settings: CertificateSettings,
    certificate: watch::Sender<Option<Arc<ServingCertificate>>>,
    unserved: watch::Sender<Option<Unserved>>,
    tasks: &mut Tasks,
) {
    let (take_tx, taken_rx) = mpsc::unbounded_channel();
    tasks.spawn(ok(serving_certificate::tell(
        shared.client.clone(),
        settings.clone(),
        shared.identity.clone(),
        shared.unserved.clone(),
        shared.leading.clone(),
        taken_rx,
        shared.shutdown.asked(),
    )));
    tasks.spawn(ok(serving_certificate::run(
        shared.client.clone(),
        settings,
        certificate,
        unserved,
        take_tx,
        shared.shutdown.asked(),
    )));
}

/// Starts to take part in electing the leader. The Lease is given back only after the last write of `controller`.
fn lead(
    shared: &Shared,
    namespace: String,
    leading: watch::Sender<bool>,
    following: watch::Sender<Following>,
    controller: JoinHandle<()>,
    tasks: &mut Tasks,
) {
    let settings = LeaderSettings { namespace, identity: shared.identity.clone(), lease_name: LEASE.to_owned() };
    let (projections, snapshot) = (shared.projections.clone(), shared.snapshot.clone());
    let mut disagreements = Disagreements::default();
    let outdated = move || disagreements.update(&projections.state(), &snapshot.load(), std::time::Instant::now());
    let given_up = async move {
        let _ = controller.await;
    };
    tasks.spawn(ok(leader::run(shared.client.clone(), settings, leading, following, outdated, given_up)));
}

/// Waits for the parts, which end on the signal only.
async fn until_all_have_ended(mut tasks: Tasks, shutdown: &Shutdown) -> anyhow::Result<()> {
    while let Some(ended) = tasks.join_next().await {
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

/// The specs of older versions are known once all has been listed.
async fn tell_of_runs(mut synced: watch::Receiver<bool>, changed: watch::Sender<u64>) {
    if synced.wait_for(|synced| *synced).await.is_ok() {
        changed.send_modify(|count| *count = count.wrapping_add(1));
    }
    std::future::pending::<()>().await;
}

async fn ok(part: impl Future<Output = ()>) -> anyhow::Result<()> {
    part.await;
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
