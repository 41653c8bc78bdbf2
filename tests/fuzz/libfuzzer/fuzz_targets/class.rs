//! Feeds [`quarry_fuzz::class`].
#![no_main]
#![deny(warnings)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quarry_fuzz::class(data));
