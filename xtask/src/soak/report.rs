//! What the looks at the server have shown, and the table of it all.

use super::clients::{Kind, Outcome};
use super::server::Figures;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;

const MIB: f64 = 1_048_576.0;

/// Looks from which a level is told: enough that one peak is none.
const LEAST_LOOKS: usize = 10;

pub(super) struct Report {
    idle: Figures,
    memory: Vec<(Duration, u64)>,
    last: Option<Figures>,
    faults: Vec<String>,
    unanswered: usize,
    ended: String,
}

impl Report {
    /// `idle`: before the first request.
    pub(super) fn new(idle: Figures) -> Self {
        Self {
            idle,
            memory: vec![],
            last: None,
            faults: vec![],
            unanswered: 0,
            ended: String::new(),
        }
    }

    /// A look while clients ask.
    pub(super) fn look(&mut self, at: Duration, memory: Option<u64>, figures: Result<Figures>) {
        self.memory.extend(memory.map(|bytes| (at, bytes)));
        if let Err(error) = figures {
            self.unanswered += 1;
            if self.unanswered == 1 {
                let second = at.as_secs();
                self.faults.push(format!("second {second}: {error:#}"));
            }
        }
    }

    /// When nobody asks any more.
    pub(super) fn settled(&mut self, figures: Result<Figures>) {
        match figures {
            Ok(now) => {
                if !now.is_idle() || now.kv_usage != self.idle.kv_usage {
                    self.faults.push(format!(
                        "nobody asks, and yet {} run, {} wait, {:.4} of the KV cache is held",
                        now.running, now.waiting, now.kv_usage
                    ));
                }
                self.last = Some(now);
            }
            Err(error) => self.faults.push(format!("at the end: {error:#}")),
        }
    }

    pub(super) fn ended(&mut self, end: Result<Duration>) {
        match end {
            Ok(time) => self.ended = format!("ended {:.1} s after SIGTERM", time.as_secs_f64()),
            Err(error) => self.faults.push(format!("{error:#}")),
        }
    }

    /// Prints everything. How many things were not as they must be.
    pub(super) fn print(mut self, tally: &BTreeMap<Kind, Outcome>, growth: f64) -> u64 {
        println!(
            "{:<10}{:>10}{:>10}{:>10}{:>12}{:>12}",
            "clients", "requests", "busy", "failed", "median ms", "p99 ms"
        );
        let mut failures = 0;
        for (kind, outcome) in tally {
            let mut times = outcome.seconds.clone();
            times.sort_by(f32::total_cmp);
            println!(
                "{:<10}{:>10}{:>10}{:>10}{:>12.0}{:>12.0}",
                format!("{kind:?}").to_lowercase(),
                outcome.requests,
                outcome.busy,
                outcome.failures,
                1e3 * at(&times, 0.5),
                1e3 * at(&times, 0.99)
            );
            failures += outcome.failures;
            for words in &outcome.words {
                self.faults.push(format!("{kind:?}: {words}"));
            }
            if outcome.seconds.is_empty() {
                self.faults
                    .push(format!("{kind:?}: nothing went as it must"));
            }
        }
        match level(&self.memory) {
            None => println!("memory: too few looks to tell"),
            Some((half, end)) => {
                let grown = (end - half) / MIB;
                let bound = growth + 0.02 * half / MIB;
                println!(
                    "memory: {:.1} MiB at half time, {:.1} MiB at the end: {grown:+.1} MiB, and \
                     {bound:.1} are allowed",
                    half / MIB,
                    end / MIB
                );
                if grown > bound {
                    self.faults.push(format!("memory grows: {grown:+.1} MiB"));
                }
            }
        }
        if let Some(last) = self.last {
            println!(
                "at the end {} run, {} wait, {:.4} of the KV cache is held; {} preemptions, {} \
                 encodings and {} prompt tokens came from caches, which hold {:.1} MiB",
                last.running,
                last.waiting,
                last.kv_usage,
                last.preemptions,
                last.encoder_hits,
                last.prefix_hits,
                last.cache_bytes / MIB
            );
        }
        if !self.ended.is_empty() {
            println!("the server {}", self.ended);
        }
        for fault in &self.faults {
            println!("FAULT {fault}");
        }
        failures.max(self.faults.len() as u64)
    }
}

/// Memory where the second half begins, and at its end: middle ones of a fifth of the half's looks.
fn level(looks: &[(Duration, u64)]) -> Option<(f64, f64)> {
    let over = looks.last()?.0;
    let half: Vec<u64> = looks
        .iter()
        .filter(|(at, _)| *at >= over / 2)
        .map(|(_, bytes)| *bytes)
        .collect();
    if half.len() < LEAST_LOOKS {
        return None;
    }
    let fifth = (half.len() / 5).max(1);
    let median = |looks: &[u64]| {
        let mut looks = looks.to_vec();
        looks.sort_unstable();
        looks[looks.len() / 2] as f64
    };
    Some((median(&half[..fifth]), median(&half[half.len() - fifth..])))
}

fn at(sorted: &[f32], share: f64) -> f32 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_from_a_slope() {
        let looks = |bytes: &dyn Fn(u64) -> u64| -> Vec<_> {
            (0..100)
                .map(|s| (Duration::from_secs(s), bytes(s)))
                .collect()
        };
        assert_eq!(level(&looks(&|_| 5)), Some((5.0, 5.0)));
        // What happens in the first half, and one peak, count for nothing.
        assert_eq!(
            level(&looks(&|s| if s < 40 { s } else { 50 })),
            Some((50.0, 50.0))
        );
        assert_eq!(
            level(&looks(&|s| if s == 99 { 900 } else { 7 })),
            Some((7.0, 7.0))
        );
        let (from, to) = level(&looks(&|s| 10 * s)).unwrap();
        assert!(to - from > 300.0, "{from} {to}");
        assert_eq!(level(&looks(&|s| s)[..12]), None);
    }
}
