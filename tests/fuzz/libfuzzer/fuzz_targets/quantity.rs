//! Feeds [`quarry_fuzz::quantity`].
#![no_main]
#![deny(warnings)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quarry_fuzz::quantity(data));
