//! Places in KurrentDB as the server writes them, and the times of events. Pure.

use std::time::Duration;

use crate::{api::Reason, clients::kurrentdb::Page, measure::MeasureError};

/// The stream of all events.
pub(super) const ALL: &str = "$all";
/// The server tells its time in whole seconds: up to this much too early.
const DATE_STEP: Duration = Duration::from_secs(1);

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// Before the first event, or with nothing written down.
    Nothing,
    /// At the end, whatever comes there.
    Live,
    /// At this revision, or this commit position of `$all`.
    At(u64),
}

/// Reads a place: a revision, `C:1/P:1` for `$all`, -1 for the end, empty for none. Of a position the commit position is taken: it alone orders all events but
/// those of one explicit transaction.
pub(super) fn place(text: &str, all: bool) -> Result<Place, MeasureError> {
    let number = if all {
        let Some(pair) = text.strip_prefix("C:") else {
            return if text.is_empty() { Ok(Place::Nothing) } else { Err(no_place()) };
        };
        let (commit, prepare) = pair.split_once("/P:").ok_or_else(no_place)?;
        prepare.parse::<i64>().map_err(|_| no_place())?;
        commit
    } else {
        text
    };
    match number.parse::<i64>() {
        _ if number.is_empty() => Ok(Place::Nothing),
        Ok(-1) => Ok(Place::Live),
        Ok(number) => u64::try_from(number).map(Place::At).map_err(|_| no_place()),
        Err(_) => Err(no_place()),
    }
}

fn no_place() -> MeasureError {
    unknown(Reason::InvalidAnswer, "the server tells a position that is neither a revision nor C:…/P:…")
}

/// How old an event is, and how far it is dated in the future, by the server's clock where it tells it.
pub(super) fn age(created: jiff::Timestamp, page: &Page) -> (Duration, Duration) {
    let step = if page.at.is_some() { DATE_STEP } else { Duration::ZERO };
    let now = page.at.unwrap_or_else(jiff::Timestamp::now);
    let between = |from: jiff::Timestamp, to| Duration::try_from(from.duration_until(to)).unwrap_or_default();
    (between(created, now), between(now, created).saturating_sub(step))
}

pub(super) fn unknown(reason: Reason, message: &str) -> MeasureError {
    MeasureError { reason, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_the_server_writes_them_and_what_cannot_be_read_is_not_zero() {
        for (text, all, expected) in [
            ("", false, Some(Place::Nothing)),
            ("", true, Some(Place::Nothing)),
            ("0", false, Some(Place::At(0))),
            ("17", false, Some(Place::At(17))),
            ("-1", false, Some(Place::Live)),
            ("C:0/P:0", true, Some(Place::At(0))),
            ("C:1234/P:1200", true, Some(Place::At(1234))),
            ("C:-1/P:-1", true, Some(Place::Live)),
            ("C:1234", true, None),
            ("1234", true, None),
            ("C:1/P:x", true, None),
            ("C:1/P:1", false, None),
            ("-2", false, None),
            ("99999999999999999999", false, None),
            ("many", false, None),
        ] {
            assert_eq!(place(text, all).ok(), expected, "{text}");
        }
    }
}
