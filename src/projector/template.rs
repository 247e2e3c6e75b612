//! Texts with places for what an event holds: `order:{stream}`, `{data.total}`.
//!
//! Only written texts are looked at for places, never what an event puts into them: whatever an event holds, it is one argument.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde_json::value::RawValue;

use super::event::{Event, Timestamp};

const NO_PATH: &str = "the event's body has no such path";

/// A text with places.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Piece {
    Text(String),
    Place(Place),
}

/// What of an event.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    Position,
    Type,
    Stream,
    RecordedAt,
    Data(DataPath),
}

/// A path in an event's body; the whole of it where there are no steps.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct DataPath(Vec<String>);

/// Why a text is no template.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its other one.
    #[error("{0:?} has a brace without its other one: write {{{{ for an opening brace and }}}} for a closing one")]
    Brace(String),
    /// There is no such place.
    #[error(
        "{text:?} asks for {{{place}}}, which no event has: there are {{position}}, {{type}}, {{stream}}, {{recorded_at}}, {{data}} and paths in it, such as {{data.total}}; write {{{{ for a brace"
    )]
    Unknown {
        /// The text.
        text: String,
        /// What it asks for.
        place: String,
    },
}

/// Why a template cannot be filled from an event. Holds nothing of what the event holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Missing {
    place: Place,
    why: &'static str,
}

impl Missing {
    /// The path that the body does not have; nothing where something else is missing, or is there and `null`.
    pub(super) fn path(&self) -> Option<&DataPath> {
        match &self.place {
            Place::Data(path) if self.why == NO_PATH => Some(path),
            _ => None,
        }
    }
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// When a brace has no other one, or a place is none that an event has.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let brace = || TemplateError::Brace(text.to_owned());
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
                plain.push_str(&from[..1]);
                rest = after;
                continue;
            }
            let (name, after) = from.strip_prefix('{').and_then(|from| from.split_once('}')).ok_or_else(brace)?;
            let place = Place::parse(name)
                .ok_or_else(|| TemplateError::Unknown { text: text.to_owned(), place: name.to_owned() })?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Place(place));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The text for an event; `None` where it would be longer than so many bytes.
    ///
    /// # Errors
    /// When the event lacks something that the template asks for. It is never taken for an empty text.
    pub(super) fn fill_within(&self, event: &Event, most_bytes: usize) -> Result<Option<String>, Missing> {
        let mut filled = String::new();
        for piece in &self.0 {
            let text = match piece {
                Piece::Text(text) => Cow::from(text),
                Piece::Place(place) => place.of(event)?,
            };
            if text.len() > most_bytes - filled.len() {
                return Ok(None);
            }
            filled.push_str(&text);
        }
        Ok(Some(filled))
    }

    /// The same as JSON: a text, but what is one place and nothing else is the value there with its type, `null` as well.
    ///
    /// # Errors
    /// As [`Template::fill_within`].
    pub(super) fn fill_json_within(&self, event: &Event, most_bytes: usize) -> Result<Option<String>, Missing> {
        let json = match self.0.as_slice() {
            [Piece::Place(Place::Position)] => event.shown_position.to_string(),
            [Piece::Place(Place::Data(path))] => path.of(event)?.to_owned(),
            _ => match self.fill_within(event, most_bytes)? {
                Some(text) => serde_json::Value::from(text).to_string(),
                None => return Ok(None),
            },
        };
        Ok(Some(json).filter(|json| json.len() <= most_bytes))
    }

    /// The paths in the body that it asks for.
    pub(super) fn paths(&self) -> impl Iterator<Item = &DataPath> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Place(Place::Data(path)) => Some(path),
            Piece::Text(_) | Piece::Place(_) => None,
        })
    }

    /// Whether it is the same for all events of a stream.
    pub(super) fn is_of_stream(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_) | Piece::Place(Place::Stream)))
    }

    /// Whether it asks for the event's position.
    pub(super) fn asks_for_position(&self) -> bool {
        self.0.contains(&Piece::Place(Place::Position))
    }

    /// What it begins with for all events, and whether that is all of it.
    pub(super) fn beginning(&self) -> (&str, bool) {
        match self.0.as_slice() {
            [] => ("", true),
            [Piece::Text(text), rest @ ..] => (text, rest.is_empty()),
            [Piece::Place(_), ..] => ("", false),
        }
    }

    /// Whether it is the same for all events.
    pub(super) fn is_constant(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }
}

impl Place {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "position" => Self::Position,
            "type" => Self::Type,
            "stream" => Self::Stream,
            "recorded_at" => Self::RecordedAt,
            "data" => Self::Data(DataPath(Vec::new())),
            _ => {
                let steps: Vec<String> = name.strip_prefix("data.")?.split('.').map(str::to_owned).collect();
                if steps.iter().any(|step| step.is_empty() || step.contains('{')) {
                    return None;
                }
                Self::Data(DataPath(steps))
            }
        })
    }

    fn of<'a>(&self, event: &'a Event) -> Result<Cow<'a, str>, Missing> {
        let missing = |why| Missing { place: self.clone(), why };
        match self {
            Self::Position => Ok(event.shown_position.to_string().into()),
            Self::Type => Ok(event.event_type.as_str().into()),
            Self::Stream => event.stream.as_deref().map(Cow::from).ok_or_else(|| missing("the event has no stream")),
            Self::RecordedAt => {
                let time = event.recorded_at.ok_or_else(|| missing("the event has no time"))?;
                time.to_rfc3339().map(Cow::from).ok_or_else(|| missing("its time is no moment that RFC 3339 can write"))
            }
            Self::Data(path) => {
                let value = path.of(event)?;
                text_of(value, path.0.is_empty()).ok_or_else(|| missing("it is null there"))
            }
        }
    }
}

impl DataPath {
    /// From the field of the body inwards.
    pub(super) fn steps(&self) -> &[String] {
        &self.0
    }

    /// Whether the event has a value there, `null` as well.
    pub(super) fn is_in(&self, event: &Event) -> bool {
        self.of(event).is_ok()
    }

    /// The value there, as JSON.
    fn of<'a>(&self, event: &'a Event) -> Result<&'a str, Missing> {
        let missing = |why| Missing { place: Place::Data(self.clone()), why };
        let body = event.data.as_ref().ok_or_else(|| missing("the event has no body"))?;
        let mut value: &str = &body.0;
        for step in &self.0 {
            value = inner(value, step).ok_or_else(|| missing(NO_PATH))?;
        }
        Ok(value)
    }
}

/// The value of a field, or of the item with that number of an array, as JSON.
pub(super) fn inner<'a>(json: &'a str, step: &str) -> Option<&'a str> {
    if let Ok(fields) = serde_json::from_str::<BTreeMap<Cow<'a, str>, &'a RawValue>>(json) {
        return fields.get(step).map(|value| value.get());
    }
    let items: Vec<&'a RawValue> = serde_json::from_str(json).ok()?;
    items.get(step.parse::<usize>().ok()?).map(|value| value.get())
}

/// A text without its quotes; a number with all its digits; arrays and objects as JSON. The whole body is always JSON.
pub(super) fn text_of(json: &str, whole: bool) -> Option<Cow<'_, str>> {
    match json.trim() {
        _ if whole => Some(json.into()),
        "null" => None,
        text if text.starts_with('"') => serde_json::from_str::<String>(text).ok().map(Cow::from),
        other => Some(other.into()),
    }
}

impl Timestamp {
    /// From 2000-01-01, where PostgreSQL begins to count, back to 1970-01-01.
    pub(super) const EPOCH: i64 = 946_684_800_000_000;

    /// From milliseconds since 1970; `None` where that is no time.
    pub(super) fn of_millis(millis: i64) -> Option<Self> {
        Self::of_micros(millis.checked_mul(1_000)?)
    }

    /// From microseconds since 1970; `None` where that is no time.
    pub(super) fn of_micros(micros: i64) -> Option<Self> {
        micros.checked_sub(Self::EPOCH).map(Self)
    }

    fn to_rfc3339(self) -> Option<String> {
        let micros = self.0.checked_add(Self::EPOCH).filter(|_| self.0 != i64::MIN && self.0 != i64::MAX)?;
        jiff::Timestamp::from_microsecond(micros).ok().map(|time| time.to_string())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position => f.write_str("{position}"),
            Self::Type => f.write_str("{type}"),
            Self::Stream => f.write_str("{stream}"),
            Self::RecordedAt => f.write_str("{recorded_at}"),
            Self::Data(path) if path.0.is_empty() => f.write_str("{data}"),
            Self::Data(path) => write!(f, "{{data.{}}}", path.0.join(".")),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the handler asks for {}, and {}", self.place, self.why)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::event::JsonText, *};

    fn event(data: &str) -> Event {
        Event {
            position: 42,
            since: 42,
            before: 41,
            shown_position: 42,
            behind_parked: None,
            shard: 0,
            event_type: "OrderPlaced".to_owned(),
            stream: Some("order-7".to_owned()),
            recorded_at: Some(Timestamp(0)),
            data: Some(JsonText(data.to_owned())),
        }
    }

    fn filled(template: &str, data: &str) -> Result<String, String> {
        let template = Template::parse(template).map_err(|error| error.to_string())?;
        let filled = template.fill_within(&event(data), 1_000).map_err(|missing| missing.to_string())?;
        Ok(filled.expect("it is short"))
    }

    #[test]
    fn places_are_filled_from_the_event() {
        let data = r#"{"total": 12345678901234567890.10, "who": {"name": "A \"B\" {stream}"}, "items": [{"sku": "x"}], "paid": true}"#;
        for (template, expected) in [
            ("order:{stream}", "order:order-7"),
            ("{position} {type}", "42 OrderPlaced"),
            ("{recorded_at}", "2000-01-01T00:00:00Z"),
            ("{data.total}", "12345678901234567890.10"),
            ("{data.who.name}", "A \"B\" {stream}"),
            ("{data.who}", r#"{"name": "A \"B\" {stream}"}"#),
            ("{data.items.0.sku}", "x"),
            ("{data.paid}", "true"),
            ("{{{stream}}}", "{order-7}"),
            ("", ""),
        ] {
            assert_eq!(filled(template, data).as_deref(), Ok(expected), "{template}");
        }
        assert_eq!(filled("{data}", data).as_deref(), Ok(data));
    }

    #[test]
    fn what_an_event_lacks_is_no_empty_text() {
        for (template, data) in [
            ("{data.total}", r#"{"sum": 1}"#),
            ("{data.total}", r#"{"total": null}"#),
            ("{data.total}", "[1]"),
            ("{data.items.3}", r#"{"items": [1]}"#),
            ("{data.a.b}", r#"{"a": "text"}"#),
        ] {
            let why = filled(template, data).unwrap_err();
            assert!(why.contains(template), "{why}");
        }
        let forever = Event { recorded_at: Some(Timestamp(i64::MAX)), data: None, stream: None, ..event("{}") };
        for template in ["{recorded_at}", "{data}", "{data.x}", "{stream}"] {
            assert!(Template::parse(template).unwrap().fill_within(&forever, 100).is_err(), "{template}");
        }
    }

    #[test]
    fn in_json_a_place_alone_keeps_its_type_and_any_other_text_is_a_text() {
        let data = r#"{"total": 12345678901234567890.10, "who": {"a": "\"x\""}, "none": null, "name": "a\"b"}"#;
        let json = |template: &str| {
            let template = Template::parse(template).unwrap();
            template.fill_json_within(&event(data), 1_000).map(Option::unwrap).map_err(|missing| missing.to_string())
        };
        for (template, expected) in [
            ("{data.total}", "12345678901234567890.10"),
            ("{data.who}", r#"{"a": "\"x\""}"#),
            ("{data.none}", "null"),
            ("{data.name}", r#""a\"b""#),
            ("<{data.name}>", r#""<a\"b>""#),
            ("{position}", "42"),
            ("p{position}", r#""p42""#),
            ("{type}", r#""OrderPlaced""#),
            ("", r#""""#),
        ] {
            assert_eq!(json(template).as_deref(), Ok(expected), "{template}");
        }
        assert!(json("{data.other}").unwrap_err().contains("{data.other}"));
        assert!(json("<{data.none}>").unwrap_err().contains("null"));
        assert_eq!(Template::parse("{data.who}").unwrap().fill_json_within(&event(data), 5).unwrap(), None);
        assert!(Template::parse("a{{b").unwrap().is_constant() && !Template::parse("a{type}").unwrap().is_constant());
    }

    #[test]
    fn a_text_that_would_be_too_long_is_not_made() {
        let template = Template::parse("{data.a}{data.a}").unwrap();
        let event = event(r#"{"a": "12345"}"#);
        assert_eq!(template.fill_within(&event, 9).unwrap(), None);
        assert_eq!(template.fill_within(&event, 10).unwrap().as_deref(), Some("1234512345"));
    }

    #[test]
    fn a_text_that_is_no_template_is_refused() {
        for text in ["{", "}", "a{stream", "{stream}}", "{data.}", "{data..x}", "{total}", "{}", "{ stream }"] {
            let why = Template::parse(text).unwrap_err().to_string();
            assert!(why.contains("{{"), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn any_text_of_an_event_comes_out_as_it_is(text in "\\PC{0,40}") {
            let data = serde_json::json!({"a": {"b": text}}).to_string();
            prop_assert_eq!(filled("<{data.a.b}>", &data), Ok(format!("<{text}>")));
        }

        #[test]
        fn no_template_makes_it_panic(text in "\\PC{0,40}") {
            let _ = Template::parse(&text);
        }
    }
}
