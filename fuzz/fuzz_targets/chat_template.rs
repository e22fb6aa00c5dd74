//! `kiln_tests::fuzz::chat_template` for as long as one likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_tests::fuzz::chat_template(data));
