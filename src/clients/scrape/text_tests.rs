//! The reading of pages against what people write by hand, and, by random input, against a reference of our own.

use std::sync::LazyLock;

use proptest::prelude::*;
use regex::Regex;

use super::*;

/// Name, labels, value as text, and timestamp of a line.
type Line = (String, Vec<(String, String)>, String, Option<i64>);

fn one(line: &str) -> Result<Line, &'static str> {
    let mut read = parse(line, |_| true).map_err(|unreadable| unreadable.why)?;
    assert_eq!(read.len(), 1, "{line}");
    let Series { name, labels, value, timestamp } = read.remove(0);
    Ok((name, labels.into_iter().collect(), format!("{value:?}"), timestamp))
}

#[test]
fn what_the_library_drops_cuts_or_merges_is_read_in_full() {
    for (line, name, labels, value, timestamp) in [
        ("a 1", "a", &[][..], "1.0", None),
        ("a:b:rate 2.5e3 1700000000000", "a:b:rate", &[], "2500.0", Some(1_700_000_000_000)),
        ("a{} 1", "a", &[], "1.0", None),
        ("a{x=\"1,2\",y=\"b=c\"} -1", "a", &[("x", "1,2"), ("y", "b=c")], "-1.0", None),
        ("a{x=\"}\",} 1", "a", &[("x", "}")], "1.0", None),
        ("a { x = \"{\" , y=\"\" } 1", "a", &[("x", "{"), ("y", "")], "1.0", None),
        (r#"a{x="\"\\\n"} 1"#, "a", &[("x", "\"\\\n")], "1.0", None),
        ("a{x=\"ü # } 7\"} 1\r", "a", &[("x", "ü # } 7")], "1.0", None),
        ("a NaN", "a", &[], "NaN", None),
        ("a +Inf", "a", &[], "inf", None),
        (
            "a_total{x=\"1\"} 3 1700000000.5 # {trace=\"z\"} 0.5",
            "a_total",
            &[("x", "1")],
            "3.0",
            Some(1_700_000_000_500),
        ),
    ] {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(one(line), Ok((name.to_owned(), labels, value.to_owned(), timestamp)), "{line}");
    }
}

#[test]
fn a_page_with_a_line_of_another_kind_is_refused_as_a_whole() {
    for line in [
        "<html>",
        "{\"a\": 1}",
        "a",
        "a{x=\"1\"}",
        "a{x=\"1\" 1",
        "a{x=1} 1",
        "a{=\"1\"} 1",
        "a{x=\"1\",x=\"2\"} 1",
        "a{x=\"\\t\"} 1",
        "a one",
        "a 1 2 3",
        "a 1 now",
        "1a 1",
        "a 0x1",
        "a 1_000",
        "a-b 1",
        "ä 1",
        "a{x:y=\"1\"} 1",
        "a 1 +5",
    ] {
        let page = format!("# HELP b Help with {{ and \"\n# TYPE b gauge\nb 1\n{line}\nb 2\n");
        let refused = parse(&page, |name| name == "b").unwrap_err();
        assert_eq!(refused.line, 4, "{line}");
    }
    assert_eq!(parse("# only comments\n\n# EOF\n", |_| true), Ok(Vec::new()));
    assert_eq!(parse("", |_| true), Ok(Vec::new()));
}

/// What the reference reads of a line.
type Referred = (String, BTreeMap<String, String>, f64);

/// The reference: the format by regular expressions.
fn reference(line: &str) -> Option<Referred> {
    static LINE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*(?:\{((?:[^"{}]|"(?:[^"\\]|\\[\\"n])*")*)\}|[ \t])[ \t]*([^ \t]+)(?:[ \t]+(?:-?[0-9]+|[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?))?$"#).unwrap()
    });
    static LABEL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\[\\"n])*)"[ \t]*(?:,|$)"#).unwrap()
    });
    let found = LINE.captures(line)?;
    let mut labels = BTreeMap::new();
    let mut rest = found.get(2).map_or("", |labels| labels.as_str());
    while !rest.trim_matches([' ', '\t']).is_empty() {
        let label = LABEL.captures(rest)?;
        let value = label[2].replace("\\\\", "\u{0}").replace("\\n", "\n").replace("\\\"", "\"").replace('\u{0}', "\\");
        if labels.insert(label[1].to_owned(), value).is_some() {
            return None;
        }
        rest = &rest[label[0].len()..];
    }
    let value = found[3].to_lowercase();
    let value = if value == "nan" { f64::NAN } else { value.parse().ok()? };
    Some((found[1].to_owned(), labels, value))
}

fn label() -> impl Strategy<Value = (String, String)> {
    ("[a-z_][a-z0-9_]{0,4}", "[ a-zäü0-9,={}#:\"\\\\]{0,8}\n?")
}

#[test]
fn labels_take_no_more_memory_than_so_many_may() {
    let labels: Vec<String> = (0..200).map(|number| format!("a{number}=\"\"")).collect();
    let line = format!("waiting{{{}}} 1\n", labels.join(","));
    assert_eq!(parse(&line.repeat(500), |name| name == "waiting").unwrap().len(), 500);
    let unreadable = parse(&line.repeat(501), |name| name == "waiting").unwrap_err();
    assert_eq!(unreadable.line, 501);
    assert!(unreadable.why.contains("labels in all"), "{}", unreadable.why);
    assert_eq!(parse(&line.repeat(501), |name| name == "other").unwrap(), [], "they are not asked for");
}

proptest! {
    #[test]
    fn what_was_written_is_read_and_nothing_else(
        name in "[a-z_:][a-z0-9_:]{0,8}",
        labels in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,4}", "[ a-zäü0-9,={}#:\"\\\\]{0,8}\n?", 0..4),
        number in -1e12..1e12_f64,
        timestamp in proptest::option::of(0..2_000_000_000_000_i64),
    ) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let written: Vec<String> = labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escaped(text))).collect();
        let braces = if written.is_empty() { String::new() } else { format!("{{{}}}", written.join(",")) };
        let time = timestamp.map_or_else(String::new, |time| format!(" {time}"));
        let read = parse(&format!("{name}{braces} {number}{time}\n"), |_| true);
        prop_assert_eq!(read, Ok(vec![Series { name, labels, value: number, timestamp }]));
    }

    #[test]
    fn broken_lines_are_read_as_the_reference_reads_them(
        name in "[a-z_:1]{1,3}",
        labels in proptest::collection::vec(label(), 0..3),
        between in "[ ,]{0,2}",
        value in "[-+0-9.eE]{1,4}|NaN|[+-]?Inf|x",
        at in any::<prop::sample::Index>(),
        letter in proptest::option::of("[ \"\\\\{}=,#a1]"),
    ) {
        let written: Vec<String> = labels.iter().map(|(name, text)| format!("{name}=\"{}\"", text.replace('\n', ""))).collect();
        let mut line = format!("{name}{{{}}} {value}", written.join(&format!(",{between}")));
        if let Some(letter) = letter {
            let places: Vec<usize> = line.char_indices().map(|(at, _)| at).collect();
            line.insert_str(places[at.index(places.len())], &letter);
        }
        prop_assume!(!line.trim().starts_with('#') && !line.trim().is_empty() && !line.contains(" # "));
        let expected = reference(line.trim_matches([' ', '\t']));
        let read = parse(&line, |_| true).ok().map(|mut read| read.remove(0));
        let shown = |labels: &BTreeMap<String, String>, value: f64| format!("{labels:?} {value:?}");
        match (&read, &expected) {
            (Some(sample), Some((name, labels, value))) => {
                prop_assert_eq!(&sample.name, name);
                prop_assert_eq!(shown(&sample.labels, sample.value), shown(labels, *value));
            }
            (None, None) => {}
            _ => prop_assert!(false, "{:?}: {:?} and the reference {:?}", line, read, expected),
        }
    }

    #[test]
    fn nothing_makes_it_panic(text in ".{0,200}") {
        let _ = parse(&text, |_| true);
    }
}
