//! Tools: which functions a model may call, and how a call is read out of its answer. Chat families
//! write calls in three ways; which one is the checkpoint's shows in its template.

mod call;
mod named;
mod parser;
mod scan;

pub(crate) use call::{Tool, ToolChoice, ToolUse};
pub(crate) use parser::{Delta, ToolFormat, ToolParser};
