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
        worker_rate: 50.0,
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
    let run = |options: &Options| simulate(read_projection(PROJECTION).unwrap(), burst(), options).unwrap();
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
        ("worker rate", usual(), Options { worker_rate: 200.0, ..usual() }),
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

#[test]
fn a_behavior_is_read_from_either_form_and_nothing_else() {
    let bare = "scaleUp: {policies: [{type: Pods, value: 1, periodSeconds: 60}]}\n";
    let whole = format!("kind: HorizontalPodAutoscaler\nspec:\n  maxReplicas: 9\n  behavior: {{{}}}\n", bare.trim());
    assert_eq!(read_behavior(bare).unwrap(), read_behavior(&whole).unwrap());
    let mut projection = read_projection(PROJECTION).unwrap();
    projection.spec.scaling.behavior = Some(read_behavior(bare).unwrap());
    assert!(simulate(projection, burst(), &options()).unwrap().score().most_workers < 6);
    for (text, part) in [
        ("scaleUpp: {}\n", "unknown field scaleUpp"),
        ("scaleUp: {policies: [{type: Pods, value: 1, periodSeconds: 5, valeu: 7}]}\n", "scaleUp.policies[0].valeu"),
        ("scaleUp: {policies: 7}\n", "line 1"),
        ("kind: HorizontalPodAutoscaler\nspec: {}\n", "behavior"),
        ("just a word\n", "line 1"),
    ] {
        let error = read_behavior(text).expect_err("it was accepted").to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn what_is_no_projection_is_refused_with_the_line_or_the_field() {
    let broken = PROJECTION.replace("target: 5s", "target: soon");
    let error = read_projection(&broken).expect_err("it was accepted").to_string();
    assert!(error.contains("line 8") && error.contains("soon"), "{error}");
    let own = PROJECTION
        .replace("projector: {builtin: {handlers: {Ordered: select 1}}}", "checkpoint: {readStore: {}}")
        .replace("maxWorkers: 24", "maxWorkers: 24, behavior: {scaleUp: {stabilizationWindowSeconds: -1}}");
    let attempt = |options: &Options| {
        simulate(read_projection(&own).unwrap(), burst(), options).expect_err("it was simulated").to_string()
    };
    assert!(attempt(&options()).contains("--shards"));
    let error = attempt(&Options { shards: Some(8), ..options() });
    assert!(error.contains("behavior.scaleUp.stabilizationWindowSeconds must be from 0 to 3600"), "{error}");
}
