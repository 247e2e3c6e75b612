//! A simulation for people, with charts, and for machines, as JSON. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    chart::{MARGIN, axis, highest, rows, squeeze},
    outcome::{Moment, Run, Score},
};

/// Changes of the number of workers that are listed; the chart shows the others.
const MOST_CHANGES: usize = 20;

/// The report for people, `width` characters wide.
pub fn report(run: &Run, title: &str, width: usize) -> String {
    let Score {
        out_of_target_seconds,
        out_of_target,
        lateness,
        worst_staleness_seconds,
        worker_seconds,
        most_workers,
        changes,
        reversals,
    } = run.score();
    let target = run.target().as_secs_f64();
    let mut lines = vec![title.to_owned(), String::new()];
    for (name, value) in [
        ("time out of target", format!("{out_of_target_seconds:.1} s ({:.1} %)", out_of_target * 100.0)),
        ("lateness", format!("{lateness:.0} s·s (staleness beyond {target} s, over time)")),
        ("worst staleness", format!("{worst_staleness_seconds:.1} s")),
        ("worker-seconds", format!("{worker_seconds:.0}, at most {most_workers} workers")),
        ("changes", format!("{changes}, of which {reversals} turned back within a minute")),
    ] {
        lines.push(format!("{name:<20} {value}"));
    }
    lines.push(String::new());
    for (at, from, to) in run.changes().iter().take(MOST_CHANGES) {
        lines.push(format!("{:>9.1} s  {from:>4} → {to}", (run.begins() + *at).as_secs_f64()));
    }
    if changes > MOST_CHANGES {
        lines.push(format!("{:>11}  and {} more", "", changes - MOST_CHANGES));
    }
    lines.push(String::new());
    lines.extend(charts(run, width));
    lines.join("\n") + "\n"
}

fn charts(run: &Run, width: usize) -> Vec<String> {
    let columns = width.saturating_sub(MARGIN).max(1);
    let target = run.target().as_secs_f64();
    let series = |value: &dyn Fn(&Moment) -> Option<f64>| {
        squeeze(run.moments().iter().map(|moment| (moment.at.as_secs_f64(), value(moment))), columns)
    };
    let arriving = series(&|moment| Some(moment.arriving));
    let staleness = series(&|moment| Some(moment.staleness.as_secs_f64()));
    let replicas = series(&|moment| Some(f64::from(moment.replicas)));
    let required = series(&|moment| moment.required.map(f64::from));
    let (line, none) = (vec![Some(target); columns], vec![None; columns]);
    let mut lines = vec!["events per second".to_owned()];
    lines.extend(rows(&arriving, &none, ' ', highest(&[&arriving], 1.0)));
    lines.extend([String::new(), format!("staleness in seconds (┄ the target of {target} s)")]);
    lines.extend(rows(&staleness, &line, '┄', highest(&[&staleness], target * 1.2)));
    lines.extend([String::new(), "workers (• required)".to_owned()]);
    lines.extend(rows(&replicas, &required, '•', highest(&[&replicas, &required], 1.0)));
    let end = run.moments().last().map_or(0.0, |moment| moment.at.as_secs_f64());
    let begins = run.begins().as_secs_f64();
    let labels: Vec<(f64, String)> =
        [0.0, 0.25, 0.5, 0.75].into_iter().map(|part| (end * part, format!("{:.0} s", begins + end * part))).collect();
    lines.push(axis(labels.iter().map(|(at, label)| (*at, label.as_str())), end, columns));
    lines
}

/// About how many moments and changes the report for machines contains, at most.
const MOST_TOLD: usize = 10_000;

/// The report for machines: the score, the changes, and a moment for each second, or for each of longer stretches where the run is long: the highest
/// of each value there. Times are the trace's own.
pub fn to_json(run: &Run) -> Value {
    let seconds = |at: Duration| (run.begins() + at).as_secs_f64();
    let changes: Vec<Value> = run
        .changes()
        .iter()
        .take(MOST_TOLD)
        .map(|(at, from, to)| json!({"seconds": seconds(*at), "from": from, "to": to}))
        .collect();
    let end = run.moments().last().map_or(0, |moment| moment.at.as_secs());
    let stretch = end.div_ceil(MOST_TOLD as u64).max(1);
    let mut told: Vec<Moment> = Vec::new();
    for moment in run.moments() {
        match told.last_mut() {
            Some(last) if last.at.as_secs() / stretch == moment.at.as_secs() / stretch => last.merge(moment),
            _ => told.push(*moment),
        }
    }
    let moments: Vec<Value> = told
        .iter()
        .map(|moment| {
            let Moment {
                at,
                arriving,
                pending,
                staleness,
                measured_pending,
                measured_staleness,
                replicas,
                ready,
                required,
            } = moment;
            json!({
                "seconds": seconds(*at),
                "arrivingPerSecond": arriving,
                "pending": pending,
                "stalenessSeconds": staleness.as_secs_f64(),
                "measured": {"pending": measured_pending, "stalenessSeconds": measured_staleness.as_secs_f64()},
                "workers": {"desired": replicas, "ready": ready, "required": required},
            })
        })
        .collect();
    json!({
        "targetSeconds": run.target().as_secs_f64(),
        "score": run.score(),
        "changes": changes,
        "secondsPerMoment": stretch,
        "moments": moments,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::record::Record;

    fn run() -> Run {
        let moment = |tenth: u32| Moment {
            at: Duration::from_millis(u64::from(tenth) * 100),
            arriving: f64::from(tenth),
            pending: 7,
            staleness: Duration::from_secs(u64::from(tenth / 100)),
            measured_pending: 9,
            measured_staleness: Duration::from_secs(3),
            replicas: i32::try_from(1 + tenth / 20).unwrap(),
            ready: 1,
            required: Some(3),
        };
        recorded(Duration::ZERO, (0..1_000).map(moment))
    }

    fn recorded(begins: Duration, moments: impl Iterator<Item = Moment>) -> Run {
        let mut record = Record::new(begins, Duration::from_millis(100), Duration::from_secs(5));
        moments.for_each(|moment| record.push(moment));
        record.finish()
    }

    #[test]
    fn keeps_to_the_width_and_names_what_counts() {
        let text = report(&run(), "orders", 80);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in
            ["orders\n", "time out of target   39.9 s", "      2.0 s     1 → 2", "and 29 more", "└50 s", "•", "┄"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn tells_machines_each_second_once() {
        let told = to_json(&run());
        assert_eq!(told["moments"].as_array().map(Vec::len), Some(100));
        assert_eq!(told["moments"][1]["seconds"], 1.0);
        assert_eq!(told["changes"][0], json!({"seconds": 2.0, "from": 1, "to": 2}));
        assert_eq!(told["score"]["mostWorkers"], 50);
    }

    #[test]
    fn times_come_out_as_the_trace_gives_them() {
        let noon = recorded(Duration::from_secs(43_200), run().moments().iter().copied());
        assert!(report(&noon, "orders", 80).contains("  43202.0 s     1 → 2"));
        assert!(report(&noon, "orders", 80).contains("└43250 s"));
        assert_eq!(to_json(&noon)["changes"][0]["seconds"], 43_202.0);
        assert_eq!(to_json(&noon)["moments"][1]["seconds"], 43_201.0);
        assert!(super::super::svg(&noon, "orders").contains(">43250 s<"));
    }

    #[test]
    fn a_long_run_makes_no_long_report() {
        let usual = run().moments()[0];
        let moment = |second: u64| Moment {
            at: Duration::from_secs(second),
            replicas: 1 + i32::from(second.is_multiple_of(2)),
            ..usual
        };
        let told = to_json(&recorded(Duration::ZERO, (0..400_000).map(moment)));
        assert_eq!(told["secondsPerMoment"], 40);
        assert!(told["moments"].as_array().map(Vec::len) <= Some(10_001));
        assert_eq!(told["changes"].as_array().map(Vec::len), Some(10_000));
        assert_eq!(told["score"]["changes"], 399_999, "all are counted");
    }
}
