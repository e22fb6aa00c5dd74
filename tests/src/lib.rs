//! Kiln's cross-crate tests, in `tests/suite`. The README's example runs as a test of this crate.
#![doc = include_str!("../../README.md")]
