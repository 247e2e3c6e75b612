//! Why workers do not run, in one sentence: from a workload's conditions and its pods. Pure.
//!
//! Names and numbers that change with every attempt are left out, so that the sentence stays the same while the cause does.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};

use super::foreign_message::{last_words, one_line, one_line_without};
use crate::{api::Reason, controller::live::WorkerCounts};

/// What kept a pod from being a ready worker. The order is that of reporting: what explains most comes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Cause {
    /// The pod was not created: quota, limit range, Pod Security, an admission webhook.
    Refused,
    /// An image cannot be pulled.
    Image,
    /// A container cannot be made: a Secret or a key that its environment names is missing, a command does not exist. A volume that cannot be
    /// mounted is only known by the pod staying in `ContainerCreating`, so that it counts after some minutes.
    Container,
    /// The kernel or the node ended it for its memory.
    OutOfMemory,
    /// It ends by itself again and again.
    Crash,
    /// No node can take it.
    Unschedulable,
    /// It runs and does not become ready.
    NotReady,
    /// There is no ready worker for some minutes, and nothing says why.
    NotStarted,
}

impl Cause {
    /// The reason in conditions and Events.
    pub fn reason(self) -> Reason {
        match self {
            Self::Refused => Reason::PodsRefused,
            Self::Image => Reason::ImagePullFailed,
            Self::Container => Reason::ContainerNotCreated,
            Self::OutOfMemory => Reason::OutOfMemory,
            Self::Crash => Reason::WorkersCrash,
            Self::Unschedulable => Reason::Unschedulable,
            Self::NotReady | Self::NotStarted => Reason::WorkersNotReady,
        }
    }

    /// How long it may last before it counts while other workers run: nodes are added within a minute, and some applications start slowly.
    pub fn grace(self) -> Duration {
        Duration::from_secs(match self {
            Self::NotReady => 300,
            Self::Unschedulable => 60,
            Self::Refused | Self::Image | Self::Container | Self::OutOfMemory | Self::Crash => 5,
            // It has lasted long enough when it is reported.
            Self::NotStarted => 0,
        })
    }
}

/// A container that has run for less is starting.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// A worker that has not started within this time is reported. The messages name the time, too.
const LONGEST_START: Duration = Duration::from_secs(300);

/// What is kept of the pods of one workload.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PodReport {
    /// Pods of the newest template that are not ready, by what keeps them from it. Those that merely start are not among them.
    pub troubles: BTreeMap<(Cause, String), usize>,
    /// Pods that start, and nothing is known to be wrong with them.
    pub starting: usize,
}

/// Reads the pods that a workload's selector finds, at `now`.
pub fn read_pods(pods: &[Pod], now: Timestamp) -> PodReport {
    let present = || pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    // A rollback makes pods, too, so that the newest pod shows which template is being started.
    let newest = present().max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let template = newest.and_then(template_of);
    let mut report = PodReport::default();
    for pod in present().filter(|pod| template_of(pod) == template && !is_ready(pod)) {
        match trouble_of(pod, now) {
            Some(trouble) => *report.troubles.entry(trouble).or_insert(0) += 1,
            None => report.starting += 1,
        }
    }
    report
}

fn template_of(pod: &Pod) -> Option<&str> {
    let labels = pod.metadata.labels.as_ref()?;
    let hash = labels.get("pod-template-hash").or_else(|| labels.get("controller-revision-hash"))?;
    Some(hash)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What keeps one pod from being ready; `None` while it starts.
fn trouble_of(pod: &Pod, now: Timestamp) -> Option<(Cause, String)> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed") {
        let why = status.message.as_deref().or(status.reason.as_deref()).unwrap_or("the pod failed");
        return Some((Cause::Crash, format!("ended: {}", one_line(why))));
    }
    let unscheduled =
        status.conditions.iter().flatten().find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(unscheduled) = unscheduled.filter(|one| one.reason.as_deref() == Some("Unschedulable")) {
        let message = unscheduled.message.as_deref().unwrap_or_default();
        // What preemption would achieve does not concern the workload.
        let message = message.split(" preemption:").next().unwrap_or_default();
        return Some((Cause::Unschedulable, format!("cannot be scheduled: {}", one_line(message))));
    }
    let inits = status.init_container_statuses.iter().flatten().map(|one| ("init container", one));
    let containers = status.container_statuses.iter().flatten().map(|one| ("container", one));
    let all = || inits.clone().chain(containers.clone());
    all()
        .filter_map(|(kind, container)| trouble_of_container(kind, container, pod))
        .min()
        .or_else(|| never_ready(status, now))
        .or_else(|| never_started(pod, status, now))
}

fn trouble_of_container(kind: &str, container: &ContainerStatus, pod: &Pod) -> Option<(Cause, String)> {
    let ContainerStatus { name, image, ready, state, last_state, .. } = container;
    let waiting = state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    match reason {
        "ImagePullBackOff"
        | "ErrImagePull"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            let image = image_of(pod, name).unwrap_or(image);
            return Some((
                Cause::Image,
                format!("have no image: {image} of {kind} {name} cannot be pulled{}", pull_error(message)),
            ));
        }
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError" => {
            return Some((Cause::Container, format!("cannot start {kind} {name}: {}", one_line(message))));
        }
        _ => {}
    }
    // An init container that has done its work has ended well.
    if *ready {
        return None;
    }
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let ended = ended(state).or_else(|| ended(last_state))?;
    if ended.reason.as_deref() == Some("OOMKilled") {
        let limit = memory_limit(pod, name).map_or_else(String::new, |limit| format!(" (limit {limit})"));
        return Some((Cause::OutOfMemory, format!("ran out of memory: {kind} {name} was OOMKilled{limit}")));
    }
    let crashes = ended.exit_code != 0 || reason == "CrashLoopBackOff";
    crashes.then(|| {
        let said = ended.message.as_deref().map(last_line).filter(|said| !said.is_empty());
        let said = said
            .map_or_else(|| "it left no message, see `kubectl logs --previous`".to_owned(), |said| last_words(&said));
        let how = match ended.signal.filter(|signal| *signal != 0) {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("exited with code {}", ended.exit_code),
        };
        (Cause::Crash, format!("crash: {kind} {name} {how}: {said}"))
    })
}

fn never_ready(status: &PodStatus, now: Timestamp) -> Option<(Cause, String)> {
    let unready = status.container_statuses.iter().flatten().find(|container| {
        let running = container.state.as_ref().and_then(|state| state.running.as_ref());
        let since = running.and_then(|running| running.started_at.as_ref()).map(|time| time.0);
        let age = since.and_then(|since| Duration::try_from(now.duration_since(since)).ok());
        !container.ready && age.is_some_and(|age| age >= STARTS_WITHIN)
    })?;
    let name = &unready.name;
    let sentence = format!("run but are not ready: the readiness probe of container {name} fails, see `kubectl logs`");
    Some((Cause::NotReady, sentence))
}

/// A pod that nothing is known to be wrong with, but in which nothing has changed for minutes.
fn never_started(pod: &Pod, status: &PodStatus, now: Timestamp) -> Option<(Cause, String)> {
    let containers = || {
        let inits = status.init_container_statuses.iter().flatten();
        inits.chain(status.container_statuses.iter().flatten())
    };
    let mut changes: Vec<Timestamp> = pod.metadata.creation_timestamp.iter().map(|time| time.0).collect();
    let conditions = status.conditions.iter().flatten();
    changes.extend(conditions.filter_map(|one| one.last_transition_time.as_ref()).map(|time| time.0));
    for state in containers().flat_map(|one| one.state.iter().chain(&one.last_state)) {
        let began = state.running.as_ref().and_then(|running| running.started_at.as_ref());
        let ended = state.terminated.as_ref().and_then(|ended| ended.finished_at.as_ref());
        changes.extend(began.into_iter().chain(ended).map(|time| time.0));
    }
    let unchanged = Duration::try_from(now.duration_since(changes.into_iter().max()?)).ok()?;
    if unchanged < LONGEST_START {
        return None;
    }
    // The kubelet says PodInitializing where there are init containers.
    let creating = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        matches!(reason, Some("ContainerCreating" | "PodInitializing"))
    };
    let (cause, sentence) = if containers().next().is_some() && containers().all(creating) {
        (
            Cause::Container,
            "have been in ContainerCreating for more than 5 min: a Secret, a ConfigMap or a volume may be missing, or the image is still being pulled, see `kubectl describe pod`",
        )
    } else {
        (Cause::NotStarted, "have not become ready for more than 5 min: see `kubectl describe pod`")
    };
    Some((cause, sentence.to_owned()))
}

fn image_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.filter(|one| one.name == container).find_map(|one| one.image.as_deref())
}

fn memory_limit(pod: &Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let found = spec.init_containers.iter().flatten().chain(&spec.containers).find(|one| one.name == container)?;
    Some(found.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

/// The kubelet says the same in turns with and without its waiting for the next try.
fn pull_error(message: &str) -> String {
    let message = match message.strip_prefix("Back-off pulling image ") {
        Some(rest) => rest.split_once(": ").map_or("", |(_, error)| error),
        None => message,
    };
    // These quote chains of errors (`failed to fetch anonymous token: unexpected status …`), in which a colon assigns nothing.
    let message = one_line_without(message.trim_start_matches("ErrImagePull: "), &['=']);
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// Of a message in several lines, or of the end of a log, the last one says what ended it.
fn last_line(message: &str) -> String {
    message.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Why the cluster does not create pods, without the name that each attempt makes up.
fn refusal(message: &str) -> String {
    let message = match message.strip_prefix("pods \"") {
        Some(rest) => rest.split_once("\" ").map_or(message, |(_, rest)| rest),
        None => message,
    };
    one_line(message.trim_start_matches("is forbidden: "))
}

/// Why workers do not run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnosis {
    /// What explains most.
    pub cause: Cause,
    /// Of how many workers and why. Begins with a number.
    pub sentence: String,
}

/// The report about a workload whose workers do not all run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// For machines.
    pub reason: Reason,
    /// Of how many workers and why.
    pub sentence: String,
    /// It has lasted for long enough to count even while other workers run.
    pub serious: bool,
}

/// What a look found, and when the next one is due.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Looked {
    /// What keeps workers from running, if that is known.
    pub trouble: Option<Trouble>,
    /// Pods that start; absent where the pods were not read.
    pub starting: Option<usize>,
    /// Until the next look; absent where nothing is wrong.
    pub again: Option<Duration>,
}

/// What keeps workers from running: `refused` is why the cluster creates no pods, as the workload's conditions say; `pods` is what its pods say,
/// where they could be read. `None` where nothing is known to be wrong.
pub fn diagnose(counts: WorkerCounts, refused: Option<&str>, pods: Option<&PodReport>) -> Option<Diagnosis> {
    let wanted = usize::try_from(counts.desired.unwrap_or(1)).unwrap_or(0);
    if wanted == 0 {
        return None;
    }
    let existing = usize::try_from(counts.existing).unwrap_or(0);
    let mut all: Vec<(Cause, usize, String)> = Vec::new();
    if let Some(message) = refused {
        let missing = wanted.saturating_sub(existing).max(1);
        all.push((Cause::Refused, missing, format!("cannot be created: {}", refusal(message))));
    }
    let troubles = pods.map(|pods| &pods.troubles);
    for ((cause, sentence), count) in troubles.into_iter().flatten() {
        all.push((*cause, *count, sentence.clone()));
    }
    all.sort_by_key(|(cause, count, _)| (*cause, std::cmp::Reverse(*count)));
    let (cause, count, sentence) = all.first()?.clone();
    let mut told = format!("{} of {wanted} workers {sentence}", count.min(wanted));
    // One more says where else to look; all of them would be a log.
    if let Some((_, count, sentence)) = all.get(1) {
        told = format!("{told}; {} {sentence}", (*count).min(wanted));
    }
    Some(Diagnosis { cause, sentence: told })
}

/// Fewer workers are ready than asked for, and no rollout explains it.
#[derive(Clone, Copy, Debug)]
pub struct Lack {
    ready: i32,
    existing: i32,
    /// Since when no more of them exist or are ready.
    since: Instant,
    /// It was reported before, so that it need not last again.
    told: bool,
}

impl Lack {
    /// What is to be remembered now, after `before`. `told`: the status already says that workers do not start.
    pub fn after(before: Option<Self>, counts: WorkerCounts, told: bool, now: Instant) -> Option<Self> {
        let WorkerCounts { desired, ready, existing, outdated, unobserved, paused, stalled, .. } = counts;
        let explained = outdated > 0 || unobserved || stalled || (paused && existing == 0);
        if explained || ready >= desired.unwrap_or(0) {
            return None;
        }
        match before {
            Some(before) if ready <= before.ready && existing <= before.existing => {
                Some(Self { ready, existing, ..before })
            }
            Some(_) => Some(Self { ready, existing, since: now, told: false }),
            None => Some(Self { ready, existing, since: now, told }),
        }
    }

    /// What to say of it where pods and conditions say nothing; `None` until it has lasted for some minutes.
    pub fn diagnose(self, counts: WorkerCounts, now: Instant) -> Option<Diagnosis> {
        if !self.told && now.saturating_duration_since(self.since) < LONGEST_START {
            return None;
        }
        let wanted = counts.desired.unwrap_or(0);
        let sentence = if counts.existing < wanted {
            let missing = wanted - counts.existing;
            format!(
                "{missing} of {wanted} workers have had no pod for more than 5 min: see the events of the workload (`kubectl describe`)"
            )
        } else {
            let missing = wanted - counts.ready;
            format!(
                "{missing} of {wanted} workers have not become ready for more than 5 min: see `kubectl describe pod`"
            )
        };
        Some(Diagnosis { cause: Cause::NotStarted, sentence })
    }
}

/// How far a workload has come in running what it is asked to run: a reason and a sentence, or `None` where every pod is of the newest template.
/// `declared` is false while the workload does not hold what the Projection's spec asks for; `workload` names it (`Deployment shop/orders`).
pub fn rollout(workload: &str, counts: WorkerCounts, declared: bool) -> Option<(Reason, String)> {
    let WorkerCounts { existing, outdated, unobserved, paused, stalled, .. } = counts;
    if counts.desired == Some(0) {
        return None;
    }
    let older = format!("{outdated} of {existing} pods run an older pod template");
    if !declared {
        return Some((Reason::RollingOut, format!("the {workload} does not hold the newest spec yet")));
    }
    if paused && (outdated > 0 || existing == 0) {
        let resume = "`spec.paused` of the workload is set; `kubectl rollout resume` goes on with it";
        return Some((
            Reason::RolloutPaused,
            format!("the rollout of the {workload} is paused, and {older}: {resume}"),
        ));
    }
    if stalled {
        let state = if outdated > 0 { format!(", and {older}") } else { String::new() };
        let sentence = format!("the rollout of the {workload} has not progressed within its deadline{state}");
        return Some((Reason::RolloutStalled, sentence));
    }
    if unobserved {
        return Some((Reason::RollingOut, format!("the rollout of the {workload} has just begun")));
    }
    (outdated > 0).then(|| (Reason::RollingOut, format!("the {workload} is being rolled out: {older}")))
}
