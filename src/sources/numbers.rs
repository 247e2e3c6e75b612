//! What a few numbers that others computed say of a projection: how many events wait, how old the oldest is, how many came. Pure.
//!
//! A gauge knows nothing of single events, so that what came and what was handled is told by how it moves.

use std::time::Duration;

use crate::{
    api::Reason,
    lag::{CheckpointState, Head, Pending, Sample},
    measure::MeasureError,
    resolve::Numbers,
};

/// Above this, in events, a float tells no whole numbers any more.
const MOST: f64 = 9_007_199_254_740_992.0;

/// One look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    /// What waits.
    Lag(Lag),
    /// A number that has a target of its own.
    Value(f64),
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Lag {
    /// Events that wait.
    pub(super) pending: f64,
    /// Age of the oldest of them in seconds, where it was asked for and something waits.
    pub(super) staleness: Option<f64>,
    /// A counter of events that came, where there is one.
    pub(super) arrived: Option<f64>,
}

impl Reading {
    /// Reads the numbers, each by `number`, which also gets its field in the spec.
    ///
    /// # Errors
    /// The first that cannot be had, whose message says which.
    pub(super) fn of<Q>(
        numbers: &Numbers<Q>,
        number: impl Fn(&Q) -> Result<f64, MeasureError>,
    ) -> Result<Self, MeasureError> {
        let number = |field: &str, asked: &Q| number(asked).map_err(|unknown| unknown.about(field));
        let optional = |field, asked: &Option<Q>| asked.as_ref().map(|asked| number(field, asked)).transpose();
        match numbers {
            Numbers::Value(value) => number("value", value).map(Self::Value),
            Numbers::Lag { pending, staleness, arrived } => {
                let pending = number("pending", pending)?;
                // Of nothing the oldest has no age, and often no number.
                let staleness = if pending > 0.0 { optional("staleness", staleness)? } else { None };
                Ok(Self::Lag(Lag { pending, staleness, arrived: optional("arrived", arrived)? }))
            }
        }
    }
}

/// What is remembered from look to look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gauge {
    last: Option<(u64, Option<u64>)>,
    arrived: u64,
    handled: u64,
}

impl Gauge {
    /// Takes in a look.
    ///
    /// # Errors
    /// `InvalidAnswer` for a number that is not finite, and for a number of events below zero.
    pub(super) fn take(&mut self, reading: Reading, at: Duration) -> Result<Sample, MeasureError> {
        let reading = match reading {
            Reading::Lag(reading) => reading,
            Reading::Value(value) => {
                finite("value", value)?;
                let sample = Sample::new(at, Head::Unnumbered, CheckpointState::Handled(0), None, 0);
                return Ok(Sample { taken: jiff::Timestamp::now(), value: Some(value), ..sample });
            }
        };
        let pending = events("pending", reading.pending)?;
        let counter = reading.arrived.map(|count| events("arrived", count)).transpose()?;
        reading.staleness.map(|age| finite("staleness", age)).transpose()?;
        if let Some((before, counted)) = self.last {
            // A counter that is smaller has begun again, or is a sum of several of which one has: how much came since is not told, except by what waits.
            let came = counter.zip(counted).map_or(0, |(now, then)| now.saturating_sub(then));
            let came = came.max(pending.saturating_sub(before));
            self.arrived = self.arrived.saturating_add(came);
            self.handled = self.handled.saturating_add(before.saturating_add(came).saturating_sub(pending));
        }
        self.last = Some((pending, counter));
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
        let staleness = if pending == 0 { Some(Duration::ZERO) } else { reading.staleness.map(seconds) };
        let ahead = reading.staleness.filter(|_| pending > 0).map_or(Duration::ZERO, |age| seconds(-age));
        let pending = Some(Pending { events: pending, exact: true });
        Ok(Sample {
            taken: jiff::Timestamp::now(),
            staleness,
            ahead_of_clock: ahead,
            ..Sample::new(at, Head::Unnumbered, CheckpointState::Handled(self.handled), pending, self.arrived)
        })
    }
}

/// What is not finite says nothing: it is unknown, not zero.
fn finite(what: &str, number: f64) -> Result<(), MeasureError> {
    if number.is_finite() {
        return Ok(());
    }
    let how = if number.is_nan() { "NaN" } else { "infinite" };
    Err(MeasureError {
        reason: Reason::InvalidAnswer,
        message: format!("{what} is {how}, which says nothing: it is unknown, not zero"),
    })
}

/// A whole number of events; a part of one counts as one, since something waits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Within the range of whole numbers.
fn events(what: &str, number: f64) -> Result<u64, MeasureError> {
    finite(what, number)?;
    // Rounding errors of sums.
    if number < -1e-6 {
        return Err(MeasureError {
            reason: Reason::InvalidAnswer,
            message: format!("{what} is a number below zero, which is no number of events"),
        });
    }
    Ok((number - 1e-6).max(0.0).ceil().min(MOST) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(1);

    fn take(gauge: &mut Gauge, pending: f64, arrived: Option<f64>) -> (u64, u64, u64) {
        let sample = gauge.take(Reading::Lag(Lag { pending, staleness: None, arrived }), AT).unwrap();
        let CheckpointState::Handled(handled) = sample.checkpoint else { panic!() };
        (sample.pending.unwrap().events, sample.arrived, handled)
    }

    #[test]
    fn without_a_counter_a_rise_came_and_a_fall_was_handled() {
        let mut gauge = Gauge::default();
        let seen: Vec<_> =
            [10.0, 14.0, 9.0, 9.0, 0.0].into_iter().map(|pending| take(&mut gauge, pending, None)).collect();
        assert_eq!(seen, [(10, 0, 0), (14, 4, 0), (9, 4, 5), (9, 4, 5), (0, 4, 14)]);
    }

    #[test]
    fn a_counter_tells_what_came_and_went_between_two_looks_and_may_begin_again() {
        let mut gauge = Gauge::default();
        let looks = [(10.0, 100.0), (10.0, 150.0), (2.0, 150.0), (2.0, 30.0), (50.0, 31.0)];
        let seen: Vec<_> = looks.into_iter().map(|(pending, all)| take(&mut gauge, pending, Some(all))).collect();
        assert_eq!(seen, [(10, 0, 0), (10, 50, 50), (2, 50, 58), (2, 50, 58), (50, 98, 58)]);
    }

    #[test]
    fn one_of_several_counters_that_begins_again_is_no_two_million_events() {
        let mut gauge = Gauge::default();
        // The sum of three pods' counters, of which one restarts; then it goes on.
        let looks = [(10.0, 3_000_000.0), (12.0, 2_000_000.0), (12.0, 2_000_050.0)];
        let seen: Vec<_> = looks.into_iter().map(|(pending, all)| take(&mut gauge, pending, Some(all))).collect();
        assert_eq!(seen, [(10, 0, 0), (12, 2, 0), (12, 52, 50)]);
    }

    #[test]
    fn parts_of_events_wait_and_less_than_none_is_no_answer() {
        let mut gauge = Gauge::default();
        for (number, events) in [(0.2, 1), (1.000_000_1, 1), (-1e-9, 0), (1e300, 1 << 53)] {
            assert_eq!(take(&mut gauge, number, None).0, events, "{number}");
        }
        for (pending, arrived) in [(-1.0, None), (f64::NAN, None), (f64::INFINITY, None), (1.0, Some(-1.0))] {
            let refused = gauge.take(Reading::Lag(Lag { pending, staleness: None, arrived }), AT).unwrap_err();
            assert_eq!(refused.reason, Reason::InvalidAnswer);
        }
    }

    #[test]
    fn what_is_not_finite_is_unknown_wherever_it_comes_in() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let lag = |pending, staleness, arrived| Reading::Lag(Lag { pending, staleness, arrived });
            for reading in [
                Reading::Value(number),
                lag(number, None, None),
                lag(1.0, Some(number), None),
                lag(1.0, None, Some(number)),
            ] {
                let mut gauge = Gauge::default();
                let refused = gauge.take(reading, AT).unwrap_err();
                assert_eq!(refused.reason, Reason::InvalidAnswer, "{reading:?}");
                assert!(gauge.last.is_none(), "nothing is remembered of it: {reading:?}");
            }
        }
    }

    #[test]
    fn an_age_below_zero_lies_ahead_of_the_clock() {
        let of = |pending, age| {
            let reading = Reading::Lag(Lag { pending, staleness: Some(age), arrived: None });
            let sample = Gauge::default().take(reading, AT).unwrap();
            (sample.staleness, sample.ahead_of_clock)
        };
        let seconds = Duration::from_secs;
        assert_eq!(of(1.0, 90.0), (Some(seconds(90)), seconds(0)));
        assert_eq!(of(1.0, -90.0), (Some(seconds(0)), seconds(90)));
        assert_eq!(of(0.0, 90.0), (Some(seconds(0)), seconds(0)), "nothing waits");
    }
}
