//! What is kept between requests, each under a budget of bytes: mapped items by what they were made
//! of, encoder rows by the item's content. Keys and values of prompts are kept by
//! [`BlockAllocator`](crate::BlockAllocator).

mod encoder;
mod lru;
mod processor;

pub(crate) use encoder::{EncoderCache, row_bytes};
pub(crate) use lru::ByteLru;
pub(crate) use processor::{Alias, Known, ProcessorCache};
