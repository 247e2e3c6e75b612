//! Label selectors: the whole grammar of Kubernetes, bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::types::{LabelRequirement, LabelSelector};

/// A longer selector is refused unread.
const LONGEST: usize = 16 * 1024;
/// More requirements than this are refused.
const MOST_REQUIREMENTS: usize = 64;

/// All of its requirements must hold; none at all match everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// Where and why a text is no selector.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unable to parse the label selector at character {at}: {why}")]
pub struct SelectorError {
    at: usize,
    why: String,
}

impl Selector {
    /// Reads `a=b,c==d,e!=f,g in (x,y),h notin (z),i,!j,k>1,l<2`.
    ///
    /// # Errors
    /// When the text is too long, has too many requirements, or does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, at: 0 };
        if text.len() > LONGEST {
            return Err(parser.error(format!("it is longer than {LONGEST} bytes")));
        }
        let mut requirements = Vec::new();
        parser.skip_spaces();
        while parser.at < text.len() {
            if requirements.len() == MOST_REQUIREMENTS {
                return Err(parser.error(format!("it has more than {MOST_REQUIREMENTS} requirements")));
            }
            requirements.push(parser.requirement()?);
            parser.skip_spaces();
            if parser.at < text.len() {
                parser.expect(",")?;
                parser.skip_spaces();
                if parser.at == text.len() {
                    return Err(parser.error("a requirement must follow the comma".to_owned()));
                }
            }
        }
        Ok(Self { requirements })
    }

    /// True when the labels meet every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Selector::matches`], for labels that are looked up one by one.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.operator.holds(label(&requirement.key)))
    }

    /// The values that the selector names for a label, each once, if it names any: nothing with another value can match.
    pub fn named(&self, key: &str) -> Option<BTreeSet<&str>> {
        self.requirements.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) if requirement.key == key => Some(values.iter().map(String::as_str).collect()),
            _ => None,
        })
    }

    /// As objects of Kubernetes hold it. `None` for the empty one, and for one that they cannot hold since it compares numbers.
    pub(super) fn as_label_selector(&self) -> Option<LabelSelector> {
        if self.requirements.is_empty() {
            return None;
        }
        let mut selector = LabelSelector::default();
        for Requirement { key, operator } in &self.requirements {
            let (operator, values) = match operator {
                Operator::In(values) if values.len() == 1 && !selector.match_labels.contains_key(key) => {
                    selector.match_labels.insert(key.clone(), values[0].clone());
                    continue;
                }
                Operator::In(values) => ("In", values.clone()),
                Operator::NotIn(values) => ("NotIn", values.clone()),
                Operator::Exists => ("Exists", Vec::new()),
                Operator::DoesNotExist => ("DoesNotExist", Vec::new()),
                Operator::GreaterThan(_) | Operator::LessThan(_) => return None,
            };
            selector.match_expressions.push(LabelRequirement { key: key.clone(), operator, values });
        }
        Some(selector)
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::In(values), Some(value)) => values.iter().any(|allowed| allowed == value),
            (Self::NotIn(values), Some(value)) => values.iter().all(|refused| refused != value),
            (Self::Exists, value) => value.is_some(),
            // An absent label differs from every value.
            (Self::DoesNotExist, value) => value.is_none(),
            (Self::NotIn(_), None) => true,
            (Self::In(_) | Self::GreaterThan(_) | Self::LessThan(_), None) => false,
            (Self::GreaterThan(bound), Some(value)) => value.parse::<i64>().is_ok_and(|value| value > *bound),
            (Self::LessThan(bound), Some(value)) => value.parse::<i64>().is_ok_and(|value| value < *bound),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
                Operator::In(values) => write!(f, "{key} in ({})", values.join(",")),
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
                Operator::Exists => f.write_str(key),
                Operator::DoesNotExist => write!(f, "!{key}"),
                Operator::GreaterThan(bound) => write!(f, "{key}>{bound}"),
                Operator::LessThan(bound) => write!(f, "{key}<{bound}"),
            }?;
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, why: String) -> SelectorError {
        SelectorError { at: self.at, why }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), SelectorError> {
        if self.eat(token) { Ok(()) } else { Err(self.error(format!("expected {token:?}"))) }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c))).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.eat("!");
        self.skip_spaces();
        let key = self.key()?;
        self.skip_spaces();
        let operator = if absent { Operator::DoesNotExist } else { self.operator()? };
        Ok(Requirement { key, operator })
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        let rest = self.rest();
        if rest.is_empty() || rest.starts_with(',') {
            return Ok(Operator::Exists);
        }
        if self.eat("==") || self.eat("=") {
            return Ok(Operator::In(vec![self.value()?]));
        }
        if self.eat("!=") {
            return Ok(Operator::NotIn(vec![self.value()?]));
        }
        if self.eat(">") {
            return Ok(Operator::GreaterThan(self.number()?));
        }
        if self.eat("<") {
            return Ok(Operator::LessThan(self.number()?));
        }
        let at = self.at;
        match self.word() {
            "in" => Ok(Operator::In(self.set()?)),
            "notin" => Ok(Operator::NotIn(self.set()?)),
            _ => {
                self.at = at;
                Err(self.error("expected one of =, ==, !=, in, notin, <, > or the end".to_owned()))
            }
        }
    }

    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        self.skip_spaces();
        self.expect("(")?;
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            if self.eat(")") {
                return Ok(values);
            }
            self.expect(",")?;
        }
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        self.skip_spaces();
        let at = self.at;
        let value = self.word();
        let fits = value.len() <= 63 && !value.contains('/') && ends_well(value);
        self.skip_spaces();
        if value.is_empty() || fits {
            return Ok(value.to_owned());
        }
        self.at = at;
        Err(self.error("a label's value has at most 63 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit".to_owned()))
    }

    fn number(&mut self) -> Result<i64, SelectorError> {
        self.skip_spaces();
        let at = self.at;
        let number = self.word().parse();
        self.skip_spaces();
        number.map_err(|_| SelectorError { at, why: "expected a whole number".to_owned() })
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let at = self.at;
        let key = self.word();
        let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
        let name_fits = !name.is_empty() && name.len() <= 63 && !name.contains('/') && ends_well(name);
        if name_fits && prefix.is_none_or(is_dns_subdomain) {
            return Ok(key.to_owned());
        }
        let why = match prefix {
            Some(prefix) if name_fits && !prefix.is_empty() => {
                "what is before the slash in a label's name must be a DNS subdomain: lower-case letters, digits, '-' and '.'"
            }
            _ => "expected a label's name",
        };
        Err(SelectorError { at, why: why.to_owned() })
    }
}

/// A DNS subdomain by RFC 1123, as Kubernetes validates the prefix of a label's name.
fn is_dns_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        ends_well(label) && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn ends_well(word: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    alphanumeric(word.as_bytes().first()) && alphanumeric(word.as_bytes().last())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_operator_means_what_kubernetes_means() {
        let some = labels(&[("a", "b"), ("n", "5"), ("team.example/x", "")]);
        for (text, holds) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            (" a = b ", true),
            ("\na\n=\tb\r\n,\n!z\n", true),
            ("a in\n(\nx,\n b\n)", true),
            ("a=c", false),
            ("a!=c", true),
            ("missing!=c", true),
            ("a in (x, b)", true),
            ("a in (x)", false),
            ("a notin (x,y)", true),
            ("missing notin (x)", true),
            ("missing in (x)", false),
            ("a", true),
            ("missing", false),
            ("!missing", true),
            ("!a", false),
            ("n>4", true),
            ("n > 5", false),
            ("n<6", true),
            ("a<6", false),
            ("team.example/x=", true),
            ("a=b,n>4,!z", true),
            ("a=b,n>9", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&some), holds, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_with_the_place() {
        for text in [
            "=",
            "==",
            "a=b,",
            ",a",
            "a in x",
            "a in (",
            "a in (b",
            "a b",
            "a=b c",
            "a>x",
            "!",
            "a/b/c",
            "-a",
            "a=-b",
            "a=b/c",
            "A/b=c",
            "a_b/c=d",
            "a..b/c=d",
            "a.-b/c=d",
            "/c=d",
            "a\0",
            "é=1",
            "a=b,,c",
            &"a=b,".repeat(9_000),
        ] {
            assert!(Selector::parse(text).is_err(), "{text:.40?} was accepted");
        }
        let error = Selector::parse("a=b,c in x").unwrap_err();
        assert_eq!(error.to_string(), "unable to parse the label selector at character 9: expected \"(\"");
        let many = vec!["a"; MOST_REQUIREMENTS + 1].join(",");
        assert!(Selector::parse(&many).is_err());
    }

    #[test]
    fn the_values_that_are_named_for_a_label_are_told_once_each() {
        let named = |text: &str| {
            let selector = Selector::parse(text).unwrap();
            selector.named("projection").map(|names| names.into_iter().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(named("x=1,projection=orders").as_deref(), Some("orders"));
        assert_eq!(named("projection in (b,a,b)").as_deref(), Some("a b"));
        assert_eq!(named("projection!=a"), None);
    }

    #[test]
    fn as_an_object_it_holds_every_requirement() {
        let written = |text: &str| serde_json::to_value(Selector::parse(text).unwrap().as_label_selector()).unwrap();
        assert_eq!(
            written("a=b,a=c,d!=e,f in (g,h),i,!j"),
            serde_json::json!({
                "matchLabels": {"a": "b"},
                "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["c"]},
                    {"key": "d", "operator": "NotIn", "values": ["e"]},
                    {"key": "f", "operator": "In", "values": ["g", "h"]},
                    {"key": "i", "operator": "Exists"},
                    {"key": "j", "operator": "DoesNotExist"},
                ],
            })
        );
        assert_eq!(written("a=b"), serde_json::json!({"matchLabels": {"a": "b"}}));
        assert!(written("").is_null() && written("a>1,b=c").is_null());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = Selector::parse(&text);
        }

        #[test]
        fn what_it_writes_it_reads_back(text in "(!?[a-c]{1,3}|[a-c]{1,3}(=|==|!=)[a-z0-9]{0,4}|[a-c]{1,3} (in|notin) \\([a-z0-9]{1,3}(,[a-z]{1,2}){0,3}\\)|[a-c]{1,3}[<>][0-9]{1,4}){1}") {
            let selector = Selector::parse(&text).unwrap();
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
