//! What a broker has sent of one partition and is not handled yet. Memory holds what was sent, and of that one batch at a time undone. Pure.

use std::collections::VecDeque;

use super::super::super::event::Event;
use crate::clients::kafka::{Record, Sent};

/// Records of one partition from some offset on.
#[derive(Default)]
pub(super) struct Buffer {
    /// Those that are not handled, in their order.
    records: VecDeque<Record>,
    /// `records` are all from here on,
    from: i64,
    /// up to here.
    decoded: i64,
    /// What comes next in what was sent.
    sent: Option<Sent>,
    /// What comes at `decoded` cannot be read.
    unreadable: Option<String>,
}

/// What is left to take in one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Events.
    pub(super) events: usize,
    /// Bytes of events.
    pub(super) bytes: usize,
    /// Records, those without a handler included.
    pub(super) records: usize,
}

impl Budget {
    fn is_spent(self) -> bool {
        self.events == 0 || self.bytes == 0 || self.records == 0
    }
}

/// How far a partition was read in one turn.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Reached {
    /// The events before this offset are all.
    Until(i64),
    /// The record at this offset, the first, cannot be read.
    Unreadable(i64, String),
}

impl Buffer {
    /// Continues at this offset: what comes before it is handled. What was sent is forgotten where it is for another place.
    pub(super) fn forward(&mut self, offset: i64) {
        if offset < self.from || offset > self.decoded {
            *self = Self { from: offset, decoded: offset, ..Self::default() };
            return;
        }
        while self.records.front().is_some_and(|record| record.offset < offset) {
            self.records.pop_front();
        }
        self.from = offset;
    }

    /// Nothing is known of what comes at the offset that it stands at.
    pub(super) fn is_empty(&self) -> bool {
        self.decoded <= self.from && self.sent.is_none() && self.unreadable.is_none()
    }

    /// There are records of a batch that is undone already.
    pub(super) fn is_begun(&self) -> bool {
        !self.records.is_empty()
    }

    /// Forgets what was sent.
    pub(super) fn clear(&mut self) {
        *self = Self { from: self.from, decoded: self.from, ..Self::default() };
    }

    /// Where it stands.
    pub(super) fn offset(&self) -> i64 {
        self.from
    }

    /// Takes over what a broker has sent from the offset on that it stands at.
    pub(super) fn fill(&mut self, sent: Sent) {
        *self = Self { from: self.from, decoded: self.from, sent: Some(sent), ..Self::default() };
    }

    /// What comes at the offset that it stands at cannot be read.
    pub(super) fn spoil(&mut self, why: String) {
        *self = Self { from: self.from, decoded: self.from, unreadable: Some(why), ..Self::default() };
    }

    /// Takes events up to the offset `until`, as far as there are such and the budget lasts. `read` makes an event of a record where its type has a handler. A
    /// record that cannot be read ends what is taken before it, or is what comes of it when it is the first. What is taken stays until it is handled.
    pub(super) fn take(
        &mut self,
        until: i64,
        most_bytes: usize,
        budget: &mut Budget,
        read: impl Fn(&Record) -> Result<Option<Event>, String>,
        events: &mut Vec<Event>,
    ) -> Reached {
        let (mut next, mut reached) = (0, self.from);
        loop {
            while let Some(record) = self.records.get(next) {
                if record.offset >= until {
                    return Reached::Until(until);
                }
                if budget.is_spent() {
                    return Reached::Until(reached);
                }
                match read(record) {
                    Ok(event) => {
                        budget.records -= 1;
                        if let Some(event) = event {
                            let size = [&record.key, &record.value].into_iter().flatten().map(bytes::Bytes::len).sum();
                            budget.events -= 1;
                            budget.bytes = budget.bytes.saturating_sub(size);
                            events.push(event);
                        }
                    }
                    Err(why) if next == 0 => return Reached::Unreadable(record.offset, why),
                    Err(_) => return Reached::Until(record.offset),
                }
                reached = record.offset.saturating_add(1);
                next += 1;
            }
            // Behind the last record there may be offsets without one.
            reached = reached.max(self.decoded.min(until));
            if reached >= until || budget.is_spent() {
                return Reached::Until(reached);
            }
            if self.unreadable.is_none() {
                match self.sent.as_mut().map(|sent| sent.next(most_bytes)) {
                    Some(Ok(Some(batch))) => {
                        self.decoded = self.decoded.max(batch.end);
                        self.records.extend(batch.records);
                        continue;
                    }
                    Some(Ok(None)) => self.sent = None,
                    None => {}
                    Some(Err(unreadable)) => self.unreadable = Some(unreadable.why),
                }
            }
            return match &self.unreadable {
                Some(why) if reached == self.from => {
                    let why = format!("{why}; it is in a batch of records that is read as a whole");
                    Reached::Unreadable(reached, why)
                }
                _ => Reached::Until(reached),
            };
        }
    }
}
