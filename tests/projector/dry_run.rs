//! Handlers are tried before they are applied, by the program itself: what it prints, its exit status, and that nothing of it lasts.

use std::process::Command;

use tokio_postgres::Client;

use crate::workshop::server;

pub(crate) const DRY_RUN: [&str; 5] = ["--dry-run", "-f", "orders.yaml", "--events", "events.jsonl"];

/// What a run printed, and its exit status.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// A folder with a Projection and events.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new(projection: &str, events: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("orders.yaml"), projection).unwrap();
        std::fs::write(folder.path().join("events.jsonl"), events).unwrap();
        Self(folder)
    }

    fn run(&self, arguments: &[&str], read_store: Option<&str>) -> Ended {
        Self::ended(self.program(arguments, read_store))
    }

    pub(crate) fn program(&self, arguments: &[&str], read_store: Option<&str>) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_projectionist"));
        program.arg("projector").args(arguments).current_dir(self.0.path()).env_remove("READ_STORE_URL");
        if let Some(url) = read_store {
            program.env("READ_STORE_URL", url);
        }
        program
    }

    pub(crate) fn ended(mut program: Command) -> Ended {
        let output = program.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), output: text(&output.stdout), errors: text(&output.stderr) }
    }

    fn check(&self, read_store: Option<&str>) -> Ended {
        self.run(&["--check", "-f", "orders.yaml"], read_store)
    }

    pub(crate) fn dry_run(&self, read_store: Option<&str>) -> Ended {
        self.run(&DRY_RUN, read_store)
    }
}

fn in_sql(setup: &str, handlers: &[(&str, &str)]) -> String {
    let handlers: String = handlers
        .iter()
        .map(|(name, sql)| format!("        {name}: {}\n", serde_json::to_string(sql).unwrap()))
        .collect();
    format!(
        "apiVersion: projectionist.dev/v1alpha1
kind: Projection
metadata: {{name: orders, namespace: shop}}
spec:
  source:
    postgres:
      connection: {{secretRef: {{name: events}}}}
      eventTable: {{table: events}}
  readStore:
    postgres:
      connection: {{secretRef: {{name: reads}}}}
  lag: {{target: 10s}}
  projector:
    builtin:
      setup: {setup}
      handlers:
{handlers}",
        setup = serde_json::to_string(setup).unwrap()
    )
}

const SETUP: &str = "create table if not exists totals (stream text primary key, sum numeric not null check (sum < 1000), events int not null);
     create table if not exists seen (n int unique deferrable initially deferred)";
const ADD: &str = "insert into totals values (:stream, (:data->>'total')::numeric, 1)
     on conflict (stream) do update set sum = totals.sum + excluded.sum, events = totals.events + 1";

/// Everything in the database that a user made, with its rows.
async fn everything(client: &Client) -> (Vec<String>, i64) {
    let names = "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname !~ '^pg_|^information_schema' union all select nspname from pg_namespace where nspname ~ 'dry_run' order by 1";
    let names = client.query(names, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let rows = client.query_one("select count(*) from totals", &[]).await.unwrap().get(0);
    (names, rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_in_sql_run_event_by_event_and_leave_nothing() {
    let url = server().create_database("dry_run").await.unwrap();
    let client = server().connect("dry_run").await.unwrap();
    // A read model that is there already, and is not touched.
    client.batch_execute(&format!("{SETUP}; insert into totals values ('order-1', 900, 1)")).await.unwrap();
    let before = everything(&client).await;
    let delete = "delete from totals where stream = :stream";
    let handlers = [("Added", ADD), ("Removed", delete), ("Counted", "insert into seen values ((:data->>'n')::int)")];
    let files = Files::new(
        &in_sql(SETUP, &handlers),
        r#"{"type": "Added", "stream": "order-1", "data": {"total": 200}}
{"type": "Added", "stream": "order-1", "data": {"total": 5}}
{"type": "Seen", "stream": "order-1"}

{"type": "Added", "stream": "order-2", "position": 40, "data": {"total": 2000}}
{"type": "Removed", "stream": "order-2"}
{"type": "Removed", "stream": "order-1", "recorded_at": "2026-11-26T16:00:00Z"}
"#,
    );
    let ended = files.dry_run(Some(&url));
    let lines: Vec<&str> = ended.output.lines().collect();
    assert_eq!(
        (lines[0], lines[1], lines[2]),
        (
            "line 1: Added of order-1 at position 1: 1 row",
            "line 2: Added of order-1 at position 2: 1 row",
            "line 3: Seen of order-1 at position 3: no handler"
        ),
        "{ended:?}"
    );
    assert!(lines[3].starts_with("line 5: Added of order-2 at position 40: failed: "), "{ended:?}");
    assert!(lines[3].contains("totals_sum_check") && lines[3].contains("SQLSTATE 23514"), "{ended:?}");
    assert_eq!(lines[4], "line 6: Removed of order-2 at position 41: not tried, it waits behind line 5 in its stream");
    assert_eq!(lines[5], "line 7: Removed of order-1 at position 42: 1 row");
    assert_eq!(
        lines[6],
        "6 events: 3 handled, 1 without a handler, 1 failed, 1 wait behind those; everything was rolled back"
    );
    assert_eq!((ended.code, lines.len(), ended.errors.as_str()), (Some(1), 7, ""));
    assert_eq!(everything(&client).await, before);

    // What is only found at the commit.
    let twice = "{\"type\": \"Counted\", \"data\": {\"n\": 1}}\n";
    let ended = Files::new(&in_sql(SETUP, &handlers), &twice.repeat(2)).dry_run(Some(&url));
    assert!(ended.output.contains("at the commit: failed: ") && ended.output.contains("seen_n_key"), "{ended:?}");
    assert_eq!(ended.code, Some(1));
    let good = Files::new(&in_sql(SETUP, &handlers), twice).dry_run(Some(&url));
    assert_eq!((good.code, good.output.lines().count()), (Some(0), 2), "{good:?}");
    assert_eq!(everything(&client).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_apart_from_what_could_not_be_tried() {
    let url = server().create_database("dry_checked").await.unwrap();
    let client = server().connect("dry_checked").await.unwrap();
    client.batch_execute(SETUP).await.unwrap();
    let before = everything(&client).await;
    let good = in_sql(SETUP, &[("Added", ADD)]);
    let event = "{\"type\": \"Added\", \"stream\": \"a\", \"data\": {\"total\": 1}}";

    let files = Files::new(&good, event);
    let checked = files.check(None);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(
        checked.output.contains("shop/orders is valid, with handlers for Added")
            && checked.output.contains("READ_STORE_URL")
    );
    let prepared = files.check(Some(&url));
    assert!(prepared.code == Some(0) && prepared.output.contains("prepared"), "{prepared:?}");

    // Projection; what is said; the status with --check, without and with a database.
    for (projection, words, alone, prepared) in [
        (good.replace("lag:", "lagg:"), "spec.lag", 1, 1),
        (good.replace("target: 10s", "target: soon"), "spec.lag.target", 1, 1),
        (in_sql(SETUP, &[("Added", "select :nothing")]), "Added: there is no parameter :nothing", 1, 1),
        (in_sql(SETUP, &[("Added", "select 1; select 2")]), "more than one statement", 1, 1),
        (in_sql(SETUP, &[("Added", "insert into nowhere values (:stream)")]), "nowhere", 0, 1),
        (in_sql("create table broken (", &[("Added", ADD)]), "setup", 0, 1),
        (in_sql("create table kept (n int); commit", &[("Added", ADD)]), "commit ends the transaction", 0, 1),
        ("kind: [".to_owned(), "orders.yaml", 1, 1),
    ] {
        let files = Files::new(&projection, event);
        for (read_store, code) in [(None, alone), (Some(url.as_str()), prepared)] {
            let ended = files.check(read_store);
            assert_eq!(ended.code, Some(code), "{words}: {ended:?}");
            assert!(code == 0 || ended.errors.contains(words), "{words}: {ended:?}");
        }
        let ended = files.dry_run(Some(&url));
        assert!(ended.code == Some(1) && ended.errors.contains(words), "{words}: {ended:?}");
    }
    assert_eq!(everything(&client).await, before);

    let bad_event = Files::new(&good, &format!("{event}\n{{\"type\": \"Added\", \"position\": \"x\"}}\n"));
    let ended = bad_event.dry_run(Some(&url));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.errors.contains("events.jsonl: line 2: field position"), "{ended:?}");
    let without = files.dry_run(None);
    assert!(without.code == Some(2) && without.errors.contains("READ_STORE_URL"), "{without:?}");
    let unreachable = files.dry_run(Some("postgres://nobody:hunter2@127.0.0.1:1/none"));
    assert_eq!(unreachable.code, Some(2), "{unreachable:?}");
    assert!(!unreachable.errors.contains("hunter2"), "{unreachable:?}");
    for arguments in [
        &["--check"][..],
        &["--dry-run", "-f", "orders.yaml"],
        &["-f", "orders.yaml"],
        &["--check", "-f", "orders.yaml", "--events", "events.jsonl"],
        &["--check", "--dry-run", "-f", "orders.yaml", "--events", "events.jsonl"],
        &["--check", "-f", "missing.yaml"],
    ] {
        assert_eq!(files.run(arguments, None).code, Some(2), "{arguments:?}");
    }
}

/// A Projection of this source and read store, each a line of YAML, with what is below `builtin`.
pub(crate) fn of(source: &str, read_store: &str, builtin: &str) -> String {
    let builtin: String = builtin.lines().map(|line| format!("      {line}\n")).collect();
    let ordering = if source == KURRENTDB { "PerKey" } else { "None" };
    format!(
        "apiVersion: projectionist.dev/v1alpha1
kind: Projection
metadata: {{name: orders, namespace: shop}}
spec:
  source: {source}
  readStore: {read_store}
  lag: {{target: 10s}}
  scaling: {{ordering: {ordering}}}
  projector:
    builtin:
{builtin}"
    )
}

pub(crate) const KURRENTDB: &str =
    "{kurrentdb: {connection: {secretRef: {name: events}}, catchUp: {stream: $ce-order}}}";
pub(crate) const RABBITMQ: &str = "{rabbitmq: {connection: {secretRef: {name: events}}, queues: [orders]}}";
const NATS: &str = "{nats: {connection: {secretRef: {name: events}}, consumers: [{stream: orders, consumer: list}]}}";
pub(crate) const IN_SEARCH: &str = "{elasticsearch: {connection: {secretRef: {name: search}}}}";
const IN_POSTGRES: &str = "{postgres: {connection: {secretRef: {name: reads}}}}";

#[test]
fn operations_for_elasticsearch_are_filled_and_shown() {
    let handlers = r#"elasticsearch:
  handlers:
    OrderPlaced:
      - index: {index: orders, id: "{stream}", document: {customer: "{data.customer}", at: "{position}"}}
    OrderPaid:
      - update: {index: orders, id: "{stream}", doc: {paid: true}, add: {payments: "{data.amount}"}}
    OrderCancelled:
      - delete: {index: orders, id: "{stream}"}"#;
    let events = r#"{"type": "OrderPlaced", "stream": "1", "position": 0, "data": {"customer": "Ann \"A\" Lee"}}
{"type": "OrderPaid", "stream": "1", "data": {"amount": 12345678901234567.05}}
{"type": "OrderCancelled", "stream": "1"}
{"type": "OrderPlaced", "stream": "2", "data": {"name": "canary"}}
{"type": "OrderCancelled", "stream": "2"}
"#;
    let files = Files::new(&of(KURRENTDB, IN_SEARCH, handlers), events);
    let checked = files.check(None);
    assert!(checked.code == Some(0) && checked.output.contains("shop/orders is valid"), "{checked:?}");
    let ended = files.dry_run(None);
    let lines: Vec<&str> = ended.output.lines().collect();
    // Revisions begin at 0.
    assert_eq!(lines[0], "line 1: OrderPlaced of 1 at position 0: 1 operation", "{ended:?}");
    assert_eq!(lines[1], r#"    index "orders" "1" {"at":0,"customer":"Ann \"A\" Lee"}"#, "{ended:?}");
    assert_eq!(
        lines[3], r#"    update "orders" "1" doc {"paid":true} add "payments" 12345678901234567.05"#,
        "{ended:?}"
    );
    assert_eq!(lines[5], r#"    delete "orders" "1""#, "{ended:?}");
    assert!(lines[6].starts_with("line 4: OrderPlaced of 2 at position 3: failed: operation 1"), "{ended:?}");
    assert!(lines[6].contains("{data.customer}") && !lines[6].contains("canary"), "{ended:?}");
    assert!(lines[7].contains("it waits behind line 4 in its stream"), "{ended:?}");
    assert!(lines[8].ends_with("no operation was sent"), "{ended:?}");
    assert_eq!(ended.code, Some(1));
    // Positions are the documents' versions.
    let versioned =
        handlers.replace("id: \"{stream}\", document", "id: \"{stream}\", version: \"{data.version}\", document");
    let refused = Files::new(&of(KURRENTDB, IN_SEARCH, &versioned), events).check(None);
    assert!(refused.code == Some(1) && refused.errors.contains("version must be absent"), "{refused:?}");
    // A queue has none, and so the message must hold it.
    let refused = Files::new(&of(RABBITMQ, IN_SEARCH, handlers), events).check(None);
    assert!(refused.code == Some(1) && refused.errors.contains("may be delivered again"), "{refused:?}");
}

#[test]
fn of_a_queue_the_versions_are_shown_and_no_message_waits_behind_another() {
    let handlers = r#"elasticsearch:
  handlers:
    OrderChanged:
      - index: {index: orders, id: "{stream}", version: "{data.version}", document: {total: "{data.total}"}}"#;
    let events = r#"{"type": "OrderChanged", "stream": "1", "data": {"version": "first", "total": 1}}
{"type": "OrderChanged", "stream": "1", "data": {"version": 7, "total": 2}}
"#;
    for source in [RABBITMQ, NATS] {
        let files = Files::new(&of(source, IN_SEARCH, handlers), events);
        let checked = files.check(None);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        let ended = files.dry_run(None);
        let lines: Vec<&str> = ended.output.lines().collect();
        assert!(lines[0].contains("failed: ") && lines[0].contains("no whole number"), "{ended:?}");
        assert_eq!(lines[2], r#"    index "orders" "1" version 7 {"total":2}"#, "{ended:?}");
        assert!(lines[3].starts_with("2 events: 1 handled, 0 without a handler, 1 failed, 0 wait"), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_in_sql_of_a_queue_and_of_kurrentdb_run_as_those_of_an_event_table_do() {
    let url = server().create_database("dry_sources").await.unwrap();
    let builtin = |column: &str| {
        format!(
            "setup: create table if not exists totals (stream text primary key, n bigint not null)
handlers:
  Added: \"insert into totals values (:stream, {column}) on conflict (stream) do update set n = totals.n + excluded.n\""
        )
    };
    let events = r#"{"type": "Added", "stream": "a", "data": {"n": 1}}
{"type": "Added", "stream": "a", "data": {}}
{"type": "Added", "stream": "a", "data": {"n": 2}}
"#;
    let body = builtin("(:data->>'n')::bigint");
    for (source, summary) in [
        (KURRENTDB, "3 events: 1 handled, 0 without a handler, 1 failed, 1 wait behind those"),
        (RABBITMQ, "3 events: 2 handled, 0 without a handler, 1 failed, 0 wait behind those"),
        (NATS, "3 events: 2 handled, 0 without a handler, 1 failed, 0 wait behind those"),
    ] {
        let ended = Files::new(&of(source, IN_POSTGRES, &body), events).dry_run(Some(&url));
        assert!(ended.output.contains(summary) && ended.code == Some(1), "{ended:?}");
        // A message has no position.
        let files = Files::new(&of(source, IN_POSTGRES, &builtin(":position")), events);
        for ended in [files.check(None), files.dry_run(Some(&url))] {
            let is_refused = ended.code == Some(1) && ended.errors.contains("messages of a queue have none");
            assert_eq!(is_refused, source != KURRENTDB, "{ended:?}");
        }
    }
    let client = server().connect("dry_sources").await.unwrap();
    let there = client.query_one("select to_regclass('totals') is not null", &[]).await.unwrap();
    assert!(!there.get::<_, bool>(0), "nothing is left");
}

#[test]
fn commands_for_redis_are_filled_and_shown() {
    let projection = "apiVersion: projectionist.dev/v1alpha1
kind: Projection
metadata: {name: orders}
spec:
  source:
    postgres:
      connection: {secretRef: {name: events}}
      eventTable: {table: events}
  readStore:
    redis: {connection: {secretRef: {name: views}}}
  lag: {target: 10s}
  projector:
    builtin:
      redis:
        handlers:
          OrderPlaced:
            - [HSET, 'order:{stream}', customer, '{data.customer}', at, '{recorded_at}']
            - [ZADD, 'orders:by-time', '{position}', '{stream}']
";
    let files = Files::new(
        projection,
        r#"{"type": "OrderPlaced", "stream": "1", "recorded_at": "2026-11-26T16:00:00Z", "data": {"customer": "Ann \"A\" Lee"}}
{"type": "OrderPlaced", "stream": "2", "data": {"customer": "Bob"}}
{"type": "OrderSeen"}
"#,
    );
    let checked = files.check(None);
    assert!(checked.code == Some(0) && checked.output.contains("default/orders is valid"), "{checked:?}");
    let ended = files.dry_run(None);
    let lines: Vec<&str> = ended.output.lines().collect();
    assert_eq!(lines[0], "line 1: OrderPlaced of 1 at position 1: 2 commands", "{ended:?}");
    assert_eq!(lines[1], r#"    HSET order:1 customer "Ann \"A\" Lee" at 2026-11-26T16:00:00Z"#);
    assert_eq!(lines[2], "    ZADD orders:by-time 1 1");
    assert!(lines[3].starts_with("line 2: OrderPlaced of 2 at position 2: failed: command 1: "), "{ended:?}");
    assert_eq!(lines[4], "line 3: OrderSeen at position 3: no handler");
    assert!(lines[5].ends_with("no command was sent"), "{ended:?}");
    assert_eq!(ended.code, Some(1));
    let refused = Files::new(&projection.replace("ZADD", "KEYS"), "").check(None);
    assert!(refused.code == Some(1) && refused.errors.contains("KEYS"), "{refused:?}");
}
