//! Kiln against its reference, and against inputs that mean harm. One binary, because each one
//! links the whole system.
//!
//! `xtask/python/fixtures.py` wrote what the tests compare with, from transformers and Pillow.

mod anyres;
mod hostile_images;
mod pixels;
mod support;
