use proptest::prelude::*;

use super::*;

#[test]
fn reads_both_forms() {
    let csv = "# recorded in May\nseconds, events_per_second\n\n10,100\n12.5,0\n15,3e2\n";
    let json = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"projection":"orders"},
        "values":[[1700000000.123,"100"],[1700000002.623,"0"],[1700000005.123,"300"]]}]}}"#;
    for text in [csv, json] {
        let trace = Trace::read(text).unwrap();
        assert_eq!((trace.step(), trace.length()), (Duration::from_millis(2_500), Duration::from_millis(7_500)));
        let rate = |millis| trace.at(Duration::from_millis(millis)).arriving;
        assert_eq!([rate(0), rate(2_499), rate(2_500), rate(7_499), rate(7_500)], [100.0, 100.0, 0.0, 300.0, 0.0]);
    }
    let marked = format!("\u{feff}\n{json}");
    assert_eq!(Trace::read(&marked).unwrap().begins(), Duration::from_micros(1_700_000_000_123_000), "times as given");
    assert_eq!(Trace::read(&format!("\u{feff}{csv}")).unwrap().begins(), Duration::from_secs(10));
    let capacity = Trace::read("seconds,events_per_second,worker_events_per_second\n0,1,50\n1,1,25\n").unwrap();
    assert_eq!(capacity.points().nth(1), Some(Point { arriving: 1.0, per_worker: Some(25.0) }));
    assert_eq!(capacity.at(Duration::from_secs(9)).per_worker, Some(25.0), "after the end workers are as before it");
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let rows = |rows: &str| format!("seconds,events_per_second\n{rows}");
    let series = |values: &str| {
        format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{{"values":[{values}]}}]}}}}"#)
    };
    for (text, place, problem) in [
        (String::new(), "line 1", "is empty"),
        ("0,1\n1,2\n".to_owned(), "line 1", "the header must be"),
        ("seconds;events_per_second\n".to_owned(), "line 1", "the header must be"),
        (rows(""), "line 1", "at least two rows"),
        (rows("0,1\n"), "line 2", "at least two rows"),
        (rows("0,1\n1,2\n3,2\n"), "line 4", "a gap of 2 s, where the step is 1 s"),
        (rows("0,1\n2,2\n# a remark\n3,2\n"), "line 5", "steps must be uniform"),
        (rows("0,1\n1,2\n1,2\n"), "line 4", "does not come after"),
        (rows("5,1\n4,2\n"), "line 3", "does not come after"),
        (rows("0,1\n1,-2\n"), "line 3", "events_per_second must not be negative, and is -2"),
        (rows("0,1\n1,NaN\n"), "line 3", "events_per_second must be finite"),
        (rows("0,1\ninf,1\n"), "line 3", "seconds must be finite"),
        (rows("0,1\n1,many\n"), "line 3", "events_per_second must be a number, and is \"many\""),
        (rows("0,1\n1\n"), "line 3", "must have 2 values, as the header has, and has 1"),
        (rows("0,1\n1,2,3\n"), "line 3", "must have 2 values"),
        (rows("0,1\n1,2e9\n"), "line 3", "is more than"),
        (rows("0,1\n1e7,1\n"), "line 3", "longer than 31 days"),
        (rows("0,1\n1e-9,1\n"), "line 3", "is none"),
        ("seconds,events_per_second,worker_events_per_second\n0,1,5\n1,1,0\n".to_owned(), "line 3", "greater than 0"),
        ("{\n\"status\": 7}".to_owned(), "line 2", "query_range"),
        (r#"{"status":"error","error":"bad query"}"#.to_owned(), "status", "bad query"),
        (r#"{"status":"success","data":{"resultType":"vector"}}"#.to_owned(), "data.resultType", "matrix"),
        (r#"{"status":"success","data":{"resultType":"matrix"}}"#.to_owned(), "data.result", "holds 0"),
        (r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.to_owned(), "data.result", "found none"),
        ("\n\n{\n7}".to_owned(), "line 4", "query_range"),
        ("\n\nseconds\n".to_owned(), "line 3", "the header must be"),
        (rows(&"0,".repeat(10_000)), "line 2", "more than 10000 characters"),
        (series(""), "data.result[0].values", "at least two"),
        (series(r#"[0,"1"],[15,2]"#), "line 1", "query_range"),
        (series(r#"[0,"1"],[15,"2"],[45,"2"]"#), "values[2]", "a gap of 30 s"),
        (series(r#"[0,"1"],[15,"NaN"]"#), "values[1]", "finite"),
        (series(r#"[0,"1"]"#), "data.result[0].values", "at least two"),
    ] {
        let error = Trace::read(&text).expect_err("it was accepted");
        let text: String = text.chars().take(200).collect();
        assert!(error.place == place && error.problem.contains(problem), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_fail_otherwise_than_with_an_error(text in "(\\{|seconds,events_per_second\n)?[-0-9.,e\n\"\\[\\]{}: #a-z]{0,80}") {
        let _ = Trace::read(&text);
    }

    #[test]
    fn what_is_written_is_read(rates in proptest::collection::vec(0.0..1e6_f64, 2..50), step in 1..100_u32) {
        let rows: Vec<String> = rates.iter().zip(0_u32..).map(|(rate, row)| format!("{},{rate}", row * step)).collect();
        let trace = Trace::read(&format!("seconds,events_per_second\n{}\n", rows.join("\n"))).unwrap();
        let read: Vec<f64> = trace.points().map(|point| point.arriving).collect();
        prop_assert_eq!(read, rates);
    }
}
