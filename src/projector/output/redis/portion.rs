//! As many events as one script runs: their commands as its words, and where it stopped.

use super::{
    super::super::event::Event,
    handlers::{Commands, Filled},
};
use crate::clients::redis::Reply;

/// A script keeps the server from everything else, so that it has no more commands,
const MOST_COMMANDS: usize = 200;
/// and no more bytes.
const MOST_BYTES: usize = 1 << 20;

/// The commands of as many of the events as one script may run; and why it ends early where an event cannot be written as commands.
pub(super) fn of(
    commands: &Commands,
    events: &[Event],
    most_of_one_event: usize,
) -> (Vec<Vec<Filled>>, Option<String>) {
    let (mut portion, mut count, mut bytes) = (Vec::new(), 0, 0);
    for event in events {
        let of_event = match commands.of(event, most_of_one_event) {
            Ok(of_event) => of_event,
            Err(why) => return (portion, Some(why)),
        };
        count += of_event.len();
        bytes += of_event.iter().map(Filled::size).sum::<usize>();
        if !portion.is_empty() && (count > MOST_COMMANDS || bytes > MOST_BYTES) {
            break;
        }
        portion.push(of_event);
    }
    (portion, None)
}

/// Adds the commands of an event to the words of a script. Returns which commands they are, for when one fails.
pub(super) fn push(words: &mut Vec<String>, commands: Vec<Filled>) -> Vec<Filled> {
    let mut names = Vec::new();
    for Filled { words: of_command, fingerprint } in commands {
        words.extend([of_command.len().to_string(), fingerprint.to_string()]);
        names.push(Filled { words: of_command.iter().take(1).cloned().collect(), fingerprint });
        words.extend(of_command);
    }
    names
}

/// Where a script stopped, with what comes before it done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stopped<'a> {
    /// At which of the events, counted from 0.
    pub(super) index: usize,
    /// The command that failed, counted from 1; or how many commands are done of a handler that has been changed since.
    pub(super) command: usize,
    /// What the server says of the command; nothing where the handler was changed.
    pub(super) error: Option<&'a str>,
}

impl<'a> Stopped<'a> {
    /// From `{'failed', event, command, error}` or `{'changed', event, count}`.
    pub(super) fn read(reply: &'a [Reply]) -> Option<Self> {
        let number = |reply: &Reply| reply.as_count().and_then(|number| usize::try_from(number).ok());
        let [how, event, command, rest @ ..] = reply else { return None };
        let (index, command) = (number(event)?.checked_sub(1)?, number(command)?);
        match (how.as_str()?, rest) {
            ("failed", [error]) => Some(Self { index, command, error: Some(error.as_str().unwrap_or_default()) }),
            ("changed", []) => Some(Self { index, command, error: None }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_script_stopped_is_read_and_nothing_is_made_of_what_it_does_not_say() {
        let text = |text: &str| Reply::Text(text.as_bytes().to_vec());
        let stop =
            |how: &str, event: i64, command: i64| vec![text(how), Reply::Integer(event), Reply::Integer(command)];
        let failed = [stop("failed", 3, 2), vec![text("WRONGTYPE what")]].concat();
        assert_eq!(Stopped::read(&failed), Some(Stopped { index: 2, command: 2, error: Some("WRONGTYPE what") }));
        assert_eq!(Stopped::read(&stop("changed", 1, 4)), Some(Stopped { index: 0, command: 4, error: None }));
        for wrong in [stop("failed", 1, 1), stop("changed", 0, 1), stop("changed", 1, -1), vec![text("done")], vec![]] {
            assert_eq!(Stopped::read(&wrong), None, "{wrong:?}");
        }
    }
}
