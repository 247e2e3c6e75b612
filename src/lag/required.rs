//! How many workers hold the lag target, and what keeps the answer from being another one.

use std::time::Duration;

use super::{Pending, Rates, rates::as_float, useful_workers};

/// What bounded the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// More workers than shards would idle.
    Shards,
    /// The largest number allowed.
    Max,
    /// The smallest number allowed.
    Min,
    /// All events in one order: one worker.
    Ordering,
    /// This projection's share of the read store's connections.
    Connections,
    /// One shard has more to do than a worker can: more workers cannot help.
    HottestShard,
    /// The read store does no more with more workers.
    ReadStore,
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Required {
    /// How many workers, within the bounds.
    pub workers: u32,
    /// What bounded the number.
    pub limit: Limit,
    /// The sentence that explains it to a person.
    pub reason: String,
}

/// Bounds of the number of workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Range {
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) shards: Option<u32>,
    pub(super) strict: bool,
}

/// What the answer is computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    pub(super) rates: Rates,
    pub(super) pending: Pending,
    pub(super) staleness: Option<Duration>,
    pub(super) target: Duration,
    /// Workers that are ready now.
    pub(super) ready: u32,
    /// The last answer, if there was one.
    pub(super) before: Option<u32>,
    /// The checkpoint has not moved for long although there is work.
    pub(super) stuck: bool,
    /// Workers are being replaced or started.
    pub(super) rolling: bool,
}

/// The backlog is to be cleared in what is left of the target, but never faster than in this share of it: otherwise the
/// answer would grow without bound as the target comes near.
const SHORTEST_SHARE_OF_TARGET: f64 = 0.25;
/// A smaller number of workers must hold the target with this much more load than there is.
const SCALE_IN_MARGIN: f64 = 1.2;

pub(super) fn required(load: Load, range: Range) -> Required {
    let (needed, why) = needed(load, 1.0);
    let mut fit = fit(needed, range);
    if let Some(before) = load.before.filter(|before| fit.0 < *before) {
        let (with_margin, _) = self::needed(load, SCALE_IN_MARGIN);
        let cautious = self::fit(with_margin, range);
        if load.rolling || cautious.0 >= before {
            fit = (before.clamp(range.min, upper(range).max(range.min)), fit.1);
        } else {
            fit = cautious;
        }
    }
    if load.stuck {
        let held = load.before.unwrap_or(load.ready).max(range.min);
        fit.0 = fit.0.min(held.max(1));
    }
    let (workers, limit) = fit;
    Required { workers, limit, reason: sentence(workers, limit, &why, load, range) }
}

/// Full workers needed, as a real number, and why.
fn needed(load: Load, margin: f64) -> (f64, Why) {
    let target = load.target.as_secs_f64();
    let left = (target - load.staleness.unwrap_or(load.target).as_secs_f64()).max(target * SHORTEST_SHARE_OF_TARGET);
    let pending = as_float(load.pending.events);
    match (load.rates.per_worker, load.rates.arrival) {
        (Some(rate), arrival) => {
            let asked = arrival.unwrap_or(0.0) + pending / left;
            (asked * margin / rate, Why::Rates { left })
        }
        // Not learnt yet: as long as the target is in danger, double what is there; else keep it.
        (None, _) => {
            let ready = f64::from(load.ready.max(1));
            let in_danger = load.pending.events > 0
                && load.staleness.is_none_or(|staleness| staleness.as_secs_f64() > target / 2.0);
            (
                if in_danger { ready * 2.0 } else { f64::from(load.before.unwrap_or(load.ready)).min(ready) },
                Why::NotLearnt { in_danger },
            )
        }
    }
}

enum Why {
    Rates { left: f64 },
    NotLearnt { in_danger: bool },
}

fn upper(range: Range) -> u32 {
    let ordering = if range.strict { 1 } else { u32::MAX };
    range.max.min(range.shards.unwrap_or(u32::MAX)).min(ordering).max(1)
}

fn fit(needed: f64, range: Range) -> (u32, Limit) {
    let top = upper(range);
    let shards = if range.strict { None } else { range.shards };
    let workers = useful_workers(needed, shards, top);
    let (bounded, worth) = (workers.max(range.min.min(top.max(range.min))), |n: u32| match shards {
        Some(shards) => f64::from(shards) / f64::from(shards.div_ceil(n.max(1))),
        None => f64::from(n),
    });
    let limit = if worth(workers) < needed {
        match range.shards {
            _ if range.strict => Limit::Ordering,
            Some(shards) if shards <= range.max => Limit::Shards,
            _ => Limit::Max,
        }
    } else if bounded > workers {
        Limit::Min
    } else {
        Limit::None
    };
    (bounded, limit)
}

fn sentence(workers: u32, limit: Limit, why: &Why, load: Load, range: Range) -> String {
    let noun = if workers == 1 { "worker" } else { "workers" };
    let pending = if load.pending.exact {
        thousands(load.pending.events)
    } else {
        format!("at most {}", thousands(load.pending.events))
    };
    let mut text = match why {
        Why::Rates { left } => format!(
            "{workers} {noun}: {:.0} events/s arrive, a worker does {:.0}/s, {pending} pending to clear in {left:.1} s",
            load.rates.arrival.unwrap_or(0.0),
            load.rates.per_worker.unwrap_or(0.0),
        ),
        Why::NotLearnt { in_danger: true } => format!(
            "{workers} {noun}: {pending} pending and what a worker does is not learnt yet, so their number is doubled while the target is in danger"
        ),
        Why::NotLearnt { in_danger: false } => {
            format!("{workers} {noun}: {pending} pending, the target is not in danger")
        }
    };
    match limit {
        Limit::None => {}
        Limit::Min => text.push_str(&format!("; minWorkers is {}", range.min)),
        Limit::Max => text.push_str(&format!("; bound by maxWorkers {}", range.max)),
        Limit::Ordering => text.push_str("; bound by ordering Strict: more workers would break the order"),
        Limit::Shards => {
            text.push_str(&format!("; bound by {} shards: more workers would idle", range.shards.unwrap_or(0)));
        }
        Limit::Connections => text.push_str("; bound by this Projection's share of the read store's connections"),
        Limit::HottestShard => {
            text.push_str("; one shard has more to do than a worker can: adding workers will not help")
        }
        Limit::ReadStore => text.push_str("; the read store does no more with more workers"),
    }
    if load.stuck {
        text.push_str("; not scaling out, since the checkpoint does not move");
    }
    text
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_secs(10);

    fn load(arrival: f64, per_worker: f64, pending: u64, staleness_seconds: u64) -> Load {
        Load {
            rates: Rates { arrival: Some(arrival), per_worker: Some(per_worker) },
            pending: Pending { events: pending, exact: true },
            staleness: Some(Duration::from_secs(staleness_seconds)),
            target: TARGET,
            ready: 1,
            before: None,
            stuck: false,
            rolling: false,
        }
    }

    fn range(min: u32, max: u32, shards: Option<u32>) -> Range {
        Range { min, max, shards, strict: false }
    }

    #[test]
    fn arrivals_and_backlog_over_what_is_left_of_the_target() {
        // (90 + 500 / (10 - 5)) / 50 = 3.8
        let answer = required(load(90.0, 50.0, 500, 5), range(1, 10, None));
        assert_eq!((answer.workers, answer.limit), (4, Limit::None));
        assert_eq!(answer.reason, "4 workers: 90 events/s arrive, a worker does 50/s, 500 pending to clear in 5.0 s");
    }

    #[test]
    fn past_the_target_the_time_left_does_not_vanish() {
        // 1000 / (10 / 4) / 50 = 8
        assert_eq!(required(load(0.0, 50.0, 1_000, 3_600), range(1, 10, None)).workers, 8);
    }

    #[test]
    fn says_what_bounds_it() {
        let heavy = load(10_000.0, 50.0, 1_840, 5);
        for (bounds, workers, limit) in [
            (range(1, 10, None), 10, Limit::Max),
            (range(1, 10, Some(6)), 6, Limit::Shards),
            (range(1, 10, Some(24)), 8, Limit::Max),
            (Range { strict: true, ..range(1, 1, Some(1)) }, 1, Limit::Ordering),
        ] {
            let answer = required(heavy, bounds);
            assert_eq!((answer.workers, answer.limit), (workers, limit), "{bounds:?}");
        }
        assert!(
            required(heavy, range(1, 10, Some(6)))
                .reason
                .ends_with("1,840 pending to clear in 5.0 s; bound by 6 shards: more workers would idle")
        );
        let quiet = required(load(1.0, 50.0, 0, 0), range(3, 10, None));
        assert_eq!((quiet.workers, quiet.limit), (3, Limit::Min));
    }

    #[test]
    fn scales_in_only_with_a_margin() {
        let steady = load(99.0, 50.0, 0, 0);
        assert_eq!(required(steady, range(1, 10, None)).workers, 2);
        assert_eq!(required(Load { before: Some(3), ..steady }, range(1, 10, None)).workers, 3, "2 would be full");
        assert_eq!(required(Load { before: Some(8), ..steady }, range(1, 10, None)).workers, 3);
        assert_eq!(required(Load { before: Some(3), ..load(80.0, 50.0, 0, 0) }, range(1, 10, None)).workers, 2);
    }

    #[test]
    fn doubles_while_in_danger_until_a_rate_is_learnt() {
        let unlearnt = Load {
            rates: Rates { arrival: Some(100.0), per_worker: None },
            ready: 2,
            before: Some(2),
            ..load(0.0, 0.0, 900, 8)
        };
        assert_eq!(required(unlearnt, range(1, 10, None)).workers, 4);
        assert_eq!(
            required(Load { staleness: Some(Duration::from_secs(1)), ..unlearnt }, range(1, 10, None)).workers,
            2
        );
        assert_eq!(
            required(Load { staleness: None, ..unlearnt }, range(1, 10, None)).workers,
            4,
            "unknown is not fine"
        );
    }

    #[test]
    fn never_scales_out_while_stuck_nor_in_while_rolling() {
        let heavy = Load { ready: 2, before: Some(2), stuck: true, ..load(500.0, 50.0, 1_000, 60) };
        assert_eq!(required(heavy, range(1, 10, None)).workers, 2);
        let quiet = Load { before: Some(6), rolling: true, ..load(0.0, 50.0, 0, 0) };
        assert_eq!(required(quiet, range(1, 10, None)).workers, 6);
    }

    #[test]
    fn a_bound_that_shrank_holds_at_once() {
        let quiet = Load { before: Some(9), rolling: true, ..load(0.0, 50.0, 0, 0) };
        assert_eq!(required(quiet, range(1, 4, None)).workers, 4);
    }
}
