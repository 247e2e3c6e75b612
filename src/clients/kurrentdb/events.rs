//! Events with what they hold, in pages whose size in bytes is bounded.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    connection::{Connection, timed_out},
    grpc::{Call, Flow, Frame},
    messages::{EventResp, ResolvedEvent, StreamIdentifier, WholeEvent},
    reads::{READ, Read, Start, created, decode, written},
    words::{Trouble, no_stream, not_the_api, refused},
};
use crate::api::Reason;

/// A server takes events of 16 MiB at most, and its own words about each come with it.
const LARGEST_EVENT: usize = 17 << 20;
/// A page ends after so many bytes of events. The last of them may exceed it.
const LARGEST_PAGE: usize = 4 << 20;
/// A page ends so long before its time is up.
const TO_SPARE: Duration = Duration::from_millis(500);

/// An event at its place in what is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoggedEvent {
    /// In a stream its revision, of an event that a link leads to the link's; in `$all` the commit position, in bytes.
    pub position: u64,
    /// Several events are at this position of `$all`: they were written in one explicit transaction.
    pub shares_position: bool,
    /// What it is; absent of a link whose target is gone.
    pub content: Option<Content>,
}

/// What an event is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Content {
    /// The stream that it was appended to.
    pub stream: String,
    /// Its type.
    pub event_type: String,
    /// It was written as JSON.
    pub is_json: bool,
    /// When the server took it, by the server's clock; absent where it does not tell.
    pub created: Option<jiff::Timestamp>,
    /// Its body.
    pub data: Bytes,
}

/// What was read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EventPage {
    /// In the order of the read.
    pub events: Vec<LoggedEvent>,
    /// The revision of the stream's last event; absent for `$all`.
    pub last_revision: Option<u64>,
    /// What is read ends with these events: neither their number ended the page nor their size or the time.
    pub whole: bool,
}

/// Reads events. A page holds fewer than are asked for where these are large, and where the server has found no more when the time is up.
pub(super) async fn events(connection: &Connection, read: &Read, by: Instant) -> Result<EventPage, Trouble> {
    let call = Call { target: &connection.target, path: READ, largest: LARGEST_EVENT, by };
    let (most, of_stream) = (read.most(), matches!(read, Read::Stream { .. }));
    // A read of `$all` that goes on begins with an event that is known already: a page of it alone would lead nowhere.
    let known = usize::from(matches!(read, Read::All { from: Start::At(_), .. }));
    let (mut page, mut bytes) = (EventPage { whole: true, ..EventPage::default() }, 0);
    let mut take = |frame| {
        let Frame::Message(message) = frame else {
            let why = "an event is larger than 17 MiB, and no larger ones are read";
            return Err(refused(Reason::InvalidAnswer, why));
        };
        bytes += message.len();
        let answer: EventResp = decode(message)?;
        if answer.stream_not_found.is_some() {
            return Err(no_stream());
        }
        page.last_revision = answer.last_stream_position.or(page.last_revision);
        if let Some(event) = answer.event {
            if page.events.len() >= most {
                return Err(not_the_api("more events than were asked for"));
            }
            page.events.push(placed(event, of_stream)?);
        }
        if bytes > LARGEST_PAGE && (known + 1..most).contains(&page.events.len()) {
            page.whole = false;
            return Ok(Flow::Stop);
        }
        Ok(Flow::Continue)
    };
    let request = written(read, true);
    let in_time = by.checked_sub(TO_SPARE).unwrap_or(by);
    let asked = timeout_at(in_time, call.ask(connection.requests.clone(), &request, &mut take)).await;
    match asked {
        Ok(answer) => {
            answer?;
        }
        // What was found so far is an answer.
        Err(_) if page.events.len() > known => page.whole = false,
        Err(_) => return Err(Trouble::Refused(timed_out(connection.target.tls))),
    }
    page.whole &= page.events.len() < most;
    Ok(page)
}

fn placed(ResolvedEvent { event, link }: ResolvedEvent, of_stream: bool) -> Result<LoggedEvent, Trouble> {
    let (position, shares_position) = match (&event, &link) {
        (_, Some(link)) if of_stream => (link.stream_revision, false),
        (Some(event), _) if of_stream => (event.stream_revision, false),
        (Some(event), _) => (event.commit_position, event.commit_position != event.prepare_position),
        (None, _) => return Err(not_the_api("an event that is none")),
    };
    Ok(LoggedEvent { position, shares_position, content: event.map(content).transpose()? })
}

fn content(event: WholeEvent) -> Result<Content, Trouble> {
    let StreamIdentifier { stream_name } = event.stream.unwrap_or_default();
    let stream = String::from_utf8(stream_name).map_err(|_| not_the_api("a stream whose name is no text"))?;
    let mut content = Content { stream, data: event.data, ..Content::default() };
    for entry in event.metadata {
        match entry.key.as_str() {
            "type" => content.event_type = entry.value,
            "content-type" => content.is_json = entry.value == "application/json",
            "created" => content.created = created(&entry.value),
            _ => {}
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::kurrentdb::messages::{Metadata, RecordedEvent};

    fn event(revision: u64, commit: u64, prepare: u64) -> WholeEvent {
        let entry = |key: &str, value: &str| Metadata { key: key.to_owned(), value: value.to_owned() };
        WholeEvent {
            stream: Some(StreamIdentifier { stream_name: b"order-1".to_vec() }),
            stream_revision: revision,
            commit_position: commit,
            prepare_position: prepare,
            metadata: vec![entry("type", "Placed"), entry("content-type", "application/json"), entry("created", "10")],
            data: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn an_event_is_where_its_link_is_and_a_link_to_nothing_has_a_place() {
        let link = || Some(RecordedEvent { stream_revision: 7, commit_position: 900 });
        let followed = placed(ResolvedEvent { event: Some(event(3, 500, 500)), link: link() }, true).unwrap();
        let content = followed.content.unwrap();
        assert_eq!((followed.position, content.stream.as_str(), content.event_type.as_str()), (7, "order-1", "Placed"));
        assert!(content.is_json && content.created == jiff::Timestamp::from_microsecond(1).ok());
        let dangling = placed(ResolvedEvent { event: None, link: link() }, true).unwrap();
        assert_eq!(dangling, LoggedEvent { position: 7, shares_position: false, content: None });
        assert_eq!(placed(ResolvedEvent { event: Some(event(3, 500, 500)), link: None }, true).unwrap().position, 3);
        assert!(placed(ResolvedEvent { event: None, link: None }, true).is_err());
    }

    #[test]
    fn in_all_an_event_is_at_its_commit_position_unless_others_are() {
        let of_all =
            |commit, prepare| placed(ResolvedEvent { event: Some(event(3, commit, prepare)), link: None }, false);
        assert!(!of_all(500, 500).unwrap().shares_position);
        let shared = of_all(500, 400).unwrap();
        assert_eq!((shared.position, shared.shares_position), (500, true));
    }
}
