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

/// What `workers` are worth, in full workers: `S / ceil(S / n)`.
pub(super) fn worth(workers: u32, shards: Option<u32>) -> f64 {
    match shards.filter(|shards| *shards > 0) {
        Some(_) if workers == 0 => 0.0,
        Some(shards) => f64::from(shards) / f64::from(shards.div_ceil(workers)),
        None => f64::from(workers),
    }
}

/// The smallest number that is not less than `workers` and worth more than every smaller one, unless that is more than `most`.
pub(super) fn round_up(workers: u32, shards: Option<u32>, most: u32) -> u32 {
    let useful = |n: &u32| *n <= 1 || worth(*n, shards) > worth(*n - 1, shards);
    (workers..=most).find(useful).unwrap_or(workers.min(most))
}

/// Shards of which one has more to do than the others, each load in full workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Uneven {
    pub(super) shards: u32,
    pub(super) hottest: f64,
    /// The mean of the others.
    pub(super) other: f64,
}

/// A worker counts as the hottest shard's own when the other shards that it holds take no more of it than this.
const NEARLY_OWN: f64 = 0.1;

impl Uneven {
    /// One shard has more to do than one worker can, so that no number of workers is enough.
    pub(super) fn too_hot(&self) -> bool {
        self.hottest > 1.0
    }

    /// The same, while one worker each is enough for the others on average.
    pub(super) fn only_hottest_too_hot(&self) -> bool {
        self.too_hot() && self.other <= 1.0
    }

    /// True when no worker is overloaded with this many.
    pub(super) fn suffice(&self, workers: u32) -> bool {
        self.hottest + self.others(workers) <= 1.0
    }

    /// What the shards that share the hottest one's worker have to do.
    fn others(&self, workers: u32) -> f64 {
        f64::from(self.shards.div_ceil(workers.max(1)).max(1) - 1) * self.other
    }

    /// The smallest number of workers, at most `most`, whose heaviest one is not overloaded. Shards are dealt out by their number, not by what
    /// they hold, so that the hottest shares its worker with as many others as any shard does. Where the hottest is too hot in itself, the
    /// smallest number that serves the others and leaves it nearly a worker of its own: more would not help.
    pub(super) fn useful_workers(&self, most: u32) -> u32 {
        let enough = |workers: &u32| self.suffice(*workers) || self.others(*workers) <= NEARLY_OWN;
        let most = most.clamp(1, self.shards.max(1));
        let workers = (1..=most).find(enough).unwrap_or(most);
        // None that adds nothing.
        useful_workers(worth(workers, Some(self.shards)), Some(self.shards), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_up_to_a_number_that_differs() {
        for (workers, most, expected) in [(0, 24, 0), (1, 24, 1), (7, 24, 8), (13, 24, 24), (13, 20, 13), (12, 24, 12)]
        {
            assert_eq!(round_up(workers, Some(24), most), expected, "{workers} of {most}");
        }
        assert_eq!(round_up(7, None, 24), 7);
    }

    #[test]
    fn by_the_heaviest_worker_where_loads_are_known() {
        let even = |total: f64| Uneven { shards: 24, hottest: total / 24.0, other: total / 24.0 };
        for total in [0.5, 1.0, 3.9, 4.7, 4.9, 11.0, 13.0, 23.0] {
            let workers = even(total).useful_workers(24);
            assert_eq!(workers, useful_workers(total - 1e-9, Some(24), 24), "{total}: as equal shards are");
        }
        let uneven = Uneven { shards: 24, hottest: 0.8, other: 0.1 };
        assert!(!uneven.too_hot());
        assert_eq!(uneven.useful_workers(24), 8, "with two others it is full");
        assert_eq!(uneven.useful_workers(6), 6);
    }

    #[test]
    fn no_more_workers_than_help_where_one_shard_is_too_hot() {
        let hot = Uneven { shards: 24, hottest: 1.4, other: 0.05 };
        assert!(hot.too_hot());
        assert_eq!(hot.useful_workers(24), 8, "two others take a tenth of its worker");
        assert_eq!(Uneven { other: 0.0, ..hot }.useful_workers(24), 1);
        assert_eq!(Uneven { other: 0.5, ..hot }.useful_workers(24), 24);
    }

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
