//! Handlers for Elasticsearch are tried in a real server before they are applied: in indices of their own, of which none is left.

use serde_json::{Value, json};
use test_cluster::Elasticsearch;

use crate::{
    dry_run::{DRY_RUN, Ended, Files, IN_SEARCH, KURRENTDB, RABBITMQ, of},
    elasticsearch::open_search,
};

/// A Projection with these handlers, in JSON.
fn projection(source: &str, handlers: &Value) -> String {
    of(source, IN_SEARCH, &format!("elasticsearch:\n  handlers: {handlers}"))
}

/// The names of all indices that begin with this.
fn indices(server: &Elasticsearch, beginning: &str) -> Vec<String> {
    let all = server.run("GET", "/_all/_settings?expand_wildcards=all", &Value::Null).unwrap();
    all.as_object().unwrap().keys().filter(|name| name.starts_with(beginning)).cloned().collect()
}

#[test]
fn operations_are_done_event_by_event_in_indices_of_their_own_and_none_is_left() {
    let server = open_search();
    let mapping = json!({"settings": {"index": {"default_pipeline": "clean"}}, "mappings": {"properties": {"when": {"type": "date", "format": "yyyy"}}}});
    server.run("PUT", "/tried-1", &mapping).unwrap();
    server.run("POST", "/_aliases", &json!({"actions": [{"add": {"index": "tried-1", "alias": "tried"}}]})).unwrap();
    server
        .run("PUT", "/tried-1/_doc/1?version=900&version_type=external&pipeline=_none", &json!({"who": "real"}))
        .unwrap();
    let handlers = json!({
        "Placed": [{"index": {"index": "tried", "id": "{stream}", "document": {"who": "{data.who}", "when": "{data.when}"}}}],
        "Paid": [
            {"update": {"index": "tried", "id": "{stream}", "add": {"payments": 1}}},
            {"update": {"index": "tried-sums", "id": "all", "add": {"n": "{data.n}"}, "upsert": {"n": "{data.n}"}}},
        ],
        "Cancelled": [{"delete": {"index": "tried", "id": "{stream}"}}],
    });
    let events = r#"{"type": "Placed", "stream": "1", "position": 3, "data": {"who": "Ann", "when": "2026"}}
{"type": "Placed", "stream": "2", "data": {"who": "Bob", "when": "soon"}}
{"type": "Paid", "stream": "1", "data": {"n": 5}}
{"type": "Paid", "stream": "3", "data": {"n": 7}}
{"type": "Cancelled", "stream": "4"}
{"type": "Seen"}
"#;
    let files = Files::new(&projection(KURRENTDB, &handlers), events);
    let ended = files.dry_run(Some(&server.url()));
    let lines: Vec<&str> = ended.output.lines().collect();
    let expected = [
        "line 1: Placed of 1 at position 3: 1 operation",
        r#"    index "tried" "1" {"when":"2026","who":"Ann"}"#,
        "    index tried has an ingest pipeline, clean, which is not run here",
        r#"    -> "tried" "1": created, version 3"#,
    ];
    assert_eq!(lines[..4], expected, "{ended:?}");
    let failed = "line 2: Placed of 2 at position 4: failed: operation 1 (index): ";
    assert!(lines[4].starts_with(failed) && lines[4].contains("[when] of type [date]"), "{ended:?}");
    assert_eq!(lines[5], "line 3: Paid of 1 at position 5: 2 operations");
    assert_eq!(
        lines[8..11],
        [
            "    index tried-sums is not there: its fields are mapped as they come",
            r#"    -> "tried" "1": updated, version 5"#,
            r#"    -> "tried-sums" "all": created, version 5"#,
        ],
        "{ended:?}"
    );
    assert!(
        lines[11].contains("line 4: Paid of 3") && lines[11].contains("another stream writes the same document"),
        "{ended:?}"
    );
    assert_eq!(lines[14], r#"    -> "tried" "4": it was not there"#, "{ended:?}");
    assert_eq!(lines[15], "line 6: Seen at position 8: no handler", "{ended:?}");
    assert_eq!(
        lines[16..],
        [
            "2 documents are there in the end:",
            r#"    "tried" "1" {"payments":1,"when":"2026","who":"Ann"}"#,
            r#"    "tried-sums" "all" {"n":5}"#,
            "6 events: 3 handled, 1 without a handler, 2 failed, 0 wait behind those; the indices that stood for the real ones were removed",
        ],
        "{ended:?}"
    );
    assert_eq!((ended.code, &*ended.errors), (Some(1), ""));
    assert_eq!(indices(server, "tried"), ["tried-1"]);
    let real = server.run("GET", "/tried/_doc/1", &Value::Null).unwrap();
    assert_eq!((&real["_version"], &real["_source"]), (&json!(900), &json!({"who": "real"})));

    // Of a queue the message holds the version.
    let operation = json!({"index": "tried-queue", "id": "{stream}", "version": "{data.version}", "document": {"v": "{data.version}"}});
    let events = r#"{"type": "Changed", "stream": "1", "data": {"version": 7}}
{"type": "Changed", "stream": "1", "data": {"version": 5}}
"#;
    let files = Files::new(&projection(RABBITMQ, &json!({"Changed": [{"index": operation}]})), events);
    let ended = files.dry_run(Some(&server.url()));
    let outcomes: Vec<&str> = ended.output.lines().filter(|line| line.starts_with("    ->")).collect();
    let expected = [
        r#"    -> "tried-queue" "1": created, version 7"#,
        r#"    -> "tried-queue" "1": not written, since its version is as high or higher"#,
    ];
    assert_eq!((outcomes, ended.code), (expected.to_vec(), Some(0)), "{ended:?}");
    assert_eq!(indices(server, "tried"), ["tried-1"]);
}

#[test]
fn where_readers_would_find_what_is_tried_nothing_is() {
    let server = open_search();
    let template = json!({"index_patterns": ["found-*"], "template": {"aliases": {"found": {}}}});
    server.run("PUT", "/_index_template/found", &template).unwrap();
    let handlers = json!({"Placed": [
        {"index": {"index": "unfound", "id": "1", "document": {}}},
        {"index": {"index": "found-1", "id": "1", "document": {}}},
    ]});
    let files = Files::new(&projection(KURRENTDB, &handlers), "{\"type\": \"Placed\"}\n");
    let ended = files.dry_run(Some(&server.url()));
    assert!(ended.code == Some(2) && ended.errors.contains("the alias found"), "{ended:?}");
    assert!(indices(server, "found").is_empty() && indices(server, "unfound").is_empty());
    let away = files.dry_run(Some("http://admin:hunter2@127.0.0.1:1"));
    assert!(away.code == Some(2) && !away.errors.contains("hunter2") && away.output.is_empty(), "{away:?}");
}

/// On a server with users that is there anyway: these rights suffice, and those of a worker alone do not.
pub(crate) fn rights_of_a_dry_run(server: &Elasticsearch) {
    let handlers = json!({"Placed": [{"index": {"index": "rights-tried", "id": "1", "document": {"n": 1}}}]});
    let files = Files::new(&projection(KURRENTDB, &handlers), "{\"type\": \"Placed\"}\n");
    let ended = |user: &str| -> Ended {
        let mut program = files.program(&DRY_RUN, Some(&server.url_as(user)));
        program.env("READ_STORE_CA", server.authority().unwrap());
        Files::ended(program)
    };
    server.run("PUT", "/rights-tried", &json!({})).unwrap();
    for user in ["documented", "no-view"] {
        let refused = ended(user);
        let words = ["create_index", "delete_index", "*-dry-run-*", "view_index_metadata on the real indices"];
        assert!(
            refused.code == Some(2) && words.iter().all(|word| refused.errors.contains(word)),
            "{user}: {refused:?}"
        );
    }
    let kept = ended("no-remove");
    assert!(kept.code == Some(2) && kept.errors.contains("DELETE /rights-tried-dry-run-"), "{kept:?}");
    assert!(kept.errors.contains("delete_index") && kept.output.contains("not everything was removed"), "{kept:?}");
    let left = indices(server, "rights-tried-dry-run-");
    assert_eq!(left.len(), 1, "{kept:?}");
    server.run("DELETE", &format!("/{}", left[0]), &Value::Null).unwrap();
    let tried = ended("tries");
    assert_eq!(tried.code, Some(0), "{tried:?}");
    assert!(tried.output.contains(r#"-> "rights-tried" "1": created, version 1"#), "{tried:?}");
    assert_eq!(indices(server, "rights-tried"), ["rights-tried"]);
    server.run("DELETE", "/rights-tried", &Value::Null).unwrap();
}
