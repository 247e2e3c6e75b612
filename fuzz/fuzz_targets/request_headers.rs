//! The configuration of the front proxy, and the headers by which it passes callers on.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| projectionist_fuzz::metrics_api::fuzzing::request_headers(data));
