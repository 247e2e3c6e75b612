//! Batches of records as a broker sends them: their headers, and which of them a reader may see. Nothing is decompressed here.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};
use kacrab_protocol::generated::fetch_response::PartitionData;

use super::Isolation;

/// A batch header of format 2, with the length of the records.
const HEADER_BYTES: usize = 61;
/// What comes before the part that the length counts: the first offset and the length.
const BEFORE_LENGTH: usize = 12;
/// What the checksum covers begins here: behind the first offset, the length, the leader's epoch, the format and the checksum.
const CHECKED_FROM: usize = 21;

/// One batch.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// The offset that its first record had when it was written.
    pub base: i64,
    /// From there to its last record.
    pub last_delta: i32,
    /// In milliseconds since 1970: what the times of records count from.
    pub first_time: i64,
    /// The time of its newest record; with `append_time`, of all of them.
    pub newest: i64,
    pub producer: i64,
    pub count: i32,
    /// The broker's time of writing it counts, and not that of its records.
    pub append_time: bool,
    pub control: bool,
    pub transactional: bool,
    /// The number of the compression.
    pub codec: i16,
    /// What the broker wrote down of the checksum, and what it covers.
    pub checksum: (u32, Bytes),
    /// The records, perhaps compressed.
    pub records: Bytes,
    /// The answer ends before the batch does.
    pub cut: bool,
}

impl Batch {
    /// The offset behind its last record.
    pub fn end(&self) -> i64 {
        self.last().saturating_add(1)
    }

    fn last(&self) -> i64 {
        self.base.saturating_add(i64::from(self.last_delta))
    }

    /// The time of its oldest record.
    pub fn oldest(&self) -> i64 {
        // With the time of the append, all its records have that time, and it stands in the place of the newest.
        if self.append_time { self.newest } else { self.first_time.min(self.newest) }
    }

    /// No record of it was removed.
    pub fn is_whole(&self) -> bool {
        i64::from(self.count) == i64::from(self.last_delta) + 1
    }

    /// So many of its records have this offset or a later one for certain.
    pub fn records_from(&self, offset: i64) -> u64 {
        let records = if self.is_whole() {
            self.end().saturating_sub(self.base.max(offset))
        } else if self.base >= offset {
            i64::from(self.count)
        } else {
            0
        };
        u64::try_from(records).unwrap_or(0)
    }

    /// The next batch. `None` at the end, which may cut a header short.
    fn read(answer: &mut Bytes) -> Result<Option<Self>, &'static str> {
        if answer.remaining() < HEADER_BYTES {
            return Ok(None);
        }
        let whole = answer.clone();
        let base = answer.get_i64();
        let length = usize::try_from(answer.get_i32()).map_err(|_| "a batch has a negative length")?;
        if length < HEADER_BYTES - BEFORE_LENGTH {
            return Err("a batch is shorter than its header");
        }
        let cut = length > answer.remaining();
        let length = length.min(answer.remaining());
        let mut rest = answer.split_to(length);
        let checked = whole.slice(CHECKED_FROM..BEFORE_LENGTH + length);
        rest.advance(4);
        if rest.get_i8() != 2 {
            return Err("a batch has a format from before Kafka 0.11");
        }
        let checksum = (rest.get_u32(), checked);
        let attributes = rest.get_i16();
        let last_delta = rest.get_i32();
        let (first_time, newest) = (rest.get_i64(), rest.get_i64());
        let producer = rest.get_i64();
        rest.advance(6);
        let count = rest.get_i32();
        if base < 0 || last_delta < 0 {
            return Err("a batch has a negative offset");
        }
        Ok(Some(Self {
            base,
            last_delta,
            first_time,
            newest,
            producer,
            count,
            append_time: attributes & 0x08 != 0,
            control: attributes & 0x20 != 0,
            transactional: attributes & 0x10 != 0,
            codec: attributes & 0x07,
            checksum,
            records: rest,
            cut,
        }))
    }
}

/// The batches that a broker sent of one partition, one after another.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    answer: Bytes,
    isolation: Isolation,
    /// First offsets and producers of aborted transactions, those that begin first first.
    aborted: Vec<(i64, i64)>,
    /// Producers whose batches belong to an aborted transaction at present.
    aborting: BTreeSet<i64>,
}

impl Batches {
    pub fn of(answer: &PartitionData, isolation: Isolation) -> Self {
        let mut aborted: Vec<(i64, i64)> =
            answer.aborted_transactions.iter().flatten().map(|one| (one.first_offset, one.producer_id)).collect();
        aborted.sort_unstable();
        let answer = answer.records.clone().unwrap_or_default();
        Self { answer, isolation, aborted, aborting: BTreeSet::new() }
    }

    /// The next batch, and whether a reader gets its records: not those of aborted transactions where only committed ones are asked for, and no markers.
    ///
    /// # Errors
    /// It makes no sense: nothing behind it can be read.
    pub fn next(&mut self) -> Result<Option<(Batch, bool)>, &'static str> {
        let Some(batch) = Batch::read(&mut self.answer)? else { return Ok(None) };
        if self.isolation == Isolation::ReadCommitted {
            let last = batch.last();
            let begun = self.aborted.iter().take_while(|(first, _)| *first <= last).count();
            self.aborting.extend(self.aborted.drain(..begun).map(|(_, producer)| producer));
        }
        let readable = if batch.control {
            // A marker ends its producer's transaction.
            self.aborting.remove(&batch.producer);
            false
        } else {
            batch.count > 0 && !(batch.transactional && self.aborting.contains(&batch.producer))
        };
        Ok(Some((batch, readable)))
    }
}
