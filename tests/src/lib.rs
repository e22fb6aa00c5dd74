//! Kiln's cross-crate tests are in `tests/suite`, their fixtures in `fixtures`. Cargo wants a
//! library in every package: this one is empty.
