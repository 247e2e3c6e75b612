//! What all statements over one event table share: its names in SQL, and how long an answer about it holds. No IO.

use std::time::Duration;

/// Counts are taken again after this time even if no position moved: rows may have been deleted.
pub(super) const TRUST_COUNTS_FOR: Duration = Duration::from_secs(30);
/// What the server said of the table (its columns, indexes, sequences) is asked again after this time.
pub(super) const TRUST_CHECKS_FOR: Duration = Duration::from_secs(5);

/// SQL over the event table.
pub(super) struct Columns {
    /// The table, quoted.
    pub(super) table: String,
    /// The position, quoted.
    pub(super) position: String,
    /// How many seconds ago a row was appended, as `float8`.
    pub(super) age: String,
}
