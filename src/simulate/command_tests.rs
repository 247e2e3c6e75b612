use super::*;
use crate::simulate::{Checkpoints, Commits};

const PROJECTION: &str = "
apiVersion: projectionist.dev/v1alpha1
kind: Projection
metadata: {name: orders}
spec:
  source: {postgres: {connection: {secretRef: {name: db}}, eventTable: {}}}
  readStore: {postgres: {connection: {secretRef: {name: db}}}}
  lag: {target: 5s}
  scaling: {maxWorkers: 24}
  projector: {builtin: {handlers: {Ordered: select 1}}}
";

fn options() -> Options {
    Options {
        kubernetes: (1, 36),
        worker_rate: Some(50.0),
        learnt_rate: Some(50.0),
        start_up: Duration::from_secs(2),
        kind: WorkerKind::default(),
        workers: None,
        shards: None,
        hot_shard: 1.0,
        backlog: 0,
        backlog_age: Duration::from_secs(0),
        sampling: None,
        sync_period: Duration::from_secs(15),
        phase: Duration::from_secs(7),
        scale_out: None,
    }
}

fn burst() -> Trace {
    Trace::read("seconds,events_per_second\n0,20\n30,500\n60,20\n90,20\n").unwrap()
}

#[test]
fn simulates_a_projection_and_each_option_counts() {
    let run = |options: &Options| simulate(read_projection(PROJECTION).unwrap(), None, burst(), options).unwrap();
    let usual = || options();
    let by_autoscaler = || Options { scale_out: Some(ScaleOut::Autoscaler), ..options() };
    assert!(run(&usual()).score().most_workers > 5);
    let seconds = Duration::from_secs;
    let kind = |kind: WorkerKind| Options { kind, learnt_rate: None, ..options() };
    let ideal = WorkerKind::default();
    let late = WorkerKind { commits: Commits::Every(seconds(5)), ..ideal };
    let changed: [(&str, Options, Options); 15] = [
        ("commits by the clock", kind(ideal), kind(late)),
        ("commits by the count", kind(ideal), kind(WorkerKind { commits: Commits::EveryEvents(1_000), ..ideal })),
        ("one row", kind(late), kind(WorkerKind { checkpoints: Checkpoints::One, ..late })),
        ("rows a shard", kind(late), kind(WorkerKind { checkpoints: Checkpoints::ShardUnknown, ..late })),
        ("one slow worker", kind(ideal), kind(WorkerKind { slowest: 3.0, ..ideal })),
        ("worker rate", usual(), Options { worker_rate: Some(200.0), ..usual() }),
        ("learnt rate", usual(), Options { learnt_rate: None, ..usual() }),
        ("start-up", usual(), Options { start_up: seconds(20), ..usual() }),
        ("workers", usual(), Options { workers: Some(12), ..usual() }),
        ("hot shard", usual(), Options { hot_shard: 40.0, ..usual() }),
        ("backlog", usual(), Options { backlog: 5_000, backlog_age: seconds(600), ..usual() }),
        ("sampling", usual(), Options { sampling: Some(seconds(10)), ..usual() }),
        ("scale-out", usual(), by_autoscaler()),
        ("phase", by_autoscaler(), Options { phase: seconds(14), ..by_autoscaler() }),
        ("period", by_autoscaler(), Options { sync_period: seconds(60), ..by_autoscaler() }),
    ];
    for (what, before, after) in changed {
        assert!(run(&before) != run(&after), "{what} changes nothing");
    }
}

/// An autoscaler of the team's own.
const AUTOSCALER: &str = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: orders}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: orders}
  minReplicas: 2
  maxReplicas: 7
  metrics: [{type: External, external: {metric: {name: projection_pending_events}, target: {type: AverageValue, averageValue: 40}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
";

fn by(autoscaler: &str, options: &Options) -> Result<Run, InvalidInput> {
    simulate(read_projection(PROJECTION).unwrap(), Some(&read_autoscaler(autoscaler)?), burst(), options)
}

#[test]
fn rules_alone_are_for_the_operators_own_autoscaler() {
    let bare = "scaleUp: {policies: [{type: Pods, value: 1, periodSeconds: 60}]}\n";
    let run = by(bare, &options()).unwrap();
    assert!(run.score().most_workers < 6, "{:?}", run.score());
}

#[test]
fn of_a_whole_autoscaler_replicas_and_metrics_count() {
    let run = by(AUTOSCALER, &options()).unwrap();
    assert_eq!((run.score().most_workers, run.changes()[0].1, run.changes()[0].2), (7, 1, 2));
    let by_staleness =
        AUTOSCALER.replace("pending_events}", "staleness_seconds}").replace("averageValue: 40", "averageValue: 1000");
    assert_eq!(by(&by_staleness, &options()).unwrap().score().most_workers, 2, "no event waits for a thousand seconds");
    let object = AUTOSCALER
        .replace(
            "type: External, external: {metric",
            "type: Object, object: {describedObject: {kind: Projection, name: orders}, metric",
        )
        .replace("projection_pending_events", "pending_events");
    assert_eq!(by(&object, &options()).unwrap().score(), run.score());
}

#[test]
fn what_an_autoscaler_may_not_hold_is_refused_with_the_field() {
    let with = |from: &str, to: &str| AUTOSCALER.replace(from, to);
    for (text, part) in [
        ("scaleUpp: {}\n".to_owned(), "scaleUpp is no field there: scaleUp is meant?"),
        (
            "scaleUp: {policies: [{type: Pods, value: 1, periodSeconds: 5, valeu: 7}]}\n".to_owned(),
            "scaleUp.policies[0].valeu",
        ),
        ("scaleUp: {policies: 7}\n".to_owned(), "scaleUp.policies must be a list, and is 7"),
        (
            "scaleDown: {stabilizationWindowSeconds: 60.5}\n".to_owned(),
            "scaleDown.stabilizationWindowSeconds must be a whole number, and is 60.5",
        ),
        ("just a word\n".to_owned(), "must be an object with scaleUp and scaleDown"),
        (String::new(), "is empty"),
        ("scaleUp: {}\n---\nscaleDown: {}\n".to_owned(), "holds 2 documents"),
        (with("kind: Horiz", "kind: Hozir"), "kind must be HorizontalPodAutoscaler, and is"),
        (with("autoscaling/v2", "autoscaling/v1"), "apiVersion must be autoscaling/v2"),
        (with("maxReplicas: 7", "maxReplica: 7"), "maxReplica"),
        (with("minReplicas", "minReplica"), "spec.minReplica is no field there"),
        (with("maxReplicas: 7", "maxReplicas: 1"), "spec.maxReplicas must not be less"),
        (
            with("stabilizationWindowSeconds: 0", "stabilizationWindow: 0"),
            "spec.behavior.scaleDown.stabilizationWindow is no field",
        ),
        (
            with("projection_pending_events", "queue_depth"),
            "spec.metrics[0] reads queue_depth, which is not simulated: it may read projection_pending_events",
        ),
        (
            with("pending_events}", "pending_events, selector: {matchLabels: {projection: bills}}}"),
            "must be orders, which is simulated, and is bills",
        ),
        (
            with(
                "type: External, external: {metric: {name: projection_pending_events}, target: {type: AverageValue, averageValue: 40}}",
                "type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}",
            ),
            "spec.metrics[0].type Resource is not simulated",
        ),
    ] {
        let error = by(&text, &options()).expect_err(&text).to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn what_is_no_projection_is_refused_with_the_line_or_the_field() {
    let refused = |text: &str| read_projection(text).expect_err(text).to_string();
    for (from, to, part) in [
        ("target: 5s", "target: soon", "spec.lag.target must be a duration such as 30s"),
        ("target: 5s", "target: 1ms", "spec.lag.target must be from 1s to 168h, and is \"1ms\""),
        ("maxWorkers: 24", "maxWorker: 24", "spec.scaling.maxWorker is no field there: maxWorkers is meant?"),
        ("maxWorkers: 24", "maxWorkers: 0", "spec.scaling.maxWorkers must be at least 1, and is 0"),
        ("maxWorkers: 24", "maxWorkers: 60.5", "spec.scaling.maxWorkers must be a whole number, and is 60.5"),
        ("maxWorkers: 24", "maxWorkers: 2147483647", "spec.scaling.maxWorkers must be at most 10000"),
        ("kind: Projection", "kind: Projecton", "kind must be Projection"),
        ("spec:", "---\nspec:", "holds 2 documents (Projection, without kind)"),
        ("{maxWorkers: 24}", "{maxWorkers: 24", "line"),
    ] {
        let error = refused(&PROJECTION.replace(from, to));
        assert!(error.contains(part), "{to:?}: {error}");
        assert!(!error.contains("minWorkers"), "{to:?}: {error}");
    }
    assert_eq!(refused("# nothing\n"), "is empty");
    assert!(read_projection(&format!("\u{feff}{PROJECTION}")).is_ok(), "a byte order mark says nothing");
    let json = serde_json::to_string_pretty(&read_projection(PROJECTION).unwrap()).unwrap();
    assert!(read_projection(&format!("\u{feff}{json}")).is_ok());
}

#[test]
fn an_option_that_would_not_be_used_is_refused() {
    let own =
        PROJECTION.replace("projector: {builtin: {handlers: {Ordered: select 1}}}", "checkpoint: {readStore: {}}");
    let competing = own.replace("maxWorkers: 24", "maxWorkers: 24, ordering: None");
    let strict = own.replace("maxWorkers: 24", "ordering: Strict");
    let tolerant = own.replace("maxWorkers: 24", "shards: 8, behavior: {scaleUp: {tolerance: 50m}}");
    let kind = WorkerKind { checkpoints: Checkpoints::Shard, ..WorkerKind::default() };
    let rated = Trace::read("seconds,events_per_second,worker_events_per_second\n0,1,5\n1,1,5\n").unwrap();
    for (projection, trace, options, part) in [
        (&own, burst(), options(), "--shards"),
        (
            &PROJECTION.to_owned(),
            burst(),
            Options { shards: Some(8), ..options() },
            "--shards is 8, and the Projection tells 24",
        ),
        (&strict, burst(), Options { shards: Some(8), ..options() }, "--shards is 8, and the Projection tells 1"),
        (&strict, burst(), Options { hot_shard: 8.0, ..options() }, "--hot-shard says nothing"),
        (&competing, burst(), Options { shards: Some(8), ..options() }, "--shards says nothing"),
        (&competing, burst(), Options { hot_shard: 2.0, ..options() }, "--hot-shard says nothing"),
        (&competing, burst(), Options { kind, ..options() }, "--checkpoint must be one or builtin"),
        (
            &tolerant,
            burst(),
            Options { kubernetes: (1, 34), ..options() },
            "--kubernetes below 1.35 drops the tolerance",
        ),
        (&own, rated, Options { shards: Some(8), ..options() }, "--worker-rate would not be used"),
    ] {
        let error = simulate(read_projection(projection).unwrap(), None, trace, &options).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    let at_once = Options { scale_out: Some(ScaleOut::Immediate), ..options() };
    assert!(by(AUTOSCALER, &at_once).expect_err("both").to_string().contains("--scale-out Immediate"));
    assert!(
        simulate(read_projection(PROJECTION).unwrap(), None, burst(), &Options { shards: Some(24), ..options() })
            .is_ok()
    );
}

#[test]
fn servers_before_1_35_have_no_tolerance_of_their_own() {
    let tolerance = |minor: u32| {
        let server = ServerAbilities::of_version("1", &minor.to_string());
        let policy = ModelPolicy::on(&read_projection(PROJECTION).unwrap(), None, server).unwrap();
        crate::simulate::Policy::autoscaler(&policy).unwrap().behavior.unwrap().scale_up.tolerance
    };
    assert_eq!((tolerance(34), tolerance(35)), (None, Some(0.0)));
}
