//! The sentence behind the number, for a person.

use std::{fmt::Write as _, time::Duration};

use super::{
    Bounds, Cadence, Pending,
    faults::Jump,
    need::{Need, Why},
    phases::Stage,
    queue::rounded,
    read_store::Saturated,
    required::{self, Fit, Limit},
    waiting::Extent,
};

/// All that the sentence is made of.
pub(super) struct Told<'a> {
    pub(super) workers: u32,
    pub(super) wanted: u32,
    pub(super) fit: Fit,
    pub(super) need: Need,
    pub(super) arrival: f64,
    /// It does not arrive yet, but did at this time of earlier hours or days.
    pub(super) expected: bool,
    pub(super) per_worker: Option<f64>,
    pub(super) pending: Pending,
    /// In which steps the checkpoint moves, and how many of the pending events wait for a worker and not for the next step.
    pub(super) cadence: Option<Cadence>,
    pub(super) waiting: u64,
    /// Where `pending` is an upper bound: what waits for certain.
    pub(super) certain: Option<u64>,
    /// Only that is planned with.
    pub(super) by_certain: bool,
    /// What kind of number what waits is.
    pub(super) extent: Extent,
    pub(super) idle_for: Duration,
    pub(super) idle: bool,
    pub(super) stage: Stage,
    /// What the hottest shard has of all that waits, where one is too hot.
    pub(super) hottest_share: Option<f64>,
    pub(super) saturated: Option<Saturated>,
    pub(super) stuck: bool,
    pub(super) rolling: bool,
    pub(super) jump: Option<Jump>,
    pub(super) bounds: &'a Bounds,
}

/// One sentence: the number, what it is computed from, what bounds it and whether more would help.
pub(super) fn sentence(told: &Told<'_>) -> String {
    if told.idle {
        let quiet = if told.idle_for < told.bounds.idle_for { told.bounds.idle_for } else { told.idle_for };
        return format!("0 workers: nothing has waited or arrived for {}", span(quiet));
    }
    let mut text = load(told);
    bound(told, &mut text);
    if told.workers > told.fit.workers && !matches!(told.fit.limit, Limit::Min | Limit::LiveVersion) {
        let why = if told.rolling { "while workers are replaced or started" } else { "yet" };
        let _ = write!(text, "; {} would do, but none is taken away {why}", told.fit.workers);
    }
    if told.stuck {
        text.push_str("; not scaling out, since the checkpoint does not move");
    }
    if let Some(cadence) = told.cadence {
        let _ = match cadence.events {
            Some(events) => write!(text, "; the checkpoint moves every {} events a worker", thousands(rounded(events))),
            None => write!(text, "; the checkpoint moves every {}", span(cadence.every)),
        };
        let _ = write!(text, ", so that {} of the pending events wait for a worker", thousands(told.waiting));
    }
    if let Some(certain) = told.certain {
        let certain = thousands(certain);
        let _ = match told.extent {
            _ if told.by_certain => write!(
                text,
                "; planned by an upper bound: only {certain} of the pending events are known to wait (the condition LagKnown says why, and what to do)"
            ),
            Extent::AtLeast => write!(
                text,
                "; {certain} events were counted, and planned for are those that came while the oldest has waited, {} (the condition LagKnown says why more may wait)",
                thousands(told.waiting)
            ),
            Extent::Nearly => write!(
                text,
                "; at least {certain} of the pending events wait, and all are planned for, since few others are among them (the condition LagKnown says why the number is a bound)"
            ),
            Extent::AtMost | Extent::Exact => write!(
                text,
                "; at least {certain} of the pending events wait, and the oldest so long that all which may wait are planned for (the condition LagKnown says why the number is a bound)"
            ),
        };
    }
    if let Some(jump) = told.jump {
        let _ = write!(
            text,
            "; {} events at once are a thousand times what is usual: an import, or a source that tells too much",
            thousands(jump.arrived)
        );
    }
    text
}

fn load(told: &Told<'_>) -> String {
    let noun = if told.workers == 1 { "worker" } else { "workers" };
    let bound = match (told.pending.exact, told.certain) {
        (true, _) => "",
        (false, Some(_)) if told.extent == Extent::AtLeast => "at least ",
        (false, Some(_)) => "at most ",
        // An estimate, which may be too low, too.
        (false, None) => "about ",
    };
    let pending = format!("{bound}{} pending", thousands(told.pending.events));
    let workers = told.workers;
    match told.need.why {
        Why::Rates => format!(
            "{workers} {noun}: {} events/s {}, a worker does {}/s, {pending} to clear in {}",
            rate(told.arrival),
            if told.expected { "are expected as before" } else { "arrive" },
            rate(told.per_worker.unwrap_or(0.0)),
            span(Duration::try_from_secs_f64(told.need.left).unwrap_or_default()),
        ),
        Why::Doubling => format!(
            "{workers} {noun}: {pending} and what a worker does is not learnt yet, so their number is doubled while the target is in danger"
        ),
        Why::Learning => format!("{workers} {noun}: {pending}, and what a worker does is being learnt"),
        Why::Unproven => format!(
            "{workers} {noun}: {pending}, and no step of the checkpoint has left a queue, so that the workers may only not have committed yet"
        ),
        Why::NotLearnt => format!("{workers} {noun}: {pending}, the target is not in danger"),
    }
}

fn bound(told: &Told<'_>, text: &mut String) {
    if let Stage::CatchingUp { left } = told.stage {
        let within = told.bounds.catch_up.map(|catch_up| catch_up.within).unwrap_or_default();
        let _ = match left {
            Duration::ZERO => write!(text, "; catching up for longer than the {} allowed", span(within)),
            _ => write!(text, "; catching up, {} of {} left", span(left), span(within)),
        };
    }
    let shards = required::shards(told.bounds).unwrap_or(0);
    let _ = match told.fit.limit {
        Limit::None => Ok(()),
        Limit::Min => write!(text, "; minWorkers is {}", told.bounds.min),
        Limit::Max if matches!(told.stage, Stage::CatchingUp { .. }) => {
            write!(text, "; bound by catchUp.maxWorkers {}", required::most(told.bounds, told.stage))
        }
        Limit::Max => write!(text, "; bound by maxWorkers {}", told.bounds.max),
        Limit::Ordering => write!(text, "; bound by ordering Strict: more workers would break the order"),
        Limit::Shards => write!(text, "; bound by {shards} shards: adding workers will not help"),
        Limit::HottestShard => {
            let share = told.hottest_share.unwrap_or(0.0) * 100.0;
            write!(
                text,
                "; bound by the hottest shard, which has {share:.0} % of what waits, more than one worker can do: adding workers will not help"
            )
        }
        Limit::Connections => write!(
            text,
            "; bound by the read store's connections, which are enough for {} of {} workers",
            told.bounds.connections.unwrap_or(0),
            told.wanted
        ),
        Limit::LiveVersion => match told.bounds.throttled {
            Some(throttled) => write!(text, "; {} of {} workers, since {throttled}", throttled.most, told.wanted),
            None => Ok(()),
        },
        Limit::ReadStore => {
            let Some(Saturated { fewer, throughput: busy, .. }) = told.saturated else {
                text.extend(told.bounds.strain.map(|strain| strain.to_string()));
                return;
            };
            let or = if told.bounds.shards.is_some() { "" } else { " (or one hot shard)" };
            write!(
                text,
                "; bound by the read store{or}: {fewer} workers did as much, {}/s together, so adding workers will not help",
                rate(busy)
            )
        }
    };
}

/// Whole events where there are many, tenths where there are few.
fn rate(rate: f64) -> String {
    if rate < 9.95 {
        let text = format!("{rate:.1}");
        return text.strip_suffix(".0").map(str::to_owned).unwrap_or(text);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Positive; beyond what fits it saturates.
    thousands(rate.round() as u64)
}

/// A time in the unit that a person would choose.
fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        let text = format!("{seconds:.1}");
        format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
    } else if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7_200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.0} h", seconds / 3_600.0)
    }
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
#[path = "sentence_tests.rs"]
mod tests;
