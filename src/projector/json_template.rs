//! JSON whose texts have places for what an event holds: `{"total": "{data.total}", "paid": false}`.
//!
//! A text that is one place and nothing else becomes the value there, with its type. Names of fields are taken as they are written.

use serde_json::{Map, Value};

use super::{
    event::Event,
    template::{DataPath, Missing, Template, TemplateError},
};

/// A JSON object with places.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JsonTemplate(Node);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// The same for all events, as it is written.
    Constant(String),
    Text(Template),
    List(Vec<Node>),
    /// Names as JSON writes them, with their quotes.
    Object(Vec<(String, Node)>),
}

impl JsonTemplate {
    /// Reads an object.
    ///
    /// # Errors
    /// When one of its texts is no template.
    pub(super) fn parse(object: &Map<String, Value>) -> Result<Self, TemplateError> {
        Ok(Self(Node::of_object(object)?))
    }

    /// The object for an event, as JSON; `None` where it would be longer than so many bytes.
    ///
    /// # Errors
    /// When the event lacks something that the template asks for.
    pub(super) fn fill_within(&self, event: &Event, most_bytes: usize) -> Result<Option<String>, Missing> {
        let mut json = String::new();
        let whole = self.0.write(event, most_bytes, &mut json)?;
        Ok(whole.then_some(json))
    }

    /// The paths in the event's body that its texts ask for.
    pub(super) fn paths(&self) -> Vec<&DataPath> {
        let mut all = Vec::new();
        self.0.add_paths(&mut all);
        all
    }

    /// Whether one of its texts asks for the event's position.
    pub(super) fn asks_for_position(&self) -> bool {
        self.0.asks_for_position()
    }
}

impl Node {
    fn add_paths<'a>(&'a self, all: &mut Vec<&'a DataPath>) {
        match self {
            Self::Constant(_) => {}
            Self::Text(template) => all.extend(template.paths()),
            Self::List(items) => items.iter().for_each(|item| item.add_paths(all)),
            Self::Object(fields) => fields.iter().for_each(|(_, value)| value.add_paths(all)),
        }
    }

    fn asks_for_position(&self) -> bool {
        match self {
            Self::Constant(_) => false,
            Self::Text(template) => template.asks_for_position(),
            Self::List(items) => items.iter().any(Self::asks_for_position),
            Self::Object(fields) => fields.iter().any(|(_, value)| value.asks_for_position()),
        }
    }

    fn parse(value: &Value) -> Result<Self, TemplateError> {
        Ok(match value {
            Value::String(text) => Self::Text(Template::parse(text)?),
            Value::Array(items) => Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?),
            Value::Object(fields) => Self::of_object(fields)?,
            other => Self::Constant(other.to_string()),
        })
    }

    fn of_object(fields: &Map<String, Value>) -> Result<Self, TemplateError> {
        let fields =
            fields.iter().map(|(name, value)| Ok((Value::from(name.as_str()).to_string(), Self::parse(value)?)));
        Ok(Self::Object(fields.collect::<Result<_, TemplateError>>()?))
    }

    /// Appends what it is for an event; false where that would be too long.
    fn write(&self, event: &Event, most_bytes: usize, json: &mut String) -> Result<bool, Missing> {
        match self {
            Self::Constant(text) => json.push_str(text),
            Self::Text(template) => match template.fill_json_within(event, most_bytes.saturating_sub(json.len()))? {
                Some(text) => json.push_str(&text),
                None => return Ok(false),
            },
            Self::List(items) => {
                json.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    if !item.write(event, most_bytes, json)? {
                        return Ok(false);
                    }
                }
                json.push(']');
            }
            Self::Object(fields) => {
                json.push('{');
                for (index, (name, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    json.push_str(name);
                    json.push(':');
                    if !value.write(event, most_bytes, json)? {
                        return Ok(false);
                    }
                }
                json.push('}');
            }
        }
        Ok(json.len() <= most_bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::projector::event::JsonText;

    fn filled(template: &Value, most: usize) -> Result<Option<String>, String> {
        let event = Event {
            position: 42,
            since: 42,
            before: 41,
            shown_position: 42,
            behind_parked: None,
            shard: 0,
            event_type: "Placed".to_owned(),
            stream: Some("order-7".to_owned()),
            recorded_at: None,
            data: Some(JsonText(r#"{"total": 10.50, "items": [{"sku": "x"}], "text": "a\"}, {"}"#.to_owned())),
        };
        let template = JsonTemplate::parse(template.as_object().unwrap()).map_err(|error| error.to_string())?;
        template.fill_within(&event, most).map_err(|missing| missing.to_string())
    }

    #[test]
    fn texts_are_filled_wherever_they_stand_and_values_keep_their_types() {
        let template = json!({
            "id": "{stream}", "total": "{data.total}", "deep": {"list": ["{data.items}", 1, null, true, "n{position}"]}, "{type}": {}, "text": "{data.text}",
        });
        let expected = r#"{"deep":{"list":[[{"sku": "x"}],1,null,true,"n42"]},"id":"order-7","text":"a\"}, {","total":10.50,"{type}":{}}"#;
        assert_eq!(filled(&template, 1_000), Ok(Some(expected.to_owned())));
        assert_eq!(filled(&template, expected.len()), Ok(Some(expected.to_owned())));
        assert_eq!(filled(&template, expected.len() - 1), Ok(None));
        assert!(filled(&json!({"a": ["{data.other}"]}), 100).unwrap_err().contains("{data.other}"));
        assert!(filled(&json!({"a": ["{other}"]}), 100).unwrap_err().contains("{other}"));
    }
}
