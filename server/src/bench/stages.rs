//! One request, stage by stage, each with the work that it asked of the operators.

use super::{Phase, Workload, median, timed};
use anyhow::{Context, Result};
use kiln_engine::{MediaInput, Stages};
use kiln_nn::work::{self, Work};

/// The stages of a workload in their order: the middle of `repeat` runs behind one that warms up.
pub(crate) fn phases(
    stages: &mut Stages,
    workload: &Workload,
    repeat: usize,
) -> Result<Vec<Phase>> {
    let mut runs: Vec<Vec<(&'static str, f64, Work)>> = vec![];
    for _ in 0..=repeat {
        runs.push(run(stages, workload)?);
    }
    let warm = &runs[1..];
    let first = warm.first().context("no run")?;
    Ok(first
        .iter()
        .enumerate()
        .map(|(at, (name, _, work))| {
            let times = warm.iter().map(|run| run[at].1).collect();
            Phase {
                name,
                seconds: median(times),
                work: *work,
            }
        })
        .collect())
}

fn run(stages: &mut Stages, workload: &Workload) -> Result<Vec<(&'static str, f64, Work)>> {
    let mut out = vec![];
    let mut add = |name, seconds: f64, work| out.push((name, seconds, work));
    let pipeline = stages.pipeline().clone();
    let mut request = workload.request(&pipeline)?;
    let (items, took) = timed(|| {
        let decode = |bytes| pipeline.decode_item(kiln_image::MODALITY, bytes);
        workload.images.iter().map(|b| decode(b)).collect()
    });
    let items: Result<Vec<_>, _> = items;
    request.media = items?.into_iter().map(MediaInput::Item).collect();
    add("decode of the files", took.as_secs_f64(), Work::default());
    let (prepared, took) = timed(|| pipeline.prepare(&request));
    add("mapping", took.as_secs_f64(), Work::default());
    work::take();
    let (staged, took) = timed(|| prepared.and_then(|prepared| stages.encode(prepared)));
    let mut staged = staged?;
    add("vision encode", took.as_secs_f64(), work::take());
    let (done, took) = timed(|| stages.prefill(&mut staged));
    done?;
    add("prefill", took.as_secs_f64(), work::take());
    let steps = workload.output_tokens.saturating_sub(1);
    let (done, took) = timed(|| (0..steps).try_for_each(|_| stages.decode(&mut staged)));
    done?;
    let total = work::take();
    if steps > 0 {
        let each = |n: u64| n / steps as u64;
        let one = Work {
            f32_ops: each(total.f32_ops),
            bf16_ops: each(total.bf16_ops),
            int8_ops: each(total.int8_ops),
            attention_ops: each(total.attention_ops),
            bytes: each(total.bytes),
        };
        add("one new token", took.as_secs_f64() / steps as f64, one);
    }
    Ok(out)
}
