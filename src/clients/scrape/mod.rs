//! Pages of metrics in Prometheus's text format: one GET, one text.

mod client;
mod pods;
mod text;

pub use client::{Client, LARGEST_PAGE, no_page};
pub use pods::PodPages;
pub use text::{MOST_SERIES, Series, Unreadable, parse};
