//! HTTP/2 as its specifications have it, in the judgement of h2spec.

use std::{collections::BTreeMap, process::Command};

use test_cluster::binaries::Binaries;

use crate::harness::{METRIC, Server};

/// Cases that fail for a reason that is not ours, by what h2spec calls them, with that reason.
const DEVIATIONS: [(&str, &str); 0] = [];

/// What a report in JUnit's form says of each case: `None` where it passed.
fn verdicts(report: &str) -> BTreeMap<String, Option<String>> {
    let mut all = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let (_, rest) = case.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let case_text = case.split("</testcase>").next().unwrap();
        let bad = ["failure", "error", "skipped"].iter().find(|kind| case_text.contains(&format!("<{kind}")));
        let verdict = bad.map(|kind| format!("{kind}: {case_text:.800}"));
        all.insert(format!("{}: {}", attribute("package"), attribute("classname")), verdict);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2spec_finds_no_fault() {
    let server = Server::start().await;
    let port = server.address.port().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("report.xml");
    let report = path.clone();
    let output = tokio::task::spawn_blocking(move || {
        // h2spec has no identity to show and does not care for the status: a refusal is long enough for every case. A silent server
        // counts as faulty after the time-out. Some cases wait for it where a request was answered before its end, and then pass.
        let arguments = ["-t", "-k", "-S", "-h", "127.0.0.1", "-P", METRIC, "-o", "10", "-p", &port, "-j"];
        Command::new(Binaries::ensure_h2spec().unwrap()).args(arguments).arg(report).output().unwrap()
    });
    let output = output.await.unwrap();
    let output = String::from_utf8_lossy(&output.stdout);
    let verdicts = verdicts(&std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{error}: {output}")));
    assert!(verdicts.len() > 100, "only {} cases ran: {output}", verdicts.len());
    let bad: BTreeMap<_, _> = verdicts.iter().filter_map(|(case, verdict)| Some((case, verdict.as_ref()?))).collect();
    let unexcused: Vec<_> = bad.iter().filter(|(case, _)| DEVIATIONS.iter().all(|(known, _)| known != *case)).collect();
    assert!(unexcused.is_empty(), "{} of {}: {unexcused:#?}", unexcused.len(), verdicts.len());
    for (case, why) in DEVIATIONS {
        assert!(bad.contains_key(&case.to_owned()), "{case} passes now: it needs no excuse ({why})");
    }
}
