//! Finds events that are committed below a position that was passed already. Pure: what to ask for and what the answers mean.
//!
//! Whatever appears late appears where no event was: at a position that was missing when it was passed. So missing positions are remembered as
//! gaps, and looked at again. Deleted events leave gaps that are not remembered, so that neither a deletion nor the return of a deleted event
//! is taken for a late one.
//!
//! Bounded: of the gaps, the highest [`MOST_GAPS`] are remembered. Where positions come from a sequence, gaps are left by rollbacks only, and reach
//! far back; where an application draws sparse positions, about as many events are covered.

use std::collections::BTreeMap;

/// More gaps than this are not remembered: the lowest are forgotten first.
pub const MOST_GAPS: usize = 10_000;
/// So many of the highest gaps are looked at each time, and the others now and then.
pub const RECENT_GAPS: usize = 1_000;

/// The gaps below a position that was passed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Gaps {
    /// First missing position → last missing position.
    ranges: BTreeMap<i64, i64>,
    /// Up to here all gaps are known, from [`Self::begin`] on.
    until: Option<i64>,
}

impl Gaps {
    /// Up to where gaps are known; `None` before [`Self::begin`].
    pub fn until(&self) -> Option<i64> {
        self.until
    }

    /// Begins to remember gaps after `position`.
    pub fn begin(&mut self, position: i64) {
        (self.ranges, self.until) = (BTreeMap::new(), Some(position));
    }

    /// Takes in the gaps between the last known position and `until`, both ends of each gap included.
    pub fn extend(&mut self, found: impl IntoIterator<Item = (i64, i64)>, until: i64) {
        self.ranges.extend(found.into_iter().filter(|(low, high)| low <= high));
        self.until = self.until.max(Some(until));
        while self.ranges.len() > MOST_GAPS {
            self.ranges.pop_first();
        }
    }

    /// The lowest and highest missing positions of the gaps to look at: of all, or of the recent ones.
    pub fn bounds(&self, all: bool) -> (Vec<i64>, Vec<i64>) {
        let most = if all { MOST_GAPS } else { RECENT_GAPS };
        self.ranges.iter().rev().take(most).map(|(low, high)| (*low, *high)).unzip()
    }

    /// True when there are gaps that are not among the recent ones.
    pub fn has_older(&self) -> bool {
        self.ranges.len() > RECENT_GAPS
    }

    /// Takes in that an event is at this position now; returns whether it was missing.
    pub fn fill(&mut self, position: i64) -> bool {
        let found = self.ranges.range(..=position).next_back().map(|(low, high)| (*low, *high));
        let Some((low, high)) = found.filter(|(_, high)| *high >= position) else { return false };
        self.ranges.remove(&low);
        if low < position {
            self.ranges.insert(low, position - 1);
        }
        if position < high {
            self.ranges.insert(position + 1, high);
        }
        true
    }
}

/// One row: how many events follow after `$1` up to `$2` (at most `$3` are looked at), the last of them, and both ends of each gap before one.
pub fn gaps_sql(table: &str, position: &str) -> String {
    format!(
        "with gap(p, low) as (
             select p, lag(p, 1, $1::bigint) over (order by p) + 1
             from (select {position}::bigint as p from {table} where {position} > $1::bigint and {position} <= $2::bigint
                   order by {position} limit $3::bigint) s
         )
         select count(*), max(p), coalesce(array_agg(low order by p) filter (where low < p), '{{}}'),
             coalesce(array_agg(p - 1 order by p) filter (where low < p), '{{}}')
         from gap"
    )
}

/// The positions of events within the gaps from `$1` to `$2`, at most `$3` of each gap and in all.
pub fn filled_sql(table: &str, position: &str) -> String {
    format!(
        "select e.p from unnest($1::bigint[], $2::bigint[]) as g(low, high)
         cross join lateral (
             select {position}::bigint as p from {table} where {position} >= g.low and {position} <= g.high
             order by {position} limit $3::bigint
         ) e
         limit $3::bigint"
    )
}

/// The position from which the newest `$2` events up to `$1` follow, itself excluded; NULL when there are fewer.
pub fn window_sql(table: &str, position: &str) -> String {
    format!(
        "select (select {position}::bigint from {table} where {position} <= $1::bigint
                 order by {position} desc offset $2::bigint limit 1)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_late_where_one_was_missing_and_only_once() {
        let mut gaps = Gaps::default();
        gaps.begin(0);
        gaps.extend([(2, 50)], 52);
        assert!(!gaps.fill(51) && !gaps.fill(1), "there was one");
        assert!(gaps.fill(3) && gaps.fill(2) && gaps.fill(50));
        assert!(!gaps.fill(3), "it is known");
        assert_eq!(gaps.bounds(true), (vec![4], vec![49]));
        gaps.extend([(60, 59), (61, 61)], 70);
        assert_eq!((gaps.bounds(true), gaps.until()), ((vec![61, 4], vec![61, 49]), Some(70)));
    }

    #[test]
    fn only_so_many_gaps_are_remembered_the_highest_of_them() {
        let mut gaps = Gaps::default();
        gaps.begin(0);
        gaps.extend((0..20_000).map(|n| (2 * n + 1, 2 * n + 1)), 40_000);
        assert!(gaps.has_older());
        assert_eq!(gaps.bounds(true).0.len(), MOST_GAPS);
        assert_eq!(gaps.bounds(false).0.first(), Some(&39_999));
        assert!(!gaps.fill(1) && gaps.fill(39_999));
    }
}
