//! `kiln_tests::fuzz::data_url_image` for as long as one likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_tests::fuzz::data_url_image(data));
