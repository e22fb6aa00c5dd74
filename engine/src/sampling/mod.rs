//! How the next token is chosen. One sampler per sequence: its choice depends on its own logits,
//! history and seed, never on what else is in the batch.

mod grammar;
mod guide;
mod params;
mod sampler;

pub use grammar::Grammar;
pub(crate) use guide::{Allowed, Guide, Guides, Matching};
pub use params::SamplingParams;
pub(crate) use sampler::argmax;
pub use sampler::{SampledToken, Sampler};
