//! The bed itself: a test that trusts it must be able to trust that it comes up whole and goes without a trace.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use test_cluster::images::{self, TOOLBOX_IMAGE};
use test_cluster::{Cluster, ClusterOptions, EventStore, Instance, eventually, eventually_is, teardown};

const SOON: Duration = Duration::from_secs(60);

/// A Deployment with a Service that answers `hello`, and a Job that runs the toolbox with `arguments`.
fn objects(arguments: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
      - name: hello
        image: {TOOLBOX_IMAGE}
        args: [serve, "8080", hello]
        securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: hello}}
spec:
  selector: {{app: hello}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: batch/v1
kind: Job
metadata: {{name: task}}
spec:
  backoffLimit: 20
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{{name: task, image: {TOOLBOX_IMAGE}, args: {arguments}}}]
"#
    )
}

#[test]
fn a_cluster_runs_pods_resolves_names_and_goes_without_a_trace() {
    let options = ClusterOptions::default().hpa_sync_period("1s");
    let cluster = Cluster::start(&options).unwrap();
    let reused = std::env::var_os(test_cluster::cluster::REUSE_VARIABLE).is_some();

    pods_reach_each_other_by_name(&cluster).unwrap();
    the_aggregator_runs_and_publishes_its_callers_certificates(&cluster).unwrap();
    a_database_is_reached_from_tests_and_pods(&cluster).unwrap();
    a_refused_object_is_an_error_with_the_servers_sentence(&cluster);
    the_projects_own_image_runs(&cluster).unwrap();
    if reused {
        return;
    }
    a_killed_program_comes_back(&cluster).unwrap();
    a_second_run_of_the_same_name_says_who_is_there(&cluster);
    clusters_of_different_names_run_side_by_side(&cluster).unwrap();

    let instance = cluster.instance().clone();
    cluster.stop().unwrap();
    assert!(instance.logs().join("kube-apiserver.log").exists(), "the logs stay");
    for place in ["/proc/self/mountinfo", "/proc/net/unix"] {
        let table = std::fs::read_to_string(place).unwrap();
        assert!(!table.contains(&format!("/test-cluster/{}/", instance.name())), "{place}:\n{table}");
    }
}

fn pods_reach_each_other_by_name(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace("bed")?;
    let yaml = objects(&format!("[fetch, \"hello.{namespace}.svc.cluster.local:80\"]"));
    cluster.kubectl(&["label", "namespace", &namespace, "pod-security.kubernetes.io/warn=restricted"])?;
    let mut file = tempfile_with(&yaml)?;
    cluster.kubectl(&["apply", "-n", &namespace, "-f", file.path()])?;
    let outcome = cluster.block_on(async {
        let pods: Api<Pod> = Api::namespaced(cluster.client().await?, &namespace);
        let list = kube::api::ListParams::default().labels("app=hello");
        eventually_is(
            SOON,
            "two pods run",
            |phases: &Vec<String>| phases == &["Running", "Running"],
            || async {
                let list = pods.list(&list).await?;
                let phases = list.into_iter().filter_map(|pod| pod.status?.phase).collect();
                Ok::<Vec<String>, kube::Error>(phases)
            },
        )
        .await?;
        eventually(SOON, "the task has fetched", || async {
            Ok::<_, anyhow::Error>(cluster.kubectl(&["logs", "job/task", "-n", &namespace])?.contains("hello"))
        })
        .await
    })?;
    file.remove();
    outcome.map_err(|error| cluster.explain(&error, &namespace))
}

fn the_aggregator_runs_and_publishes_its_callers_certificates(cluster: &Cluster) -> Result<()> {
    // That it forwards is shown by the scenarios, which install a server of their own behind it.
    cluster.apply(
        "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1.bed.example.com}\n\
         spec: {group: bed.example.com, version: v1, groupPriorityMinimum: 100, versionPriority: 100, insecureSkipTLSVerify: true, \
         service: {namespace: kube-system, name: nobody, port: 443}}",
    )?;
    cluster.block_on(eventually(SOON, "the aggregator has looked for the service", || async {
        let text = cluster.kubectl(&[
            "get",
            "apiservice",
            "v1.bed.example.com",
            "-o",
            "jsonpath={.status.conditions[0].reason}",
        ])?;
        Ok::<_, anyhow::Error>(if text == "ServiceNotFound" { Ok(()) } else { Err(text) })
    }))??;
    let headers = cluster.kubectl(&[
        "get",
        "configmap",
        "extension-apiserver-authentication",
        "-n",
        "kube-system",
        "-o",
        "yaml",
    ])?;
    ensure!(headers.contains("requestheader-client-ca-file") && headers.contains("front-proxy-client"), "{headers}");
    cluster.kubectl(&["delete", "apiservice", "v1.bed.example.com"])?;
    Ok(())
}

fn a_database_is_reached_from_tests_and_pods(cluster: &Cluster) -> Result<()> {
    let server = cluster.postgres()?;
    let namespace = cluster.namespace("database")?;
    cluster.block_on(async {
        server.create_database("orders").await?;
        let events = EventStore::create_events_table(&server, "orders", "events").await?;
        events.append_events(10).await?;
        ensure!(events.head().await? == 10);
        Ok(())
    })??;
    let address = server.address();
    ensure!(address.ip().to_string() == test_cluster::network::NODE_ADDRESS);
    // The server hangs up on a client that speaks HTTP to it; an unreachable one would be an error instead.
    cluster.kubectl(&[
        "run",
        "probe",
        "-n",
        &namespace,
        "--restart=Never",
        "--image",
        TOOLBOX_IMAGE,
        "--",
        "fetch",
        &address.to_string(),
    ])?;
    cluster.block_on(eventually(SOON, "the pod has reached the database", || async {
        let phase = cluster.kubectl(&["get", "pod", "probe", "-n", &namespace, "-o", "jsonpath={.status.phase}"])?;
        Ok::<_, anyhow::Error>(if phase == "Succeeded" { Ok(()) } else { Err(phase) })
    }))??;
    Ok(())
}

fn a_refused_object_is_an_error_with_the_servers_sentence(cluster: &Cluster) {
    let error = cluster
        .apply("apiVersion: v1\nkind: Pod\nmetadata: {name: empty, namespace: default}\nspec: {containers: []}")
        .unwrap_err();
    assert!(error.to_string().contains("spec.containers: Required value"), "{error}");
}

fn the_projects_own_image_runs(cluster: &Cluster) -> Result<()> {
    cluster.import_image(&images::image()?)?;
    let namespace = cluster.namespace("image")?;
    let run = ["run", "own", "-n", &namespace, "--restart=Never", "--image=projectionist:dev", "--", "--version"];
    cluster.kubectl(&run)?;
    let look = || async {
        let phase = cluster.kubectl(&["get", "pod", "own", "-n", &namespace, "-o", "jsonpath={.status.phase}"])?;
        Ok::<_, anyhow::Error>(if phase == "Succeeded" { Ok(()) } else { Err(phase) })
    };
    let outcome = cluster.block_on(eventually(SOON, "the project's image has told its version", look))?;
    outcome.map_err(|error| cluster.explain(&error, &namespace))
}

fn a_killed_program_comes_back(cluster: &Cluster) -> Result<()> {
    cluster.kill("kube-apiserver")?;
    cluster.block_on(eventually(SOON, "the API server answers again", || async {
        cluster.kubectl(&["get", "--raw", "/readyz"]).map(|text| text == "ok")
    }))?
}

fn a_second_run_of_the_same_name_says_who_is_there(cluster: &Cluster) {
    let error = Cluster::start_named(cluster.instance(), &ClusterOptions::default()).unwrap_err().to_string();
    assert!(error.contains("is already up, owned by pid"), "{error}");
}

fn clusters_of_different_names_run_side_by_side(cluster: &Cluster) -> Result<()> {
    let owner = Owner::start("bed-second")?;
    ensure!(cluster.kubectl(&["get", "nodes"])?.contains("Ready"));
    ensure!(Cluster::connect("bed-second")?.kubectl(&["get", "nodes"])?.contains("Ready"));
    owner.kill_and_expect_nothing_left()?;
    ensure!(cluster.kubectl(&["get", "nodes"])?.contains("Ready"), "the other cluster was hurt");

    // Once more, with the supervisor itself killed: then the next to come cleans up.
    let owner = Owner::start("bed-second")?;
    owner.kill_the_supervisor_and_expect_down_to_clean_up()
}

/// Another process that owns a cluster, as a test that is about to be killed does.
struct Owner {
    process: std::process::Child,
    instance: Instance,
}

impl Owner {
    fn start(name: &str) -> Result<Self> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_test-cluster"))
            .args(["hold", "--name", name])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line)?;
        ensure!(line.contains("is up"), "it said {line:?}");
        let instance = Instance::running(name)?;
        let cluster = Cluster::connect(name)?;
        cluster.kubectl(&[
            "create",
            "deployment",
            "sleeper",
            "--image",
            TOOLBOX_IMAGE,
            "--replicas=2",
            "--",
            "/toolbox",
            "pause",
        ])?;
        cluster.kubectl(&["rollout", "status", "deployment/sleeper", "--timeout=60s"])?;
        ensure!(!teardown::everything_left(&instance).is_empty());
        Ok(Self { process, instance })
    }

    fn kill_and_expect_nothing_left(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        let deadline = std::time::Instant::now() + SOON;
        while !teardown::everything_left(&self.instance).is_empty()
            || test_cluster::instance::Lock::owner(&self.instance).is_some()
        {
            ensure!(std::time::Instant::now() < deadline, "left: {:?}", teardown::everything_left(&self.instance));
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn kill_the_supervisor_and_expect_down_to_clean_up(mut self) -> Result<()> {
        let supervisor = test_cluster::instance::Lock::owner(&self.instance).unwrap();
        let killed = Command::new("kill").args(["-KILL", &supervisor.to_string()]).status()?;
        ensure!(killed.success());
        self.process.kill()?;
        self.process.wait()?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(
            !teardown::everything_left(&self.instance).is_empty(),
            "nothing was left to clean up: the test proves nothing"
        );
        let down =
            Command::new(env!("CARGO_BIN_EXE_test-cluster")).args(["down", "--name", self.instance.name()]).status()?;
        ensure!(down.success());
        let left = teardown::everything_left(&self.instance);
        ensure!(left.is_empty(), "left: {left:?}");
        ensure!(!Path::new("/run/test-cluster").join(self.instance.name()).exists());
        Ok(())
    }
}

struct NamedFile(std::path::PathBuf);

impl NamedFile {
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn remove(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn tempfile_with(text: &str) -> Result<NamedFile> {
    let path = std::env::temp_dir().join(format!("test-cluster-{}.yaml", std::process::id()));
    std::fs::write(&path, text)?;
    Ok(NamedFile(path))
}
