//! A run that builds a new version must not harm the one that readers see: it is given fewer workers at once, and more again by and by.
//!
//! Additive-increase and multiplicative-decrease would cut a rebuild too often where the harm comes from elsewhere, and too little where it does not; so all workers but the
//! least are taken away, and each time that giving them back did harm, the next try comes later.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::Strain;

/// The version that readers see has to be well for so long before there are more workers, and again before there are more still: new workers need a while to start and to show
/// what they do.
const REST: Duration = Duration::from_secs(30);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Harm that comes within so many rests after there were more workers comes from them.
const BLAMED: u32 = 2;
/// A version that stays late for so long while the other has the least workers is late for another cause.
const ANOTHER_CAUSE: Duration = Duration::from_secs(300);
/// Waiting for a smaller part of the target is well. Between that and the target nothing changes, so that the number of workers does not go to and fro.
const WELL: f64 = 0.8;

/// What the version that readers see suffers from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Harm {
    /// Its events wait longer than its target.
    Late,
    /// Its read store refuses something for want of room.
    Strain(Strain),
}

/// How the version that readers see is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LiveHealth {
    /// Well, or ill for what another run does not cause.
    Well,
    /// Neither well nor harmed, or it is not known.
    Undecided,
    /// It suffers.
    Harmed(Harm),
}

impl LiveHealth {
    /// `staleness`: how long its oldest event has waited, where that is known. `stuck`: its checkpoint does not move although there is work, such as for an event
    /// that cannot be handled: fewer workers elsewhere do not help, and a new version may.
    pub fn of(staleness: Option<Duration>, target: Duration, stuck: bool, strain: Option<Strain>) -> Self {
        match (strain, staleness) {
            (Some(strain), _) => Self::Harmed(Harm::Strain(strain)),
            (None, _) if stuck => Self::Well,
            (None, Some(staleness)) if staleness > target => Self::Harmed(Harm::Late),
            (None, Some(staleness)) if staleness <= target.mul_f64(WELL) => Self::Well,
            (None, _) => Self::Undecided,
        }
    }
}

/// The most workers that a run may have meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Throttled {
    /// Workers.
    pub most: u32,
    /// Why.
    pub harm: Harm,
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.harm {
            Harm::Late => {
                f.write_str("the version that readers see is, or was a short while ago, later than its lag target")
            }
            Harm::Strain(strain) => {
                write!(f, "the read store refuses, or did a short while ago, {} for want of room", strain.refused())
            }
        }
    }
}

/// Follows one run that builds a new version.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    now: Option<Throttled>,
    /// Since when the other has been well.
    well: Option<Instant>,
    /// When there were more workers last, or as many as wanted.
    raised: Option<Instant>,
    /// How long it has to be well.
    rest: Option<Duration>,
    /// Since when it has been late while this one had the least workers.
    late: Option<Instant>,
}

impl Throttle {
    /// How many workers it may have, while that is fewer than `most`, which it may have without this; `least`: never fewer.
    pub fn observe(&mut self, live: LiveHealth, most: u32, least: u32, now: Instant) -> Option<Throttled> {
        let least = least.max(1);
        let rest = self.rest.unwrap_or(REST);
        let ago = |since: Option<Instant>| since.map(|since| now.saturating_duration_since(since));
        if live != LiveHealth::Harmed(Harm::Late) {
            self.late = None;
        } else if self.now.is_some_and(|now| now.most == least) || self.late.is_some() {
            let since = *self.late.get_or_insert(now);
            if now.saturating_duration_since(since) >= ANOTHER_CAUSE {
                // Fewer workers have not helped, and a new version may. It is followed again once the other has been anything but late.
                (self.now, self.well, self.raised, self.rest) = (None, None, None, None);
                return None;
            }
        }
        match live {
            LiveHealth::Harmed(harm) => {
                let blamed = ago(self.raised).is_some_and(|ago| ago < rest * BLAMED);
                // Told once of each time that there were more.
                if blamed && self.now.is_none_or(|now| now.most > least) {
                    self.rest = Some((rest * 2).min(LONGEST_REST));
                }
                (self.well, self.raised) = (None, None);
                self.now = Some(Throttled { most: least, harm });
            }
            LiveHealth::Undecided => {}
            LiveHealth::Well => {
                let since = *self.well.get_or_insert(now);
                let rested = now.saturating_duration_since(since) >= rest;
                match self.now {
                    Some(throttled) if rested => {
                        self.well = Some(now);
                        self.raised = Some(now);
                        // One that may have all is not held back any more.
                        self.now = (throttled.most < most.max(least))
                            .then(|| Throttled { most: throttled.most + (throttled.most / 2).max(1), ..throttled });
                    }
                    // It did no harm for long: what comes now has another cause.
                    None if ago(self.raised).is_some_and(|ago| ago >= rest * BLAMED) => {
                        (self.rest, self.raised) = (None, None);
                    }
                    _ => {}
                }
            }
        }
        self.now.filter(|throttled| throttled.most < most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_secs(10);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The most workers by time, each second, while `live` says how the other version is.
    fn follow(most_of_all: u32, until: u64, live: impl Fn(u64, Option<u32>) -> LiveHealth) -> Vec<(u64, Option<u32>)> {
        let (mut throttle, began) = (Throttle::default(), Instant::now());
        let mut changes: Vec<(u64, Option<u32>)> = vec![(0, None)];
        for second in 0..until {
            let before = changes.last().unwrap().1;
            let most = throttle.observe(live(second, before), most_of_all, 1, began + seconds(second));
            let most = most.map(|throttled| throttled.most);
            if most != before {
                changes.push((second, most));
            }
        }
        changes
    }

    #[test]
    fn what_is_late_or_refused_is_harm_and_what_is_unknown_or_stuck_is_none() {
        let of = |staleness: Option<u64>, stuck, strain| LiveHealth::of(staleness.map(seconds), TARGET, stuck, strain);
        for (staleness, stuck, strain, expected) in [
            (Some(11), false, None, LiveHealth::Harmed(Harm::Late)),
            (Some(10), false, None, LiveHealth::Undecided),
            (Some(9), false, None, LiveHealth::Undecided),
            (Some(8), false, None, LiveHealth::Well),
            (None, false, None, LiveHealth::Undecided),
            (Some(999), true, None, LiveHealth::Well),
            (Some(0), false, Some(Strain::Writes), LiveHealth::Harmed(Harm::Strain(Strain::Writes))),
            (None, true, Some(Strain::Connections), LiveHealth::Harmed(Harm::Strain(Strain::Connections))),
        ] {
            assert_eq!(of(staleness, stuck, strain), expected, "{staleness:?} {stuck} {strain:?}");
        }
    }

    #[test]
    fn harm_takes_all_workers_but_the_least_at_once_and_they_come_back_by_and_by() {
        let late = LiveHealth::Harmed(Harm::Late);
        let changes = follow(8, 400, |second, _| if (100..160).contains(&second) { late } else { LiveHealth::Well });
        assert_eq!(
            changes,
            [(0, None), (100, Some(1)), (190, Some(2)), (220, Some(3)), (250, Some(4)), (280, Some(6)), (310, None)]
        );
    }

    #[test]
    fn what_fewer_workers_do_not_end_has_another_cause() {
        let late = LiveHealth::Harmed(Harm::Late);
        let changes = follow(8, 900, |second, _| match second {
            100..700 | 800.. => late,
            _ => LiveHealth::Well,
        });
        assert_eq!(changes, [(0, None), (100, Some(1)), (401, None), (800, Some(1))]);
        // What the read store refuses is no cause of another kind.
        let refused = LiveHealth::Harmed(Harm::Strain(Strain::Writes));
        assert_eq!(follow(8, 5_000, |_, _| refused), [(0, None), (0, Some(1))]);
    }

    #[test]
    fn what_is_neither_well_nor_late_or_not_known_changes_nothing() {
        let late = LiveHealth::Harmed(Harm::Late);
        let changes = follow(8, 5_000, |second, _| if second == 10 { late } else { LiveHealth::Undecided });
        assert_eq!(changes, [(0, None), (10, Some(1))]);
        let never = follow(8, 5_000, |_, _| LiveHealth::Undecided);
        assert_eq!(never, [(0, None)], "nor does it begin with that");
        // A moment of doubt is none in which it is well, and none that ends the rest.
        let doubt = follow(8, 70, |second, _| match second {
            10 => late,
            30 => LiveHealth::Undecided,
            _ => LiveHealth::Well,
        });
        assert_eq!(doubt, [(0, None), (10, Some(1)), (41, Some(2))]);
    }

    #[test]
    fn where_the_workers_themselves_do_the_harm_they_come_back_later_each_time_and_do_not_go_to_and_fro() {
        // More than three workers are too many, which has not been told.
        let live = |_, most: Option<u32>| match most {
            Some(most) if most <= 3 => LiveHealth::Well,
            _ => LiveHealth::Harmed(Harm::Late),
        };
        let changes = follow(8, 7_200, live);
        let cuts: Vec<u64> = changes.iter().filter(|(_, most)| *most == Some(1)).map(|(second, _)| *second).collect();
        let between: Vec<u64> = cuts.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(between.windows(2).all(|two| two[1] >= two[0]), "{between:?}");
        assert!(cuts.len() <= 8, "in two hours: {cuts:?}");
        assert!(*between.last().unwrap() >= 1_800, "{between:?}");
    }

    #[test]
    fn who_may_have_no_more_than_the_least_is_not_held_back() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let harmed = LiveHealth::Harmed(Harm::Strain(Strain::Writes));
        assert_eq!(throttle.observe(harmed, 1, 1, now), None);
        assert_eq!(throttle.observe(harmed, 5, 2, now).map(|throttled| throttled.most), Some(2));
    }
}
