//! `kiln_tests::fuzz::safetensors_header` for as long as one likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_tests::fuzz::safetensors_header(data));
