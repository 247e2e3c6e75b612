//! What usually comes at this time of the hour or day: workers that take their time to start are there before the events.
//!
//! The period is cut into slots, and the mean rate of each is remembered from period to period. Nothing is expected of a slot that was never seen as
//! a whole. The pattern only ever adds workers: the expected rate counts where it is higher than the actual one.

use std::time::Duration;

use super::as_float;

/// How far the pattern reaches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LookAhead {
    /// Each hour is like the last ones, minute by minute.
    Hourly,
    /// Each day is like the last ones, quarter by quarter of an hour.
    Daily,
}

impl LookAhead {
    /// Seconds of a slot, and how many there are.
    fn slots(self) -> (i64, usize) {
        match self {
            Self::Hourly => (60, 60),
            Self::Daily => (900, 96),
        }
    }
}

/// The newest period counts as much as all before it.
const WEIGHT: f64 = 0.5;
/// A slot is known as a whole when at most this share of it went by unseen.
const UNSEEN: f64 = 0.1;

/// Learns a pattern, by the wall clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Pattern {
    of: Option<LookAhead>,
    rates: Vec<Option<f64>>,
    open: Option<Open>,
}

/// The slot that is being seen.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Counted since 1970.
    number: i64,
    /// When it was first seen, as a second since 1970, and the counter of arrivals then.
    since: f64,
    arrived: u64,
    /// The newest look.
    latest: (f64, u64),
}

impl Pattern {
    /// Takes in the counter of arrivals at a time of the wall clock, in seconds since 1970.
    pub(super) fn observe(&mut self, of: Option<LookAhead>, now: f64, arrived: u64) {
        if self.of != of {
            *self = Self { of, ..Self::default() };
        }
        let Some((length, count)) = of.map(LookAhead::slots) else { return };
        self.rates.resize(count, None);
        let number = slot(now, length);
        let begins = Open { number, since: now, arrived, latest: (now, arrived) };
        match &mut self.open {
            // Neither the counter nor the clock may have started again.
            Some(open) if now < open.latest.0 || arrived < open.latest.1 => self.open = Some(begins),
            Some(open) if open.number == number => open.latest = (now, arrived),
            Some(open) => {
                let closed = *open;
                self.open = Some(begins);
                self.close(closed, length);
            }
            None => self.open = Some(begins),
        }
    }

    fn close(&mut self, open: Open, length: i64) {
        let (until, arrived) = open.latest;
        let seen = until - open.since;
        if seen < seconds(length) * (1.0 - UNSEEN) {
            return;
        }
        let rate = as_float(arrived - open.arrived) / seen;
        if let Some(known) = index(open.number, self.rates.len()).and_then(|index| self.rates.get_mut(index)) {
            *known = Some(known.map_or(rate, |before| before + WEIGHT * (rate - before)));
        }
    }

    /// The highest rate that is expected from `now` to `ahead` later, in events per second, as far as known.
    pub(super) fn expected(&self, now: f64, ahead: Duration) -> Option<f64> {
        let (length, count) = self.of?.slots();
        let (first, last) = (slot(now, length), slot(now + ahead.as_secs_f64(), length));
        let slots = (first..=last).take(count);
        slots.filter_map(|number| *self.rates.get(index(number, count)?)?).reduce(f64::max)
    }
}

#[allow(clippy::cast_possible_truncation)] // Seconds since 1970 fit by far.
fn slot(now: f64, length: i64) -> i64 {
    (now / seconds(length)).floor() as i64
}

#[allow(clippy::cast_precision_loss)] // At most a day.
fn seconds(length: i64) -> f64 {
    length as f64
}

fn index(number: i64, count: usize) -> Option<usize> {
    usize::try_from(number.rem_euclid(i64::try_from(count).ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 3_600;
    const AHEAD: Duration = Duration::from_secs(20);

    /// A rate for each second of this many hours, looked at every five seconds.
    fn seen(hours: u32, rate: impl Fn(u32, u32) -> u64, looks: impl Fn(u32) -> bool) -> Pattern {
        let (mut pattern, mut arrived) = (Pattern::default(), 0);
        for second in 0..=hours * HOUR {
            if second % 5 == 0 && looks(second) {
                pattern.observe(Some(LookAhead::Hourly), f64::from(second), arrived);
            }
            arrived += rate(second / HOUR, second % HOUR);
        }
        pattern
    }

    /// A minute of 500 events a second, half an hour past, and 10 otherwise.
    fn peak(_: u32, second: u32) -> u64 {
        if (1_800..1_860).contains(&second) { 500 } else { 10 }
    }

    #[test]
    fn what_came_at_this_minute_of_the_last_hour_is_expected_before_it_comes() {
        let pattern = seen(1, peak, |_| true);
        let at = |second: u32| pattern.expected(f64::from(HOUR + second), AHEAD).unwrap();
        assert!((at(600) - 10.0).abs() < 0.1, "{}", at(600));
        assert!((at(1_790) - 500.0).abs() < 50.0, "twenty seconds ahead: {}", at(1_790));
        assert!((at(1_770) - 10.0).abs() < 0.1, "and no sooner: {}", at(1_770));
    }

    #[test]
    fn what_was_never_seen_as_a_whole_is_not_expected() {
        assert_eq!(Pattern::default().expected(0.0, AHEAD), None);
        let gap = seen(1, peak, |second| !(1_795..1_830).contains(&second));
        assert_eq!(gap.expected(f64::from(HOUR + 1_805), AHEAD), None, "half of the minute is not known");
        let pattern = seen(1, peak, |second| second < 1_700);
        assert_eq!(pattern.expected(f64::from(HOUR + 1_805), AHEAD), None, "the hour was not over");
    }

    #[test]
    fn a_peak_that_does_not_come_back_fades() {
        let pattern = seen(4, |hour, second| if hour == 0 { peak(0, second) } else { 10 }, |_| true);
        let expected = pattern.expected(f64::from(4 * HOUR + 1_805), AHEAD).unwrap();
        assert!(expected > 10.0 && expected < 100.0, "{expected}");
    }

    #[test]
    fn another_period_and_a_counter_that_was_reset_forget() {
        let mut pattern = seen(1, peak, |_| true);
        pattern.observe(Some(LookAhead::Hourly), f64::from(HOUR + 5), 3);
        assert!(pattern.expected(f64::from(HOUR + 1_805), AHEAD).is_some(), "what is known stays");
        pattern.observe(Some(LookAhead::Daily), f64::from(HOUR + 10), 4);
        assert_eq!(pattern.expected(f64::from(HOUR + 1_805), AHEAD), None);
        pattern.observe(None, f64::from(HOUR + 15), 5);
        assert_eq!(pattern.expected(f64::from(HOUR + 1_805), AHEAD), None);
    }
}
