//! Feeds [`quarry_fuzz::filter`].
#![no_main]
#![deny(warnings)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quarry_fuzz::filter(data));
