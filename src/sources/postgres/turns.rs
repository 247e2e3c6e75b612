//! Which subjects of a connection are looked at in a poll, and in which order. Pure.
//!
//! All that are due, as long as there is time. Those for which there is none keep their last answer and come first in the next poll, the longest not asked
//! before the others: each has its turn, however many there are. Quick looks and slow ones have half of a poll each, so that neither keeps out the other.

use std::time::Duration;

use tokio::time::Instant;

/// Looks that take longer are slow. A look at something new is expected to take so long.
pub(super) const SLOW: Duration = Duration::from_millis(250);
/// Half of a poll: quick looks, or slow ones, take no longer together. Others wait for the connection, such as those who read checkpoints.
const SHARE: Duration = Duration::from_millis(2_500);
/// So much time is left beyond what a look is expected to take. One that is cut off at the end of the poll costs the connection.
const RESERVE: Duration = Duration::from_millis(500);
/// Two polls begin no farther apart.
const BETWEEN_POLLS: Duration = Duration::from_secs(5);

/// What is known of the looks at a subject.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// When the last look ended; absent before the first.
    pub(super) asked: Option<Instant>,
    /// How long it took.
    pub(super) took: Option<Duration>,
    /// Looks that failed, since the last that succeeded.
    pub(super) failures: u32,
    /// It was due in the last poll, which had no time left for it.
    pub(super) put_off: bool,
}

impl Turn {
    /// The least comes first. Those that failed come last, and before them the slow ones, so that neither a locked table nor a long count uses up the time of
    /// the others: but for those that were put off, which have waited since they were asked.
    pub(super) fn order(&self) -> impl Ord + use<> {
        (!self.put_off, self.asked.filter(|_| self.put_off), self.failures, self.took)
    }

    fn expected(&self) -> Duration {
        self.took.unwrap_or(SLOW)
    }

    fn is_slow(&self) -> bool {
        self.expected() > SLOW
    }
}

/// What is left of a poll.
#[derive(Debug)]
pub(super) struct Budget {
    deadline: Instant,
    /// What quick looks took, and what slow ones; absent where there was none.
    spent: [Option<Duration>; 2],
}

impl Budget {
    /// That of a poll that ends at its deadline.
    pub(super) fn until(deadline: Instant) -> Self {
        Self { deadline, spent: [None, None] }
    }

    /// Whether a look should begin now. The first of a poll may take all of it, and the first slow one what is left.
    pub(super) fn allows(&self, turn: &Turn, now: Instant) -> bool {
        let expected = turn.expected();
        let in_time = now + expected + RESERVE <= self.deadline;
        let fits = self.spent[usize::from(turn.is_slow())].is_none_or(|spent| spent + expected <= SHARE);
        self.spent == [None, None] || (in_time && fits)
    }

    /// A look has ended that was expected to be as the last one, and took so long.
    pub(super) fn take(&mut self, expected: &Turn, took: Duration) {
        let spent = &mut self.spent[usize::from(expected.is_slow())];
        *spent = Some(spent.unwrap_or_default() + took);
    }
}

/// How many there are on a connection, and how long the looks at them take together: the quick ones, and the slow.
#[derive(Debug, Default)]
pub(super) struct Load {
    known: [(u32, Duration); 2],
    /// Those that were not looked at yet.
    new: u32,
}

impl Load {
    /// That of all of these.
    pub(super) fn of(turns: impl Iterator<Item = Turn>) -> Self {
        let mut load = Self::default();
        for turn in turns {
            let (count, sum) = &mut load.known[usize::from(turn.is_slow())];
            match turn.took {
                Some(took) => (*count, *sum) = (*count + 1, *sum + took),
                None => load.new += 1,
            }
        }
        load
    }

    /// How long it may be until one that took so long is looked at again; zero where each poll has time for all like it. Those that are new are taken to be so.
    pub(super) fn round(&self, took: Duration) -> Duration {
        let (count, sum) = self.known[usize::from(took > SLOW)];
        let total = sum + took * self.new;
        if count + self.new < 2 || total <= SHARE {
            return Duration::ZERO;
        }
        let polls = total.as_millis().div_ceil(SHARE.as_millis());
        BETWEEN_POLLS * u32::try_from(polls).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(5);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Subjects that take so long each, polled again and again: at which polls each was looked at.
    fn polled(takes: &[u64], polls: usize) -> Vec<Vec<usize>> {
        let mut turns = vec![Turn::default(); takes.len()];
        let mut looked = vec![Vec::new(); takes.len()];
        let mut now = Instant::now();
        for poll in 0..polls {
            let (began, mut budget) = (now, Budget::until(now + POLL));
            let mut order: Vec<usize> = (0..takes.len()).collect();
            order.sort_by_key(|subject| turns[*subject].order());
            for subject in order {
                if !budget.allows(&turns[subject], now) {
                    turns[subject].put_off = true;
                    continue;
                }
                let took = ms(takes[subject]);
                now += took;
                assert!(now <= began + POLL, "poll {poll} has no time for {subject}");
                budget.take(&turns[subject], took);
                turns[subject] = Turn { asked: Some(now), took: Some(took), ..Turn::default() };
                looked[subject].push(poll);
            }
            now = now.max(began + ms(500));
        }
        looked
    }

    fn longest_wait(polls: &[usize]) -> usize {
        polls.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(usize::MAX)
    }

    #[test]
    fn those_that_fit_are_looked_at_in_each_poll() {
        for looked in polled(&[2; 100], 5) {
            assert_eq!(looked, [0, 1, 2, 3, 4]);
        }
        for looked in polled(&[600, 600, 600, 600], 5) {
            assert_eq!(looked, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn of_more_than_fit_each_has_its_turn() {
        // Twenty groups of 600 ms are five polls' time.
        for (subject, looked) in polled(&[600; 20], 40).iter().enumerate() {
            assert!(longest_wait(looked) <= 6, "{subject}: {looked:?}");
        }
        // A thousand of 6 ms are three.
        for (subject, looked) in polled(&[6; 1_000], 20).iter().enumerate() {
            assert!(longest_wait(looked) <= 3, "{subject}: {looked:?}");
        }
    }

    #[test]
    fn neither_slow_ones_nor_many_keep_out_the_others() {
        let mut takes = vec![600; 20];
        takes.extend([2; 5]);
        let looked = polled(&takes, 40);
        for quick in &looked[20..] {
            assert!(longest_wait(quick) <= 2, "{quick:?}");
        }
        let mut takes = vec![5; 1_000];
        takes.push(3_800);
        let looked = polled(&takes, 40);
        assert!(longest_wait(&looked[1_000]) <= 3, "{:?}", looked[1_000]);
        for quick in &looked[..1_000] {
            assert!(longest_wait(quick) <= 4, "{quick:?}");
        }
    }

    #[test]
    fn the_longest_not_asked_comes_first_then_the_quick_ones_and_last_those_that_fail() {
        let now = Instant::now();
        let turn = |put_off, asked: Option<u64>, failures, took| Turn {
            asked: asked.map(|asked| now + ms(asked)),
            took: Some(ms(took)),
            failures,
            put_off,
        };
        let in_order = [
            Turn { put_off: true, ..Turn::default() },
            turn(true, Some(1), 3, 4_000),
            turn(true, Some(2), 0, 1),
            Turn::default(),
            turn(false, Some(9), 0, 1),
            turn(false, Some(3), 0, 400),
            turn(false, Some(0), 1, 1),
        ];
        assert!(in_order.is_sorted_by_key(Turn::order));
    }

    #[test]
    fn a_look_begins_only_with_enough_time_unless_it_is_the_first() {
        let now = Instant::now();
        let takes = |took| Turn { took: Some(ms(took)), ..Turn::default() };
        let mut budget = Budget::until(now + ms(4_000));
        assert!(budget.allows(&takes(4_000), now), "the first");
        budget.take(&takes(1), ms(1));
        assert!(budget.allows(&takes(3_500), now) && !budget.allows(&takes(3_501), now), "the first slow one");
        assert!(budget.allows(&Turn::default(), now + ms(3_250)) && !budget.allows(&Turn::default(), now + ms(3_251)));
        budget.take(&takes(300), ms(2_000));
        assert!(budget.allows(&takes(500), now) && !budget.allows(&takes(501), now), "half of the poll for slow ones");
        assert!(budget.allows(&takes(200), now), "the other half for the others");
        budget.take(&takes(200), ms(2_400));
        assert!(!budget.allows(&takes(200), now));
    }

    #[test]
    fn a_round_is_told_where_not_all_fit_into_a_poll() {
        let takes = |took| Turn { took: Some(ms(took)), ..Turn::default() };
        let load = Load::of([takes(3_000), takes(2)].into_iter());
        assert_eq!([load.round(ms(3_000)), load.round(ms(2))], [Duration::ZERO; 2], "one of a kind");
        let load = Load::of([takes(600); 20].into_iter().chain([takes(2); 5]));
        assert_eq!([load.round(ms(600)), load.round(ms(2))], [ms(25_000), Duration::ZERO]);
        let first = Load::of([Turn::default(); 20].into_iter());
        assert_eq!(first.round(ms(600)), ms(25_000), "the others are as long, as far as is known");
        assert_eq!(Load::of([takes(3); 1_000].into_iter()).round(ms(3)), ms(10_000));
    }
}
