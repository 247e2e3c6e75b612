//! The live table: one line a moment. Pure: what is unknown is shown as `?`, never as 0.

use std::time::Duration;

/// What was seen at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds since the load began.
    pub at: f64,
    /// What the load did.
    pub phase: &'static str,
    /// The last position in the events table.
    pub head: Option<i64>,
    /// The lowest position that every shard has processed, in the read store.
    pub checkpoint: Option<i64>,
    /// From the metrics API, as the autoscaler reads it.
    pub pending: Option<f64>,
    /// From the metrics API, in seconds.
    pub staleness: Option<f64>,
    /// From the metrics API.
    pub required: Option<f64>,
    /// What the Deployment is asked for.
    pub desired: Option<i32>,
    /// Workers that are ready.
    pub ready: Option<i32>,
}

/// How long the target was missed, as the samples tell.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Missed {
    /// Time with a staleness above the target.
    pub above: Duration,
    /// Time with an unknown staleness.
    pub unknown: Duration,
    /// All the time.
    pub of: Duration,
}

/// The table's head.
pub fn header() -> String {
    format!(
        "{:>6}  {:<6}  {:>7}  {:>10}  {:>7}  {:>9}  {:>8}  {:>7}  {:>5}",
        "time", "load", "head", "checkpoint", "pending", "staleness", "required", "desired", "ready"
    )
}

/// One line of it.
pub fn row(sample: &Sample) -> String {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
    format!(
        "{:>4.0} s  {:<6}  {:>7}  {:>10}  {:>7}  {:>9}  {:>8}  {:>7}  {:>5}",
        sample.at,
        sample.phase,
        or_unknown(sample.head.map(|head| head.to_string())),
        or_unknown(sample.checkpoint.map(|position| position.to_string())),
        or_unknown(sample.pending.map(|pending| format!("{pending:.0}"))),
        or_unknown(sample.staleness.map(|seconds| format!("{seconds:.1} s"))),
        or_unknown(sample.required.map(|workers| format!("{workers:.0}"))),
        or_unknown(sample.desired.map(|workers| workers.to_string())),
        or_unknown(sample.ready.map(|workers| workers.to_string())),
    )
}

/// Sums the time between samples, each counted as its later end tells.
pub fn missed(samples: &[Sample], target: f64) -> Missed {
    let mut missed = Missed::default();
    for pair in samples.windows(2) {
        let [before, after] = pair else { continue };
        let span = Duration::from_secs_f64((after.at - before.at).max(0.0));
        missed.of += span;
        match after.staleness {
            Some(staleness) if staleness > target => missed.above += span,
            Some(_) => {}
            None => missed.unknown += span,
        }
    }
    missed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, staleness: Option<f64>) -> Sample {
        Sample { at, staleness, ..Sample::default() }
    }

    #[test]
    fn what_is_unknown_is_not_shown_as_zero() {
        let line = row(&Sample { phase: "steady", ready: Some(0), ..Sample::default() });
        assert_eq!(line.matches('?').count(), 6, "{line}");
        assert!(line.ends_with(" 0"), "{line}");
    }

    #[test]
    fn lines_stand_under_their_heads() {
        let full = Sample {
            at: 123.4,
            phase: "burst",
            head: Some(12_345),
            checkpoint: Some(12_000),
            pending: Some(345.0),
            staleness: Some(7.25),
            required: Some(8.0),
            desired: Some(8),
            ready: Some(7),
        };
        assert_eq!(row(&full).chars().count(), header().chars().count());
    }

    #[test]
    fn time_above_the_target_and_unknown_time_are_told_apart() {
        let samples = [sample(0.0, Some(0.0)), sample(1.0, Some(11.0)), sample(3.0, None), sample(4.0, Some(10.0))];
        let seconds = Duration::from_secs;
        assert_eq!(missed(&samples, 10.0), Missed { above: seconds(1), unknown: seconds(2), of: seconds(4) });
        assert_eq!(missed(&[], 10.0), Missed::default());
    }
}
