//! What a stream and its group can be like, and what is reported.

use std::time::Duration;

use projectionist::{
    api::Reason,
    lag::{Certain, Pending},
};

use crate::harness::{ask, exactly, handled, probe, run, server};

/// Adds this many entries with IDs of the server.
fn add(stream: &str, count: usize) {
    let words = ["XADD", stream, "*", "type", "Placed"];
    server().run_all(&vec![words.as_slice(); count]).unwrap();
}

/// Gives a consumer of the group this many entries.
fn deliver(stream: &str, group: &str, consumer: &str, count: usize) -> Vec<String> {
    let answer =
        server().run(&format!("XREADGROUP GROUP {group} {consumer} COUNT {count} STREAMS {stream} >")).unwrap();
    let mut ids = Vec::new();
    if let test_cluster::redis::Answer::Array(streams) = answer {
        for stream in streams {
            let test_cluster::redis::Answer::Array(parts) = stream else { continue };
            let test_cluster::redis::Answer::Array(entries) = &parts[1] else { continue };
            for entry in entries {
                let test_cluster::redis::Answer::Array(parts) = entry else { continue };
                ids.push(parts[0].text().to_owned());
            }
        }
    }
    assert_eq!(ids.len(), count);
    ids
}

fn acknowledge(stream: &str, group: &str, ids: &[String]) {
    run(&format!("XACK {stream} {group} {}", ids.join(" ")));
}

#[tokio::test]
async fn an_empty_stream_a_group_that_is_behind_and_one_that_has_caught_up() {
    run("XGROUP CREATE plain shop 0 MKSTREAM");
    let mut probe = probe(&server().url());
    let empty = ask(&mut probe, &["plain/shop"]).await.unwrap();
    assert_eq!((empty.pending, empty.staleness), (exactly(0), Some(Duration::ZERO)));

    add("plain", 10);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let behind = ask(&mut probe, &["plain/shop"]).await.unwrap();
    assert_eq!((behind.pending, behind.arrived, handled(&behind)), (exactly(10), 10, 0));
    assert!(behind.staleness.unwrap() > Duration::ZERO, "the first entry waits, and no consumer was given it");

    let ids = deliver("plain", "shop", "a", 4);
    let given = ask(&mut probe, &["plain/shop"]).await.unwrap();
    assert_eq!((given.pending, handled(&given)), (exactly(10), 0), "what a consumer holds is not handled");

    acknowledge("plain", "shop", &ids[1..]);
    let part = ask(&mut probe, &["plain/shop"]).await.unwrap();
    assert_eq!((part.pending, handled(&part)), (exactly(7), 3));
    assert!(part.staleness.unwrap() >= given.staleness.unwrap(), "the oldest is the first, which is still held");

    acknowledge("plain", "shop", &ids[..1]);
    let rest = deliver("plain", "shop", "b", 6);
    acknowledge("plain", "shop", &rest);
    let done = ask(&mut probe, &["plain/shop"]).await.unwrap();
    assert_eq!((done.pending, done.staleness), (exactly(0), Some(Duration::ZERO)));
    assert_eq!((done.arrived, handled(&done)), (10, 10));
}

#[tokio::test]
async fn staleness_is_the_age_of_the_oldest_entry_by_the_servers_own_clock() {
    let now = || run("TIME").remove(0);
    let seconds = |answer: &test_cluster::redis::Answer| match answer {
        test_cluster::redis::Answer::Array(parts) => parts[0].text().parse::<u64>().unwrap(),
        other => panic!("{other:?}"),
    };
    let at = |ago: u64| (seconds(&now()) - ago) * 1_000;
    run(&format!(
        "XADD aged {}-0 a b
         XADD aged {}-0 a b
         XGROUP CREATE aged shop 0
         XGROUP CREATE aged late {}-0
         XREADGROUP GROUP shop one COUNT 1 STREAMS aged >",
        at(1_000),
        at(500),
        at(900)
    ));
    let mut probe = probe(&server().url());
    let about = |sample: projectionist::lag::Sample, ago: u64| {
        let age = sample.staleness.unwrap().as_secs();
        assert!((ago - 1..ago + 120).contains(&age), "{age} s and not {ago} s");
    };
    about(ask(&mut probe, &["aged/shop"]).await.unwrap(), 1_000);
    about(ask(&mut probe, &["aged/late"]).await.unwrap(), 500);
    run(&format!("XADD ahead {}-0 a b\nXGROUP CREATE ahead shop 0", (seconds(&now()) + 1_000) * 1_000));
    let ahead = ask(&mut probe, &["ahead/shop"]).await.unwrap();
    assert_eq!((ahead.pending, ahead.staleness), (exactly(1), Some(Duration::ZERO)));
    assert!(ahead.ahead_of_clock > Duration::from_secs(800), "{:?}", ahead.ahead_of_clock);
    run("XADD numbered 17-0 a b\nXGROUP CREATE numbered shop 0");
    let numbered = ask(&mut probe, &["numbered/shop"]).await.unwrap();
    assert_eq!((numbered.pending, numbered.staleness), (exactly(1), None), "IDs of the producer's own are no times");
}

#[tokio::test]
async fn without_a_stream_or_a_group_the_lag_is_unknown_and_never_zero() {
    run("SET text hello\nXADD ungrouped * a b\nXGROUP CREATE deleted shop 0 MKSTREAM");
    let mut probe = probe(&server().url());
    ask(&mut probe, &["deleted/shop"]).await.unwrap();
    run("DEL deleted");
    for (asked, reason, words) in [
        ("nowhere/shop", Reason::StreamNotFound, "stream nowhere, group shop: there is no such stream"),
        ("deleted/shop", Reason::StreamNotFound, "took its groups with it"),
        ("ungrouped/shop", Reason::NeverCommitted, "the stream has no such group"),
        ("text/shop", Reason::InvalidSpec, "the key holds no stream"),
    ] {
        let unknown = ask(&mut probe, &[asked]).await.unwrap_err();
        assert_eq!(unknown.reason, reason, "{asked}: {}", unknown.message);
        assert!(unknown.message.contains(words), "{}", unknown.message);
        assert!(unknown.message.contains(&server().address().to_string()), "{}", unknown.message);
    }
    run("XGROUP CREATE ungrouped shop $");
    let begun = ask(&mut probe, &["ungrouped/shop"]).await.unwrap();
    assert_eq!(begun.pending, exactly(0), "a group with nothing before it is a zero that is known");
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_made_again_is_counted_from_its_beginning() {
    run("XGROUP CREATE again shop 0 MKSTREAM");
    add("again", 5);
    let mut probe = probe(&server().url());
    ask(&mut probe, &["again/shop"]).await.unwrap();
    let ids = deliver("again", "shop", "a", 5);
    acknowledge("again", "shop", &ids);
    let before = ask(&mut probe, &["again/shop"]).await.unwrap();
    assert_eq!((before.pending, before.arrived, handled(&before)), (exactly(0), 0, 5));
    run("DEL again\nXGROUP CREATE again shop 0 MKSTREAM");
    add("again", 3);
    let after = ask(&mut probe, &["again/shop"]).await.unwrap();
    assert_eq!((after.pending, after.arrived, handled(&after)), (exactly(3), 3, 5), "counters never go back");
    let ids = deliver("again", "shop", "a", 2);
    acknowledge("again", "shop", &ids);
    assert_eq!(handled(&ask(&mut probe, &["again/shop"]).await.unwrap()), 7);
}

#[tokio::test]
async fn entries_that_were_trimmed_before_the_group_had_them_do_not_wait() {
    run("XGROUP CREATE trimmed shop 0 MKSTREAM");
    add("trimmed", 20);
    let ids = deliver("trimmed", "shop", "a", 4);
    acknowledge("trimmed", "shop", &ids);
    run("XTRIM trimmed MAXLEN 3");
    let told = format!("{:?}", run("XINFO GROUPS trimmed"));
    assert!(told.contains(r#"Text("lag"), Integer(16)"#), "the server's own lag counts what is gone: {told}");
    let mut probe = probe(&server().url());
    assert_eq!(ask(&mut probe, &["trimmed/shop"]).await.unwrap().pending, exactly(3));
    run("XTRIM trimmed MAXLEN 0");
    assert_eq!(ask(&mut probe, &["trimmed/shop"]).await.unwrap().pending, exactly(0));
}

#[tokio::test]
async fn a_group_that_reads_on_after_entries_were_trimmed_before_it_is_counted_and_not_believed() {
    run("XGROUP CREATE overtaken shop 0 MKSTREAM");
    add("overtaken", 200);
    let read = |count: usize| {
        let ids = deliver("overtaken", "shop", "a", count);
        acknowledge("overtaken", "shop", &ids);
    };
    read(50);
    let mut from_before = probe(&server().url());
    assert_eq!(ask(&mut from_before, &["overtaken/shop"]).await.unwrap().pending, exactly(150));
    run("XTRIM overtaken MAXLEN 100");
    add("overtaken", 1_000);
    // 1,100 are left of 1,200; the group goes on at the 101st.
    read(100);
    let mut fresh = probe(&server().url());
    for probe in [&mut from_before, &mut fresh] {
        let bound = ask(probe, &["overtaken/shop"]).await.unwrap();
        assert_eq!(bound.pending, exactly(1_000), "counted");
    }
    add("overtaken", 100);
    for probe in [&mut from_before, &mut fresh] {
        let bound = ask(probe, &["overtaken/shop"]).await.unwrap();
        let pending = bound.pending.unwrap();
        assert!(!pending.exact && (1_100..=1_150).contains(&pending.events), "{pending:?}");
        let why = bound.upper_bound.as_deref().unwrap();
        assert!(why.contains("stream overtaken, group shop: entries were trimmed"), "{why}");
    }
    read(600);
    let told = format!("{:?}", run("XINFO GROUPS overtaken"));
    for probe in [&mut from_before, &mut fresh] {
        let counted = ask(probe, &["overtaken/shop"]).await.unwrap();
        assert_eq!((counted.pending, counted.upper_bound), (exactly(500), None), "the server tells {told}");
    }
    read(500);
    for probe in [&mut from_before, &mut fresh] {
        assert_eq!(ask(probe, &["overtaken/shop"]).await.unwrap().pending, exactly(0));
    }
}

#[tokio::test]
async fn a_group_whose_place_is_known_is_exact_beyond_what_is_counted_while_what_it_has_read_is_trimmed() {
    run("XGROUP CREATE capped shop 0 MKSTREAM");
    add("capped", 2_000);
    let ids = deliver("capped", "shop", "a", 1_000);
    acknowledge("capped", "shop", &ids);
    let mut probe = probe(&server().url());
    ask(&mut probe, &["capped/shop"]).await.unwrap();
    for round in 1..=3 {
        add("capped", 500);
        run("XTRIM capped MAXLEN 2000");
        let seen = ask(&mut probe, &["capped/shop"]).await.unwrap();
        // Only what the group has read is gone after the first and the second round; the third takes entries before it.
        let expected = if round < 3 { 1_000 + round * 500 } else { 2_000 };
        assert_eq!((seen.pending, seen.upper_bound), (exactly(expected), None), "round {round}");
    }
    let ids = deliver("capped", "shop", "a", 100);
    acknowledge("capped", "shop", &ids);
    let lost = ask(&mut probe, &["capped/shop"]).await.unwrap().pending.unwrap();
    assert!(!lost.exact && lost.events >= 1_900, "{lost:?}");
}

#[tokio::test]
async fn where_the_server_has_lost_count_entries_are_counted_up_to_a_bound() {
    // Deleted ahead of the group, and a group that began in the middle.
    run("XGROUP CREATE lost shop 0 MKSTREAM");
    add("lost", 10);
    let ids = deliver("lost", "shop", "a", 10);
    run("XGROUP CREATE lost late $");
    add("lost", 6);
    let more = deliver("lost", "late", "b", 3);
    add("lost", 1);
    run(&format!("XDEL lost {}", more[1]));
    let told = format!("{:?}", run("XINFO GROUPS lost"));
    assert_eq!(told.matches(r#"Text("lag"), Nil"#).count(), 2, "NULL: {told}");
    let mut probe = probe(&server().url());
    for _ in 0..2 {
        let shop = ask(&mut probe, &["lost/shop"]).await.unwrap();
        assert_eq!(shop.pending, exactly(10 + 6), "six of seven are left");
    }
    acknowledge("lost", "shop", &ids);
    assert_eq!(ask(&mut probe, &["lost/shop"]).await.unwrap().pending, exactly(6));

    add("middle", 5);
    run("XGROUP CREATE middle shop $");
    add("middle", 1_000);
    let told = format!("{:?}", run("XINFO GROUPS middle"));
    assert!(told.contains(r#"Text("lag"), Nil"#), "NULL: {told}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let counted = ask(&mut probe, &["middle/shop"]).await.unwrap();
    assert_eq!(counted.pending, exactly(1_000));
    assert!(counted.staleness.unwrap() > Duration::ZERO);
    add("middle", 1);
    let bound = ask(&mut probe, &["middle/shop"]).await.unwrap();
    assert_eq!(bound.pending, Some(Pending { events: 1_006, exact: false }), "no more than the stream holds");
    assert_eq!(bound.certain, Some(Certain::Oldest(1_001)), "those that were counted are there");
    let why = bound.upper_bound.as_deref().unwrap();
    assert!(why.contains("stream middle, group shop: the server has lost count"), "{why}");
    assert!(bound.staleness.unwrap() > Duration::ZERO, "the first is known all the same");

    // It moves, and is exact again when it has come near the end.
    let before = handled(&bound);
    let ids = deliver("middle", "shop", "a", 1);
    acknowledge("middle", "shop", &ids);
    let moved = ask(&mut probe, &["middle/shop"]).await.unwrap();
    assert_eq!(moved.pending, exactly(1_000));
    assert!(handled(&moved) > before);
    let ids = deliver("middle", "shop", "a", 1_000);
    acknowledge("middle", "shop", &ids);
    let done = ask(&mut probe, &["middle/shop"]).await.unwrap();
    assert_eq!((done.pending, done.upper_bound), (exactly(0), None));
}

#[tokio::test]
async fn a_group_that_is_set_back_says_that_entries_are_counted_twice() {
    run("XGROUP CREATE back shop 0 MKSTREAM");
    add("back", 10);
    deliver("back", "shop", "a", 4);
    run("XGROUP SETID back shop 0");
    let mut probe = probe(&server().url());
    let back = ask(&mut probe, &["back/shop"]).await.unwrap();
    assert_eq!(back.pending, Some(Pending { events: 14, exact: false }));
    assert_eq!(back.certain, Some(Certain::Oldest(10)), "those that are held come again");
    assert!(back.upper_bound.as_deref().unwrap().contains("XGROUP SETID"), "{:?}", back.upper_bound);
    run("XGROUP SETID back shop 0 ENTRIESREAD 999");
    let wrong = ask(&mut probe, &["back/shop"]).await.unwrap();
    assert_eq!(wrong.pending, Some(Pending { events: 14, exact: false }), "a counter beyond the end is not believed");
}

#[tokio::test]
async fn entries_of_consumers_that_ended_stay_pending_and_those_of_removed_ones_are_dropped_by_the_server() {
    run("XGROUP CREATE ended shop 0 MKSTREAM");
    add("ended", 5);
    let ids_of_held = deliver("ended", "shop", "gone", 3);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let ids = deliver("ended", "shop", "alive", 2);
    acknowledge("ended", "shop", &ids);
    let mut probe = probe(&server().url());
    let held = ask(&mut probe, &["ended/shop"]).await.unwrap();
    assert_eq!(held.pending, exactly(3));
    assert!(held.staleness.unwrap() > Duration::ZERO, "they grow stale, so that the target is missed");
    run(&format!("XDEL ended {}", ids_of_held[0]));
    let deleted = ask(&mut probe, &["ended/shop"]).await.unwrap();
    assert_eq!(deleted.pending, exactly(3), "one that was deleted is held until it is acknowledged");
    run("XGROUP DELCONSUMER ended shop gone");
    let dropped = ask(&mut probe, &["ended/shop"]).await.unwrap();
    assert_eq!(dropped.pending, exactly(0), "the server forgets what a removed consumer held");
}

#[tokio::test]
async fn several_streams_are_summed_and_one_that_is_unknown_makes_the_sum_unknown() {
    run("XGROUP CREATE one shop 0 MKSTREAM\nXGROUP CREATE two other 0 MKSTREAM");
    let mut probe = probe(&server().url());
    ask(&mut probe, &["one/shop", "two/other"]).await.unwrap();
    add("one", 3);
    add("two", 4);
    let both = ask(&mut probe, &["one/shop", "two/other"]).await.unwrap();
    assert_eq!((both.pending, both.arrived), (exactly(7), 7));
    assert!(both.pending_by_shard.is_empty(), "any number of consumers share a stream");
    let half = ask(&mut probe, &["one/shop", "two/missing"]).await.unwrap_err();
    assert_eq!(half.reason, Reason::NeverCommitted);
    assert!(half.message.contains("stream two, group missing"), "{}", half.message);
}

#[tokio::test]
async fn bodies_of_any_size_are_skipped() {
    let body = "x".repeat(3 << 20);
    let add = ["XADD", "large", "*", "body", &body];
    server().run_all(&[&["XGROUP", "CREATE", "large", "shop", "0", "MKSTREAM"], &add, &add]).unwrap();
    let mut probe = probe(&server().url());
    assert_eq!(ask(&mut probe, &["large/shop"]).await.unwrap().pending, exactly(2));
    deliver("large", "shop", "a", 1);
    assert_eq!(ask(&mut probe, &["large/shop"]).await.unwrap().pending, exactly(2));
}
