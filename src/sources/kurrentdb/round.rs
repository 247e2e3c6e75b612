//! One look at a cluster: the list of subscriptions, the streams beyond their checkpoints and the end of the log at once; then what these make necessary.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::{all, positions::unknown};
use crate::{
    api::Reason,
    clients::kurrentdb::{Client, Page, Read, Request, Response, Subscription},
    measure::MeasureError,
};

/// What was read.
#[derive(Default)]
pub(super) struct Pages(HashMap<Read, Result<Page, MeasureError>>);

impl Pages {
    /// What this read brought.
    pub(super) fn of(&self, read: &Read) -> Result<&Page, MeasureError> {
        match self.0.get(read) {
            Some(page) => page.as_ref().map_err(Clone::clone),
            None => Err(unknown(Reason::NotMeasuredYet, "not looked at yet")),
        }
    }

    /// The commit position of the log's last event, with the page that tells it.
    pub(super) fn end(&self) -> Result<(u64, &Page), MeasureError> {
        let page = self.of(&all::end_of_log())?;
        Ok((all::end(page)?, page))
    }

    /// Reads what has not been read.
    pub(super) async fn read(&mut self, client: &mut Client, mut wanted: BTreeSet<Read>, by: Instant) {
        wanted.retain(|read| !self.0.contains_key(read));
        let requests: Vec<Request> = wanted.iter().cloned().map(Request::Read).collect();
        let answers = client.ask(&requests, by).await;
        self.take(wanted, answers);
    }

    fn take(&mut self, reads: BTreeSet<Read>, answers: Vec<Result<Response, MeasureError>>) {
        for (read, answer) in reads.into_iter().zip(answers) {
            self.0.insert(
                read,
                answer.and_then(|response| match response {
                    Response::Page(page) => Ok(page),
                    Response::Subscriptions(_) | Response::Events(_) => {
                        Err(unknown(Reason::InvalidAnswer, "another answer"))
                    }
                }),
            );
        }
    }
}

/// All subscriptions by stream and group, or why they are not known; absent where they were not asked for.
pub(super) type Subscriptions = Option<Result<HashMap<(String, String), Subscription>, MeasureError>>;

/// Asks for the subscriptions, where `list` says so, and reads these.
pub(super) async fn first(
    client: &mut Client,
    list: bool,
    reads: BTreeSet<Read>,
    by: Instant,
) -> (Subscriptions, Pages) {
    let mut requests: Vec<Request> = reads.iter().cloned().map(Request::Read).collect();
    requests.extend(list.then_some(Request::Subscriptions));
    let mut answers = client.ask(&requests, by).await;
    let listed = if list { answers.pop() } else { None };
    let listed = listed.map(|answer| {
        answer.and_then(|response| match response {
            Response::Subscriptions(all) => {
                Ok(all.into_iter().map(|one| ((one.event_source.clone(), one.group_name.clone()), one)).collect())
            }
            Response::Page(_) | Response::Events(_) => Err(unknown(Reason::InvalidAnswer, "another answer")),
        })
    });
    let mut pages = Pages::default();
    pages.take(reads, answers);
    (listed, pages)
}
