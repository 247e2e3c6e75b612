//! Which shards are whose: dealt out in turn to the workers that are there, as a consumer group does with partitions.

use std::collections::BTreeSet;

/// The shards of the member `me`; none for one that is not among `members`.
pub(crate) fn of(me: i32, members: &BTreeSet<i32>, shards: i32) -> BTreeSet<i32> {
    let Some(rank) = members.iter().position(|member| *member == me) else { return BTreeSet::new() };
    let count = members.len();
    (0..shards).filter(|shard| usize::try_from(*shard).is_ok_and(|shard| shard % count == rank)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_is_one_members() {
        for count in 1..=30 {
            let members: BTreeSet<i32> = (0..count).map(|member| member * 7 + 3).collect();
            let mut all: Vec<i32> = members.iter().flat_map(|me| of(*me, &members, 24)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..24).collect::<Vec<i32>>(), "{count} members");
        }
        assert_eq!(of(1, &BTreeSet::from([2, 3]), 24), BTreeSet::new(), "who is not there has nothing");
    }
}
