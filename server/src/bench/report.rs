//! What was measured, as a table and as JSON.

use super::Growth;
use kiln_nn::ops::limits::Limits;
use kiln_nn::work::Work;
use serde_json::{Value, json};
use std::fmt::Write;

/// A stage of a request.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    pub(crate) work: Work,
}

impl Phase {
    /// The least that the machine could take for it in seconds: by its operations, and by its bytes.
    fn least(&self, limits: &Limits) -> [f64; 2] {
        let work = &self.work;
        let linear = work.f32_ops as f64 / limits.f32_ops
            + work.bf16_ops as f64 / limits.bf16_ops
            + work.int8_ops as f64 / limits.int8_ops;
        // Attention is counted at the rate of bf16 unless the weights are wider: its operands are no
        // weights, so eight bits are none of its.
        let rate = if work.bf16_ops + work.int8_ops > work.f32_ops {
            limits.bf16_ops
        } else {
            limits.f32_ops
        };
        [
            linear + work.attention_ops as f64 / rate,
            work.bytes as f64 / limits.read_bytes,
        ]
    }

    /// The fraction of the limit that holds: operations or bytes, whichever takes longer. `None`
    /// where no operator ran.
    pub(crate) fn fraction(&self, limits: &Limits) -> Option<f64> {
        let [by_operations, by_bytes] = self.least(limits);
        let least = by_operations.max(by_bytes);
        (least > 0.0).then(|| least / self.seconds)
    }

    fn bound(&self, limits: &Limits) -> &'static str {
        let [by_operations, by_bytes] = self.least(limits);
        if by_operations >= by_bytes {
            "operations"
        } else {
            "bytes read"
        }
    }

    pub(super) fn json(&self, limits: &Limits) -> Value {
        let fraction = self.fraction(limits);
        json!({
            "name": self.name,
            "seconds": self.seconds,
            "operations": self.work.operations(),
            "bytes": self.work.bytes,
            "fraction_of_limit": fraction,
            "limit": fraction.map(|_| self.bound(limits)),
        })
    }

    /// What a table has beside the time: operations, bytes, and the fraction of a limit.
    pub(super) fn beside(&self, limits: &Limits) -> String {
        let limit = self.fraction(limits).map_or_else(String::new, |fraction| {
            format!("{:.0}% of {}", 100.0 * fraction, self.bound(limits))
        });
        format!(
            "{:>10.1}{:>10.1}  {limit}",
            self.work.operations() as f64 / 1e9,
            self.work.bytes as f64 / 1e6,
        )
    }
}

/// Requests at once.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) concurrency: usize,
    pub(crate) time_to_first_token: f64,
    pub(crate) time_per_output_token: f64,
    pub(crate) total: f64,
    pub(crate) output_tokens_per_second: f64,
}

/// All of it. Times in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) dtype: String,
    pub(crate) threads: usize,
    pub(crate) limits: Limits,
    pub(crate) load: f64,
    pub(crate) weight_bytes: usize,
    pub(crate) peak_rss: Option<u64>,
    pub(crate) prompt_tokens: usize,
    pub(crate) image_tokens: usize,
    pub(crate) output_tokens: usize,
    pub(crate) phases: Vec<Phase>,
    pub(crate) runs: Vec<Run>,
    pub(crate) growth: Option<Growth>,
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let phases = self.phases.iter().map(|phase| phase.json(&self.limits));
        let runs = self.runs.iter().map(|run| {
            json!({
                "concurrency": run.concurrency,
                "time_to_first_token": run.time_to_first_token,
                "time_per_output_token": run.time_per_output_token,
                "total": run.total,
                "output_tokens_per_second": run.output_tokens_per_second,
            })
        });
        json!({
            "model": self.model,
            "dtype": self.dtype,
            "threads": self.threads,
            "limits": {
                "f32_operations_per_second": self.limits.f32_ops,
                "bf16_operations_per_second": self.limits.bf16_ops,
                "bf16_by": self.limits.bf16_by,
                "int8_operations_per_second": self.limits.int8_ops,
                "int8_by": self.limits.int8_by,
                "read_bytes_per_second": self.limits.read_bytes,
            },
            "load": self.load,
            "weight_bytes": self.weight_bytes,
            "peak_rss_bytes": self.peak_rss,
            "prompt_tokens": self.prompt_tokens,
            "image_tokens": self.image_tokens,
            "output_tokens": self.output_tokens,
            "phases": phases.collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
            "growth": self.growth.as_ref().map(|growth| growth.json(&self.limits)),
        })
    }

    /// # Errors
    /// None: a string takes everything.
    pub(crate) fn table(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        let limits = &self.limits;
        let giga = |n: f64| n / 1e9;
        writeln!(
            out,
            "{} ({}), {} threads: {} prompt tokens ({} of pictures), {} new\n\n\
             the machine    f32 {:.0} Gop/s, bf16 {:.0} ({}), int8 {:.0} ({}), read {:.1} GB/s\n\
             load           {:.3} s, weights {:.1} MiB{}\n",
            self.model,
            self.dtype,
            self.threads,
            self.prompt_tokens,
            self.image_tokens,
            self.output_tokens,
            giga(limits.f32_ops),
            giga(limits.bf16_ops),
            limits.bf16_by,
            giga(limits.int8_ops),
            limits.int8_by,
            giga(limits.read_bytes),
            self.load,
            self.weight_bytes as f64 / f64::from(1 << 20),
            self.peak_rss.map_or_else(String::new, |bytes| format!(
                ", peak of the process {:.0} MiB",
                bytes as f64 / f64::from(1 << 20)
            )),
        )?;
        writeln!(
            out,
            "{:<22}{:>12}{:>10}{:>10}  limit",
            "phase", "ms", "Gop", "MB read"
        )?;
        for phase in &self.phases {
            let (ms, beside) = (1e3 * phase.seconds, phase.beside(limits));
            writeln!(out, "{:<22}{ms:>12.3}{beside}", phase.name)?;
        }
        writeln!(
            out,
            "\n{:>8}{:>14}{:>16}{:>12}{:>14}",
            "at once", "first token s", "ms per token", "total s", "tokens/s"
        )?;
        for run in &self.runs {
            writeln!(
                out,
                "{:>8}{:>14.3}{:>16.2}{:>12.3}{:>14.1}",
                run.concurrency,
                run.time_to_first_token,
                1e3 * run.time_per_output_token,
                run.total,
                run.output_tokens_per_second,
            )?;
        }
        if let Some(growth) = &self.growth {
            growth.table(&mut out, limits)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_is_that_of_the_limit_that_holds() {
        let limits = Limits {
            f32_ops: 100.0,
            bf16_ops: 200.0,
            bf16_by: "x",
            int8_ops: 400.0,
            int8_by: "x",
            read_bytes: 10.0,
        };
        let work = Work {
            bf16_ops: 400,
            attention_ops: 100,
            bytes: 10,
            ..Work::default()
        };
        let phase = |seconds, work| Phase {
            name: "p",
            seconds,
            work,
        };
        let fraction = |phase: Phase| (phase.fraction(&limits), phase.bound(&limits));
        assert_eq!(phase(5.0, work).least(&limits), [2.5, 1.0]);
        assert_eq!(fraction(phase(5.0, work)), (Some(0.5), "operations"));
        let work = Work {
            f32_ops: 10,
            bytes: 40,
            ..Work::default()
        };
        assert_eq!(fraction(phase(8.0, work)), (Some(0.5), "bytes read"));
        assert_eq!(phase(8.0, Work::default()).fraction(&limits), None);
    }
}
