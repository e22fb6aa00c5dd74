//! `kiln serve` as clients see it: the real binary over a real socket. One binary of tests, because
//! each one links the whole system. docs/reliability.md says which row is tested where.

#![cfg(feature = "llava")]

mod api;
mod client;
mod connections;
mod fetching;
mod life;
mod limits;
mod media_server;
#[cfg(feature = "otlp")]
mod otlp;
mod pictures;
mod server;
mod text;
mod thousand;
mod tools;
