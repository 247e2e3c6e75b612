//! One shard: which events of the log are its own, how far they are handled, and how far that is committed.

use std::collections::VecDeque;

use super::log::Arrivals;

/// Work that is this near to a whole event is done: sums of fractions are not exact.
const WHOLE: f64 = 1e-6;
/// When a shard keeps this many stretches, each two become one: its oldest and its newest event stay where they are, those between lie evenly.
const MOST_STRETCHES: usize = 16_384;

/// Events of one shard, evenly apart in the log.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stretch {
    /// The position of the first.
    first: f64,
    /// From one to the next.
    step: f64,
    count: f64,
}

impl Stretch {
    fn last(&self) -> f64 {
        self.first + self.step * (self.count - 1.0)
    }

    fn joined(self, later: Self) -> Self {
        let count = self.count + later.count;
        Self { first: self.first, step: (later.last() - self.first) / (count - 1.0).max(1.0), count }
    }
}

/// One shard.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    /// Events that are not wholly handled, oldest first.
    waiting: VecDeque<Stretch>,
    /// Whole events that have arrived.
    arrived: f64,
    /// Events handled; the fraction is work begun on the next.
    done: f64,
    /// Whole events that are handled and committed.
    committed: f64,
    /// The position of the oldest event that is handled and not committed.
    oldest_handled: Option<f64>,
    /// The position of the last event that is handled.
    last_handled: f64,
    /// Up to here its worker knows that all is handled.
    known: f64,
    /// What `last_handled` and `known` were at the last commit.
    committed_last: f64,
    committed_known: f64,
    /// Where in the line of arrivals the oldest that waits was found, and the oldest that is not committed.
    knot: usize,
    committed_knot: usize,
    /// The highest position reported, which never goes back.
    told: f64,
}

impl Shard {
    /// The next events of the log, from `position` on, are this shard's.
    pub(super) fn arrive(&mut self, position: f64, count: f64) {
        if count < 1.0 {
            return;
        }
        self.arrived += count;
        let come = Stretch { first: position, step: 1.0, count };
        match self.waiting.back_mut() {
            Some(last) if last.last() + 1.0 >= position && (last.step - 1.0).abs() < WHOLE => last.count += count,
            _ => self.waiting.push_back(come),
        }
        if self.waiting.len() > MOST_STRETCHES {
            let pairs = self.waiting.make_contiguous().chunks(2);
            self.waiting = pairs.filter_map(|pair| pair.iter().copied().reduce(Stretch::joined)).collect();
        }
    }

    /// Events of work that can be done now.
    pub(super) fn waiting(&self) -> f64 {
        self.arrived - self.done
    }

    /// The position of the oldest event that is not wholly handled.
    pub(super) fn next(&self) -> Option<f64> {
        self.waiting.front().map(|stretch| stretch.first)
    }

    /// What is left to do of the event that is begun, or of the next: above 0, at most 1.
    pub(super) fn left_of_next(&self) -> f64 {
        1.0 - self.done.fract()
    }

    /// Does `events` of work, at most what is there.
    pub(super) fn work(&mut self, events: f64) {
        let before = self.done.floor();
        self.done = (self.done + events).min(self.arrived);
        if self.done.round() - self.done < WHOLE && self.done.round() > self.done {
            self.done = self.done.round();
        }
        let mut whole = self.done.floor() - before;
        while whole > 0.0
            && let Some(stretch) = self.waiting.front_mut()
        {
            let handled = whole.min(stretch.count);
            self.oldest_handled.get_or_insert(stretch.first);
            self.last_handled = stretch.first + stretch.step * (handled - 1.0);
            self.known = self.known.max(self.last_handled);
            stretch.first += stretch.step * handled;
            stretch.count -= handled;
            whole -= handled;
            if stretch.count < 1.0 {
                self.waiting.pop_front();
            }
        }
    }

    /// Its worker has all events up to `position` in hand. Where none of them is this shard's, all of the shard's are handled up to there. Where some
    /// are, it knows no more than how far it has come with them.
    pub(super) fn fetched(&mut self, position: f64) {
        if self.next().is_none_or(|next| next > position) {
            self.known = self.known.max(position);
        }
    }

    /// The positions of the oldest events that wait, at most `most`.
    pub(super) fn first_waiting(&self, most: usize) -> impl Iterator<Item = f64> {
        let positions = |stretch: &Stretch| {
            let stretch = *stretch;
            std::iter::successors(Some(stretch.first), move |at| Some(at + stretch.step))
                .take_while(move |at| *at <= stretch.last() + WHOLE)
        };
        self.waiting.iter().flat_map(positions).take(most)
    }

    /// Events that are not wholly handled.
    pub(super) fn pending(&self) -> f64 {
        self.arrived - self.done.floor()
    }

    /// When the oldest event that is not wholly handled arrived, in seconds.
    pub(super) fn oldest(&mut self, arrivals: &Arrivals) -> Option<f64> {
        self.next().map(|position| arrivals.reached(position, &mut self.knot))
    }

    /// Commits what is wholly handled.
    pub(super) fn commit(&mut self) {
        self.committed = self.done.floor();
        self.oldest_handled = None;
        self.committed_last = self.last_handled;
        self.committed_known = self.known;
    }

    /// Events that have arrived and are not committed.
    pub(super) fn uncommitted(&self) -> f64 {
        self.arrived - self.committed
    }

    /// When the oldest event that is not committed arrived, in seconds.
    pub(super) fn oldest_uncommitted(&mut self, arrivals: &Arrivals) -> Option<f64> {
        self.next_uncommitted().map(|position| arrivals.reached(position, &mut self.committed_knot))
    }

    fn next_uncommitted(&self) -> Option<f64> {
        self.oldest_handled.or_else(|| self.next())
    }

    /// The position up to which all of the shard's events are committed: the head where all are, else that before the oldest.
    pub(super) fn following(&mut self, head: f64) -> f64 {
        self.tell(self.next_uncommitted().map_or(head, |position| position - 1.0), head)
    }

    /// The position of the last event that is committed, where the row stays.
    pub(super) fn row(&mut self, head: f64) -> f64 {
        self.tell(self.committed_last, head)
    }

    /// The position up to which its worker knew, when it committed last, that all of the shard's events were handled.
    pub(super) fn known(&mut self, head: f64) -> f64 {
        self.tell(self.committed_known, head)
    }

    fn tell(&mut self, position: f64, head: f64) -> f64 {
        self.told = self.told.max(position.floor().min(head));
        self.told
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulate::{
        log::Backlog,
        trace::{Point, Trace},
    };

    fn arrivals(rates: &[f64]) -> Arrivals {
        let points = rates.iter().map(|arriving| Point { arriving: *arriving, per_worker: None }).collect();
        Arrivals::new(&Trace::new(Duration::from_secs(10), points).unwrap(), Backlog::default())
    }

    /// Every second event of the first ten is this shard's, beginning with the second. One comes a second.
    fn every_second() -> (Arrivals, Shard) {
        let mut shard = Shard::default();
        [2.0, 4.0, 6.0, 8.0, 10.0].into_iter().for_each(|position| shard.arrive(position, 1.0));
        (arrivals(&[1.0, 1.0]), shard)
    }

    #[test]
    fn the_oldest_event_that_waits_is_told_exactly() {
        let (line, mut shard) = every_second();
        assert_eq!((shard.pending(), shard.oldest(&line)), (5.0, Some(2.0)), "every second event is this shard's");
        shard.work(1.5);
        assert_eq!((shard.pending(), shard.oldest(&line)), (4.0, Some(4.0)), "half done is not done");
        assert!((shard.left_of_next() - 0.5).abs() < 1e-9);
        shard.work(0.5);
        assert_eq!((shard.pending(), shard.oldest(&line)), (3.0, Some(6.0)));
        shard.work(99.0);
        assert_eq!((shard.pending(), shard.oldest(&line)), (0.0, None), "no more work than there is");
    }

    #[test]
    fn what_is_not_committed_waits_as_seen_from_outside() {
        let (line, mut shard) = every_second();
        shard.work(3.5);
        assert_eq!((shard.pending(), shard.uncommitted(), shard.oldest_uncommitted(&line)), (2.0, 5.0, Some(2.0)));
        shard.commit();
        assert_eq!((shard.uncommitted(), shard.oldest_uncommitted(&line)), (2.0, Some(8.0)), "half done is not done");
        assert_eq!((shard.row(11.0), shard.clone().following(11.0)), (6.0, 7.0), "the third event came sixth");
        shard.work(9.0);
        shard.commit();
        assert_eq!((shard.row(11.0), shard.clone().following(11.0)), (10.0, 11.0), "all is done");
        assert_eq!((shard.uncommitted(), shard.oldest_uncommitted(&line)), (0.0, None));
    }

    #[test]
    fn a_worker_knows_that_a_shard_is_quiet_once_it_has_looked_and_tells_it_when_it_commits() {
        let (_, mut shard) = every_second();
        shard.fetched(11.0);
        shard.work(3.0);
        shard.commit();
        assert!((shard.known(11.0) - 6.0).abs() < 1e-9, "an event after the sixth waits: it may be the seventh");
        shard.work(2.0);
        shard.fetched(11.0);
        assert!((shard.known(15.0) - 6.0).abs() < 1e-9, "nothing is committed since");
        shard.commit();
        shard.fetched(15.0);
        assert!((shard.known(15.0) - 11.0).abs() < 1e-9, "what it saw before it committed");
    }

    #[test]
    fn what_waits_for_long_takes_no_more_memory_and_stays_where_it_is() {
        let mut shard = Shard::default();
        for event in 1..=200_000_u32 {
            shard.arrive(f64::from(event) * 3.0, 1.0);
        }
        assert!(shard.waiting.len() <= MOST_STRETCHES);
        assert_eq!((shard.next(), shard.waiting()), (Some(3.0), 200_000.0));
        shard.work(199_999.0);
        let last = shard.next().unwrap();
        assert!((last - 600_000.0).abs() < 1e-3, "{last}");
    }

    #[test]
    fn checkpoints_never_go_back_nor_beyond_the_head() {
        let line = arrivals(&[3.0, 0.5, 7.0]);
        let mut shards: Vec<Shard> = vec![Shard::default(); 4];
        let mut deals = crate::simulate::deal::Deals::new(&[1.0; 4]);
        let mut before = vec![0.0; 4];
        for tick in 1..=60_u32 {
            let all = line.until(f64::from(tick) / 2.0);
            let head = deals.deal(&mut shards, all);
            for (shard, before) in shards.iter_mut().zip(&mut before) {
                shard.fetched(head);
                shard.work(0.7);
                shard.commit();
                let checkpoint = match tick % 3 {
                    0 => shard.row(head),
                    1 => shard.known(head),
                    _ => shard.following(head),
                };
                assert!(checkpoint >= *before && checkpoint <= head, "{checkpoint} after {before} of {head}");
                *before = checkpoint;
            }
        }
    }
}
