//! An encoder's pass in pieces: while a picture goes through its tower, the sequences that run want
//! their next tokens, and one thread owns the model.

use crate::{Encoded, MultiModalModel, NamedTensors, Result};
use std::sync::Arc;

/// Items on their way through the encoder. Whoever owns it runs it piece by piece, with other work of
/// the model between two pieces, or to its end at once. It holds on to what it needs of the model.
///
/// # Examples
/// ```
/// use kiln_registry::{EncodeTask, Encoded, Result};
///
/// fn step(mut task: Box<dyn EncodeTask>) -> Result<Vec<Encoded>> {
///     while task.remaining() > 0 {
///         task.advance()?;
///         // Here other sequences have their tokens.
///     }
///     task.finish()
/// }
/// ```
pub trait EncodeTask: Send {
    /// Pieces that are left: calls of [`advance`](Self::advance) after which
    /// [`finish`](Self::finish) has the least to do. A piece is a layer of the tower, or so.
    fn remaining(&self) -> usize;

    /// Runs one piece; nothing where none is left.
    ///
    /// # Errors
    /// As [`encode`](crate::MultiModalModel::encode). The task is of no more use then.
    fn advance(&mut self) -> Result<()>;

    /// Runs what is left. One result per item, in order.
    ///
    /// # Errors
    /// As [`encode`](crate::MultiModalModel::encode).
    fn finish(self: Box<Self>) -> Result<Vec<Encoded>>;
}

/// [`encode`](MultiModalModel::encode) as a task that has run when it is there: for what a model does
/// not cut.
///
/// # Errors
/// As [`encode`](MultiModalModel::encode).
pub fn encode_at_once<M: MultiModalModel + ?Sized>(
    model: &M,
    modality: &str,
    items: &[Arc<NamedTensors>],
) -> Result<Box<dyn EncodeTask>> {
    let items: Vec<&NamedTensors> = items.iter().map(Arc::as_ref).collect();
    Ok(Box::new(Whole(model.encode(modality, &items)?)))
}

struct Whole(Vec<Encoded>);

impl EncodeTask for Whole {
    fn remaining(&self) -> usize {
        0
    }

    fn advance(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Encoded>> {
        Ok(self.0)
    }
}
