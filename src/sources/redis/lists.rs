//! Lists that workers take their work from: how long they are. Pure.
//!
//! Redis removes what is taken from a list and counts nothing, so that what comes and goes is told by the length alone.

use crate::{
    api::{Reason, RedisList},
    clients::redis::{Command, Reply, refusal},
    measure::MeasureError,
};

/// What was seen of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ListState {
    /// Entries that wait, and those in the list of work in progress.
    pub(super) events: u64,
    /// Entries in the list of those that failed, or why that is not known; absent where none is named.
    pub(super) parked: Option<Result<u64, MeasureError>>,
    /// Since measuring began.
    pub(super) arrived: u64,
    pub(super) handled: u64,
}

/// What is asked about a list. The list itself comes first: an entry that is moved in that moment is counted twice and not missed.
pub(super) fn commands(list: &RedisList) -> impl Iterator<Item = Command> + '_ {
    keys(list).map(|key| Command::about_key(1, ["LLEN", key]))
}

fn keys(list: &RedisList) -> impl Iterator<Item = &str> {
    std::iter::once(&list.key).chain(&list.processing_key).chain(&list.dead_letter_key).map(String::as_str)
}

/// Reads one answer to each of the commands. A list without entries and no list are the same to Redis.
pub(super) fn read(
    list: &RedisList,
    mut next: impl FnMut() -> Result<Reply, MeasureError>,
    lengths: &mut Lengths,
) -> Result<ListState, MeasureError> {
    // Each answer is taken off, also behind one that is a refusal.
    let answers: Vec<_> = keys(list).map(|key| (key, next())).collect();
    let mut found: Vec<Result<u64, MeasureError>> = Vec::with_capacity(answers.len());
    for (key, answer) in answers {
        let length = answer.and_then(|reply| length(&reply));
        found.push(length.map_err(|unknown| MeasureError {
            reason: unknown.reason,
            message: format!("list {key}: {}", unknown.message),
        }));
    }
    // What failed is no part of the lag, and does not hide it.
    let parked = list.dead_letter_key.as_ref().and_then(|_| found.pop());
    let waiting = found.into_iter().collect::<Result<Vec<u64>, MeasureError>>()?;
    let events = waiting.into_iter().fold(0, u64::saturating_add);
    let (arrived, handled) = lengths.take(events);
    Ok(ListState { events, parked, arrived, handled })
}

fn length(reply: &Reply) -> Result<u64, MeasureError> {
    match reply {
        Reply::Error(error) if error.starts_with("WRONGTYPE") => Err(MeasureError {
            reason: Reason::InvalidSpec,
            message: "the key holds no list: correct the key in the Projection".to_owned(),
        }),
        Reply::Error(error) => Err(refusal(error)),
        reply => reply.as_count().ok_or_else(|| MeasureError {
            reason: Reason::InvalidAnswer,
            message: "the answer to LLEN makes no sense".to_owned(),
        }),
    }
}

/// What the length of a list has told since measuring began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lengths {
    last: Option<u64>,
    arrived: u64,
    handled: u64,
}

impl Lengths {
    fn take(&mut self, now: u64) -> (u64, u64) {
        let last = self.last.replace(now).unwrap_or(now);
        self.arrived = self.arrived.saturating_add(now.saturating_sub(last));
        self.handled = self.handled.saturating_add(last.saturating_sub(now));
        (self.arrived, self.handled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(processing: Option<&str>, dead: Option<&str>) -> RedisList {
        let owned = |key: &str| key.to_owned();
        RedisList { key: owned("jobs"), processing_key: processing.map(owned), dead_letter_key: dead.map(owned) }
    }

    fn told(list: &RedisList, replies: Vec<Reply>) -> Result<ListState, MeasureError> {
        let mut replies = replies.into_iter();
        read(list, || Ok(replies.next().unwrap()), &mut Lengths::default())
    }

    #[test]
    fn work_in_progress_is_pending_and_what_failed_is_parked() {
        let number = |numbers: &[i64]| numbers.iter().map(|number| Reply::Integer(*number)).collect();
        let all = list(Some("jobs:busy"), Some("jobs:failed"));
        assert_eq!(commands(&all).count(), 3);
        let seen = told(&all, number(&[5, 2, 7])).unwrap();
        assert_eq!((seen.events, seen.parked), (7, Some(Ok(7))));
        let seen = told(&list(None, Some("jobs:failed")), number(&[5, 0])).unwrap();
        assert_eq!((seen.events, seen.parked), (5, Some(Ok(0))));
        assert_eq!(told(&list(None, None), number(&[5])).unwrap().parked, None);
    }

    #[test]
    fn what_is_no_length_is_unknown_and_not_zero() {
        for (reply, reason) in [
            (Reply::Integer(-1), Reason::InvalidAnswer),
            (Reply::Nil, Reason::InvalidAnswer),
            (Reply::Text(b"5".to_vec()), Reason::InvalidAnswer),
            (Reply::Error("WRONGTYPE Operation against a key".to_owned()), Reason::InvalidSpec),
            (Reply::Error("NOPERM no".to_owned()), Reason::PermissionDenied),
        ] {
            let unknown = told(&list(Some("busy"), None), vec![Reply::Integer(3), reply.clone()]).unwrap_err();
            assert_eq!(unknown.reason, reason, "{reply:?}");
            assert!(unknown.message.starts_with("list busy: "), "{}", unknown.message);
        }
    }

    #[test]
    fn an_unreadable_list_of_failures_does_not_hide_what_waits() {
        let noperm = Reply::Error("NOPERM no".to_owned());
        let seen = told(&list(None, Some("failed")), vec![Reply::Integer(3), noperm]).unwrap();
        let unknown = seen.parked.unwrap().unwrap_err();
        assert_eq!((seen.events, unknown.reason), (3, Reason::PermissionDenied));
        assert!(unknown.message.starts_with("list failed: "), "{}", unknown.message);
    }

    #[test]
    fn the_length_tells_what_comes_and_goes() {
        let mut lengths = Lengths::default();
        assert_eq!([5, 9, 9, 0, 4].map(|now| lengths.take(now)), [(0, 0), (4, 0), (4, 0), (4, 9), (8, 9)]);
    }
}
