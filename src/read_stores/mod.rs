//! Where projections keep how far they have come: one module a store. Only reads.

mod names;
pub mod postgres;
