//! Feeds [`quarry_fuzz::preempt`].
#![no_main]
#![deny(warnings)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quarry_fuzz::preempt(data));
