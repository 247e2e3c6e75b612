//! Which fields the events of one type have had so far: tells a handler that asks for a field that no event has from an event that lacks a field. Pure but for
//! what it remembers.
//!
//! Names of fields are told, never values. A name that does not look like one may be what an event is about, and is not told either.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::value::RawValue;

use super::{
    event::Event,
    template::{DataPath, Missing, inner},
};

/// So many names of fields are told: a message is cut after 900 letters.
const MOST_NAMES: usize = 10;
/// Names with more bytes are not told.
const LONGEST_NAME: usize = 40;
/// A name that is less like the one asked for than this is no misspelling of it (Jaro-Winkler, 1 for the same).
const LIKENESS: f64 = 0.8;

/// What the events of one type had that this process has tried. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct FieldsSeen(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// One event had all that the handler asks for.
    all: AtomicBool,
    /// Paths that an event had which lacked others.
    some: Mutex<BTreeSet<DataPath>>,
}

impl FieldsSeen {
    /// An event had all that the handler asks for. Cheap: it is called for each event.
    pub(super) fn had_all(&self) {
        if !self.0.all.load(Ordering::Relaxed) {
            self.0.all.store(true, Ordering::Relaxed);
        }
    }

    /// Notes what an event had of `asked`, which are the paths that its handler asks for, and returns why it cannot be handled: where no event of its type has
    /// had the path so far, that as well, and which fields there are.
    pub(super) fn lacks<'a>(
        &self,
        event: &Event,
        missing: &Missing,
        asked: impl Iterator<Item = &'a DataPath>,
    ) -> String {
        let mut some = self.0.some.lock().unwrap_or_else(PoisonError::into_inner);
        some.extend(asked.filter(|path| path.is_in(event)).cloned());
        match missing.path() {
            Some(path) if !self.0.all.load(Ordering::Relaxed) && !some.contains(path) => {
                format!("{missing}. No event of this type that this worker has tried had it{}", fields(path, event))
            }
            _ => missing.to_string(),
        }
    }
}

/// Which fields there are where the path leads no further, and which of them it may mean.
fn fields(path: &DataPath, event: &Event) -> String {
    let Some(body) = event.data.as_ref() else { return String::new() };
    let (mut value, mut reached) = (body.0.as_str(), Vec::new());
    let mut wanted = "";
    for step in path.steps() {
        wanted = step;
        match inner(value, step) {
            Some(deeper) => {
                value = deeper;
                reached.push(step.as_str());
            }
            None => break,
        }
    }
    let at: String = ["data"].into_iter().chain(reached).collect::<Vec<_>>().join(".");
    let Ok(object) = serde_json::from_str::<BTreeMap<String, &RawValue>>(value) else {
        return format!(": {{{at}}} is no object");
    };
    let names: Vec<&str> = object.keys().map(String::as_str).filter(|name| is_name(name)).collect();
    if names.is_empty() {
        return String::new();
    }
    let meant = nearest(wanted, &names)
        .map_or_else(String::new, |name| format!(": does the handler mean {{{at}.{name}}} there?"));
    let told = &names[..names.len().min(MOST_NAMES)];
    let others = if told.len() < object.len() { " and others" } else { "" };
    let stop = if meant.is_empty() { "." } else { "" };
    format!("{meant}{stop} Fields of {{{at}}}: {}{others}", told.join(", "))
}

fn is_name(text: &str) -> bool {
    text.len() <= LONGEST_NAME
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-')
}

/// The name that is most like `wanted`, if one is like it at all.
fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let wanted = wanted.to_ascii_lowercase();
    let likeness = |name: &str| strsim::jaro_winkler(&wanted, &name.to_ascii_lowercase());
    let all = names.iter().map(|name| (likeness(name), *name)).filter(|(likeness, _)| *likeness >= LIKENESS);
    all.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{event::JsonText, template::Template},
        *,
    };

    fn event(data: &str) -> Event {
        Event::without_position("Placed".to_owned(), None, None, Some(JsonText(data.to_owned())))
    }

    /// Tries an event as a handler of these texts does.
    fn tried(seen: &FieldsSeen, texts: &[&str], data: &str) -> Result<(), String> {
        let templates: Vec<Template> = texts.iter().map(|text| Template::parse(text).unwrap()).collect();
        for template in &templates {
            if let Err(missing) = template.fill_within(&event(data), 100) {
                return Err(seen.lacks(&event(data), &missing, templates.iter().flat_map(Template::paths)));
            }
        }
        seen.had_all();
        Ok(())
    }

    const NEVER: &str = "No event of this type";

    #[test]
    fn a_field_that_no_event_had_is_told_with_the_fields_there_are() {
        let data = r#"{"total": 5, "customer": "ann"}"#;
        let why = tried(&FieldsSeen::default(), &["{data.totl}"], data).unwrap_err();
        assert_eq!(
            why,
            "the handler asks for {data.totl}, and the event's body has no such path. No event of this type that this worker has tried had it: does the handler mean {data.total} there? Fields of {data}: customer, total"
        );
        let why = tried(&FieldsSeen::default(), &["{data.region}"], data).unwrap_err();
        assert!(why.ends_with("had it. Fields of {data}: customer, total"), "{why}");
        let deep = tried(&FieldsSeen::default(), &["{data.who.nam}"], r#"{"who": {"name": "ann"}}"#).unwrap_err();
        assert!(deep.ends_with("mean {data.who.name} there? Fields of {data.who}: name"), "{deep}");
        let flat = tried(&FieldsSeen::default(), &["{data.who.name}"], r#"{"who": "ann"}"#).unwrap_err();
        assert!(flat.ends_with("had it: {data.who} is no object"), "{flat}");
    }

    #[test]
    fn an_event_that_lacks_what_others_had_is_told_as_before() {
        let seen = FieldsSeen::default();
        tried(&seen, &["{data.total}"], r#"{"total": 5}"#).unwrap();
        let why = tried(&seen, &["{data.total}"], r#"{"sum": 5}"#).unwrap_err();
        assert!(!why.contains(NEVER) && why.contains("{data.total}"), "{why}");
    }

    #[test]
    fn what_an_event_had_counts_although_it_lacked_something_else() {
        let (seen, texts) = (FieldsSeen::default(), ["{data.a}", "{data.b}"]);
        assert!(tried(&seen, &texts, r#"{"b": 1}"#).unwrap_err().contains(NEVER), "no event had a");
        let b = tried(&seen, &texts, r#"{"a": 1}"#).unwrap_err();
        assert!(!b.contains(NEVER), "the first event had b: {b}");
        let a = tried(&seen, &texts, r#"{"b": 1}"#).unwrap_err();
        assert!(!a.contains(NEVER), "the second event had a: {a}");
    }

    #[test]
    fn null_is_a_field_that_is_there() {
        let why = tried(&FieldsSeen::default(), &["{data.total}"], r#"{"total": null}"#).unwrap_err();
        assert!(why.contains("null") && !why.contains(NEVER), "{why}");
    }

    #[test]
    fn neither_values_nor_names_that_hold_what_an_event_is_about_are_told() {
        let data = r#"{"ann@example.com": 1, "4711": 2, "ok": "secret", "Ümlaut": 3}"#;
        let why = tried(&FieldsSeen::default(), &["{data.x}"], data).unwrap_err();
        assert!(why.ends_with("Fields of {data}: ok and others"), "{why}");
        let why = tried(&FieldsSeen::default(), &["{data.x}"], r#"{"a b": 1}"#).unwrap_err();
        assert!(why.ends_with("has tried had it"), "{why}");
        let many: BTreeMap<String, u32> =
            (0..50).map(|number| (format!("{}{number}", "f".repeat(38)), number)).collect();
        let why = tried(&FieldsSeen::default(), &["{data.x}"], &serde_json::to_string(&many).unwrap()).unwrap_err();
        assert!(why.len() < 800 && why.ends_with("and others"), "{why}");
    }
}
