//! See [`claim_fuzz::recovery`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| claim_fuzz::recovery::run(data));
