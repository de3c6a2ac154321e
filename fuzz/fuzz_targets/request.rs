//! See [`claim_fuzz::request`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| claim_fuzz::request::run(data));
