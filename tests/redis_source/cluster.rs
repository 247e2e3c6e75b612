//! A Redis Cluster: keys on several masters, slots that move, masters that end or hang, and nodes that announce what may not be asked.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use projectionist::{
    addresses::AddressRules,
    api::{CheckpointLocation, CheckpointRows, Reason, RedisList, RedisLocation, RedisPart},
    lag::{CheckpointState, Position, Sample},
    measure::MeasureError,
    read_stores::{
        CheckpointStore, RedisStore,
        switch::{PointerSwitch, Switched, VersionSwitch},
    },
    sources::{
        BatchProbe as _,
        redis::{Question, RedisProbe},
    },
};
use test_cluster::{Redis, RedisCluster, eventually_is};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

use crate::certificates::{Files, authority};
use crate::fake::{Says, fake};
use crate::harness::{
    DEADLINE, ask, ask_within, exactly, loopback, probe, question, redis_over_tls, settings, tls_alone,
};

/// Three masters for all tests that end none of them.
fn cluster() -> &'static RedisCluster {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| RedisCluster::start(3, 0, "").unwrap())
}

fn run(node: &Redis, commands: &[String]) {
    commands.iter().for_each(|command| drop(node.run(command).unwrap()));
}

/// A stream with a group `g` on this master, with so many entries that wait. Returns its key.
fn stream(cluster: &RedisCluster, place: usize, prefix: &str, entries: usize) -> String {
    let key = cluster.key_on(place, prefix).unwrap();
    run(&cluster.nodes[place], &[format!("XGROUP CREATE {key} g 0 MKSTREAM")]);
    run(&cluster.nodes[place], &vec![format!("XADD {key} * a b"); entries]);
    key
}

fn of_group(key: &str) -> String {
    format!("{key}/g")
}

/// Clients of the sampler that this node has.
fn our_clients(node: &Redis, user: &str) -> usize {
    let clients = node.run("CLIENT LIST").unwrap();
    let ours = |line: &&str| line.contains("name=projectionist-sampler") && line.contains(&format!("user={user} "));
    clients.text().lines().filter(ours).count()
}

async fn asked(probe: &mut RedisProbe, question: &Question, within: Duration) -> Result<Sample, MeasureError> {
    probe.answer(&[question], Instant::now() + within).await.pop().unwrap()
}

/// Waits until this is measured.
async fn until_known(probe: &mut RedisProbe, streams: &[&str]) -> Sample {
    let end = Instant::now() + DEADLINE;
    loop {
        match ask_within(probe, streams, Duration::from_secs(4)).await {
            Ok(sample) => return sample,
            Err(unknown) => assert!(Instant::now() < end, "last seen {}", unknown.message),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn streams_and_lists_on_all_masters_are_summed_whichever_node_is_named() {
    let nodes = &cluster().nodes;
    let keys: Vec<String> = (0..3).map(|place| stream(cluster(), place, "sum", place + 1)).collect();
    let list = cluster().key_on(2, "sum-list").unwrap();
    run(&nodes[2], &[format!("RPUSH {list} a b c d")]);
    let streams: Vec<String> = keys.iter().map(|key| of_group(key)).collect();
    let mut question = question(&streams.iter().map(String::as_str).collect::<Vec<_>>());
    question.lists.push(RedisList { key: list, processing_key: None, dead_letter_key: None });
    let hosts: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
    for url in [
        format!("redis://{}", hosts[0]),
        format!("redis://{}", hosts[2]),
        format!("redis-cluster://127.0.0.1:1,{}", hosts[1]),
        format!("redis://{}", hosts.join(",")),
    ] {
        let mut probe = probe(&url);
        let sum = asked(&mut probe, &question, DEADLINE).await.unwrap();
        assert_eq!(sum.pending, exactly(10), "{url}");
        let one = ask(&mut probe, &[&streams[1]]).await.unwrap();
        assert_eq!(one.pending, exactly(2), "{url}");
        assert!(one.staleness.is_some_and(|age| age < DEADLINE * 10), "by the clock of the node that holds it");
    }
    let missing = cluster().key_on(1, "missing").unwrap();
    let missing = ask(&mut probe(&nodes[0].url()), &[&of_group(&missing)]).await.unwrap_err();
    assert_eq!(missing.reason, Reason::StreamNotFound, "{}", missing.message);
    let other = Redis::on_loopback().unwrap();
    for url in [format!("redis-cluster://{}", other.address()), format!("redis://{},127.0.0.1:1", other.address())] {
        let refused = ask(&mut probe(&url), &["s/g"]).await.unwrap_err();
        assert!(matches!(refused.reason, Reason::ConnectionStringInvalid | Reason::ConnectionRefused));
        assert!(refused.message.starts_with("the Redis Cluster at "), "{}", refused.message);
    }
    let database = ask(&mut probe(&format!("{}/3", nodes[0].url())), &["s/g"]).await.unwrap_err();
    assert_eq!(database.reason, Reason::DatabaseNotFound, "{}", database.message);
    assert!(database.message.contains("database 0 alone"), "{}", database.message);
}

#[tokio::test]
async fn a_slot_that_moves_to_another_master_is_followed_and_the_counters_go_on() {
    let (from, to) = (&cluster().nodes[0], &cluster().nodes[1]);
    let key = stream(cluster(), 0, "moving", 3);
    let asked = of_group(&key);
    let slot = cluster().slot(&key).unwrap();
    let mut probe = probe(&from.url());
    assert_eq!(ask(&mut probe, &[&asked]).await.unwrap().pending, exactly(3));
    to.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", cluster().id(0).unwrap())).unwrap();
    from.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", cluster().id(1).unwrap())).unwrap();
    assert_eq!(ask(&mut probe, &[&asked]).await.unwrap().pending, exactly(3), "it is still there");
    from.run(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.address().port())).unwrap();
    let refused = format!("{:#}", from.run(&format!("XLEN {key}")).unwrap_err());
    assert!(refused.contains("ASK"), "{refused}");
    let there = ask(&mut probe, &[&asked]).await.unwrap();
    assert_eq!((there.pending, there.arrived), (exactly(3), 0), "asked for with ASKING");
    to.run_all(&[&["ASKING"], &["XADD", &key, "*", "a", "b"]]).unwrap();
    let more = ask(&mut probe, &[&asked]).await.unwrap();
    assert_eq!((more.pending, more.arrived), (exactly(4), 1));
    for node in [to, from, &cluster().nodes[2]] {
        node.run(&format!("CLUSTER SETSLOT {slot} NODE {}", cluster().id(1).unwrap())).unwrap();
    }
    to.run(&format!("XADD {key} * a b")).unwrap();
    let moved = ask(&mut probe, &[&asked]).await.unwrap();
    assert_eq!((moved.pending, moved.arrived), (exactly(5), 2), "MOVED");
    assert_eq!(ask(&mut probe, &[&asked]).await.unwrap().pending, exactly(5));
}

#[tokio::test]
async fn a_master_that_hangs_or_ends_leaves_the_others_and_its_replica_is_followed() {
    let mut own = RedisCluster::start(3, 1, "cluster-node-timeout 3000").unwrap();
    let keys: Vec<String> = (0..3).map(|place| stream(&own, place, "k", 3)).collect();
    let streams: Vec<String> = keys.iter().map(|key| of_group(key)).collect();
    let questions: Vec<Question> = streams.iter().map(|one| question(&[one])).collect();
    let questions: Vec<&Question> = questions.iter().collect();
    // Named by the master that will end, and a replica is as good.
    let mut by_replica = probe(&own.nodes[3].url());
    assert_eq!(ask(&mut by_replica, &[&streams[1]]).await.unwrap().pending, exactly(3));
    let mut probe = probe(&own.nodes[0].url());
    drop(by_replica);
    let poll = async |probe: &mut RedisProbe| probe.answer(&questions, Instant::now() + Duration::from_secs(4)).await;
    assert!(poll(&mut probe).await.iter().all(|one| one.as_ref().is_ok_and(|sample| sample.pending == exactly(3))));

    // One without a replica hangs.
    own.nodes[2].pause();
    for _ in 0..3 {
        let answers = poll(&mut probe).await;
        let hung = answers[2].as_ref().unwrap_err();
        assert!(matches!(hung.reason, Reason::TimedOut), "{}", hung.message);
        let place = format!("the node {} of the Redis Cluster", own.nodes[2].address());
        assert!(hung.message.contains(&place) && hung.message.contains(&keys[2]), "{}", hung.message);
        for one in &answers[..2] {
            assert_eq!(one.as_ref().map(|sample| sample.pending), Ok(exactly(3)), "the others are measured");
        }
    }
    own.nodes[2].resume();
    until_known(&mut probe, &[&streams[2]]).await;

    // One with a replica ends.
    let copied = || async {
        let ok = own.nodes[3].run_all(&[&["READONLY"], &["XLEN", &keys[0]]])?;
        Ok::<_, anyhow::Error>(format!("{ok:?}").contains("Integer(3)"))
    };
    eventually_is(DEADLINE, "the replica has the stream", |copied| *copied, copied).await.unwrap();
    own.nodes[0].kill();
    let answers = poll(&mut probe).await;
    let away = answers[0].as_ref().expect_err("never another number");
    assert!(matches!(away.reason, Reason::SourceFailed | Reason::ConnectionRefused), "{}", away.message);
    assert_eq!(answers[1].as_ref().map(|sample| sample.pending), Ok(exactly(3)), "the others are measured");
    assert_eq!(until_known(&mut probe, &[&streams[0]]).await.pending, exactly(3));
    own.nodes[3].run(&format!("XADD {} * a b", keys[0])).unwrap();
    assert_eq!(ask(&mut probe, &[&streams[0]]).await.unwrap().pending, exactly(4), "the one that took its place");

    // What a poll costs: one request to each master.
    let many: Vec<Question> = (0..100).map(|n| question(&[&streams[1 + n % 2]])).collect();
    let many: Vec<&Question> = many.iter().collect();
    own.nodes[1..].iter().for_each(|node| drop(node.run("CONFIG RESETSTAT").unwrap()));
    let answers = probe.answer(&many, Instant::now() + DEADLINE).await;
    assert!(answers.iter().all(Result::is_ok));
    for node in &own.nodes[1..3] {
        assert_eq!(our_clients(node, "default"), 1, "one connection to each master");
        let statistics = node.run("INFO commandstats").unwrap();
        let calls = |command: &str| {
            let line = statistics.text().lines().find(|line| line.starts_with(&format!("cmdstat_{command}:calls=")));
            line.map(|line| line.split(['=', ',']).nth(1).unwrap().to_owned())
        };
        assert_eq!((calls("hello"), calls("time")), (Some("1".to_owned()), Some("1".to_owned())), "{statistics:?}");
        assert_eq!((calls("xinfo|stream"), calls("cluster|slots")), (Some("1".to_owned()), None), "{statistics:?}");
    }
}

#[tokio::test]
async fn addresses_that_the_cluster_announces_are_judged_like_the_one_in_the_secret_and_those_refused_get_no_credential()
 {
    let named = &cluster().nodes[0];
    for node in &cluster().nodes {
        node.run("ACL SETUSER guarded on >hunter2 ~* +@all").unwrap();
    }
    let elsewhere = stream(cluster(), 1, "judged", 1);
    let url = named.url_as("guarded", "hunter2");
    let mut probe = RedisProbe::new(settings(&url), Arc::default(), std::time::Instant::now());
    let refused = ask(&mut probe, &[&of_group(&elsewhere)]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::AddressRefused, "{}", refused.message);
    assert_eq!(our_clients(named, "guarded"), 0);
    // At an address that is allowed it is asked, and leads to others that are not.
    let rules = only(SECOND);
    let url = format!("redis://guarded:hunter2@{}", second_address(named.address()).await);
    let mut probe = RedisProbe::new(settings(&url), Arc::clone(&rules), std::time::Instant::now());
    let refused = ask(&mut probe, &[&of_group(&elsewhere)]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::AddressRefused, "{}", refused.message);
    let place = format!("the node {} of the Redis Cluster: the host leads to a loopback", cluster().nodes[1].address());
    assert!(refused.message.contains(&place), "{}", refused.message);
    assert_eq!((our_clients(named, "guarded"), our_clients(&cluster().nodes[1], "guarded")), (1, 0));
    let store = RedisStore::new(settings(&url).identity(), rules);
    let key = cluster().key_on(2, "judged-checkpoint").unwrap();
    let location = CheckpointLocation::Redis(RedisLocation { key, part: RedisPart::Value, rows: CheckpointRows::One });
    let mut read = CheckpointStore::Redis(Arc::new(store))
        .read(&BTreeSet::from([location.clone()]), Instant::now() + DEADLINE)
        .await;
    assert_eq!(read.remove(&location).unwrap().unwrap_err().reason, Reason::AddressRefused);
}

#[tokio::test]
async fn the_rights_in_the_documentation_suffice_in_a_cluster_and_each_of_them_is_needed() {
    const RIGHTS: [&str; 7] =
        ["+xinfo|stream", "+xinfo|groups", "+xpending", "+xrange", "+time", "+cluster|slots", "+asking"];
    let page = include_str!("../../docs/sources/redis.md");
    assert!(page.contains(&format!("~orders {}", RIGHTS.join(" "))), "the page lists them");
    let (from, to) = (&cluster().nodes[1], &cluster().nodes[2]);
    let key = stream(cluster(), 1, "rights", 2);
    let slot = cluster().slot(&key).unwrap();
    let user = |name: &str, rights: &[&str]| {
        for node in &cluster().nodes {
            node.run(&format!("ACL SETUSER {name} on >hunter2 ~{key} {}", rights.join(" "))).unwrap();
        }
        probe(&cluster().nodes[0].url_as(name, "hunter2"))
    };
    let mut enough = user("enough", &RIGHTS);
    assert_eq!(ask(&mut enough, &[&of_group(&key)]).await.unwrap().pending, exactly(2));
    let mut blind = user("blind", &RIGHTS[..5]);
    let refused = ask(&mut blind, &[&of_group(&key)]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::PermissionDenied, "{}", refused.message);
    assert!(refused.message.contains("+cluster|slots"), "{}", refused.message);
    to.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", cluster().id(1).unwrap())).unwrap();
    from.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", cluster().id(2).unwrap())).unwrap();
    from.run(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.address().port())).unwrap();
    assert_eq!(ask(&mut enough, &[&of_group(&key)]).await.unwrap().pending, exactly(2));
    let refused = ask(&mut user("halted", &RIGHTS[..6]), &[&of_group(&key)]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::PermissionDenied, "{}", refused.message);
    assert!(refused.message.contains("asking"), "{}", refused.message);
    let wrong = ask(&mut probe(&from.url_as("enough", "hunter2-old")), &[&of_group(&key)]).await.unwrap_err();
    assert_eq!(wrong.reason, Reason::AuthenticationFailed, "{}", wrong.message);
    // One node whose users were not kept in step.
    to.run("ACL DELUSER enough").unwrap();
    let apart = ask(&mut enough, &[&of_group(&key)]).await.unwrap_err();
    assert_eq!(apart.reason, Reason::AuthenticationFailed, "{}", apart.message);
    assert!(apart.message.contains(&format!("the node {}", to.address())), "{}", apart.message);
    for node in [to, from, &cluster().nodes[0]] {
        node.run(&format!("CLUSTER SETSLOT {slot} NODE {}", cluster().id(2).unwrap())).unwrap();
    }
}

#[tokio::test]
async fn with_tls_a_node_is_verified_by_the_name_that_it_announces_or_else_by_its_address() {
    let ours = authority();
    let files = Files::signed(&ours);
    let more = "tls-cluster yes\ncluster-require-full-coverage no";
    let (node, _) = Redis::cluster_node(&format!("{}{more}", tls_alone(&files))).unwrap();
    let port = node.address().port();
    let client = |url: &str| settings(url).with_ca(ours.pem().as_bytes());
    let mine = format!("rediss://localhost:{port}");
    let measured = async |rules: Arc<AddressRules>| {
        let mut probe = RedisProbe::new(client(&mine), rules, std::time::Instant::now());
        ask(&mut probe, &["s/g"]).await.unwrap_err()
    };
    let set = |line: &str| assert!(redis_over_tls(port, &files, line).contains("OK"), "{line}");
    set("CLUSTER ADDSLOTSRANGE 0 16383");
    let state = || async { Ok::<_, anyhow::Error>(redis_over_tls(port, &files, "CLUSTER INFO")) };
    eventually_is(DEADLINE, "the node serves", |info| info.contains("cluster_state:ok"), state).await.unwrap();
    set("CONFIG SET cluster-announce-ip 127.0.0.1");
    let by_address = measured(loopback()).await;
    assert_eq!(by_address.reason, Reason::TlsFailed, "its certificate is for localhost: {}", by_address.message);
    assert!(by_address.message.contains("127.0.0.1"), "{}", by_address.message);
    set("CONFIG SET cluster-announce-hostname localhost");
    let with_name = measured(loopback()).await;
    assert_eq!(with_name.reason, Reason::StreamNotFound, "reached by address: {}", with_name.message);
    set("CONFIG SET cluster-preferred-endpoint-type hostname");
    let by_name = measured(loopback()).await;
    assert_eq!(by_name.reason, Reason::StreamNotFound, "as the Secret names it: {}", by_name.message);
    set("CONFIG SET cluster-preferred-endpoint-type unknown-endpoint");
    let as_asked = measured(loopback()).await;
    assert_eq!(as_asked.reason, Reason::StreamNotFound, "the host that was asked: {}", as_asked.message);
}

/// What logging in to a node comes to.
const HELLO: &str = "*4\r\n$4\r\nmode\r\n$7\r\ncluster\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";

/// Another loopback address than the one on which servers listen.
const SECOND: &str = "127.0.0.2";

/// Allows this address alone.
fn only(address: &str) -> Arc<AddressRules> {
    Arc::new(AddressRules::default().allowing([address.parse().unwrap()]))
}

/// Leads to `server` from another address.
async fn second_address(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((SECOND, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut there = tokio::net::TcpStream::connect(server).await.unwrap();
            tokio::spawn(async move { drop(tokio::io::copy_bidirectional(&mut stream, &mut there).await) });
        }
    });
    address
}

/// A fake node that answers each round trip with the next of these, `{port}` standing for its own, and then hangs.
async fn node(says: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind((SECOND, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let says: Vec<String> =
                says.iter().map(|text| text.replace("{port}", &address.port().to_string())).collect();
            tokio::spawn(async move {
                let mut heard = [0; 4_096];
                for text in says {
                    let (Ok(1..), Ok(())) = (stream.read(&mut heard).await, stream.write_all(text.as_bytes()).await)
                    else {
                        return;
                    };
                }
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

/// A map in which one node has all slots.
fn all_slots(host: &str, port: &str) -> String {
    format!("*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n${}\r\n{host}\r\n:{port}\r\n$2\r\nid\r\n", host.len())
}

#[tokio::test]
async fn whatever_a_node_tells_of_its_cluster_the_lag_is_unknown_and_no_secret_is_shown() {
    let (trap, caught) = fake(Says::Once(b"+OK\r\n".to_vec())).await;
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    // Each command is redirected to the node itself.
    let redirected = |to: &str| format!("{HELLO}*2\r\n$1\r\n1\r\n$1\r\n1\r\n{}", format!("-{to}\r\n").repeat(3));
    for (what, says, reason) in [
        ("hangs after the login", Vec::new(), Reason::TimedOut),
        ("no map", owned(&["+OK\r\n"]), Reason::InvalidAnswer),
        ("hangs within the map", owned(&["*1\r\n*3\r\n:0\r\n"]), Reason::TimedOut),
        ("no slots", owned(&["*0\r\n"]), Reason::SourceFailed),
        ("a map without end", owned(&["*9999999\r\n", &"*1\r\n".repeat(1_000)]), Reason::TimedOut),
        ("arrays in arrays", owned(&[&"*1\r\n".repeat(100)]), Reason::InvalidAnswer),
        ("the cloud's metadata", vec![all_slots("169.254.169.254", "80")], Reason::AddressRefused),
        ("the operator itself", vec![all_slots("127.0.0.1", &trap.port().to_string())], Reason::AddressRefused),
        ("refused with our password", owned(&["-ERR hunter2\r\n"]), Reason::SourceFailed),
        (
            "moved to the operator",
            vec![all_slots("", "{port}"), redirected(&format!("MOVED 1 {trap}"))],
            Reason::AddressRefused,
        ),
        (
            "asked at the operator",
            vec![all_slots("", "{port}"), redirected(&format!("ASK 1 {trap}"))],
            Reason::AddressRefused,
        ),
        (
            "moved in circles",
            vec![[all_slots("", "{port}"), redirected("MOVED 1 :{port}")]; 4].concat(),
            Reason::SourceFailed,
        ),
    ] {
        let says: Vec<String> = std::iter::once(HELLO.to_owned()).chain(says).collect();
        let address = node(says).await;
        let url = format!("redis://:hunter2@{address}");
        let mut probe = RedisProbe::new(settings(&url), only(SECOND), std::time::Instant::now());
        let unknown = ask_within(&mut probe, &["s/g"], Duration::from_secs(2)).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
        assert!(unknown.message.contains(&address.to_string()), "{what}: {}", unknown.message);
    }
    assert_eq!(caught.load(Ordering::Relaxed), 0, "it heard nothing that it could have answered");
}

#[tokio::test]
async fn checkpoints_and_version_pointers_are_on_whichever_node_has_their_slot() {
    let settings = settings(&cluster().nodes[0].url());
    let store = Arc::new(RedisStore::new(settings.identity(), loopback()));
    let mut locations = Vec::new();
    for place in 0..3 {
        let (value, hash) = (cluster().key_on(place, "value").unwrap(), cluster().key_on(place, "hash").unwrap());
        run(&cluster().nodes[place], &[format!("SET {value} 4{place}"), format!("HSET {hash} orders 5{place}")]);
        for (key, part) in [(value, RedisPart::Value), (hash, RedisPart::Field("orders".to_owned()))] {
            locations.push(CheckpointLocation::Redis(RedisLocation { key, part, rows: CheckpointRows::One }));
        }
    }
    let checkpoints = CheckpointStore::Redis(Arc::clone(&store));
    let mut read = checkpoints.read(&locations.iter().cloned().collect(), Instant::now() + DEADLINE).await;
    for (location, position) in locations.iter().zip([40, 50, 41, 51, 42, 52]) {
        let found = read.remove(location).unwrap().unwrap();
        assert_eq!(found.state, CheckpointState::Committed(vec![Position(position)]), "{location:?}");
    }
    for place in 0..3 {
        let key = cluster().key_on(place, "current").unwrap();
        let switch = PointerSwitch::new(Arc::clone(&store), &key);
        let soon = || Instant::now() + DEADLINE;
        assert_eq!(switch.switch(None, "v1:", soon()).await, Ok(Switched::Now));
        assert_eq!(switch.switch(Some("v1:"), "v2:", soon()).await, Ok(Switched::Now));
        assert_eq!(cluster().nodes[place].run(&format!("GET {key}")).unwrap().text(), "v2:");
    }
}
