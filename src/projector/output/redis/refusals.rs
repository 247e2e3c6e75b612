//! What it means that the server refuses a command of a handler.
//!
//! Redis quotes arguments in some of its errors, and arguments are what events hold. So its words are never passed on: those that are known
//! are told in words of the same meaning, and of others only the code.

use super::handlers::Filled;
use crate::{clients::redis::refusal, names::redis_state};

/// Whose failure it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// The event's: its shard waits.
    Event(String),
    /// The server's, or the user's rights: all shards wait.
    Server(String),
}

/// Errors about the server and not about one command. Their words are Redis' own.
const OF_THE_SERVER: [&str; 12] = [
    "OOM",
    "READONLY",
    "MISCONF",
    "LOADING",
    "MASTERDOWN",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "NOAUTH",
    "NOPERM",
    "BUSY",
    "TRYAGAIN",
    "UNKILLABLE",
];

/// What is known to hold nothing of an event.
const KNOWN: [&str; 28] = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "WRONGTYPE Key is not a valid HyperLogLog string value",
    "bit offset is not an integer or out of range",
    "bit is not an integer or out of range",
    "hash value is not an integer",
    "hash value is not a float",
    "value is not an integer or out of range",
    "value is not a valid float",
    "value is out of range, must be positive",
    "value is out of range",
    "increment or decrement would overflow",
    "increment would produce NaN or Infinity",
    "resulting score is not a number (NaN)",
    "min or max is not a float",
    "min or max not valid string range item",
    "string exceeds maximum allowed size",
    "offset is out of range",
    "index out of range",
    "wrong number of arguments",
    "Wrong number of args",
    "Unknown Redis command called from script",
    "syntax error",
    "no such key",
    "invalid expire time",
    "Invalid stream ID specified as stream command argument",
    "The ID specified in XADD is equal or smaller than the target stream top item",
    "The ID specified in XADD must be greater than 0-0",
    "options at the same time are not compatible",
];

/// What the refusal of a command means: the `number`-th of the handler for `event_type`.
pub(super) fn meaning(error: &str, (number, command): (usize, &Filled), event_type: &str, projection: &str) -> Refused {
    let which = format!("command {number} ({})", command.name());
    let error = error.trim_start_matches('-');
    if error.contains("The user executing the script can't") || error.contains("ACL failure in script") {
        return no_right(error, &which, event_type);
    }
    if error.contains("non local key") || error.contains("hash to the same slot") {
        let braces = redis_state::braces(projection);
        return Refused::Event(format!(
            "{which}: its key is in another slot. In a Redis Cluster a script reaches only keys of one slot: every key of the handlers must hold {{{braces}}}, as handlers write it. Where it does, the slot is being moved to another node, and this ends with it"
        ));
    }
    let code = error.split(' ').next().unwrap_or_default();
    if OF_THE_SERVER.contains(&code) {
        return Refused::Server(format!(
            "{which} of the handler of event type {event_type}: {}",
            refusal(error).message
        ));
    }
    if let Some(known) = KNOWN.iter().find(|known| error.contains(**known)) {
        return Refused::Event(format!("{which}: {known}"));
    }
    let is_code = (2..=20).contains(&code.len()) && code.chars().all(|letter| letter.is_ascii_uppercase());
    let code = if is_code { code } else { "an error without a code" };
    Refused::Event(format!(
        "{which}: the server refuses it with {code}. Its words are not repeated, since they may hold what the event holds: run the command by hand to see them"
    ))
}

/// A key or a channel comes from an event, while a command is the same for all events of a type.
fn no_right(error: &str, which: &str, event_type: &str) -> Refused {
    let grant = |what: &str, how: &str| {
        Refused::Event(format!(
            "{which}: the user in the Secret may not write the {what} that it names: grant it ({how} in ACL SETUSER), or mend the handler"
        ))
    };
    let accesses = error.contains("permissions to access");
    if error.contains("publish to the channel") || (accesses && error.trim_end().ends_with("channel")) {
        return grant("channel", "&PATTERN");
    }
    if error.contains("access at least one of the keys") || accesses {
        return grant("key", "~PATTERN");
    }
    Refused::Server(format!(
        "{which} of the handler of event type {event_type}: the user in the Secret may not run it: grant the user the commands of the handlers, as docs/projector.md says (ACL SETUSER)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning_of(error: &str) -> Refused {
        let command = Filled::new(vec!["geoadd".to_owned(), "secret".to_owned()], "");
        meaning(error, (3, &command), "Placed", "shop/orders")
    }

    #[test]
    fn whose_failure_a_refusal_is_and_which_command_it_is_about() {
        for (error, expected) in [
            ("WRONGTYPE Operation against a key holding the wrong kind of value", "holding the wrong kind"),
            ("ERR value is not an integer or out of range", "not an integer"),
            ("ERR syntax error", "syntax error"),
            (
                "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments",
                "~PATTERN",
            ),
            ("NOPERM ACL failure in script: No permissions to access a key", "~PATTERN"),
            ("ERR The user executing the script can't publish to the channel mentioned in the command", "&PATTERN"),
            ("NOPERM ACL failure in script: No permissions to access a channel", "&PATTERN"),
            ("ERR Script attempted to access a non local key in a cluster node", "{{shop/orders}}"),
        ] {
            let Refused::Event(why) = meaning_of(error) else { panic!("{error}") };
            assert!(why.contains("command 3 (GEOADD)") && why.contains(expected), "{why}");
        }
        for (error, expected) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", "maxmemory"),
            ("READONLY You can't write against a read only replica.", "primary"),
            ("ERR The user executing the script can't run this command or subcommand", "grant the user"),
            (
                "NOPERM ACL failure in script: User keychannel has no permissions to run the 'geoadd' command",
                "grant the user",
            ),
        ] {
            let Refused::Server(why) = meaning_of(error) else { panic!("{error}") };
            assert!(why.contains("command 3 (GEOADD)") && why.contains("Placed") && why.contains(expected), "{why}");
        }
    }

    #[test]
    fn what_the_server_quotes_of_an_event_is_not_passed_on() {
        for error in [
            "ERR invalid longitude,latitude pair 200.000000,31.000000",
            "ERR Unsupported option 31",
            "ERR Unsupported option syntax error 31",
            "31 is no path",
            "",
        ] {
            let Refused::Event(why) = meaning_of(error) else { panic!("{error}") };
            assert!(why.contains("command 3 (GEOADD)") && !why.contains("31") && !why.contains("200"), "{why}");
        }
    }
}
