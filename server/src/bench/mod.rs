//! What a model costs on this machine: each stage of one request with the fraction of the machine's
//! limit that it reached, and requests side by side through the engine.

mod chart;
mod growth;
mod report;
mod requests;
mod stages;

pub(crate) use chart::svg;
pub(crate) use growth::Growth;
pub(crate) use report::{Phase, Report, Run};
pub(crate) use requests::{Workload, run_at_once};
pub(crate) use stages::phases;

use std::time::{Duration, Instant};

/// The result of some work and how long it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let out = work();
    (out, began.elapsed())
}

/// The middle one; of an even number, the lower of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}
