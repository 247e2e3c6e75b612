//! What workers are worth when shards come whole.

/// The smallest number of workers, at most `most`, that is worth at least `needed` full workers when `shards` equal shards
/// are dealt out whole; where none is, the smallest number that is worth the most.
///
/// `n` workers on `S` shards are worth `S / ceil(S / n)`: the busiest worker has `ceil(S / n)` shards and sets the pace.
/// So of 24 shards only 1, 2, 3, 4, 5, 6, 8, 12 and 24 workers differ: 8 to 11 are worth 8.
/// `shards` of `None` (competing consumers) has no such steps. The answer is at least 1 and at most `most`, `most` being at least 1.
pub fn useful_workers(needed: f64, shards: Option<u32>, most: u32) -> u32 {
    let most = most.max(1);
    let Some(shards) = shards.filter(|shards| *shards > 0) else {
        return (1..=most).find(|n| f64::from(*n) >= needed).unwrap_or(most);
    };
    let most = most.min(shards);
    let mut shards_of_busiest = shards;
    let mut workers = 1;
    loop {
        let best = workers;
        if f64::from(shards) / f64::from(shards_of_busiest) >= needed || shards_of_busiest == 1 {
            return best;
        }
        // The next number that is worth more: the first whose busiest worker has one shard fewer.
        workers = shards.div_ceil(shards_of_busiest - 1);
        shards_of_busiest = shards.div_ceil(workers);
        if workers > most {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_only_for_numbers_that_differ() {
        let steps: Vec<u32> = (1..=24).map(|needed| useful_workers(f64::from(needed), Some(24), 24)).collect();
        assert_eq!(steps, [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24]);
    }

    #[test]
    fn none_above_the_bound_and_none_that_adds_nothing_below_it() {
        assert_eq!(useful_workers(4.5, Some(24), 24), 5, "5 workers are worth 4.8");
        assert_eq!(useful_workers(20.0, Some(24), 10), 8);
        assert_eq!(useful_workers(20.0, Some(6), 10), 6);
        assert_eq!(useful_workers(20.0, Some(1), 10), 1);
        assert_eq!(useful_workers(f64::INFINITY, Some(7), 6), 4);
    }

    #[test]
    fn competing_consumers_have_no_steps() {
        assert_eq!(useful_workers(6.2, None, 24), 7);
        assert_eq!(useful_workers(100.0, None, 24), 24);
        assert_eq!(useful_workers(0.0, None, 24), 1);
    }

    #[test]
    fn agrees_with_the_definition_for_every_small_case() {
        for shards in 1..=40_u32 {
            for most in 1..=45_u32 {
                for tenths in 0..=420_u32 {
                    let needed = f64::from(tenths) / 10.0;
                    let worth = |n: u32| f64::from(shards) / f64::from(shards.div_ceil(n));
                    let allowed = most.min(shards);
                    let best = worth(allowed);
                    let expected = (1..=allowed).find(|n| worth(*n) >= needed.min(best)).unwrap();
                    assert_eq!(
                        useful_workers(needed, Some(shards), most),
                        expected,
                        "needed {needed}, {shards} shards, at most {most}"
                    );
                }
            }
        }
    }
}
