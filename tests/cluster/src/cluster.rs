//! The cluster as a test sees it.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::binaries::Binaries;
use crate::instance::{Instance, target_dir};
use crate::launch::{launch, program, prune_logs};
use crate::network;
use crate::options::ClusterOptions;

/// Names a cluster that `make cluster` keeps up, for tests to use instead of one of their own.
pub const REUSE_VARIABLE: &str = "PROJECTIONIST_CLUSTER";

/// A running cluster. Dropping it takes it down if this process started it; so does the death of this process.
#[derive(Debug)]
pub struct Cluster {
    instance: Instance,
    binaries: Binaries,
    supervisor: Option<Child>,
}

impl Cluster {
    /// Brings up a cluster of this process's own, or connects to the one that `PROJECTIONIST_CLUSTER` names, whose options
    /// are then its own.
    ///
    /// # Errors
    /// When the cluster does not come up: the message says which step failed and where the logs are.
    pub fn start(options: &ClusterOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        match std::env::var(REUSE_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::connect(&name),
            _ => {
                let count = COUNT.fetch_add(1, Ordering::Relaxed);
                let name = format!("test-{}-{count}", std::process::id());
                prune_logs(&target_dir().join("test-cluster"));
                Self::start_named(&Instance::new(&name, None)?, options)
            }
        }
    }

    /// The cluster that all tests of one process share, with default options, brought up by the first to ask.
    ///
    /// # Errors
    /// As [`Cluster::start`]; later callers get the first one's error.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let shared =
            SHARED.get_or_init(|| Self::start(&ClusterOptions::default()).map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Brings up the given instance as this process's own.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_named(instance: &Instance, options: &ClusterOptions) -> Result<Self> {
        let supervisor = launch(&program()?, instance, options, true)?;
        Ok(Self { instance: instance.clone(), binaries: Binaries::locate()?, supervisor: Some(supervisor) })
    }

    /// Brings up the given instance so that it outlives this process, which has to be `test-cluster` itself.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_detached(instance: &Instance, options: &ClusterOptions) -> Result<()> {
        launch(&std::env::current_exe()?, instance, options, false).map(drop)
    }

    /// Connects to the running cluster of that name, which stays up afterwards.
    ///
    /// # Errors
    /// When none is up.
    pub fn connect(name: &str) -> Result<Self> {
        Ok(Self { instance: Instance::running(name)?, binaries: Binaries::locate()?, supervisor: None })
    }

    /// Where the cluster's files are.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Takes the cluster down now, and says so if anything stayed.
    ///
    /// # Errors
    /// When something could not be removed; the message lists it.
    pub fn stop(mut self) -> Result<()> {
        self.end_supervisor();
        let left = crate::teardown::everything_left(&self.instance);
        if left.is_empty() { Ok(()) } else { bail!("the test cluster left behind: {}", left.join(", ")) }
    }

    fn end_supervisor(&mut self) {
        let Some(mut supervisor) = self.supervisor.take() else { return };
        drop(supervisor.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(30);
        while matches!(supervisor.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                // It hangs. A test that waited for it would hang as well, so the work is done here.
                let _ = supervisor.kill();
                let _ = supervisor.wait();
                if let Err(error) = crate::teardown::down(&self.instance) {
                    crate::say(&format!("{error:#}"));
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Moves the calling thread into the cluster's network. Call it before a runtime is built: threads that start later are inside too.
    ///
    /// # Errors
    /// When the cluster is gone.
    pub fn enter(&self) -> Result<()> {
        network::enter(&self.instance.network_namespace())
    }

    /// Runs a future on a runtime of its own inside the cluster's network. A panic in it is the caller's.
    ///
    /// # Errors
    /// When the network cannot be entered or the runtime not be built.
    pub fn block_on<F>(&self, body: F) -> Result<F::Output>
    where
        F: Future + Send,
        F::Output: Send,
    {
        network::inside(&self.instance.network_namespace(), || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
            Ok(runtime.block_on(body))
        })?
    }

    /// A client with an administrator's rights, for use inside [`Cluster::block_on`] or after [`Cluster::enter`].
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        client_from(&self.instance.kubeconfig()).await
    }

    /// A command inside the cluster's network, with the cached programs in `PATH` and `KUBECONFIG` set.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let cached = self.binaries.program(program);
        let mut command = network::command_inside(&self.instance.network_namespace(), cached);
        let helm = self.instance.dir().join("helm");
        command
            .env("PATH", self.binaries.search_path())
            .env("KUBECONFIG", self.instance.kubeconfig())
            .env("KUBECACHEDIR", self.instance.dir().join("kube-cache"))
            .env("HELM_CACHE_HOME", helm.join("cache"))
            .env("HELM_CONFIG_HOME", helm.join("config"))
            .env("HELM_DATA_HOME", helm.join("data"))
            .env("CONTAINERD_ADDRESS", self.instance.containerd_socket())
            .env("CONTAINERD_NAMESPACE", "k8s.io")
            .env(REUSE_VARIABLE, self.instance.name());
        command
    }

    /// What `kubectl` prints.
    ///
    /// # Errors
    /// When it fails; the message holds what it wrote to standard error.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run("kubectl", args, None)
    }

    /// Waits until the API server serves the kind of this CustomResourceDefinition. A new one has `conditions: null` for a moment, which `kubectl wait` takes
    /// for a wrong type.
    ///
    /// # Errors
    /// When it is not there, or not served within a minute.
    pub fn serves_kind(&self, definition: &str) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let name = format!("crd/{definition}");
        loop {
            match self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &name]) {
                Err(error) if format!("{error:#}").contains("accessor error") && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                waited => return waited.map(drop),
            }
        }
    }

    /// What `helm` prints.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        self.run("helm", args, None)
    }

    /// Applies YAML of one or more objects, as `kubectl apply -f -`.
    ///
    /// # Errors
    /// When the API server refuses it; the message holds its sentence.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.run("kubectl", &["apply", "-f", "-"], Some(yaml))
    }

    /// A new namespace whose name begins with `prefix`, so that tests on one cluster do not meet.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn namespace(&self, prefix: &str) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A cluster that is used again has seen other processes, whose numbers may come back.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() & 0xff_ffff;
        let name = format!("{prefix}-{now:x}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name])?;
        let found = || self.kubectl(&["get", "serviceaccount", "default", "-n", &name]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = found() {
            // Pods are refused until the namespace has its service account.
            if Instant::now() > deadline {
                return Err(error.context(format!("the namespace {name} got no default service account")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(name)
    }

    /// Makes the images of a docker-archive known to the node.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        import(&self.instance, archive)
    }

    /// Kills one program of the cluster, such as `kube-apiserver` or `kubelet`; the supervisor starts it again.
    ///
    /// # Errors
    /// When no such program runs.
    pub fn kill(&self, program: &str) -> Result<()> {
        crate::processes::signal(self.pid_of(program)?, rustix::process::Signal::KILL);
        Ok(())
    }

    fn pid_of(&self, program: &str) -> Result<i32> {
        let pid = crate::processes::noted_pid(&self.instance, program);
        pid.with_context(|| format!("no program {program:?} runs in the cluster {:?}", self.instance.name()))
    }

    /// Stops the processes of a pod without ending them, until what is returned is dropped.
    ///
    /// # Errors
    /// When it has none.
    pub fn freeze(&self, pod: &str) -> Result<Frozen> {
        let processes = crate::processes::of_pod(&self.instance, pod);
        anyhow::ensure!(!processes.is_empty(), "no process of the pod {pod:?} runs in the cluster");
        for pid in &processes {
            crate::processes::signal(*pid, rustix::process::Signal::STOP);
        }
        Ok(Frozen(processes))
    }

    /// Stops one program of the cluster, such as `kube-controller-manager`, without ending it, until what is returned is dropped.
    ///
    /// # Errors
    /// When no such program runs.
    pub fn freeze_program(&self, program: &str) -> Result<Frozen> {
        let pid = self.pid_of(program)?;
        crate::processes::signal(pid, rustix::process::Signal::STOP);
        Ok(Frozen(vec![pid]))
    }

    /// What a program of the cluster, such as `kube-apiserver`, has logged since the cluster's start.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log(&self, program: &str) -> Result<String> {
        let path = self.instance.logs().join(format!("{program}.log"));
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The error with what a person looks for after a failure: objects, events and logs of a namespace. The cause comes first and last: of a long account a
    /// build server keeps the one end or the other.
    #[must_use]
    pub fn explain(&self, error: &anyhow::Error, namespace: &str) -> anyhow::Error {
        let cause = format!("{error:#}");
        let summary: String = cause.chars().take(2_000).collect();
        anyhow!("{summary}\n\n{}\n{cause}", self.describe(namespace))
    }

    fn describe(&self, namespace: &str) -> String {
        let mut text = format!("cluster logs: {}\n", self.instance.logs().display());
        let machine = Command::new("sh").args(["-c", "cat /proc/loadavg; free -m; df -m . /tmp"]).output();
        text.push_str(&machine.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default());
        for args in [
            &[
                "get",
                "nodes",
                "-o",
                r#"jsonpath={range .items[*].status.conditions[*]}{.type}={.status} {.message}{"\n"}{end}"#,
            ][..],
            &["get", "all,hpa,pdb", "-n", namespace, "-o", "wide"],
            &["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"],
            &["describe", "pods", "-n", namespace],
        ] {
            text.push_str(&self.section(args));
        }
        let pods = self.kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).unwrap_or_default();
        for pod in pods.lines() {
            text.push_str(&self.section(&["logs", pod, "-n", namespace, "--all-containers", "--tail=50"]));
        }
        text
    }

    fn section(&self, args: &[&str]) -> String {
        let answer = self.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
        format!("--- kubectl {}\n{answer}\n", args.join(" "))
    }

    fn run(&self, program: &str, args: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("running {program}"))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).with_context(|| format!("writing to {program}"))?;
        }
        let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
        text_of(&format!("{program} {}", args.join(" ")), &output)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end_supervisor();
    }
}

pub(crate) async fn client_from(kubeconfig: &Path) -> Result<Client> {
    // Someone else may have chosen one for this process already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    // A test must see each refusal, and not what the tenth attempt brought.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

pub(crate) fn import(instance: &Instance, archive: &Path) -> Result<()> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(instance.containerd_socket())
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(archive)
        .output()
        .context("running ctr")?;
    text_of(&format!("ctr images import {}", archive.display()), &output).map(drop)
}

fn text_of(what: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("`{what}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Processes that stand still until this is dropped.
#[derive(Debug)]
pub struct Frozen(Vec<i32>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            crate::processes::signal(*pid, rustix::process::Signal::CONT);
        }
    }
}
