//! Which event is which shard's: dealt out at random, as the hash of an event's stream does, and the same each time.
//!
//! Shards that get their events in turn would be too regular. Then all workers come to their thousandth event at the same moment and stay in step,
//! and the last event of each shard is never far from the head. Of `n` events a real shard with the part `p` gets `n p`, give or take the root of
//! that, and the quietest of 24 shards has had none for about 90 events.

use super::shard::Shard;

/// The most events that are dealt out at once. Where more have come, neighbours go to the same shard.
const MOST: f64 = 1_024.0;
/// Numbers are not exact to the last digit.
const WHOLE: f64 = 1e-6;

/// Deals the log out to shards.
#[derive(Clone, Debug)]
pub(super) struct Deals {
    /// Up to which part of all each shard's reaches, from 0 to 1.
    reaches: Vec<f64>,
    dealt: f64,
    random: u64,
}

impl Deals {
    /// To shards of these weights.
    pub(super) fn new(weights: &[f64]) -> Self {
        let all: f64 = weights.iter().sum();
        let reach = |sum: &mut f64, weight: &f64| {
            *sum += weight / all;
            Some(*sum)
        };
        Self { reaches: weights.iter().scan(0.0, reach).collect(), dealt: 0.0, random: 0x2545_f491_4f6c_dd1d }
    }

    /// Deals out what has come until now; returns how many events there are, which is the position of the last.
    pub(super) fn deal(&mut self, shards: &mut [Shard], arrivals_until_now: f64) -> f64 {
        let head = (arrivals_until_now + WHOLE).floor();
        let each = if shards.len() > 1 { ((head - self.dealt) / MOST).ceil().max(1.0) } else { f64::INFINITY };
        while self.dealt < head {
            let count = each.min(head - self.dealt);
            let shard = self.next_shard();
            if let Some(shard) = shards.get_mut(shard) {
                shard.arrive(self.dealt + 1.0, count);
            }
            self.dealt += count;
        }
        self.dealt
    }

    /// The next of a row of numbers that look random (xorshift64), and whose that is.
    fn next_shard(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let part = f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        self.reaches.partition_point(|reach| *reach < part).min(self.reaches.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[f64], all: f64) -> Vec<f64> {
        let mut shards = vec![Shard::default(); weights.len()];
        Deals::new(weights).deal(&mut shards, all);
        shards.iter().map(Shard::waiting).collect()
    }

    #[test]
    fn each_event_is_one_shards_and_shards_get_their_parts_as_chance_has_it() {
        let mut shards = vec![Shard::default(); 24];
        let mut deals = Deals::new(&[1.0; 24]);
        for tick in 1..=480_u32 {
            assert!((deals.deal(&mut shards, f64::from(tick) * 50.0) - f64::from(tick) * 50.0).abs() < 1e-9);
        }
        let counts: Vec<f64> = shards.iter().map(Shard::waiting).collect();
        assert!((counts.iter().sum::<f64>() - 24_000.0).abs() < 1e-9);
        let off = |by: f64| counts.iter().filter(|count| (*count - 1_000.0).abs() > by).count();
        assert!((4..=14).contains(&off(32.0)) && off(130.0) == 0, "a third is off by the root of it: {counts:?}");
    }

    #[test]
    fn a_shard_gets_by_its_weight_and_one_alone_gets_all() {
        let counts_of_two = counts(&[1.0, 3.0], 100_000.0);
        assert!((counts_of_two[0] - 25_000.0).abs() < 1_500.0, "{counts_of_two:?}");
        assert_eq!(counts(&[1.0], 1e9), [1e9]);
    }

    #[test]
    fn a_great_many_at_once_are_dealt_out_in_no_time() {
        let counts = counts(&[1.0; 24], 1e12);
        assert!((counts.iter().sum::<f64>() - 1e12).abs() < 1.0, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 1e10), "{counts:?}");
    }
}
