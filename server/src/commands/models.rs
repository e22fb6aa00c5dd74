//! `kiln models`: what is linked.

use crate::cli::ModelsArgs;
use crate::linked;
use anyhow::Result;
use kiln_registry::{MaxTokens, ModelEntry, Registry};
use serde_json::{Value, json};
use std::io::Write;

pub(crate) fn models(args: &ModelsArgs) -> Result<()> {
    let registry = linked::registry()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", as_json(&registry))?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<34} {:<18} modalities (limit per prompt)",
        "architecture", "crate"
    )?;
    for entry in registry.models() {
        let modalities: Vec<String> = entry
            .modalities()
            .map(|m| format!("{m} ({}; {})", limit(&registry, m), tokens(entry, m)))
            .collect();
        let modalities = if modalities.is_empty() {
            "text only".to_owned()
        } else {
            modalities.join(", ")
        };
        for architecture in entry.architectures() {
            writeln!(
                out,
                "{architecture:<34} {:<18} {modalities}",
                entry.crate_name()
            )?;
        }
    }
    for spec in registry.modalities() {
        writeln!(
            out,
            "\n{} ({}): {}",
            spec.name(),
            spec.crate_name(),
            spec.accepts().join(", ")
        )?;
    }
    Ok(())
}

fn limit(registry: &Registry, modality: &str) -> usize {
    registry.modality(modality).map_or(1, |spec| spec.limit())
}

fn tokens(entry: &ModelEntry, modality: &str) -> String {
    match entry.declared_max_tokens(modality) {
        Some(MaxTokens::Fixed(n)) => format!("at most {n} tokens"),
        _ => "tokens by checkpoint".to_owned(),
    }
}

fn as_json(registry: &Registry) -> Value {
    let models: Vec<Value> = registry
        .models()
        .iter()
        .map(|entry| {
            let modalities: Vec<Value> = entry
                .modalities()
                .map(|m| {
                    let fixed = match entry.declared_max_tokens(m) {
                        Some(MaxTokens::Fixed(n)) => Some(n),
                        _ => None,
                    };
                    json!({ "name": m, "limit_per_prompt": limit(registry, m), "max_tokens": fixed })
                })
                .collect();
            json!({
                "architectures": entry.architectures(),
                "crate": entry.crate_name(),
                "modalities": modalities,
            })
        })
        .collect();
    let modalities: Vec<Value> = registry
        .modalities()
        .map(|spec| {
            json!({
                "name": spec.name(),
                "crate": spec.crate_name(),
                "media_types": spec.accepts(),
                "limit_per_prompt": spec.limit(),
            })
        })
        .collect();
    json!({ "models": models, "modalities": modalities })
}
