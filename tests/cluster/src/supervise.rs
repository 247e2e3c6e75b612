//! The process that owns one instance: brings it up, watches over it, takes it down.
//!
//! It lives in a session of its own, so that Ctrl-C in a terminal does not reach it, and is told the end by its standard input: when the
//! process at the other end of the pipe dies, however it dies, the pipe closes. Should the supervisor itself be killed, the
//! kernel ends its programs, and the next program removes the rest.

use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Api;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::binaries::Binaries;
use crate::components::{Component, Components, NODE_NAME};
use crate::instance::{Instance, Lock};
use crate::network::{self, DNS_ADDRESS};
use crate::options::ClusterOptions;
use crate::{images, packages, processes, teardown};

/// How long each step of the way up may take before it counts as failed. Generous: other work may share the machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the supervisor tells its caller, one JSON document a line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Something that takes long begins.
    Progress(String),
    /// The cluster is up.
    Ready,
    /// The cluster is not coming up, and has been taken down.
    Failed(String),
}

impl Report {
    /// Whether the caller is still there to hear it.
    fn send(&self) -> bool {
        serde_json::to_string(self).is_ok_and(|line| writeln!(std::io::stdout(), "{line}").is_ok())
    }
}

/// Brings the instance up, reports, keeps it, and takes it down when asked to or when `until_stdin_closes` and it does.
///
/// # Errors
/// When the instance could not be taken down cleanly. One that does not come up is reported to the caller instead.
pub fn supervise(instance: &Instance, options: &ClusterOptions, until_stdin_closes: bool) -> Result<()> {
    let _ = rustix::process::setsid();
    crate::report_progress_to(|text| {
        Report::Progress(text.to_owned()).send();
    });
    let lock = match own(instance) {
        Ok(lock) => lock,
        Err(error) => fail(&error),
    };
    let binaries = match prepare(instance) {
        Ok(binaries) => binaries,
        Err(error) => {
            // The first error is the one to tell.
            let _ = teardown::clean(instance, lock);
            fail(&error)
        }
    };
    let mut programs = Programs { instance, binaries: &binaries, running: Vec::new() };
    let outcome = run(&mut programs, options, until_stdin_closes);
    // A client that asks to come down may not have to wait for what is reaped here.
    for (_, child) in &mut programs.running {
        let _ = child.kill();
    }
    let cleaned = teardown::clean(instance, lock);
    for (_, child) in &mut programs.running {
        let _ = child.wait();
    }
    if let Err(error) = outcome {
        fail(&error);
    }
    cleaned
}

fn fail(error: &anyhow::Error) -> ! {
    Report::Failed(format!("{error:#}")).send();
    std::process::exit(1)
}

fn own(instance: &Instance) -> Result<Lock> {
    if !rustix::process::geteuid().is_root() {
        bail!("the test cluster needs root, for namespaces, cgroups and containers: run it as root");
    }
    Lock::take(instance)
}

fn prepare(instance: &Instance) -> Result<Binaries> {
    teardown::remove_all(instance).context("removing what an earlier run left")?;
    teardown::sweep();
    packages::ensure()?;
    let binaries = Binaries::ensure()?;
    let _ = fs::remove_dir_all(instance.logs());
    for dir in [instance.run(), instance.state(), instance.logs(), instance.state().join("volume-plugins")] {
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    instance.record_dir()?;
    crate::kernel::remember();
    Ok(binaries)
}

fn run(programs: &mut Programs<'_>, options: &ClusterOptions, until_stdin_closes: bool) -> Result<()> {
    // Before the runtime exists, so that all its threads are inside as well.
    network::create_and_enter(programs.instance)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let life = async {
            programs.bring_up(options).await?;
            if !Report::Ready.send() {
                bail!("the program that asked for the cluster is gone");
            }
            programs.watch().await
        };
        tokio::select! {
            outcome = life => outcome,
            () = stdin_closed(), if until_stdin_closes => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

/// Reads on a plain thread: the runtime would wait for one of its own when it ends.
async fn stdin_closed() {
    let (closed, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = told.await;
}

struct Programs<'a> {
    instance: &'a Instance,
    binaries: &'a Binaries,
    running: Vec<(Component, Child)>,
}

impl Programs<'_> {
    async fn bring_up(&mut self, options: &ClusterOptions) -> Result<()> {
        let (instance, binaries) = (self.instance, self.binaries);
        let components = Components::prepare(instance, binaries, options)?;
        for root in processes::hierarchies() {
            let cgroup = root.join(instance.unique_name());
            fs::create_dir_all(&cgroup).with_context(|| format!("creating the cgroup {}", cgroup.display()))?;
            delegate_controllers(&root, &cgroup);
        }
        self.start(components.etcd())?;
        self.start(components.api_server())?;
        if !options.control_plane_only {
            self.start(components.containerd()?)?;
            for image in images::own_images()? {
                self.import(&image).await?;
            }
        }
        let client = crate::cluster::client_from(&instance.kubeconfig()).await?;
        self.until("the API server is ready", || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            client.request_text(request).await.map(|_| true).map_err(Into::into)
        })
        .await?;
        self.start(components.controller_manager())?;
        if options.control_plane_only {
            return self.default_account_exists(&client).await;
        }
        for component in
            [components.scheduler(), components.kubelet()?, components.kube_proxy()?, components.coredns()?]
        {
            self.start(component)?;
        }
        self.until("the first objects are applied", || async { apply_first_objects(instance, binaries) }).await?;
        self.until("the node is ready", || async {
            let node = Api::<Node>::all(client.clone()).get(NODE_NAME).await?;
            Ok(is_schedulable(&node))
        })
        .await?;
        self.default_account_exists(&client).await?;
        self.until("the cluster's DNS answers", || async { resolves("kubernetes.default.svc.cluster.local") }).await
    }

    async fn default_account_exists(&mut self, client: &kube::Client) -> Result<()> {
        self.until("the default service account exists", || async {
            Ok(Api::<ServiceAccount>::namespaced(client.clone(), "default").get_opt("default").await?.is_some())
        })
        .await
    }

    fn start(&mut self, component: Component) -> Result<()> {
        let Component { name, program, arguments } = &component;
        let log = File::options().create(true).append(true).open(self.log(name));
        let log = log.with_context(|| format!("opening the log of {name}"))?;
        // If the supervisor is killed, the kernel kills its programs.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env("PATH", self.binaries.search_path())
            // Small heaps on few processors: without it the programs of the cluster spend much of their time collecting garbage.
            .env("GOGC", "400")
            .env_remove("KUBECONFIG")
            .current_dir(self.instance.state())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {name} ({})", program.display()))?;
        processes::note_pid(self.instance, name, child.id())?;
        self.running.push((component, child));
        Ok(())
    }

    async fn import(&mut self, archive: &Path) -> Result<()> {
        self.until(&format!("containerd takes the image {}", archive.display()), || async {
            crate::cluster::import(self.instance, archive).map(|()| true)
        })
        .await
    }

    /// Asks until the answer is yes. Ends early when one of the programs does.
    async fn until<Asked>(&mut self, what: &str, ask: impl Fn() -> Asked) -> Result<()>
    where
        Asked: Future<Output = Result<bool>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask().await;
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            if let Some((name, status)) = self.ended() {
                bail!(
                    "{name} ended ({status}) while waiting until {what}; see {}\n{}",
                    self.log(name).display(),
                    self.tail(name)
                );
            }
            if Instant::now() > deadline {
                let last = answer.err().map_or_else(|| "not yet".to_owned(), |error| format!("{error:#}"));
                bail!(
                    "waited {} s until {what}; last seen: {last}; logs: {}",
                    PATIENCE.as_secs(),
                    self.instance.logs().display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for ever, and starts again what dies, as an init system would: a test may kill any of the programs.
    async fn watch(&mut self) -> Result<()> {
        let path = self.instance.logs().join("supervisor.log");
        let mut log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Some((name, status)) = self.ended() {
                writeln!(log, "{name} ended ({status}) and is started again")?;
                let place = self.running.iter().position(|(component, _)| component.name == name);
                if let Some((component, _)) = place.map(|place| self.running.swap_remove(place)) {
                    self.start(component)?;
                }
            }
        }
    }

    fn ended(&mut self) -> Option<(&'static str, ExitStatus)> {
        self.running.iter_mut().find_map(|(component, child)| match child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some((component.name, status)),
            Err(_) => Some((component.name, ExitStatus::from_raw(1 << 8))),
        })
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        self.instance.logs().join(format!("{name}.log"))
    }

    fn tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

fn apply_first_objects(instance: &Instance, binaries: &Binaries) -> Result<bool> {
    let kubectl = binaries.program("kubectl");
    let mut child = Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(instance.kubeconfig())
        .args(["apply", "-f", "-"])
        .env("KUBECACHEDIR", instance.state().join("kube-cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(Components::first_objects().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(true)
}

/// On cgroup version 2 a controller works in a group only if the one above hands it down.
fn delegate_controllers(root: &Path, cgroup: &Path) {
    if let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) {
        let wanted: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        for dir in [root, cgroup] {
            for controller in &wanted {
                let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
            }
        }
    }
    // Version 1 cpusets begin empty, and no process may join an empty one.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(all) = fs::read_to_string(root.join(file)) {
            let _ = fs::write(cgroup.join(file), all);
        }
    }
}

fn is_schedulable(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && node.spec.as_ref().is_none_or(|spec| spec.taints.as_ref().is_none_or(Vec::is_empty))
}

/// Asks the cluster's DNS at its Service address for an A record, which proves kube-proxy as well.
fn resolves(name: &str) -> Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, (DNS_ADDRESS, 53))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    // The low half of the fourth byte is the result code, the next word but one the number of answers (RFC 1035, section 4.1.1).
    Ok(length > 12 && answer[3] & 15 == 0 && (answer[6], answer[7]) != (0, 0))
}
