//! Feeds [`quarry_fuzz::report`].
#![no_main]
#![deny(warnings)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quarry_fuzz::report(data));
