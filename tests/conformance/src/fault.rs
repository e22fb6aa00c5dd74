//! Calls that fail: whose they were, and panics as errors.

use crate::report::{Piece, Problem};
use kiln_registry::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A call that failed, and whose it was.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) piece: Piece,
    pub(crate) error: Error,
}

impl Fault {
    pub(crate) fn problem(self, what: &str) -> Problem {
        let mend = match self.piece {
            Piece::Processor => {
                "return one range per item, in order, inside the prompt \
                 (kiln_registry::expand_placeholders does); what can't be served is \
                 Error::InvalidInput"
            }
            Piece::Mapper => {
                "map one item to tensors whose first axis is 1; take whatever the decoder gives"
            }
            Piece::Encoder => "give one result of `hidden_size` wide f32 rows per item, in order",
            Piece::Shape => "let the model's account of itself be what its calls give",
            _ => "answer every call of the contract; what can't be served is an error, not a panic",
        };
        Problem::new(self.piece, format!("{what}: {}", self.error), mend)
    }
}

/// Names the piece that an error comes from.
pub(crate) trait Of<T> {
    fn of(self, piece: Piece) -> Result<T, Fault>;
}

impl<T> Of<T> for Result<T> {
    fn of(self, piece: Piece) -> Result<T, Fault> {
        self.map_err(|error| Fault { piece, error })
    }
}

/// A panic as an error: [`Error::Internal`], which no check takes for an answer.
pub(crate) fn guard<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        Err(Error::internal(format!(
            "a panic: {}",
            what.unwrap_or("without a message")
        )))
    })
}
