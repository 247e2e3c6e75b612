//! A request's path, to what it names.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| projectionist_fuzz::metrics_api::fuzzing::path(data));
