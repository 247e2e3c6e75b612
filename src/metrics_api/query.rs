//! A request's query: the selectors in it, understood whole or refused.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Selector, path::decode};

/// A longer query is refused unread.
const LONGEST_QUERY: usize = 32 * 1024;

/// What a query selects; nothing said selects everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Query {
    /// By labels of what is measured.
    pub(super) labels: Selector,
    /// By labels of the metric.
    pub(super) metric_labels: Selector,
}

impl Query {
    /// Reads a query string. Of a parameter that is there twice only the first counts, as in the API server.
    ///
    /// # Errors
    /// What cannot be read, and why.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        if query.len() > LONGEST_QUERY {
            return Err("it is too long".to_owned());
        }
        let (mut labels, mut metric_labels) = (None, None);
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Every pair must be readable, also those that do not matter: a query that is half understood selects the wrong thing.
            let (key, value) = (text(key)?, text(value)?);
            let selector = || Selector::parse(&value).map_err(|error| format!("{key}: {error}"));
            match key.as_str() {
                "labelSelector" if labels.is_none() => labels = Some(selector()?),
                "metricLabelSelector" if metric_labels.is_none() => metric_labels = Some(selector()?),
                "fieldSelector" if !value.is_empty() => {
                    return Err("metrics cannot be selected by fields: use labelSelector".to_owned());
                }
                _ => {}
            }
        }
        Ok(Self { labels: labels.unwrap_or_default(), metric_labels: metric_labels.unwrap_or_default() })
    }

    /// The parsed query as the end of a URL for another adapter; nothing else of what the caller wrote is in it.
    pub(super) fn written(&self) -> String {
        let said = [("labelSelector", &self.labels), ("metricLabelSelector", &self.metric_labels)]
            .map(|(key, selector)| (key, selector.to_string()));
        let said = said.iter().filter(|(_, selector)| !selector.is_empty());
        let pairs = said.map(|(key, selector)| format!("{key}={}", utf8_percent_encode(selector, NON_ALPHANUMERIC)));
        let pairs = pairs.collect::<Vec<_>>().join("&");
        if pairs.is_empty() { pairs } else { format!("?{pairs}") }
    }
}

/// Decodes a key or a value. Tabs and line breaks are white space to a selector; other control characters are refused.
fn text(encoded: &str) -> Result<String, String> {
    let encoded = encoded.replace('+', " ");
    let text = decode(&encoded)?;
    if text.chars().any(|letter| letter.is_control() && !"\t\n\r".contains(letter)) {
        return Err("it holds a control character".to_owned());
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_understood_whole_or_refused() {
        let written = |query: &str| Query::parse(query).map(|query| query.labels.to_string());
        assert_eq!(written(""), Ok(String::new()));
        assert_eq!(written("labelSelector=projection%3Dorders&timeout=30s"), Ok("projection=orders".to_owned()));
        assert_eq!(written("labelSelector=a+in+(x,y)"), Ok("a in (x,y)".to_owned()));
        assert_eq!(written("labelSelector=a%3D1&labelSelector=b%3D2"), Ok("a=1".to_owned()));
        assert_eq!(written("labelSelector=&fieldSelector="), Ok(String::new()));
        assert_eq!(written("labelSelector=a%0A%3D%0D%0A%091%0A,b"), Ok("a=1,b".to_owned()));
        for query in [
            "labelSelector=%zz",
            "x=%zz&labelSelector=a%3Db",
            "labelSelector=a%3Db&x=%zz",
            "labelSelector==",
            "labelSelector=%00",
            "labelSelector=a%0B%3D1",
            "labelSelector=A/b%3D1",
            "metricLabelSelector==",
            "fieldSelector=metadata.name%3Dx",
            &"x".repeat(40_000),
        ] {
            assert!(written(query).is_err(), "{query:.40}");
        }
    }

    #[test]
    fn the_two_selectors_are_kept_apart() {
        let query = Query::parse("metricLabelSelector=projection%3Dorders&labelSelector=tier%3Dgold").unwrap();
        assert_eq!(
            (query.labels.to_string(), query.metric_labels.to_string()),
            ("tier=gold".into(), "projection=orders".into())
        );
        let error = Query::parse("labelSelector=a&metricLabelSelector=a%20b").unwrap_err();
        assert!(error.starts_with("metricLabelSelector: unable to parse"), "{error}");
    }

    #[test]
    fn what_is_passed_on_is_what_was_understood_and_no_more() {
        for (query, passed_on) in [
            ("", ""),
            ("timeout=30s&x=y", ""),
            ("labelSelector=a%3D%3D1&labelSelector=b%3D2", "?labelSelector=a%3D1"),
            (
                "metricLabelSelector=b+in+(x,y)&labelSelector=a",
                "?labelSelector=a&metricLabelSelector=b%20in%20%28x%2Cy%29",
            ),
        ] {
            let written = Query::parse(query).unwrap().written();
            assert_eq!(written, passed_on);
            assert_eq!(Query::parse(written.trim_start_matches('?')), Query::parse(query));
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(text in "\\PC{0,80}", encoded in "(&|=|%[0-9a-f]{2}|[a-z]){0,40}") {
            let _ = (Query::parse(&text), Query::parse(&encoded), Query::parse(&format!("labelSelector={encoded}")));
        }
    }
}
