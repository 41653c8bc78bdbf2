//! Feeds [`quarry_fuzz::prioritize`].
#![no_main]
#![deny(warnings)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quarry_fuzz::prioritize(data));
