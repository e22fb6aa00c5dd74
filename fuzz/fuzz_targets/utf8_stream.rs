//! `kiln_tests::fuzz::utf8_stream` for as long as one likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_tests::fuzz::utf8_stream(data));
