//! What is done next, case by case; and what is done after a crash at any moment.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::{
    api::{RunStatus, RunWorkers},
    resolve::ParityRule,
};

const MINUTE: Duration = Duration::from_secs(60);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn rules(wanted: &str) -> RolloutRules {
    RolloutRules {
        wanted: wanted.into(),
        fresh_below: Duration::from_secs(5),
        promote_after: Some(MINUTE),
        parity: None,
        promote: None,
        roll_back: None,
        keep_old: 60 * MINUTE,
        deadline: None,
        remove_failed: false,
        suspended: false,
    }
}

fn run(version: &str, role: RunRole, since: i64) -> RunStatus {
    RunStatus {
        version: version.to_owned(),
        role,
        since: Time(at(since)),
        staleness_seconds: None,
        pending: None,
        drain_seconds: None,
        progress: None,
        slowed: None,
        workers: RunWorkers::default(),
        message: None,
    }
}

fn status(serving: &str, runs: &[RunStatus]) -> ProjectionStatus {
    ProjectionStatus { version: Some(serving.to_owned()), runs: runs.to_vec(), ..ProjectionStatus::default() }
}

/// What is there, besides the rules.
#[derive(Clone)]
struct There {
    runs: Vec<Arc<str>>,
    shown: Option<Arc<str>>,
    status: ProjectionStatus,
}

fn there(runs: &[&str], shown: Option<&str>, status: ProjectionStatus) -> There {
    There { runs: runs.iter().map(|run| Arc::from(*run)).collect(), shown: shown.map(Arc::from), status }
}

impl There {
    fn next(&self, rules: &RolloutRules, fresh_for: Option<Duration>, now: i64) -> Next {
        self.compared(rules, fresh_for, &Parity::default(), now)
    }

    fn compared(&self, rules: &RolloutRules, fresh_for: Option<Duration>, parity: &Parity, now: i64) -> Next {
        let There { runs, shown, status } = self;
        next(&Facts {
            rules,
            runs,
            shown: shown.as_deref(),
            status,
            fresh_for,
            parity,
            comes_back_changed: false,
            now: at(now),
        })
    }
}

fn switch(from: Option<&str>, to: &str) -> Step {
    Step::Switch { from: from.map(Arc::from), to: to.into() }
}

fn remove(version: &str) -> Step {
    Step::Remove(version.into())
}

use RunRole::{Candidate, Live, Old};

#[test]
fn a_version_is_promoted_by_the_rule_or_by_the_annotation_and_only_once_it_is_fresh() {
    let second = there(&["v1", "v2"], Some("v1"), status("v1", &[run("v1", Live, 0), run("v2", Candidate, 10)]));
    let by_hand = RolloutRules { promote_after: None, ..rules("v2") };
    let asked = |version: &str| RolloutRules { promote: Some(version.to_owned()), ..by_hand.clone() };
    let suspended = RolloutRules { suspended: true, ..asked("v2") };
    for (rules, fresh_for, step, stage) in [
        (rules("v2"), None, Step::Wait, Stage::CatchingUp),
        (rules("v2"), Some(MINUTE / 2), Step::Wait, Stage::Proving(MINUTE / 2)),
        (rules("v2"), Some(MINUTE), switch(Some("v1"), "v2"), Stage::Proving(Duration::ZERO)),
        (by_hand.clone(), Some(MINUTE * 9), Step::Wait, Stage::AwaitingPromotion),
        (asked("v2"), None, Step::Wait, Stage::CatchingUp),
        (asked("v2"), Some(Duration::ZERO), switch(Some("v1"), "v2"), Stage::Proving(Duration::ZERO)),
        (asked("v1"), Some(MINUTE * 9), Step::Wait, Stage::AwaitingPromotion),
        (suspended, Some(MINUTE * 9), Step::Wait, Stage::Suspended),
    ] {
        let next = second.next(&rules, fresh_for, 20);
        assert_eq!((next.step, next.stage, &*next.serving), (step, stage, "v1"), "{rules:?} {fresh_for:?}");
    }
}

#[test]
fn a_version_has_to_hold_the_same_unless_a_person_promotes_it_and_has_failed_where_it_does_not() {
    let second = there(&["v1", "v2"], Some("v1"), status("v1", &[run("v1", Live, 0), run("v2", Candidate, 10)]));
    let parity = Some(ParityRule { query: "select 1".into(), tolerance: 0.0 });
    let compared = RolloutRules { parity, remove_failed: true, ..rules("v2") };
    let asked = RolloutRules { promote: Some("v2".to_owned()), ..compared.clone() };
    let broken = |for_good| Parity::Broken { told: "k".to_owned(), for_good };
    let unknown = Parity::Unknown("why".to_owned());
    let now = Stage::Proving(Duration::ZERO);
    for (rules, fresh_for, parity, step, stage, compares) in [
        (&compared, None, &unknown, Step::Wait, Stage::CatchingUp, false),
        (&compared, Some(MINUTE / 2), &unknown, Step::Wait, Stage::Proving(MINUTE / 2), false),
        (&compared, Some(MINUTE), &unknown, Step::Wait, Stage::Comparing(Some("why".to_owned())), true),
        (&compared, Some(MINUTE), &Parity::Holds, switch(Some("v1"), "v2"), now.clone(), true),
        (&compared, Some(MINUTE), &broken(false), Step::Wait, Stage::Differs("k".to_owned()), true),
        (&compared, Some(MINUTE), &broken(true), remove("v2"), Stage::Failed, false),
        (&asked, Some(MINUTE), &broken(true), switch(Some("v1"), "v2"), now.clone(), false),
        (&asked, Some(Duration::ZERO), &unknown, switch(Some("v1"), "v2"), now, false),
    ] {
        let next = second.compared(rules, fresh_for, parity, 80);
        assert_eq!((next.step, next.stage, next.compares), (step, stage, compares), "{fresh_for:?} {parity:?}");
    }
    let failed = second.compared(&compared, Some(MINUTE), &broken(true), 80).remember;
    assert_eq!((failed.failed.as_deref(), failed.differs.as_deref()), (Some("v2"), Some("k")));
    let mut remembered = second;
    remembered.status.rollout = Some(failed.clone());
    let next = remembered.compared(&compared, None, &unknown, 90);
    assert_eq!((next.stage, next.remember), (Stage::Failed, failed), "also where it is not known any more");
    for another in [("select 2", 0.0), ("select 1", 0.1)] {
        let parity = Some(ParityRule { query: another.0.into(), tolerance: another.1 });
        let mended = RolloutRules { parity, ..compared.clone() };
        let next = remembered.compared(&mended, Some(MINUTE), &Parity::NotCompared, 90);
        assert_eq!(
            (next.stage, next.remember.failed),
            (Stage::Comparing(None), None),
            "another query is asked from the beginning"
        );
    }
    let first = there(&["v1"], None, status("v1", &[run("v1", Candidate, 0)]));
    let compared = RolloutRules { wanted: "v1".into(), ..compared };
    assert_eq!(first.compared(&compared, Some(MINUTE), &unknown, 80).step, switch(None, "v1"), "there is no other");
}

#[test]
fn the_first_version_is_promoted_by_the_same_rule_and_in_place_of_none() {
    let first = there(&["v1"], None, status("v1", &[run("v1", Candidate, 0)]));
    assert_eq!(first.next(&rules("v1"), Some(MINUTE), 70).step, switch(None, "v1"));
    let shown = There { shown: Some("v1".into()), ..first };
    let next = shown.next(&rules("v1"), Some(MINUTE), 71);
    assert_eq!((next.step, next.stage), (Step::Wait, Stage::Promoted));
    assert_eq!(next.roles["v1"], (Live, at(71)));
}

#[test]
fn the_status_is_about_what_readers_see_also_where_its_spec_was_lost_and_not_where_there_never_was_a_run() {
    let lost = there(&["v2"], Some("v1"), status("v1", &[run("v1", Live, 0)]));
    assert_eq!(&*lost.next(&rules("v2"), None, 20).serving, "v1");
    let before = there(&["v2"], Some("v1"), ProjectionStatus::default());
    let next = before.next(&rules("v2"), Some(MINUTE), 20);
    assert_eq!((&*next.serving, next.step), ("v2", switch(Some("v1"), "v2")), "of a Projection that was deleted");
}

#[test]
fn a_run_that_was_made_without_its_spec_being_stored_is_not_shown() {
    let second = there(&["v1"], Some("v1"), status("v1", &[run("v1", Live, 0)]));
    assert_eq!(second.next(&rules("v2"), Some(MINUTE), 20).step, Step::Wait);
}

#[test]
fn the_one_before_is_kept_and_removed_once_its_time_is_over_and_never_while_readers_see_it() {
    let after = there(&["v1", "v2"], Some("v2"), status("v2", &[run("v1", Old, 0), run("v2", Live, 0)]));
    let next = after.next(&rules("v2"), None, 3_599);
    assert_eq!((next.step, next.again), (Step::Wait, Some(Duration::from_secs(1))));
    assert_eq!(after.next(&rules("v2"), None, 3_600).step, remove("v1"));
    // By the status it is the old one, and readers see it all the same: another operator led them back.
    let back = There { shown: Some("v1".into()), ..after.clone() };
    assert_eq!(back.next(&RolloutRules { promote_after: None, ..rules("v2") }, None, 9_999).step, Step::Wait);
    let none = There { shown: None, ..after };
    assert_eq!(none.next(&rules("v2"), None, 9_999).step, Step::Wait, "views that were dropped are no reason");
}

#[test]
fn another_candidate_replaces_a_candidate_and_never_what_readers_see_or_saw() {
    let said = [run("v1", Live, 0), run("v2", Candidate, 10)];
    let third = there(&["v1", "v2", "v3"], Some("v1"), status("v1", &said));
    let next = third.next(&rules("v3"), None, 20);
    assert_eq!(next.step, remove("v2"));
    let roles: Vec<_> = next.roles.iter().map(|(version, (role, _))| (&**version, *role)).collect();
    assert_eq!(roles, [("v1", Live), ("v2", Candidate), ("v3", Candidate)]);
    let said = [run("v1", Old, 0), run("v2", Live, 0)];
    let third = there(&["v1", "v2", "v3"], Some("v2"), status("v2", &said));
    assert_eq!(third.next(&rules("v3"), None, 20).step, Step::Wait);
    // Before any was shown.
    let first = there(&["v1", "v2"], None, status("v1", &[run("v1", Candidate, 0)]));
    let next = first.next(&rules("v2"), None, 20);
    assert_eq!((next.step, &*next.serving), (remove("v1"), "v2"));
    let unknown = there(&["v0", "v1"], Some("v1"), status("v1", &[run("v1", Live, 0)]));
    let next = unknown.next(&rules("v1"), None, 20);
    assert_eq!(
        (next.step, next.roles["v0"]),
        (Step::Wait, (Old, at(20))),
        "one that nothing is known of may be of use"
    );
}

#[test]
fn the_annotation_leads_readers_back_at_once_and_only_once() {
    let back_to = |version: &str| RolloutRules { roll_back: Some(version.to_owned()), ..rules("v2") };
    let after = there(&["v1", "v2"], Some("v2"), status("v2", &[run("v1", Old, 0), run("v2", Live, 0)]));
    assert_eq!(after.next(&back_to("v1"), Some(MINUTE * 9), 20).step, switch(Some("v2"), "v1"));
    let refused = after.next(&back_to("v0"), Some(MINUTE * 9), 20);
    assert_eq!(refused.step, Step::Wait);
    assert!(refused.no_rollback.is_some_and(|why| why.contains("version v0")));
    // Done; the status does not say so yet.
    let back = There { shown: Some("v1".into()), ..after };
    let next = back.next(&back_to("v1"), Some(MINUTE * 9), 21);
    assert_eq!((&next.step, &next.stage, &*next.serving), (&Step::Wait, &Stage::RolledBack, "v1"));
    assert_eq!(next.remember.rolled_back_from.as_deref(), Some("v2"));
    // And as long as the annotation stays, also with the one that promotes.
    let said = ProjectionStatus {
        rollout: Some(next.remember),
        ..status("v1", &[run("v1", Live, 21), run("v2", Candidate, 21)])
    };
    let remembered = There { status: said.clone(), ..back };
    let both = RolloutRules { promote: Some("v2".to_owned()), ..back_to("v1") };
    for rules in [back_to("v1"), both] {
        let next = remembered.next(&rules, Some(MINUTE * 9), 9_999);
        assert_eq!((next.step, next.stage), (Step::Wait, Stage::RolledBack));
    }
    assert_eq!(remembered.next(&rules("v2"), Some(MINUTE), 30).step, switch(Some("v1"), "v2"), "it is gone");
    // Another version is promoted, and not taken back by the annotation that was heeded before.
    let third = RolloutRules { roll_back: Some("v1".to_owned()), ..rules("v3") };
    let next = there(&["v1", "v3"], Some("v1"), said.clone()).next(&third, Some(MINUTE), 40);
    assert_eq!(next.step, switch(Some("v1"), "v3"));
    let shown = ProjectionStatus { runs: vec![run("v1", Old, 41), run("v3", Live, 41)], ..said };
    assert_eq!(there(&["v1", "v3"], Some("v3"), shown).next(&third, Some(MINUTE), 42).step, Step::Wait);
}

#[test]
fn a_version_that_is_late_has_failed_and_is_removed_where_the_spec_says_so() {
    let late = RolloutRules { deadline: Some(MINUTE), ..rules("v2") };
    let second = there(&["v1", "v2"], Some("v1"), status("v1", &[run("v1", Live, 0), run("v2", Candidate, 0)]));
    assert_eq!(second.next(&late, None, 59).stage, Stage::CatchingUp);
    let next = second.next(&late, None, 60);
    assert_eq!((&next.step, &next.stage, next.remember.failed.as_deref()), (&Step::Wait, &Stage::Failed, Some("v2")));
    let removing = RolloutRules { remove_failed: true, ..late.clone() };
    assert_eq!(second.next(&removing, None, 60).step, remove("v2"));
    let said = ProjectionStatus { rollout: Some(next.remember), ..second.status.clone() };
    let removed = there(&["v1"], Some("v1"), said.clone());
    assert_eq!(removed.next(&removing, None, 61).step, Step::Wait);
    // Fresh at last: only a person promotes it now.
    let kept = There { status: said, ..second };
    assert_eq!(kept.next(&late, Some(MINUTE), 90).step, Step::Wait);
    let asked = RolloutRules { promote: Some("v2".to_owned()), ..late };
    assert_eq!(kept.next(&asked, Some(Duration::ZERO), 90).step, switch(Some("v1"), "v2"));
    assert_eq!(kept.next(&RolloutRules { wanted: "v3".into(), ..asked }, None, 90).remember.failed, None);
}

#[test]
fn a_first_version_that_is_late_stays_since_there_is_nothing_else() {
    let late = RolloutRules { deadline: Some(MINUTE), remove_failed: true, ..rules("v1") };
    let first = there(&["v1"], None, status("v1", &[run("v1", Candidate, 0)]));
    let next = first.next(&late, None, 61);
    assert_eq!((next.step, next.stage), (Step::Wait, Stage::Failed));
}

#[test]
fn the_time_to_be_promoted_in_begins_anew_when_a_version_is_no_longer_held() {
    let late = RolloutRules { deadline: Some(MINUTE), promote_after: None, ..rules("v2") };
    let runs = [run("v1", Live, 0), run("v2", Candidate, 0)];
    let taken_back = RolloutStatus {
        rolled_back_from: Some("v2".to_owned()),
        rolled_back_to: Some("v1".to_owned()),
        ..RolloutStatus::default()
    };
    let said = ProjectionStatus { rollout: Some(taken_back), ..status("v1", &runs) };
    let held = there(&["v1", "v2"], Some("v1"), said);
    let still = RolloutRules { roll_back: Some("v1".to_owned()), ..late.clone() };
    let next = held.next(&still, None, 9_000);
    assert_eq!((next.stage, next.roles["v2"]), (Stage::RolledBack, (Candidate, at(0))), "nothing is written meanwhile");
    let next = held.next(&late, None, 9_001);
    assert_eq!((next.stage, next.roles["v2"]), (Stage::CatchingUp, (Candidate, at(9_001))));
    let suspended = there(&["v1", "v2"], Some("v1"), ProjectionStatus { suspended: true, ..status("v1", &runs) });
    let next = suspended.next(&late, None, 9_000);
    assert_eq!((next.stage, next.roles["v2"]), (Stage::CatchingUp, (Candidate, at(9_000))));
}

#[test]
fn an_annotation_that_names_what_readers_see_holds_them_there_also_when_nothing_is_remembered() {
    let holds = RolloutRules { roll_back: Some("v1".to_owned()), ..rules("v2") };
    let forgotten = there(&["v1", "v2"], Some("v1"), ProjectionStatus::default());
    let next = forgotten.next(&holds, Some(MINUTE * 9), 20);
    assert_eq!((next.step, next.stage), (Step::Wait, Stage::RolledBack));
}

#[test]
fn an_annotation_that_was_heeded_before_is_told_as_such() {
    let remembered = RolloutStatus { rolled_back_to: Some("v1".to_owned()), ..RolloutStatus::default() };
    let runs = [run("v1", Old, 0), run("v3", Live, 0)];
    let third = there(&["v1", "v3"], Some("v3"), ProjectionStatus { rollout: Some(remembered), ..status("v3", &runs) });
    let next = third.next(&RolloutRules { roll_back: Some("v1".to_owned()), ..rules("v3") }, None, 20);
    assert!(next.step == Step::Wait && next.no_rollback.is_some_and(|why| why.contains("heeded once")));
}

#[test]
fn a_step_that_was_cut_off_is_the_next_one_again_and_one_that_was_done_is_found_done() {
    // From the first version to the second, back, and to the third; the status is lost at every second write, and each step is cut off once.
    let mut it = there(&["v1"], None, ProjectionStatus::default());
    let mut seen: Vec<String> = Vec::new();
    let mut shown: BTreeSet<Arc<str>> = BTreeSet::new();
    let asks =
        [rules("v1"), rules("v2"), RolloutRules { roll_back: Some("v1".to_owned()), ..rules("v2") }, rules("v3")];
    let mut now = 0;
    for rules in &asks {
        for round in 0..40 {
            now += 200;
            if !it.runs.contains(&rules.wanted) {
                it.runs.push(Arc::clone(&rules.wanted));
            }
            let next = it.next(rules, Some(MINUTE), now);
            assert_eq!(it.next(rules, Some(MINUTE), now), next, "a crash before the step");
            match &next.step {
                Step::Wait => {}
                Step::Switch { from, to } => {
                    assert_eq!(*from, it.shown, "the store would refuse it");
                    seen.push(format!("{}>{to}", from.as_deref().unwrap_or("-")));
                    it.shown = Some(Arc::clone(to));
                    shown.insert(Arc::clone(to));
                }
                Step::Remove(version) => {
                    assert_ne!(it.shown.as_ref(), Some(version), "readers use it");
                    seen.push(format!("!{version}"));
                    it.runs.retain(|run| run != version);
                }
            }
            if round % 2 == 0 {
                let shown = it.shown.clone();
                let Next { roles, serving, remember, .. } = it.next(rules, Some(MINUTE), now);
                let runs = roles.into_iter().filter(|(version, _)| it.runs.contains(version));
                let runs =
                    runs.map(|(version, (role, since))| RunStatus { since: Time(since), ..run(&version, role, 0) });
                it.status = ProjectionStatus {
                    version: Some(serving.to_string()),
                    runs: runs.collect(),
                    rollout: Some(remember),
                    ..ProjectionStatus::default()
                };
                assert_eq!(it.shown, shown);
            }
            if round == 10 && rules.roll_back.is_none() && *rules.wanted == *"v2" {
                break;
            }
        }
    }
    assert_eq!(seen, ["->v1", "v1>v2", "v2>v1", "v1>v3", "!v2", "!v1"]);
}
