//! Which commands leave the same whatever was there before, so that of several events the last alone is enough.

use std::collections::BTreeMap;

use super::super::super::template::Template;
use crate::api::CoalescedTypes;

/// The commands of each type of event, as they are written.
type Handlers = BTreeMap<String, Vec<Vec<String>>>;

/// Commands that let keys expire, of which a key may be rid when its last part is removed.
const EXPIRING: [&str; 4] = ["EXPIRE", "EXPIREAT", "PEXPIRE", "PEXPIREAT"];

/// What a command writes, as the handler names it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    key: String,
    /// A field, a member or a path; absent where it is the whole key.
    part: Option<String>,
}

impl Place {
    fn covers(&self, other: &Self) -> bool {
        self.key == other.key && (self.part.is_none() || self.part == other.part)
    }
}

/// Holds where, of the events of a stream that are of the types of one group, the last alone leaves in Redis what all of them would.
///
/// # Errors
/// Names the type and the command for which that cannot be said.
pub(in crate::projector) fn check(handlers: &Handlers, groups: &[CoalescedTypes]) -> Result<(), String> {
    let expire = handlers.values().flatten().any(|words| EXPIRING.contains(&name_of(words).as_str()));
    for CoalescedTypes { types } in groups {
        let mut places = Vec::new();
        for event_type in types {
            for (number, words) in (1..).zip(handlers.get(event_type).into_iter().flatten()) {
                let written = written(words, expire);
                let written =
                    written.map_err(|why| format!("{event_type}: command {number} ({}) {why}", name_of(words)))?;
                places.push((event_type, number, name_of(words), written));
            }
        }
        for event_type in types {
            let of_type = |(of, ..): &&(&String, i32, String, Vec<Place>)| *of == event_type;
            let covers: Vec<&Place> = places.iter().filter(of_type).flat_map(|(.., all)| all).collect();
            for (of, number, name, written) in &places {
                if let Some(place) = written.iter().find(|place| !covers.iter().any(|cover| cover.covers(place))) {
                    let Place { key, .. } = place;
                    return Err(format!(
                        "{of}: command {number} ({name}) writes a part of {key:?} that the commands for {event_type} leave as it is, so that {event_type} does not supersede {of}"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn name_of(words: &[String]) -> String {
    words.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default()
}

/// What a command writes, where that does not depend on what was there.
fn written(words: &[String], expire: bool) -> Result<Vec<Place>, &'static str> {
    const COUNTS: &str = "may depend on what was there before, so that every event counts: there are SET, SETEX, PSETEX, HSET, HMSET, HDEL, ZADD without options, ZREM, SADD, SREM, JSON.SET, DEL and UNLINK";
    const VARIES: &str =
        "writes another place with each event: keys, fields and members may hold {stream} and no other place";
    const EXPIRES: &str = "may remove a key with the time at which it expires, which another handler sets";
    let name = name_of(words);
    let Some((key, rest)) = words.get(1..).and_then(<[String]>::split_first) else { return Err(COUNTS) };
    let whole = |key: &String| Place { key: key.clone(), part: None };
    let part = |part: &String| Place { key: key.clone(), part: Some(part.clone()) };
    let places: Vec<Place> = match (name.as_str(), rest) {
        ("SET", [_]) | ("SETEX" | "PSETEX", [_, _]) => vec![whole(key)],
        ("DEL" | "UNLINK", others) => [key].into_iter().chain(others).map(whole).collect(),
        ("JSON.SET", [path, _]) if path == "$" => vec![whole(key)],
        ("JSON.SET", [path, _]) => vec![part(path)],
        ("HSET" | "HMSET", pairs) if pairs.len() % 2 == 0 => pairs.iter().step_by(2).map(part).collect(),
        ("ZADD", pairs) if pairs.len() % 2 == 0 && is_score(pairs) => {
            pairs.iter().skip(1).step_by(2).map(part).collect()
        }
        ("SADD", members) => members.iter().map(part).collect(),
        ("HDEL" | "ZREM" | "SREM", _) if expire => return Err(EXPIRES),
        ("HDEL" | "ZREM" | "SREM", parts) => parts.iter().map(part).collect(),
        _ => return Err(COUNTS),
    };
    let is_fixed = |text: &String| Template::parse(text).is_ok_and(|template| template.is_of_stream());
    let fixed = places.iter().all(|place| is_fixed(&place.key) && place.part.as_ref().is_none_or(is_fixed));
    if fixed { Ok(places) } else { Err(VARIES) }
}

/// Whether what follows the key of `ZADD` is a score and no option.
fn is_score(words: &[String]) -> bool {
    words
        .first()
        .is_some_and(|word| !["NX", "XX", "GT", "LT", "CH", "INCR"].contains(&word.to_ascii_uppercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handlers, each written as the type, and its commands with `|` between them; all types but those that begin with `-` are in one group.
    fn checked(all: &[&str]) -> Result<(), String> {
        let words = |command: &str| command.split_whitespace().map(str::to_owned).collect();
        let handlers: Handlers = all
            .iter()
            .map(|text| {
                let (event_type, commands) = text.split_once(": ").unwrap();
                (event_type.to_owned(), commands.split('|').map(words).collect())
            })
            .collect();
        let types = handlers.keys().filter(|event_type| !event_type.starts_with('-')).cloned().collect();
        check(&handlers, &[CoalescedTypes { types }])
    }

    #[test]
    fn commands_that_put_a_value_in_the_place_of_another_are_taken() {
        for all in [
            &["P: SET price:{stream} {data.price}"][..],
            &["P: HSET card:{stream} price {data.price} at {recorded_at} | ZADD by-price {data.price} {stream}"],
            &["P: SETEX a:{stream} 60 {data}", "Q: DEL a:{stream}"],
            &["P: SADD listed {stream}", "Q: SREM listed {stream}"],
            &["P: JSON.SET a:{stream} $.price {data.price}", "Q: JSON.SET a:{stream} $.price 0"],
            &["P: DEL a:{stream} | HSET a:{stream} x 1", "Q: DEL a:{stream}"],
            &["P: HSET a:{stream} x 1", "-Other: HINCRBY a:{stream} n 1 | EXPIRE a:{stream} 60"],
        ] {
            assert_eq!(checked(all), Ok(()), "{all:?}");
        }
    }

    #[test]
    fn a_command_by_which_every_event_counts_is_refused_by_name() {
        for (all, words) in [
            (&["P: HINCRBY totals {stream} 1"][..], "P: command 1 (HINCRBY) may depend"),
            (&["P: SET a {data.x} | RPUSH a:{stream} {data.x}"], "P: command 2 (RPUSH) may depend"),
            (&["P: SET a {data.x} NX"], "P: command 1 (SET) may depend"),
            (&["P: ZADD a GT {data.x} {stream} 1"], "P: command 1 (ZADD) may depend"),
            (&["P: ZADD a INCR {data.x} {stream}"], "P: command 1 (ZADD) may depend"),
            (&["P: PUBLISH a {stream}"], "P: command 1 (PUBLISH) may depend"),
            (&["P: SET a:{data.id} 1"], "P: command 1 (SET) writes another place"),
            (&["P: SET a:{position} 1"], "P: command 1 (SET) writes another place"),
            (&["P: HSET a {data.id} 1"], "P: command 1 (HSET) writes another place"),
            (&["P: SADD a {data.tag}"], "P: command 1 (SADD) writes another place"),
            (&["P: HDEL a {stream}", "-Other: EXPIRE a 60"], "P: command 1 (HDEL) may remove a key"),
        ] {
            let why = checked(all).unwrap_err();
            assert!(why.starts_with(words), "{all:?}: {why}");
        }
    }

    #[test]
    fn a_type_that_leaves_what_another_wrote_does_not_supersede_it() {
        for (all, words) in [
            (
                &["P: HSET a x 1", "Q: HSET a y 1"][..],
                "Q: command 1 (HSET) writes a part of \"a\" that the commands for P",
            ),
            (&["P: DEL a", "Q: HSET a y 1"], "P: command 1 (DEL) writes a part of \"a\" that the commands for Q"),
            (&["P: SET a 1 | SET b 1", "Q: SET a 1"], "P: command 2 (SET) writes a part of \"b\""),
        ] {
            let why = checked(all).unwrap_err();
            assert!(why.starts_with(words), "{all:?}: {why}");
        }
    }
}
