//! What each command does with the engine.

mod bench;
mod inspect;
mod models;
mod profile;
mod run;
mod trace;

pub(crate) use bench::bench;
pub(crate) use inspect::inspect;
pub(crate) use models::models;
pub(crate) use profile::profile;
pub(crate) use run::run;
pub(crate) use trace::trace;
