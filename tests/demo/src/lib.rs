//! What the demos share: samples of a Projection, told as a table and as plots.

pub mod metric;
pub mod plot;
pub mod table;
