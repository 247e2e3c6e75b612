//! Handlers for Redis are tried in a real one before they are applied: on keys of their own, of which none is left.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use test_cluster::{Redis, RedisCluster, redis::Answer};

use crate::{
    dry_run::{DRY_RUN, Files, KURRENTDB, RABBITMQ, of},
    redis::{items, number},
};

const IN_REDIS: &str = "{redis: {connection: {secretRef: {name: views}}}}";
/// What docs/projector.md lists for a dry run, without the commands of the handlers.
fn rights() -> &'static str {
    let page = include_str!("../../docs/projector.md");
    let user = r"ACL SETUSER tries on >PASSWORD ~projectionist-dry-run-* \";
    page.lines().skip_while(|line| *line != user).nth(1).unwrap().trim()
}

/// A Projection whose handlers are these, each a type and its commands with `|` between them.
fn projection(source: &str, handlers: &[(&str, &str)]) -> String {
    let words = |command: &str| serde_json::to_string(&command.split_whitespace().collect::<Vec<_>>()).unwrap();
    let of_type = |(event_type, commands): &(&str, &str)| {
        let commands: Vec<String> = commands.split('|').map(words).collect();
        format!("    {event_type}: [{}]\n", commands.join(", "))
    };
    let handlers: String = handlers.iter().map(of_type).collect();
    of(source, IN_REDIS, &format!("redis:\n  handlers:\n{handlers}"))
}

/// Each key with how it is kept.
fn everything(redis: &Redis) -> BTreeMap<String, Answer> {
    let keys = items(&redis.run("KEYS *").unwrap());
    keys.into_iter().map(|key| (key.clone(), redis.run(&format!("DUMP {key}")).unwrap())).collect()
}

#[test]
fn commands_run_event_by_event_on_keys_of_their_own_and_none_is_left() {
    let (redis, rights) = (Redis::on_loopback().unwrap(), rights());
    for command in ["SET order:1 real", "HSET totals events 700", "SET name:3 5", "SET projectionist:claims none"] {
        redis.run(command).unwrap();
    }
    // The server itself refuses whatever is not of the dry run.
    redis
        .run(&format!(
            "ACL SETUSER tries on >pw ~projectionist-dry-run-* &projectionist-dry-run-* {rights} +publish +del"
        ))
        .unwrap();
    let before = everything(&redis);
    let handlers = [
        ("Placed", "HSET order:{stream} customer {data.customer} | HINCRBY totals events 1 | PUBLISH news {stream}"),
        ("Named", "SET name:{stream} {data.name} | HINCRBY name:{stream} n 1"),
        ("Removed", "DEL order:{stream} order:none totals"),
    ];
    let events = r#"{"type": "Placed", "stream": "1", "data": {"customer": "Ann Lee"}}
{"type": "Placed", "stream": "2", "data": {"customer": "Bob"}}
{"type": "Named", "stream": "3", "data": {"name": "canary"}}
{"type": "Named", "stream": "3", "data": {"name": "second"}}
{"type": "Placed", "stream": "2", "data": {"customer": "Bob"}}
{"type": "Seen"}
{"type": "Placed", "stream": "4", "data": {}}
{"type": "Removed", "stream": "1"}
"#;
    let files = Files::new(&projection(KURRENTDB, &handlers), events);
    let ended = files.dry_run(Some(&redis.url_as("tries", "pw")));
    let lines: Vec<&str> = ended.output.lines().collect();
    let expected = [
        "line 1: Placed of 1 at position 1: 3 commands",
        "    HSET order:1 customer \"Ann Lee\" -> 1",
        "    HINCRBY totals events 1 -> 1",
        "    PUBLISH news 1 -> 0",
        "line 2: Placed of 2 at position 2: 3 commands",
        "    HSET order:2 customer Bob -> 1",
        "    HINCRBY totals events 1 -> 2",
        "    PUBLISH news 2 -> 0",
        "line 3: Named of 3 at position 3: failed: command 2 (HINCRBY): WRONGTYPE Operation against a key holding the wrong kind of value",
        "line 4: Named of 3 at position 4: not tried, it waits behind line 3 in its stream",
        "line 5: Placed of 2 at position 5: 3 commands",
        "    HSET order:2 customer Bob -> 0",
        "    HINCRBY totals events 1 -> 3",
        "    PUBLISH news 2 -> 0",
        "line 6: Seen at position 6: no handler",
    ];
    assert_eq!(lines[..15], expected, "{ended:?}");
    assert!(lines[15].starts_with("line 7: Placed of 4 at position 7: failed: command 1: "), "{ended:?}");
    assert_eq!(lines[17], "    DEL order:1 order:none totals -> 2", "{ended:?}");
    let summary = "8 events: 4 handled, 1 without a handler, 2 failed, 1 wait behind those; the keys that stood for the real ones were removed";
    assert_eq!((lines[18], ended.code, lines.len(), &*ended.errors), (summary, Some(1), 19, ""), "{ended:?}");
    assert_eq!(everything(&redis), before);

    // Messages of a queue: each with its note.
    let queue = Files::new(&projection(RABBITMQ, &handlers), events).dry_run(Some(&redis.url_as("tries", "pw")));
    let lines: Vec<&str> = queue.output.lines().collect();
    assert_eq!((lines[1], lines[6]), (expected[1], expected[6]), "{queue:?}");
    assert!(lines[8].contains("failed: command 2 (HINCRBY): WRONGTYPE") && lines[9].contains("failed"), "{queue:?}");
    assert_eq!(everything(&redis), before);
}

#[test]
fn what_keeps_handlers_from_being_tried_is_told_and_what_is_left_expires() {
    let (redis, rights) = (Redis::on_loopback().unwrap(), rights());
    redis.run("SET order:1 real").unwrap();
    for (user, rights) in [
        ("no-unlink", format!("~projectionist-dry-run-* {rights} +incrby -unlink")),
        ("no-keys", format!("~projectionist:* ~order:* {rights} +incrby")),
        ("no-command", format!("~projectionist-dry-run-* {rights}")),
        ("no-expiry", format!("~projectionist-dry-run-* {rights} +incrby -pexpireat")),
    ] {
        redis.run(&format!("ACL SETUSER {user} on >pw {rights}")).unwrap();
    }
    let commands = "SET order:{stream} 1 | INCRBY totals 1";
    let files =
        Files::new(&projection(KURRENTDB, &[("Placed", commands)]), "{\"type\": \"Placed\", \"stream\": \"1\"}\n");
    for (user, words) in [
        ("no-keys", "grant the user in the Secret the key projectionist-dry-run-*"),
        ("no-command", "command 2 (INCRBY) of the handler of event type Placed: the user in the Secret may not run it"),
        ("no-expiry", "docs/projector.md"),
    ] {
        let ended = files.dry_run(Some(&redis.url_as(user, "pw")));
        assert!(ended.code == Some(2) && ended.errors.contains(words), "{user}: {ended:?}");
        assert!(!ended.errors.contains(":pw"), "{ended:?}");
        assert_eq!(redis.run("DBSIZE").unwrap(), Answer::Integer(1), "{user}");
    }
    let ended = files.dry_run(Some(&redis.url_as("no-unlink", "pw")));
    let words = ["grant +unlink", "names begin with projectionist-dry-run-", "within an hour"];
    assert!(ended.code == Some(2) && words.iter().all(|word| ended.errors.contains(word)), "{ended:?}");
    let left = items(&redis.run("KEYS projectionist-dry-run-*").unwrap());
    assert_eq!(left.len(), 3, "the state and two of the handlers: {left:?}");
    for key in left {
        let left = number(&redis.run(&format!("TTL {key}")).unwrap());
        assert!((1..=3_600).contains(&left), "{key} expires in {left} s");
    }
    assert_eq!(redis.run("GET order:1").unwrap(), Answer::Text("real".to_owned()));
    let away = files.dry_run(Some("redis://tries:hunter2@127.0.0.1:1"));
    assert!(away.code == Some(2) && !away.errors.contains("hunter2") && away.output.is_empty(), "{away:?}");
}

#[test]
fn handlers_see_no_expiry_but_their_own() {
    let redis = Redis::on_loopback().unwrap();
    let handlers = [("Set", "SET a 1"), ("Kept", "PERSIST a"), ("Timed", "EXPIRE a 60 NX"), ("Added", "LPUSH b x y z")];
    let types = ["Set", "Kept", "Timed", "Kept", "Added"];
    let events: String = types.iter().map(|name| format!("{{\"type\": \"{name}\"}}\n")).collect();
    let ended = Files::new(&projection(KURRENTDB, &handlers), &events).dry_run(Some(&redis.url()));
    let replies: Vec<&str> =
        ended.output.lines().filter_map(|line| line.split_once(" -> ")).map(|(_, reply)| reply).collect();
    assert_eq!(replies, ["OK", "0", "1", "1", "3"], "{ended:?}");
    assert_eq!((ended.code, redis.run("DBSIZE").unwrap()), (Some(0), Answer::Integer(0)));
}

#[test]
fn told_to_stop_it_ends_after_the_event_in_hand_and_leaves_no_key() {
    let redis = Redis::on_loopback().unwrap();
    let events = "{\"type\": \"Added\"}\n".repeat(200_000);
    let files = Files::new(&projection(KURRENTDB, &[("Added", "INCR a:{position}")]), &events);
    let mut program = files.program(&DRY_RUN, Some(&redis.url()));
    let mut running = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(running.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    assert_eq!(first, "line 1: Added at position 1: 1 command\n");
    let told = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(told.success());
    let (mut rest, mut errors) = (String::new(), String::new());
    output.read_to_string(&mut rest).unwrap();
    running.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let summary = rest.lines().last().unwrap();
    assert!(summary.contains(" not tried; the keys that stood for the real ones were removed"), "{summary}");
    assert!(errors.contains("told to stop"), "{errors}");
    assert_eq!((running.wait().unwrap().code(), redis.run("DBSIZE").unwrap()), (Some(2), Answer::Integer(0)));
}

/// In a cluster that is there anyway. The key is of another node than those with the Projection's braces.
pub(crate) fn keys_are_in_the_slots_of_the_real_ones(cluster: &RedisCluster, of_another_node: &str) {
    let count = || cluster.nodes.iter().map(|node| number(&node.run("DBSIZE").unwrap())).sum::<i64>();
    let before = count();
    let lost = format!("INCR {of_another_node}");
    let handlers = [("Placed", "INCR {{shop/orders}}:n | RPUSH {{shop/orders}}:all {stream}"), ("Lost", &lost)];
    let events: String = ["Placed", "Lost", "Placed"]
        .iter()
        .zip(1..)
        .map(|(name, stream)| format!("{{\"type\": \"{name}\", \"stream\": \"{stream}\"}}\n"))
        .collect();
    let ended = Files::new(&projection(KURRENTDB, &handlers), &events).dry_run(Some(&cluster.nodes[0].url()));
    let lines: Vec<&str> = ended.output.lines().collect();
    assert_eq!(lines[2], "    RPUSH {shop/orders}:all 1 -> 1", "{ended:?}");
    assert!(lines[3].contains("failed: command 1 (INCR): its key is in another slot"), "{ended:?}");
    assert_eq!(lines[5], "    INCR {shop/orders}:n -> 2", "{ended:?}");
    assert_eq!((ended.code, count()), (Some(1), before), "{ended:?}");
}
