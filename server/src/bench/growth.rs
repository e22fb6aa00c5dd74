//! What a new token costs as contexts get longer and batches larger.

use super::{median, timed};
use anyhow::Result;
use kiln_engine::Stages;
use serde_json::{Value, json};
use std::fmt::Write;

const CONTEXTS: [usize; 7] = [512, 1024, 2048, 4096, 8192, 16_384, 32_768];
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// The context of the batches.
const SHORT: usize = 512;
const REPEAT: usize = 5;

/// Seconds of a step.
#[derive(Debug, Clone)]
pub(crate) struct Growth {
    /// Of one sequence, by context.
    pub(crate) by_context: Vec<(usize, f64)>,
    /// Of so many sequences of 512 tokens.
    pub(crate) by_batch: Vec<(usize, f64)>,
}

impl Growth {
    /// Positions that the cache must have. They may be more than the model was made for: what a token
    /// costs does not depend on whether it makes sense.
    pub(crate) const POSITIONS: usize = SHORT * BATCHES[BATCHES.len() - 1];

    /// # Errors
    /// What the model answers.
    pub(crate) fn measure(stages: &mut Stages) -> Result<Self> {
        let mut step = |batch, context| -> Result<f64> {
            let mut times = vec![];
            for _ in 0..=REPEAT {
                let (done, took) = timed(|| stages.decode_batch(batch, context));
                done?;
                times.push(took.as_secs_f64());
            }
            times.remove(0);
            Ok(median(times))
        };
        Ok(Self {
            by_context: CONTEXTS
                .into_iter()
                .map(|context| Ok((context, step(1, context)?)))
                .collect::<Result<_>>()?,
            by_batch: BATCHES
                .into_iter()
                .map(|batch| Ok((batch, step(batch, SHORT)?)))
                .collect::<Result<_>>()?,
        })
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "seconds_by_context": self.by_context, "seconds_by_batch": self.by_batch })
    }

    pub(crate) fn table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n{:>8}{:>16}", "context", "ms per token")?;
        for (context, seconds) in &self.by_context {
            writeln!(out, "{context:>8}{:>16.2}", 1e3 * seconds)?;
        }
        writeln!(
            out,
            "\n{:>8}{:>16}{:>16}",
            "batch", "ms per step", "ms per token"
        )?;
        for (batch, seconds) in &self.by_batch {
            let step = 1e3 * seconds;
            writeln!(out, "{batch:>8}{step:>16.2}{:>16.2}", step / *batch as f64)?;
        }
        Ok(())
    }
}
