//! Lists in every state, as workers that move and take their entries bring them about.

use std::time::Duration;

use projectionist::{
    api::Reason,
    api::RedisList,
    lag::Sample,
    measure::MeasureError,
    sources::{
        BatchProbe as _,
        redis::{Question, RedisProbe},
    },
};
use tokio::time::Instant;

use crate::harness::{DEADLINE, exactly, handled, probe, question, run, server};

/// What a Projection asks that reads this list, of which workers move entries to `NAME:busy` and `NAME:failed`.
fn moved(name: &str) -> Question {
    let list = RedisList {
        key: name.to_owned(),
        processing_key: Some(format!("{name}:busy")),
        dead_letter_key: Some(format!("{name}:failed")),
    };
    Question { streams: Vec::new(), lists: vec![list] }
}

/// What a Projection asks whose workers take entries off this list.
fn taken(name: &str) -> Question {
    let list = RedisList { key: name.to_owned(), processing_key: None, dead_letter_key: None };
    Question { streams: Vec::new(), lists: vec![list] }
}

async fn ask(probe: &mut RedisProbe, question: &Question) -> Result<Sample, MeasureError> {
    probe.answer(&[question], Instant::now() + DEADLINE).await.pop().unwrap()
}

#[tokio::test]
async fn what_waits_and_what_workers_have_in_hand_is_pending_and_what_failed_is_parked() {
    let mut probe = probe(&server().url());
    let question = moved("jobs");
    let empty = ask(&mut probe, &question).await.unwrap();
    assert_eq!((empty.pending, empty.staleness, empty.parked), (exactly(0), Some(Duration::ZERO), Some(0)));
    run("LPUSH jobs a b c d e");
    let behind = ask(&mut probe, &question).await.unwrap();
    assert_eq!((behind.pending, behind.arrived, handled(&behind)), (exactly(5), 5, 0));
    assert_eq!(behind.staleness, None, "an entry has no time");
    run("LMOVE jobs jobs:busy RIGHT LEFT\nLMOVE jobs jobs:busy RIGHT LEFT\nLMOVE jobs jobs:busy RIGHT LEFT");
    let busy = ask(&mut probe, &question).await.unwrap();
    assert_eq!((busy.pending, handled(&busy)), (exactly(5), 0), "what a worker has in hand is not done");
    run("LREM jobs:busy 1 a\nLMOVE jobs:busy jobs:failed RIGHT LEFT");
    let failed = ask(&mut probe, &question).await.unwrap();
    assert_eq!((failed.pending, failed.parked, handled(&failed)), (exactly(3), Some(1), 2));
    run("DEL jobs jobs:busy");
    let done = ask(&mut probe, &question).await.unwrap();
    assert_eq!((done.pending, done.staleness, done.parked), (exactly(0), Some(Duration::ZERO), Some(1)));
}

#[tokio::test]
async fn without_a_list_of_work_in_progress_what_is_taken_is_done_and_several_lists_and_streams_are_summed() {
    let mut probe = probe(&server().url());
    run("RPUSH left a b c\nRPUSH right d\nXGROUP CREATE beside g 0 MKSTREAM\nXADD beside * a b");
    let mut all = question(&["beside/g"]);
    all.lists = [taken("left").lists, taken("right").lists].concat();
    let before = ask(&mut probe, &all).await.unwrap();
    assert_eq!(
        (before.pending, before.staleness, before.parked),
        (exactly(5), None, None),
        "no place of failed ones is named"
    );
    run("LPOP left\nLPOP right");
    let after = ask(&mut probe, &all).await.unwrap();
    assert_eq!((after.pending, handled(&after)), (exactly(3), 2));
}

#[tokio::test]
async fn what_is_no_list_or_may_not_be_read_is_unknown_and_the_others_are_measured() {
    run("SET no-list x\nRPUSH some-list a\nACL SETUSER lists on >hunter2 ~some-list ~no-list +time +llen");
    let mut probe = probe(&server().url_as("lists", "hunter2"));
    let (wrong, right, forbidden) = (taken("no-list"), taken("some-list"), taken("other-list"));
    let answers = probe.answer(&[&wrong, &right, &forbidden], Instant::now() + DEADLINE).await;
    let [wrong, right, forbidden] = answers.try_into().unwrap();
    let wrong = wrong.unwrap_err();
    assert_eq!(wrong.reason, Reason::InvalidSpec, "{}", wrong.message);
    assert!(wrong.message.contains("list no-list: the key holds no list"), "{}", wrong.message);
    assert_eq!(right.unwrap().pending, exactly(1), "the rights in the documentation suffice");
    let forbidden = forbidden.unwrap_err();
    assert_eq!(forbidden.reason, Reason::PermissionDenied, "{}", forbidden.message);
    assert!(include_str!("../../docs/sources/redis.md").contains("~jobs +llen +time"), "the page lists the rights");
    run("ACL SETUSER lists -llen");
    assert_eq!(ask(&mut probe, &taken("some-list")).await.unwrap_err().reason, Reason::PermissionDenied);
}
