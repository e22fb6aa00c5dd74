//! `kiln profile`: where the memory goes.

use crate::cli::ProfileArgs;
use crate::load::{checkpoint, load};
use anyhow::Result;
use kiln_engine::MemoryProfile;
use kiln_registry::MediaCounts;
use serde_json::json;
use std::io::Write;

pub(crate) fn profile(args: &ProfileArgs) -> Result<()> {
    let loaded = load(
        &checkpoint(&args.model_dir)?,
        &args.load.options(&MediaCounts::new())?,
    )?;
    let max_tokens = loaded.pipeline().max_tokens().clone();
    let profile = loaded.profile(&args.cache.options())?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let value = json!({
            "weight_bytes": profile.weight_bytes,
            "activation_bytes": profile.activation_bytes,
            "kv_bytes_per_token": profile.kv_bytes_per_token,
            "kv_blocks": profile.kv_blocks,
            "block_size": profile.block_size,
            "kv_tokens": profile.kv_tokens(),
            "kv_bytes": profile.kv_bytes(),
            "max_model_len": profile.max_model_len,
            "max_tokens_per_item": max_tokens,
            "max_batched_tokens": args.cache.max_batched_tokens,
            "max_num_seqs": args.cache.max_num_seqs,
        });
        writeln!(out, "{value:#}")?;
        return Ok(());
    }
    write!(out, "{}", table(&profile, args))?;
    for (modality, tokens) in max_tokens {
        writeln!(out, "{modality:<14} {tokens} tokens at most per item")?;
    }
    Ok(())
}

fn table(profile: &MemoryProfile, args: &ProfileArgs) -> String {
    let activations = match profile.activation_bytes {
        Some(bytes) => format!(
            "{:>12}  peak of a step of {} tokens with one item at its maximum, measured",
            mib(bytes),
            args.cache.max_batched_tokens
        ),
        None => format!("{:>12}  not measured: --kv-blocks was given", "-"),
    };
    format!(
        "weights        {:>12}\n\
         activations    {activations}\n\
         KV cache       {:>12}  {} blocks of {} tokens: {} tokens of {} bytes\n\
         context        {} tokens of one sequence, {} sequences at a time\n",
        mib(profile.weight_bytes),
        mib(profile.kv_bytes()),
        profile.kv_blocks,
        profile.block_size,
        profile.kv_tokens(),
        profile.kv_bytes_per_token,
        profile.max_model_len,
        args.cache.max_num_seqs,
    )
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
