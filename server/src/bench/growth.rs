//! What a new token costs as contexts get longer and batches larger.

use super::{Phase, median, timed};
use anyhow::Result;
use kiln_engine::Stages;
use kiln_nn::ops::limits::Limits;
use kiln_nn::work;
use serde_json::{Value, json};
use std::fmt::Write;

const CONTEXTS: [usize; 7] = [512, 1024, 2048, 4096, 8192, 16_384, 32_768];
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// The context of the batches.
const SHORT: usize = 512;
const REPEAT: usize = 5;

/// Steps at one new token a sequence. Each comes with its work: what it grows by, and which limit
/// holds there.
#[derive(Debug, Clone)]
pub(crate) struct Growth {
    /// Of one sequence, by context.
    pub(crate) by_context: Vec<(usize, Phase)>,
    /// Of so many sequences of 512 tokens.
    pub(crate) by_batch: Vec<(usize, Phase)>,
}

impl Growth {
    /// Positions that the cache must have. They may be more than the model was made for: what a token
    /// costs does not depend on whether it makes sense.
    pub(crate) const POSITIONS: usize = SHORT * BATCHES[BATCHES.len() - 1];

    /// # Errors
    /// What the model answers.
    pub(crate) fn measure(stages: &mut Stages) -> Result<Self> {
        let mut step = |batch, context| -> Result<Phase> {
            let mut times = vec![];
            let mut work = work::take();
            for _ in 0..=REPEAT {
                let (ran, took) = timed(|| stages.decode_batch(batch, context));
                ran?;
                times.push(took.as_secs_f64());
                work = work::take();
            }
            times.remove(0);
            Ok(Phase {
                name: "step",
                seconds: median(times),
                work,
            })
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

    pub(crate) fn json(&self, limits: &Limits) -> Value {
        let points = |name: &str, points: &[(usize, Phase)]| -> Value {
            let point = |(at, step): &(usize, Phase)| {
                let mut point = step.json(limits);
                point[name] = json!(at);
                point
            };
            points.iter().map(point).collect()
        };
        json!({
            "by_context": points("context", &self.by_context),
            "by_batch": points("batch", &self.by_batch),
        })
    }

    pub(crate) fn table(&self, out: &mut String, limits: &Limits) -> std::fmt::Result {
        writeln!(
            out,
            "\n{:>8}{:>16}{:>10}{:>10}  limit",
            "context", "ms per token", "Gop", "MB read"
        )?;
        for (context, step) in &self.by_context {
            let ms = 1e3 * step.seconds;
            writeln!(out, "{context:>8}{ms:>16.2}{}", step.beside(limits))?;
        }
        writeln!(
            out,
            "\n{:>8}{:>16}{:>10}{:>10}  limit, ms per token",
            "batch", "ms per step", "Gop", "MB read"
        )?;
        for (batch, step) in &self.by_batch {
            let ms = 1e3 * step.seconds;
            let each = ms / *batch as f64;
            writeln!(
                out,
                "{batch:>8}{ms:>16.2}{}, {each:.2}",
                step.beside(limits)
            )?;
        }
        Ok(())
    }
}
