//! A label selector, and what it matches.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| projectionist_fuzz::metrics_api::fuzzing::selector(data));
