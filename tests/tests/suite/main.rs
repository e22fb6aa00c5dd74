//! Kiln against its reference, and against inputs that mean harm. One binary, because each one
//! links the whole system.
//!
//! `xtask/python/fixtures.py` wrote what the tests compare with, from transformers and Pillow.

// A crate that nothing names is not linked.
use {kiln_llava as _, kiln_llava_next as _, kiln_text as _};

mod anyres;
mod broken;
mod caches;
mod conformance;
mod engine_runs;
mod fuzz;
mod guided;
mod hostile_configs;
mod hostile_images;
mod hostile_requests;
mod hostile_weights;
mod law;
mod nan;
mod parity;
mod pixels;
mod profiling;
mod runs;
mod serving;
mod stress;
mod support;
