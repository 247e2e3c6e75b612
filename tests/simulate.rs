//! `projectionist simulate` as a person runs it: files in, a report and a picture out, and errors that name the file and the line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

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
const BURST: &str = "seconds,events_per_second\n0,40\n30,900\n60,40\n90,40\n120,40\n";

fn simulate(files: &[(&str, &str)], arguments: &[&str]) -> (tempfile::TempDir, Output) {
    let directory = tempfile::tempdir().unwrap();
    let usual = [("projection.yaml", PROJECTION), ("trace.csv", BURST)];
    for (name, text) in usual.iter().chain(files) {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_projectionist"))
        .current_dir(directory.path())
        .args(["simulate", "-f", "projection.yaml", "--trace", "trace.csv"])
        .args(arguments)
        .output()
        .unwrap();
    (directory, output)
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn prints_numbers_and_charts_and_draws_a_picture() {
    let (directory, output) = simulate(&[], &["--svg", "burst.svg"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["orders on trace.csv", "time out of target", "lateness", "worker-seconds", "workers (• required)", "█"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let picture = fs::read_to_string(directory.path().join("burst.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"), "{picture}");
}

#[test]
fn the_same_input_gives_the_same_output_and_a_behavior_changes_it() {
    let behavior = "scaleUp: {policies: [{type: Pods, value: 1, periodSeconds: 60}]}\n";
    let usual = json_of(&simulate(&[], &["-o", "json"]).1);
    assert_eq!(usual, json_of(&simulate(&[], &["-o", "json"]).1));
    let slow = json_of(&simulate(&[("behavior.yaml", behavior)], &["-o", "json", "--hpa", "behavior.yaml"]).1);
    let most = |told: &Value| told["score"]["mostWorkers"].as_i64().unwrap();
    assert!(most(&slow) < most(&usual), "{} and {}", slow["score"], usual["score"]);
}

#[test]
fn workers_that_are_not_ideal_are_measured_as_an_operator_would_measure_them() {
    let told = |arguments: &[&str]| {
        let told = json_of(&simulate(&[], &[&["-o", "json"], arguments].concat()).1);
        let of = |pointer: &str| {
            let moments = told["moments"].as_array().unwrap().iter();
            moments.map(|moment| moment.pointer(pointer).unwrap().as_f64().unwrap()).fold(0.0, f64::max)
        };
        (of("/measured/stalenessSeconds"), of("/stalenessSeconds"))
    };
    let (ideal, handled) = told(&["--workers", "10"]);
    assert!((ideal - handled).abs() < 1.0, "{ideal}, {handled}");
    let (measured, handled) = told(&["--workers", "10", "--commit-every", "5s", "--checkpoint", "shard-unknown"]);
    assert!(measured > handled + 3.0, "{measured} seconds old by the rows, {handled} by what is handled");
    let (slow, _) = told(&["--slow-worker", "3"]);
    assert!(slow > ideal, "{slow}, {ideal}");
    let (_, output) = simulate(&[], &["--commit-every", "1000"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--commit-every") && error.contains("1000 events"), "{error}");
}

#[test]
fn a_recorded_series_is_a_trace() {
    let recorded = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},
        "values":[[1700000000,"40"],[1700000030,"900"],[1700000060,"40"],[1700000090,"40"],[1700000120,"40"]]}]}}"#;
    let marked = format!("\u{feff}{recorded}");
    let written = json_of(&simulate(&[], &["-o", "json"]).1);
    for text in [recorded, &marked] {
        let told = json_of(&simulate(&[("trace.csv", text)], &["-o", "json"]).1);
        assert_eq!(told["score"], written["score"]);
        let first = |told: &Value| told["changes"][0]["seconds"].as_f64().unwrap();
        assert!((first(&told) - first(&written) - 1.7e9).abs() < 1e-3, "times of day come out as given");
    }
}

#[test]
fn what_is_wrong_is_told_with_the_file_and_the_place() {
    let gap = BURST.replace("60,40\n", "");
    let broken = PROJECTION.replace("lag: {target: 5s}", "lag: {target: soon}");
    // Files, arguments, and what the error must hold.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
    let typo = PROJECTION.replace("maxWorkers", "maxWorker");
    let empty = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
    let cases: [Case; 16] = [
        (&[("projection.yaml", &typo)], &[], &["projection.yaml", "spec.scaling.maxWorker ", "maxWorkers is meant?"]),
        (&[("trace.csv", empty)], &[], &["trace.csv", "data.result", "Prometheus found none"]),
        (&[("trace.csv", "")], &[], &["trace.csv", "is empty"]),
        (&[("b.yaml", "scaleUpp: {}")], &["--hpa", "b.yaml"], &["b.yaml", "scaleUpp is no field there"]),
        (&[], &["--shards", "8"], &["--shards is 8, and the Projection tells 24"]),
        (&[], &["--start-up", "60.5"], &["--start-up", "60.5", "30s"]),
        (&[], &["--kubernetes", "1.x"], &["--kubernetes", "1.34"]),
        (&[], &["--slow-worker", "0.5"], &["--slow-worker", "from 1"]),
        (&[], &["--backlog-age", "1h"], &["--backlog"]),
        (&[], &["--width", "80", "-o", "json"], &["--width says nothing with --output json"]),
        (&[("trace.csv", &gap)], &[], &["trace.csv", "line 4", "a gap of 60 s"]),
        (&[("trace.csv", "seconds,events_per_second\n0,1\n1,-2\n")], &[], &["trace.csv", "line 3", "negative"]),
        (&[("projection.yaml", &broken)], &[], &["projection.yaml", "spec.lag.target", "soon"]),
        (
            &[("b.yaml", "scaleDown: {policies: []}")],
            &["--hpa", "b.yaml"],
            &["b.yaml", "scaleDown.policies must have at least 1"],
        ),
        (&[], &["--hpa", "absent.yaml"], &["absent.yaml", "cannot be read"]),
        (&[], &["--worker-rate", "0"], &["--worker-rate", "above 0"]),
    ];
    for (files, arguments, parts) in cases {
        let (_, output) = simulate(files, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
}

#[test]
fn a_trace_that_is_too_long_is_refused_with_what_to_do() {
    let rows = (0..32 * 144).map(|row| format!("{},20\n", row * 600)).collect::<String>();
    let (_, output) = simulate(&[("trace.csv", &format!("seconds,events_per_second\n{rows}"))], &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("longer than 31 days: cut it"), "{error}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let directory = simulate(&[], &[]).0;
    let mut child = Command::new(env!("CARGO_BIN_EXE_projectionist"))
        .current_dir(directory.path())
        .args(["simulate", "-f", "projection.yaml", "--trace", "trace.csv", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_example_of_the_readme_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/simulate");
    let output = Command::new(env!("CARGO_BIN_EXE_projectionist"))
        .current_dir(root)
        .args(["simulate", "-f", "projection.yaml", "--trace", "burst.csv"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
