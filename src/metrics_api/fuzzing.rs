//! What fuzz targets call, with what must hold for any input. Compiled for them alone.

#![allow(clippy::panic)]

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    ClientAuthorities, MeasuredKind, Offer, Selector,
    authn::{RequestHeader, bearer},
    authz::Attributes,
    path as paths,
    query::Query,
    requested::Requested,
};

/// Reads a path as the server does.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(segments) = paths::segments(text) else { return };
    let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    for segment in &segments {
        assert!(!segment.contains('/') && *segment != "." && *segment != ".." && segment.len() <= 253);
        assert!(!segment.chars().any(char::is_control));
    }
    let kind = MeasuredKind {
        kind: "Thing".to_owned(),
        api_version: "example.org/v1".to_owned(),
        resource: "things.example.org".to_owned(),
        metrics: vec!["lag".to_owned()],
    };
    let offer = Offer { external: true, objects: Some(kind) };
    let attributes = Attributes::of(&segments);
    // What is read must be what is authorised.
    let (namespace, resource, name, subresource) = match Requested::of(&segments, &offer) {
        Requested::External { namespace, metric } => (namespace, metric, "", ""),
        Requested::Objects(object) => (object.namespace, object.resource, object.name.unwrap_or("*"), object.metric),
        _ => return,
    };
    let Attributes::Resource(asked) = attributes else { panic!("{text:?} is read as a resource and judged as a path") };
    // These the API server judges as belonging to the namespace itself, and so do we.
    if matches!(resource, "status" | "finalize") {
        return;
    }
    let asked = (&*asked.namespace, &*asked.resource, &*asked.name, &*asked.subresource);
    assert_eq!(asked, (namespace, resource, name, subresource), "{text:?}");
}

/// Reads a query as the server does.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(query) = Query::parse(text) else { return };
    for selector in [&query.labels, &query.metric_labels] {
        round_trip(selector);
    }
}

/// Reads a selector, writes it, and reads it again.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = Selector::parse(text) {
        round_trip(&selector);
    }
}

fn round_trip(selector: &Selector) {
    let written = selector.to_string();
    let Ok(again) = Selector::parse(&written) else { panic!("{written:?} was written and cannot be read") };
    assert_eq!(again.to_string(), written);
    let none = BTreeMap::new();
    let some = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    assert_eq!((again.matches(&none), again.matches(&some)), (selector.matches(&none), selector.matches(&some)));
}

/// Lines of `name: value`: those before an empty line configure the front proxy, those after it are headers that it sends.
pub fn request_headers(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let pair = |line: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let at = line.iter().position(|byte| *byte == b':')?;
        Some((line[..at].to_vec(), line[at + 1..].trim_ascii().to_vec()))
    };
    let config = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .filter_map(pair)
        .filter_map(|(key, value)| Some((String::from_utf8(key).ok()?, String::from_utf8(value).ok()?)));
    let _ = ClientAuthorities::from_config(&config.collect());
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(pair).take(1_000) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&name), HeaderValue::from_bytes(&value)) {
            headers.append(name, value);
        }
    }
    if let Some(token) = bearer(&headers) {
        assert!(!token.is_empty() && !token.starts_with(' '));
    }
    let authorities = ClientAuthorities { request_header: Some(RequestHeader::usual()), ..Default::default() };
    if let Some(user) = authorities.passed_on(&headers) {
        assert!(!user.name.is_empty());
        let named = headers.get_all("x-remote-user").iter().any(|value| value.as_bytes() == user.name.as_bytes());
        assert!(named, "{:?} is named by no header", user.name);
        for group in user.groups.iter().filter(|group| *group != "system:authenticated") {
            let named = headers.get_all("x-remote-group").iter().any(|value| value.as_bytes() == group.as_bytes());
            assert!(named, "{group:?} is named by no header");
        }
    }
}
