//! How far a version has come that is being built: what part of its events it has handled, how fast its backlog shrinks, and how long that takes at this pace. Pure.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use crate::api::{RunProgress, SecondsLeft};

/// The pace is that of this time: long enough for the pauses between batches and short enough to follow a change of workers.
const WINDOW: Duration = Duration::from_secs(300);
/// Less time says nothing.
const SHORTEST: Duration = Duration::from_secs(30);
/// Looks that come faster than this say no more.
const EVERY: Duration = Duration::from_secs(2);
/// The pace of so many parts of the time is compared: how far they lie apart tells how far the pace can be relied on.
const PARTS: u32 = 6;
/// Twice the standard error of the mean: about 19 of 20 such ranges hold the mean, if the parts are independent of each other.
const ERRORS: f64 = 2.0;
/// However even the pace was, it may change: no range is narrower than this share to both sides.
const NARROWEST: f64 = 0.1;

/// A backlog, look by look.
#[derive(Clone, Debug, Default)]
pub struct Backlog(VecDeque<(Duration, u64)>);

/// How fast a backlog shrinks, in events per second; negative where it grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// On the whole.
    pub per_second: f64,
    /// This much may be added or taken away.
    pub error: f64,
}

impl Backlog {
    /// So many events wait `at` this time, on a clock that goes back only where measuring began again.
    pub fn observe(&mut self, at: Duration, pending: u64) {
        match self.0.back() {
            Some((last, _)) if *last > at => self.0.clear(),
            Some((last, _)) if at - *last < EVERY => return,
            _ => {}
        }
        self.0.push_back((at, pending));
        while self.0.get(1).is_some_and(|(second, _)| at - *second >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// It is not known how much waits: what was seen before does not belong to what will be seen.
    pub fn interrupt(&mut self) {
        self.0.clear();
    }

    /// The pace; absent until it has been watched for long enough.
    pub fn pace(&self) -> Option<Pace> {
        let ((from, first), (to, last)) = (*self.0.front()?, *self.0.back()?);
        let span = to.checked_sub(from).filter(|span| *span >= SHORTEST)?;
        let part = span / PARTS;
        let ends: Vec<f64> = (0..=PARTS).filter_map(|number| self.at(from + part * number)).collect();
        let paces: Vec<f64> = ends.windows(2).map(|two| (two[0] - two[1]) / part.as_secs_f64()).collect();
        let count = f64::from(u32::try_from(paces.len()).ok()?);
        let per_second = (float(first) - float(last)) / span.as_secs_f64();
        let squares: f64 = paces.iter().map(|pace| (pace - per_second).powi(2)).sum();
        let error = ERRORS * (squares / (count - 1.0) / count).sqrt();
        error.is_finite().then_some(Pace { per_second, error: error.max(per_second.abs() * NARROWEST) })
    }

    /// What waited then, on the line between the looks before and after.
    fn at(&self, time: Duration) -> Option<f64> {
        let after = self.0.partition_point(|(at, _)| *at < time);
        let (to, last) = *self.0.get(after).or(self.0.back())?;
        let (from, first) = *self.0.get(after.saturating_sub(1))?;
        let length = to.saturating_sub(from).as_secs_f64();
        let share = if length > 0.0 { time.saturating_sub(from).as_secs_f64() / length } else { 1.0 };
        Some(float(first) + (float(last) - float(first)) * share.min(1.0))
    }
}

/// How far it has come, of which `pending` events wait now and at most `most` have waited before.
pub fn progress(pending: u64, most: Option<u64>, pace: Option<Pace>) -> RunProgress {
    let most = most.unwrap_or(pending).max(pending);
    let done = if most == 0 { 1.0 } else { 1.0 - float(pending) / float(most) };
    RunProgress {
        // Never 100 while something waits.
        percent: (done * 1_000.0).floor() / 10.0,
        of_events: i64::try_from(most).unwrap_or(i64::MAX),
        events_per_second: pace.map(|pace| two_digits(pace.per_second)),
        seconds_left: pace.and_then(|pace| seconds_left(pending, pace)),
    }
}

/// How long it takes until nothing waits; absent where the backlog does not shrink.
fn seconds_left(pending: u64, Pace { per_second, error }: Pace) -> Option<SecondsLeft> {
    if per_second <= 0.0 || pending == 0 {
        return None;
    }
    let slowest = per_second - error;
    let most = (slowest > 0.0).then(|| two_digits(float(pending) / slowest)).filter(|most| most.is_finite());
    Some(SecondsLeft { at_least: two_digits(float(pending) / (per_second + error)), at_most: most })
}

/// For people. What waits for long may be estimated, and not counted.
pub fn in_words(progress: &RunProgress) -> String {
    let RunProgress { percent, of_events, events_per_second, seconds_left } = progress;
    let mut text = format!("{} % of about {of_events} events", percent.floor());
    let _ = match events_per_second {
        None => Ok(()),
        Some(pace) if *pace < 0.0 => write!(text, ", and {}/s more wait", pace.abs()),
        Some(pace) => write!(text, ", {pace}/s fewer wait"),
    };
    match seconds_left {
        None => text.push_str(", and how long it takes is not known"),
        Some(SecondsLeft { at_least, at_most: None }) => {
            let _ = write!(text, ", at least {} left", span(*at_least));
        }
        Some(SecondsLeft { at_least, at_most: Some(most) }) => {
            let _ = write!(text, ", {} to {} left", span(*at_least), span(*most));
        }
    }
    text
}

/// A time in the unit that a person would choose.
fn span(seconds: f64) -> String {
    match seconds {
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// Rounds to two significant digits, at the finest to tenths.
fn two_digits(number: f64) -> f64 {
    let mut unit = 0.1;
    while number.abs() / unit >= 99.5 && unit < 1e15 {
        unit *= 10.0;
    }
    // Tenths are not exact: the division is.
    if unit < 1.0 { (number * 10.0).round() / 10.0 } else { (number / unit).round() * unit }
}

// No backlog has 2^53 events.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(looks: impl IntoIterator<Item = (u64, u64)>) -> Backlog {
        let mut backlog = Backlog::default();
        looks.into_iter().for_each(|(second, pending)| backlog.observe(Duration::from_secs(second), pending));
        backlog
    }

    #[test]
    fn an_even_pace_is_told_with_the_narrowest_range_and_not_before_it_has_been_watched() {
        let even = |seconds: u64| seen((0..=seconds).step_by(5).map(|second| (second, 100_000 - second * 100)));
        assert_eq!(even(25).pace(), None, "not yet");
        let pace = even(60).pace().unwrap();
        assert!((pace.per_second - 100.0).abs() < 1e-9 && (pace.error - 10.0).abs() < 1e-6, "{pace:?}");
        let told = progress(94_000, Some(100_000), Some(pace));
        assert_eq!((told.percent, told.of_events, told.events_per_second), (6.0, 100_000, Some(100.0)));
        assert_eq!(told.seconds_left, Some(SecondsLeft { at_least: 850.0, at_most: Some(1_000.0) }));
        assert_eq!(in_words(&told), "6 % of about 100000 events, 100/s fewer wait, 14 min to 17 min left");
    }

    #[test]
    fn what_goes_on_in_fits_and_starts_has_a_wide_range_and_one_that_may_stand_still_has_no_end() {
        // A hundred a second and nothing, by turns of a quarter of a minute.
        let handled = |second: u64| (second / 30 * 15 + (second % 30).min(15)) * 100;
        let fits = seen((0..=120).step_by(5).map(|second| (second, 100_000 - handled(second)))).pace().unwrap();
        assert!(fits.error > 0.2 * fits.per_second && fits.error < fits.per_second, "{fits:?}");
        // All in the last part.
        let late = seen((0..=60).step_by(5).map(|second| (second, if second < 55 { 100_000 } else { 90_000 })));
        let told = progress(90_000, Some(100_000), late.pace());
        assert_eq!(told.seconds_left.unwrap().at_most, None, "{:?}", late.pace());
        assert!(in_words(&told).contains("at least"));
    }

    #[test]
    fn a_backlog_that_grows_or_stands_still_has_no_time_left_and_unknown_is_not_zero() {
        let grows = seen((0..=60).step_by(5).map(|second| (second, 1_000 + second * 20))).pace();
        let told = progress(2_200, Some(2_000), grows);
        assert_eq!((told.percent, told.of_events, told.events_per_second), (0.0, 2_200, Some(-20.0)), "{told:?}");
        assert_eq!(told.seconds_left, None);
        assert!(in_words(&told).contains("20/s more wait, and how long it takes is not known"));
        let stands = seen((0..=60).step_by(5).map(|second| (second, 1_000)));
        assert_eq!(progress(1_000, Some(2_000), stands.pace()).seconds_left, None);
        let unknown = progress(500, None, None);
        assert_eq!((unknown.percent, unknown.events_per_second, unknown.seconds_left), (0.0, None, None));
        assert_eq!(progress(1, Some(1_000_000), None).percent, 99.9, "not done while something waits");
        assert_eq!(progress(0, Some(1_000_000), None).percent, 100.0);
    }

    #[test]
    fn the_pace_is_that_of_the_last_minutes_and_what_was_seen_before_a_gap_is_forgotten() {
        let mut backlog = seen((0..=600).step_by(5).map(|second| {
            (second, 1_000_000 - if second < 300 { second * 1_000 } else { 300_000 + (second - 300) * 10 })
        }));
        let pace = backlog.pace().unwrap();
        assert!((pace.per_second - 10.0).abs() < 1.0, "{pace:?}");
        backlog.interrupt();
        assert_eq!(backlog.pace(), None);
        // The source is measured by a new task, whose clock begins again.
        let mut again = seen([(500, 10), (540, 5)]);
        again.observe(Duration::from_secs(3), 5);
        assert_eq!(again.pace(), None);
    }
}
