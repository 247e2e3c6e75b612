//! What the demos share: samples of a Projection, told as a table and as plots.

#![allow(clippy::print_stdout)]

use std::time::Instant;

pub mod metric;
pub mod plot;
pub mod table;

/// Prints what has been done, and when.
pub fn step(started: Instant, text: &str) {
    println!("{:>5.1} s  {text}", started.elapsed().as_secs_f64());
}
