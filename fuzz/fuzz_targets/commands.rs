//! See [`claim_fuzz::commands`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| claim_fuzz::commands::run(data));
