//! Which worker should own which shards: a pure rule that every worker computes for itself from what all of them see.
//!
//! No IO: what it answers is tried with guarded statements in `checkpoint`, so that a view that is out of date costs a moment and never
//! gives one shard to two workers.

use std::collections::HashMap;

/// What a worker should do about its share.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Shards to give back.
    pub release: Vec<u32>,
    /// Shards that are free, to try to take.
    pub take: Vec<u32>,
}

impl Change {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.release.is_empty() && self.take.is_empty()
    }
}

/// Compares the worker `me` with its share of the shards.
///
/// `members` are the live workers; `me` counts whether listed or not. `owners` holds each shard's owner; an owner that is not a member no longer
/// counts. Each of `n` workers gets `S / n` shards; of the rest, one each goes to the workers that hold most, so that as few shards as possible move.
pub fn change(me: &str, members: &[String], owners: &[Option<String>]) -> Change {
    let mut held: HashMap<&str, usize> = members.iter().map(|member| (member.as_str(), 0)).collect();
    held.entry(me).or_default();
    let mut mine = Vec::new();
    let mut free = Vec::new();
    for (shard, owner) in (0_u32..).zip(owners) {
        match owner.as_deref().and_then(|owner| held.get_mut(owner)) {
            Some(count) => *count += 1,
            None => free.push(shard),
        }
        if owner.as_deref() == Some(me) {
            mine.push(shard);
        }
    }
    let mut ranking: Vec<(&str, usize)> = held.into_iter().collect();
    ranking.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let rank = ranking.iter().position(|(member, _)| *member == me).unwrap_or_default();
    let share = owners.len() / ranking.len() + usize::from(rank < owners.len() % ranking.len());
    if mine.len() > share {
        return Change { release: mine.split_off(share), take: Vec::new() };
    }
    // Each worker begins elsewhere, so that workers that look at the same moment seldom try to take the same shard.
    let begin = if free.is_empty() { 0 } else { rank * free.len() / ranking.len() };
    free.rotate_left(begin);
    free.truncate(share - mine.len());
    Change { release: Vec::new(), take: free }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets every worker act in turn, as guarded statements would, until nothing changes; returns rounds and moved shards.
    fn settle(members: &[String], owners: &mut [Option<String>]) -> (usize, usize) {
        let mut moved = 0;
        for round in 0..20 {
            let mut calm = true;
            for me in members {
                let change = change(me, members, owners);
                calm &= change.is_empty();
                for shard in change.release {
                    owners[shard as usize] = None;
                    moved += 1;
                }
                for shard in change.take {
                    owners[shard as usize] = Some(me.clone());
                }
            }
            if calm {
                return (round, moved);
            }
        }
        panic!("no agreement: {owners:?}");
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("worker-{n}")).collect()
    }

    fn counts(members: &[String], owners: &[Option<String>]) -> Vec<usize> {
        members.iter().map(|me| owners.iter().filter(|owner| owner.as_ref() == Some(me)).count()).collect()
    }

    #[test]
    fn the_first_worker_takes_all_and_the_second_is_given_half() {
        let mut owners = vec![None; 24];
        assert_eq!(settle(&names(1), &mut owners).1, 0);
        assert_eq!(counts(&names(1), &owners), [24]);
        assert_eq!(settle(&names(2), &mut owners).1, 12, "no more than needed");
        assert_eq!(counts(&names(2), &owners), [12, 12]);
    }

    #[test]
    fn a_worker_that_joins_in_the_middle_moves_no_more_than_its_share() {
        let mut owners = vec![None; 24];
        let before = vec!["b".to_owned(), "d".to_owned(), "e".to_owned()];
        settle(&before, &mut owners);
        let after = ["a", "b", "c", "d", "e"].map(str::to_owned);
        assert_eq!(settle(&after, &mut owners).1, 9, "two newcomers take five and four");
    }

    #[test]
    fn shards_of_the_dead_are_free() {
        let mut owners = vec![None; 6];
        settle(&names(3), &mut owners);
        settle(&names(2), &mut owners);
        assert_eq!(counts(&names(2), &owners), [3, 3]);
    }

    #[test]
    fn one_worker_too_many_waits() {
        let mut owners = vec![None; 3];
        settle(&names(4), &mut owners);
        let mut counts = counts(&names(4), &owners);
        counts.sort_unstable();
        assert_eq!(counts, [0, 1, 1, 1]);
    }

    #[test]
    fn a_worker_that_does_not_see_itself_yet_counts_all_the_same() {
        assert_eq!(change("new", &["old".to_owned()], &[None, None]).take.len(), 1);
    }

    proptest! {
        #[test]
        fn from_any_state_all_agree_on_fair_shares(
            shards in 1_usize..60, workers in 1_usize..30, holders in proptest::collection::vec(0_usize..40, 60)
        ) {
            let members = names(workers);
            let mut owners: Vec<Option<String>> =
                holders.iter().take(shards).map(|n| (*n < 35).then(|| format!("worker-{n}"))).collect();
            let (rounds, _) = settle(&members, &mut owners);
            prop_assert!(rounds <= 4, "{rounds} rounds");
            for count in counts(&members, &owners) {
                prop_assert!((shards / workers..=shards.div_ceil(workers)).contains(&count));
            }
        }
    }
}
