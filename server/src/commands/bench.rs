//! `kiln bench`: where the time goes on this machine, and how near its limits that is.

use crate::bench::{Growth, Report, Workload, phases, run_at_once, svg};
use crate::builtin;
use crate::cli::BenchArgs;
use crate::load::{checkpoint, load, read_images};
use anyhow::{Context, Result};
use kiln_engine::{CacheOptions, Engine, EngineOptions};
use kiln_nn::ops::limits;
use kiln_registry::MediaCounts;
use std::io::Write;
use std::time::Instant;

pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    let mut images: Vec<_> = read_images(&args.image)?
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    let counts = MediaCounts::new().with(kiln_image::MODALITY, images.len());
    let options = args.load.options(&counts)?;
    let checkpoint = checkpoint(&args.model_dir)?;
    let began = Instant::now();
    let loaded = load(&checkpoint, &options)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let takes_images = loaded.pipeline().entry().supports(kiln_image::MODALITY);
    if images.is_empty() && takes_images && !args.text_only {
        images.push(builtin::picture());
    }
    let workload = Workload {
        images,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
    };
    let weight_bytes = loaded.weight_bytes();
    let prepared = loaded
        .pipeline()
        .prepare(&workload.request(loaded.pipeline())?)?;
    let usage = prepared.usage();
    let positions = usage.prompt_tokens + args.output_tokens;
    let limits = limits::measure();

    let phases = if args.runs_only {
        // As the stages' end does: the engine has a model of its own, and two would count in the peak.
        drop(loaded);
        vec![]
    } else {
        let mut stages = loaded.stages(positions, args.cache.max_batched_tokens)?;
        phases(&mut stages, &workload, args.repeat)?
    };
    let growth = if args.growth {
        let model = load(&checkpoint, &options)?;
        let mut stages = model.stages(Growth::POSITIONS, args.cache.max_batched_tokens)?;
        Some(Growth::measure(&mut stages)?)
    } else {
        None
    };
    let at_once: Vec<usize> = args
        .concurrency
        .iter()
        .copied()
        .filter(|n| *n > 0)
        .collect();
    let runs = if let Some(most) = at_once.iter().copied().max() {
        let cache = CacheOptions {
            max_num_seqs: args.cache.max_num_seqs.max(most),
            ..args.cache.options()
        };
        let engine_options = EngineOptions {
            model: options.clone(),
            cache,
            max_queue: most.max(256),
            // Each request is the same one: what is measured is the work, not the caches.
            prefix_cache: false,
            encoder_cache_bytes: 0,
            processor_cache_bytes: 0,
            // All come at once: what counts is the time of all, not that none waits.
            long_prefill_token_threshold: Some(cache.max_batched_tokens),
            max_itl_ratio: None,
            ..EngineOptions::default()
        };
        let engine = Engine::start(load(&checkpoint, &options)?, &engine_options)?;
        run_at_once(&engine, &workload, 1, 1)?;
        let run = |n: &usize| run_at_once(&engine, &workload, *n, args.repeat);
        at_once.iter().map(run).collect::<Result<_>>()?
    } else {
        vec![]
    };
    let report = Report {
        model: args.model_dir.display().to_string(),
        dtype: args
            .load
            .quantize
            .clone()
            .unwrap_or_else(|| args.load.dtype.clone()),
        threads: rayon::current_num_threads(),
        // Again: on a machine with neighbours, a limit is what its quietest moment gave.
        limits: limits.best_of(&limits::measure()),
        load: load_seconds,
        weight_bytes,
        peak_rss: peak_rss(),
        prompt_tokens: usage.prompt_tokens,
        image_tokens: usage.media_tokens(),
        output_tokens: args.output_tokens,
        phases,
        runs,
        growth,
    };
    if let Some(file) = &args.chart {
        std::fs::write(file, svg(&report)?)
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", report.json())?;
    } else {
        write!(out, "{}", report.table()?)?;
    }
    Ok(())
}

/// The most memory that the process held at a time, where the system says so.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
