//! What is reported of workloads and pods as the API server shows them: YAML in, sentences out.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::trouble::{Cause, Diagnosis, Lack, diagnose, read_pods, rollout};
use crate::{
    api::Reason,
    controller::live::{LiveObject, WorkerCounts},
    projector::PlaceOfAnother,
};

const NOW: &str = "2026-01-01T00:10:00Z";

fn pod(status: &str) -> Pod {
    pod_of("new", "2026-01-01T00:09:00Z", status)
}

fn pod_of(template: &str, created: &str, status: &str) -> Pod {
    let mut pod: Value = serde_saphyr::from_str(&format!(
        "metadata: {{name: orders-1, creationTimestamp: '{created}', labels: {{pod-template-hash: {template}}}}}
spec:
  initContainers: [{{name: prepare, image: 'registry.example/prepare:1'}}]
  containers: [{{name: projector, image: 'registry.example/orders:v2', resources: {{limits: {{memory: 64Mi}}}}}}]
",
    ))
    .unwrap();
    pod["status"] = serde_saphyr::from_str(status).unwrap();
    serde_json::from_value(pod).unwrap()
}

fn counts(desired: i32, existing: i32, ready: i32) -> WorkerCounts {
    WorkerCounts { desired: Some(desired), existing, ready, ..WorkerCounts::default() }
}

fn told(counts: WorkerCounts, refused: Option<&str>, pods: &[Pod]) -> Option<(Cause, String)> {
    let report = read_pods(pods, NOW.parse::<Timestamp>().unwrap());
    diagnose(counts, refused, Some(&report)).map(|Diagnosis { cause, sentence }| (cause, sentence))
}

const READY: &str = "{phase: Running, conditions: [{type: Ready, status: 'True'}], containerStatuses: []}";
const UNSCHEDULABLE: &str = "
phase: Pending
conditions:
- type: PodScheduled
  status: 'False'
  reason: Unschedulable
  message: '0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.'
";

fn waiting(reason: &str, message: &str) -> String {
    format!(
        "phase: Pending
containerStatuses:
- name: projector
  image: 'registry.example/orders:v2'
  imageID: ''
  ready: false
  restartCount: 0
  state: {{waiting: {{reason: {reason}, message: '{message}'}}}}
"
    )
}

fn ended(state: &str, last: &str) -> String {
    format!(
        "phase: Running
containerStatuses:
- name: projector
  image: 'registry.example/orders:v2'
  imageID: ''
  ready: false
  restartCount: 4
  state: {state}
  lastState: {last}
"
    )
}

#[test]
fn each_way_in_which_a_pod_does_not_run_has_its_sentence() {
    let back_off = "{waiting: {reason: CrashLoopBackOff, message: back-off 40s restarting failed container}}";
    let crashed = "{terminated: {exitCode: 3, reason: Error, message: \"starting\\nno such table: orders\\n\"}}";
    let killed = "{terminated: {exitCode: 137, reason: OOMKilled}}";
    let running = |since: &str| format!("{{running: {{startedAt: '{since}'}}}}");
    let (fresh, old) = (running("2026-01-01T00:09:55Z"), running("2026-01-01T00:01:00Z"));
    let init = "phase: Pending
initContainerStatuses:
- {name: prepare, image: x, imageID: '', ready: false, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}},
   lastState: {terminated: {exitCode: 1, message: cannot reach the broker}}}
containerStatuses:
- {name: projector, image: x, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: PodInitializing}}}
";
    let no_image =
        "1 of 2 workers have no image: registry.example/orders:v2 of container projector cannot be pulled: not found";
    for (status, expected) in [
        (
            UNSCHEDULABLE.to_owned(),
            Some((
                Cause::Unschedulable,
                "1 of 2 workers cannot be scheduled: 0/3 nodes are available: 3 Insufficient memory.",
            )),
        ),
        (waiting("ErrImagePull", "not found"), Some((Cause::Image, no_image))),
        // The kubelet changes between these two; the sentence does not.
        (
            waiting(
                "ImagePullBackOff",
                "Back-off pulling image \"registry.example/orders:v2\": ErrImagePull: not found",
            ),
            Some((Cause::Image, no_image)),
        ),
        (
            waiting("CreateContainerConfigError", "secret \"database\" not found"),
            Some((Cause::Container, "1 of 2 workers cannot start container projector: secret \"database\" not found")),
        ),
        (
            ended(back_off, crashed),
            Some((Cause::Crash, "1 of 2 workers crash: container projector exited with code 3: no such table: orders")),
        ),
        // Between two crashes it runs.
        (
            ended(&fresh, crashed),
            Some((Cause::Crash, "1 of 2 workers crash: container projector exited with code 3: no such table: orders")),
        ),
        (
            ended(crashed, "{}"),
            Some((Cause::Crash, "1 of 2 workers crash: container projector exited with code 3: no such table: orders")),
        ),
        (
            ended(back_off, "{terminated: {exitCode: 0}}"),
            Some((
                Cause::Crash,
                "1 of 2 workers crash: container projector exited with code 0: it left no message, see `kubectl logs --previous`",
            )),
        ),
        (
            ended(back_off, killed),
            Some((
                Cause::OutOfMemory,
                "1 of 2 workers ran out of memory: container projector was OOMKilled (limit 64Mi)",
            )),
        ),
        (
            init.to_owned(),
            Some((
                Cause::Crash,
                "1 of 2 workers crash: init container prepare exited with code 1: cannot reach the broker",
            )),
        ),
        (
            ended(&old, "{}"),
            Some((
                Cause::NotReady,
                "1 of 2 workers run but are not ready: the readiness probe of container projector fails, see `kubectl logs`",
            )),
        ),
        (ended(&fresh, "{}"), None),
        (waiting("ContainerCreating", ""), None),
        ("{phase: Pending}".to_owned(), None),
        (
            "{phase: Failed, reason: Evicted, message: 'The node was low on resource: memory.'}".to_owned(),
            Some((Cause::Crash, "1 of 2 workers ended: The node was low on resource: memory.")),
        ),
        (READY.to_owned(), None),
    ] {
        let seen = told(counts(2, 2, 1), None, &[pod(&status), pod(READY)]);
        assert_eq!(seen.as_ref().map(|(cause, sentence)| (*cause, sentence.as_str())), expected, "{status}");
    }
}

#[test]
fn an_error_of_a_registry_stays_readable() {
    let said = "failed to fetch anonymous token: unexpected status 401";
    let (_, sentence) = told(counts(1, 1, 0), None, &[pod(&waiting("ErrImagePull", said))]).unwrap();
    assert!(sentence.ends_with(&format!("cannot be pulled: {said}")), "{sentence}");
}

#[test]
fn a_pod_in_which_nothing_changes_for_minutes_does_not_start() {
    let creating = waiting("ContainerCreating", "");
    let (old, young) = ("2026-01-01T00:05:00Z", "2026-01-01T00:05:01Z");
    let seen = |created: &str, status: &str| {
        let report = read_pods(&[pod_of("new", created, status)], NOW.parse().unwrap());
        let told = diagnose(counts(4, 4, 3), None, Some(&report));
        assert_eq!(report.starting, usize::from(told.is_none()), "{status}");
        told.map(|Diagnosis { cause, sentence }| (cause, sentence))
    };
    assert_eq!(seen(young, &creating), None);
    let (cause, sentence) = seen(old, &creating).unwrap();
    assert_eq!(cause, Cause::Container);
    assert!(sentence.starts_with("1 of 4 workers have been in ContainerCreating for more than 5 min:"), "{sentence}");
    let init = "phase: Pending
initContainerStatuses:
- {name: prepare, image: x, imageID: '', ready: false, restartCount: 0, state: STATE}
containerStatuses:
- {name: projector, image: x, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: PodInitializing}}}
";
    let waits = init.replace("STATE", "{waiting: {reason: PodInitializing}}");
    assert_eq!(seen(old, &waits).unwrap().0, Cause::Container);
    let runs = |since: &str| init.replace("STATE", &format!("{{running: {{startedAt: '{since}'}}}}"));
    assert_eq!(seen(old, &runs("2026-01-01T00:06:00Z")), None, "it goes on");
    let expected = "1 of 4 workers have not become ready for more than 5 min: see `kubectl describe pod`".to_owned();
    assert_eq!(seen(old, &runs(old)), Some((Cause::NotStarted, expected.clone())));
    assert_eq!(seen(old, "{phase: Pending}"), Some((Cause::NotStarted, expected)), "no scheduler looks at it");
    let scheduled = |at: &str| {
        format!("{creating}conditions: [{{type: PodScheduled, status: 'True', lastTransitionTime: '{at}'}}]\n")
    };
    assert_eq!(seen(old, &scheduled("2026-01-01T00:09:00Z")), None, "a node took it a minute ago");
    assert_eq!(seen("2026-01-01T00:01:00Z", &scheduled(old)).unwrap().0, Cause::Container);
}

#[test]
fn workers_that_are_missing_for_minutes_are_told_where_nothing_explains_them() {
    let began = Instant::now();
    let at = |seconds: u64| began + Duration::from_secs(seconds);
    // A StatefulSet under a quota has no condition that says so.
    let few = counts(4, 1, 1);
    let lack = Lack::after(None, few, false, began);
    let lack = Lack::after(lack, few, false, at(299));
    assert_eq!(lack.unwrap().diagnose(few, at(299)), None);
    let seen = lack.unwrap().diagnose(few, at(300)).unwrap();
    assert_eq!(seen.cause, Cause::NotStarted);
    assert_eq!(seen.cause.reason(), Reason::WorkersNotReady);
    assert!(seen.sentence.starts_with("3 of 4 workers have had no pod for more than 5 min:"), "{}", seen.sentence);
    // After a restart of the operator it need not last again.
    assert!(Lack::after(None, few, true, began).unwrap().diagnose(few, began).is_some());

    let more = counts(4, 2, 1);
    let lack = Lack::after(lack, more, true, at(300));
    assert_eq!(lack.unwrap().diagnose(more, at(301)), None, "one more has come");
    let unready = counts(4, 4, 1);
    let seen = Lack::after(None, unready, true, began).unwrap().diagnose(unready, began).unwrap();
    assert!(seen.sentence.starts_with("3 of 4 workers have not become ready"), "{}", seen.sentence);
    for explained in [
        WorkerCounts { outdated: 1, ..few },
        WorkerCounts { unobserved: true, ..few },
        WorkerCounts { stalled: true, ..few },
        WorkerCounts { paused: true, ..counts(4, 0, 0) },
        counts(4, 4, 4),
        counts(0, 1, 0),
    ] {
        assert!(Lack::after(lack, explained, true, at(900)).is_none(), "{explained:?}");
    }
}

#[test]
fn pods_that_are_refused_are_told_from_the_deployment_without_the_name_that_changes() {
    let deployment = |message: &str| {
        let yaml = format!(
            "metadata: {{name: orders, namespace: shop, generation: 1}}
spec: {{replicas: 4}}
status:
  observedGeneration: 1
  replicas: 1
  readyReplicas: 1
  updatedReplicas: 1
  unavailableReplicas: 3
  conditions:
  - {{type: Available, status: 'False', reason: MinimumReplicasUnavailable}}
  - {{type: ReplicaFailure, status: 'True', reason: FailedCreate, message: '{message}'}}
"
        );
        LiveObject::from_object(&serde_saphyr::from_str(&yaml).unwrap())
    };
    for (message, sentence) in [
        (
            "pods \"orders-5d4f-x2x9b\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1",
            "3 of 4 workers cannot be created: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1",
        ),
        (
            "pods \"orders-5d4f-qqqqq\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true",
            "3 of 4 workers cannot be created: violates PodSecurity \"restricted:latest\": runAsNonRoot != true",
        ),
        (
            "Internal error occurred: failed calling webhook \"policy.example\": connection refused",
            "3 of 4 workers cannot be created: Internal error occurred: failed calling webhook \"policy.example\": connection refused",
        ),
    ] {
        let live = deployment(message);
        let seen = diagnose(live.workers, live.refused.as_deref(), None).unwrap();
        assert_eq!((seen.cause, seen.sentence.as_str()), (Cause::Refused, sentence));
    }
    assert_eq!(diagnose(counts(4, 1, 1), None, None), None, "pods that were not read tell nothing");
}

#[test]
fn several_causes_are_counted_and_the_most_telling_two_are_told() {
    let no_secret = waiting("CreateContainerConfigError", "secret \"database\" not found");
    let pods = [pod(UNSCHEDULABLE), pod(UNSCHEDULABLE), pod(&no_secret), pod(READY)];
    let (cause, sentence) = told(counts(6, 4, 1), Some("exceeded quota: small"), &pods).unwrap();
    assert_eq!(cause, Cause::Refused);
    assert_eq!(
        sentence,
        "2 of 6 workers cannot be created: exceeded quota: small; 1 of 6 workers cannot start container projector: secret \"database\" not found"
            .replace("; 1 of 6 workers", "; 1")
    );
    let (cause, sentence) = told(counts(4, 4, 1), None, &pods).unwrap();
    assert_eq!(cause, Cause::Container);
    assert!(
        sentence.ends_with("; 2 cannot be scheduled: 0/3 nodes are available: 3 Insufficient memory."),
        "{sentence}"
    );
    assert_eq!(told(counts(0, 4, 1), None, &pods), None, "no worker is wanted");
}

#[test]
fn only_pods_of_the_newest_template_that_stay_are_told() {
    let crash = ended("{waiting: {reason: CrashLoopBackOff}}", "{terminated: {exitCode: 1, message: old}}");
    let older = pod_of("old", "2026-01-01T00:01:00Z", &crash);
    assert_eq!(told(counts(1, 2, 0), None, &[older.clone(), pod("{phase: Pending}")]), None);
    let mut going = pod(&crash);
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    let (_, sentence) = told(counts(1, 2, 0), None, &[older, going]).unwrap();
    assert_eq!(sentence, "1 of 1 workers crash: container projector exited with code 1: old");
}

#[test]
fn messages_of_others_are_one_line_without_passwords_and_not_too_long() {
    let said = |message: &str| {
        let last = format!("{{terminated: {{exitCode: 1, message: \"{message}\"}}}}");
        told(counts(1, 1, 0), None, &[pod(&ended("{waiting: {reason: CrashLoopBackOff}}", &last))]).unwrap().1
    };
    let secret = said("cannot reach postgres://ann:s3cret@db:5432/shop with password=s3cret");
    assert!(secret.contains("postgres://…@db:5432/shop with password=…") && !secret.contains("s3cret"), "{secret}");
    for (message, shown) in [
        ("refused: password = s3cret", "refused: password =…"),
        ("refused: password='an s3cret' user=ann", "refused: password=…"),
        (r#"{\"user\": \"ann\", \"password\":\"s3cret\"}"#, r#"{"user": "ann", "password":…"#),
        ("Password: s3cret", "Password:…"),
        ("DB_PASS=s3cret", "DB_PASS=…"),
        ("PGPASSWORD=s3cret psql", "PGPASSWORD=…"),
        ("usage: app --password s3cret", "usage: app --password …"),
        ("usage: app --db-password s3cret", "usage: app --db-password …"),
        ("usage: app --TOKEN=s3cret", "usage: app --TOKEN=…"),
        ("exec ['app', '--secret', 's3cret']", "exec ['app', '--secret', '…"),
        ("GET /events?token=s3cret failed", "GET /events?token=…"),
        ("secret: an s3cret", "secret:…"),
        ("clientSecret: s3cret", "clientSecret:…"),
        ("secretKey: s3cret", "secretKey:…"),
        ("AWS_SECRET_ACCESS_KEY=s3cret", "AWS_SECRET_ACCESS_KEY=…"),
        ("authorization: Bearer s3cret", "authorization:…"),
        ("é secret=s3cret", "é secret=…"),
        // No secret follows.
        ("password authentication failed for user ann", "password authentication failed for user ann"),
        ("passwordless login: refused", "passwordless login: refused"),
        ("tokenizer: unexpected end", "tokenizer: unexpected end"),
        ("no secret named database", "no secret named database"),
        ("unknown option --password", "unknown option --password"),
        ("cannot read the token:", "cannot read the token:"),
    ] {
        let seen = said(message);
        assert!(seen.ends_with(&format!(": {shown}")) && !seen.contains("s3cret"), "{message}: {seen}");
    }
    let long = said(&"x".repeat(5_000));
    assert!(long.chars().count() < 800 && long.ends_with('…'), "{long}");
}

#[test]
fn a_worker_whose_place_is_another_projections_says_so_to_the_end() {
    let refused = PlaceOfAnother {
        projection: "shop/order-search-by-country".to_owned(),
        at: "https://elasticsearch.search-and-analytics.svc.cluster.local:9200".to_owned(),
        place: "index orders".to_owned(),
        owner: "shop/order-search".to_owned(),
        since: "2026-11-28T07:00:00Z".to_owned(),
        claimed: " (with indices that begin with order)".to_owned(),
        another: "index",
        shared: "spec.projector.builtin.elasticsearch.shared",
        remove: r#"POST /projectionist-state/_update/claims {"doc":{"claims":{"shop/order-search":null}}}"#.to_owned(),
    };
    // As the program writes it, behind its log.
    let output = json!(format!("{{\"level\":\"INFO\"}}\nprojectionist: {refused}\n"));
    let last = format!("{{terminated: {{exitCode: 1, message: {output}}}}}");
    let status = ended("{waiting: {reason: CrashLoopBackOff}}", &last);
    let (cause, sentence) = told(counts(1, 1, 0), None, &[pod(&status)]).unwrap();
    assert_eq!(cause, Cause::Crash);
    assert_eq!(
        sentence,
        format!("1 of 1 workers crash: container projector exited with code 1: projectionist: {refused}")
    );
}

#[test]
fn a_rollout_is_done_when_the_newest_spec_was_seen_and_no_older_pod_is_left() {
    let done = counts(3, 3, 3);
    let name = "Deployment shop/orders";
    for (seen, declared, expected) in [
        (done, true, None),
        (counts(3, 3, 1), true, None),
        (done, false, Some((Reason::RollingOut, "does not hold the newest spec yet"))),
        (WorkerCounts { unobserved: true, ..done }, true, Some((Reason::RollingOut, "has just begun"))),
        (
            WorkerCounts { outdated: 1, ..done },
            true,
            Some((Reason::RollingOut, "1 of 3 pods run an older pod template")),
        ),
        (
            WorkerCounts { outdated: 3, paused: true, ..done },
            true,
            Some((Reason::RolloutPaused, "is paused, and 3 of 3 pods run an older pod template: `spec.paused`")),
        ),
        (WorkerCounts { paused: true, ..done }, true, None),
        (
            WorkerCounts { outdated: 2, stalled: true, ..done },
            true,
            Some((Reason::RolloutStalled, "has not progressed within its deadline, and 2 of 3")),
        ),
        (WorkerCounts { desired: Some(0), outdated: 1, ..done }, true, None),
    ] {
        let told = rollout(name, seen, declared);
        assert_eq!(told.as_ref().map(|(reason, _)| *reason), expected.map(|(reason, _)| reason), "{seen:?}");
        if let (Some((_, sentence)), Some((_, part))) = (told, expected) {
            assert!(sentence.contains(name) && sentence.contains(part), "{sentence}");
        }
    }
}

#[test]
fn older_pods_that_a_statefulset_keeps_by_its_own_spec_are_as_asked() {
    let outdated = |strategy: &str, revisions: &str| {
        let yaml = format!(
            "metadata: {{name: orders, namespace: shop, generation: 2}}
spec: {{replicas: 3, updateStrategy: {strategy}}}
status: {{observedGeneration: 2, replicas: 3, readyReplicas: 3, updatedReplicas: 1, {revisions}}}
"
        );
        LiveObject::from_object(&serde_saphyr::from_str(&yaml).unwrap()).workers.outdated
    };
    let rolling = "currentRevision: a, updateRevision: b";
    assert_eq!(outdated("{type: RollingUpdate, rollingUpdate: {partition: 0}}", rolling), 2);
    assert_eq!(outdated("{type: RollingUpdate, rollingUpdate: {partition: 2}}", rolling), 0);
    assert_eq!(outdated("{type: OnDelete}", rolling), 0);
    assert_eq!(outdated("{type: RollingUpdate}", "currentRevision: b, updateRevision: b"), 0);
}

#[test]
fn what_usually_passes_may_last_longer_before_it_counts() {
    assert!(Cause::Unschedulable.grace() > Cause::Refused.grace());
    assert!(Cause::NotReady.grace() > Duration::from_secs(60));
}
