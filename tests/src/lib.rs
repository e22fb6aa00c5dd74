//! Kiln's cross-crate tests, in `tests/suite`, and what is sent to parsers to break them ([`fuzz`]).
//! The README's example runs as a test of this crate.
#![doc = include_str!("../../README.md")]

pub mod fuzz;
