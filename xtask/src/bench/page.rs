//! docs/benchmarks.md: what was run where, the figures, and Kiln's ratio to each rival.

use super::contender::{self, Contender, Measured};
use super::{Args, Run};
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write;
use std::process::Command;

pub(crate) fn page(run: &Run<'_>) -> Result<String> {
    let (args, state) = (run.args, &run.state);
    let mut out = String::new();
    writeln!(
        out,
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`; nothing here is typed by hand. Kiln and its rivals ran in turn\n\
         on one machine with the same weights (random, at real shapes), the same picture (640x480) and\n\
         32 tokens of text, 64 new tokens, greedy. Times are medians over {} of processes that\n\
         each warm up and run three times (of several requests at once, and of 13 tiles, once). The machine is\n\
         shared and its speed changes within minutes, so Kiln ran just before each rival at the same width of\n\
         weights, floats with floats, and a ratio is the time that it took then over the rival's: below 1, Kiln\n\
         is faster. Kiln's own times are medians over all of its runs.{}\n\n\
         | | |\n|---|---|\n| date | {} |\n| machine | {} |\n| commit | {} |\n| command | `{}` |",
        match args.rounds {
            1 => "one round".to_owned(),
            rounds => format!("{rounds} rounds"),
        },
        match contender::has_bf16() {
            true => "",
            false =>
                " This processor has\nno instructions for bf16. Kiln keeps weights in bf16 and multiplies in \
                 f32, OpenVINO does so with fp16; transformers and\nvLLM, its server too, run in f32, \
                 which is faster for them than bf16 without instructions for it.",
        },
        state.days.iter().cloned().collect::<Vec<_>>().join(", "),
        state.machine,
        state.commit,
        command(args),
    )?;
    let mut versions: Vec<&str> = (state.entries.iter())
        .filter(|entry| entry.beside.is_some())
        .map(|entry| entry.measured.version.as_str())
        .collect();
    versions.sort_unstable();
    versions.dedup();
    writeln!(out, "| rivals | {} |", versions.join("; "))?;
    for shape in &args.shapes {
        writeln!(out, "\n## Shape {shape}")?;
        for concurrency in args.at_once(shape) {
            table(&mut out, run, shape, *concurrency)?;
        }
        for name in run.contenders.iter().map(Contender::name) {
            let first = args.concurrency.first().copied().unwrap_or(1);
            let entry = state.of(shape, &name, first).last();
            if let Some(details) = entry.and_then(|entry| entry.measured.details.as_ref()) {
                phases(&mut out, &name, details)?;
            }
        }
    }
    let floats = run.contenders.iter().find(|c| c.is_kiln() && c.bits == 16);
    if let (Some(own), Some(shape)) = (floats, args.shapes.first()) {
        let engine = |concurrency| figures(run, shape, own, concurrency);
        served(&mut out, &state.servers, engine)?;
    }
    if let Some(growth) = &state.growth {
        grown(&mut out, growth, args)?;
    }
    if !run.failed.is_empty() {
        writeln!(out, "\n## Left out\n")?;
        for (label, error) in &run.failed {
            writeln!(out, "- {label}: {}", error.replace('\n', " "))?;
        }
    }
    Ok(out)
}

/// What was typed, but for where things lie on one machine.
fn command(args: &Args) -> String {
    let list = |numbers: &[usize]| {
        numbers
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    let mut words = vec![format!(
        "cargo xtask bench --shapes {} --rounds {} --concurrency {}",
        args.shapes.join(","),
        args.rounds,
        list(&args.concurrency)
    )];
    for (flag, given) in [
        ("--transformers PYTHON", args.transformers.is_some()),
        ("--openvino PYTHON", args.openvino.is_some()),
        ("--vllm PYTHON", args.vllm.is_some()),
        ("--llama-cpp DIR", args.llama_cpp.is_some()),
    ] {
        if given {
            words.push(flag.to_owned());
        }
    }
    if let Some(threads) = args.threads {
        words.push(format!("--threads {threads}"));
    }
    for (flag, given) in [("--server", args.server), ("--growth", args.growth)] {
        if given {
            words.push(flag.to_owned());
        }
    }
    words.join(" ")
}

/// The head of a table with these columns, behind a line that is empty.
fn head(out: &mut String, columns: &str) -> std::fmt::Result {
    let rule = "|---".repeat(columns.split('|').count());
    writeln!(out, "\n| {columns} |\n{rule}|")
}

/// The middle one; NaN of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}

/// All runs of a contender: Kiln's beside its rivals too.
fn figures<'a>(
    run: &'a Run<'_>,
    shape: &str,
    contender: &Contender,
    concurrency: usize,
) -> Vec<&'a Measured> {
    let mut out = vec![];
    for other in &run.contenders {
        for entry in run.state.of(shape, &other.name(), concurrency) {
            if other.name() == contender.name() {
                out.push(&entry.measured);
            } else if contender.is_kiln() && other.bits == contender.bits {
                out.extend(&entry.beside);
            }
        }
    }
    out
}

fn table(out: &mut String, run: &Run<'_>, shape: &str, concurrency: usize) -> std::fmt::Result {
    writeln!(out, "\n{concurrency} at once:")?;
    head(
        out,
        "engine | time to first token s | ms per token | total s | tokens/s | load s | peak RSS MB | \
         Kiln's ratio: first token | per token | total",
    )?;
    for contender in &run.contenders {
        let name = contender.name();
        let runs = figures(run, shape, contender, concurrency);
        if runs.is_empty() {
            continue;
        }
        let middle = |figure: fn(&Measured) -> f64| median(runs.iter().map(|run| figure(run)));
        let ratio = |figure: fn(&Measured) -> f64| {
            if contender.is_kiln() {
                return String::new();
            }
            let entries = run.state.of(shape, &name, concurrency);
            let pairs = entries.filter_map(|entry| Some((entry.beside.as_ref()?, &entry.measured)));
            let ratio = median(pairs.map(|(own, rival)| figure(own) / figure(rival)));
            format!("{ratio:.2}")
        };
        writeln!(
            out,
            "| {name} | {:.3} | {:.1} | {:.2} | {:.1} | {:.2} | {:.0} | {} | {} | {} |",
            middle(|m| m.first_token),
            1e3 * middle(|m| m.per_token),
            middle(|m| m.total),
            middle(|m| m.tokens_per_second),
            middle(|m| m.load),
            middle(|m| m.peak_rss.unwrap_or(f64::NAN)) / 1e6,
            ratio(|m| m.first_token),
            ratio(|m| m.per_token),
            ratio(|m| m.total),
        )?;
    }
    Ok(())
}

/// Kiln's phases with the fraction of the limit that each reached.
fn phases(out: &mut String, name: &str, details: &Value) -> std::fmt::Result {
    let limit = |key: &str| details["limits"][key].as_f64().unwrap_or(f64::NAN) / 1e9;
    writeln!(
        out,
        "\n{name}, where the time goes (limits in the same process, the better of before and after: f32 {:.0} Gop/s, bf16 {:.0}, int8 \
         {:.0}, read {:.1} GB/s):",
        limit("f32_operations_per_second"),
        limit("bf16_operations_per_second"),
        limit("int8_operations_per_second"),
        limit("read_bytes_per_second"),
    )?;
    head(out, "phase | ms | Gop | MB read | of the limit")?;
    for phase in details["phases"].as_array().into_iter().flatten() {
        let number = |key: &str| phase[key].as_f64();
        let fraction = number("fraction_of_limit");
        writeln!(
            out,
            "| {} | {:.2} | {:.1} | {:.1} | {} |",
            phase["name"].as_str().unwrap_or_default(),
            1e3 * number("seconds").unwrap_or(f64::NAN),
            number("operations").unwrap_or_default() / 1e9,
            number("bytes").unwrap_or_default() / 1e6,
            fraction.map_or_else(String::new, |f| format!("{:.0}%", 100.0 * f)),
        )?;
    }
    Ok(())
}

/// A number of an object; NaN where it has none.
fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

/// What clients see of the servers, Kiln's beside the engine alone.
fn served<'a>(
    out: &mut String,
    servers: &[(String, Value)],
    engine: impl Fn(usize) -> Vec<&'a Measured>,
) -> std::fmt::Result {
    let Some((_, own)) = servers.first() else {
        return Ok(());
    };
    let most = own["concurrency"].as_u64().unwrap_or(1) as usize;
    let alone = |concurrency, figure: fn(&Measured) -> f64| {
        median(engine(concurrency).into_iter().map(figure))
    };
    writeln!(
        out,
        "\n## Server\n\n`kiln serve` in bf16, seen by clients over HTTP. With the caches off and the \
         settings of `kiln bench`, beside\nthe engine alone in the same run:"
    )?;
    head(out, " | server | engine alone | ratio")?;
    let total = format!("{most} at once, total s");
    let rows = [
        (
            "time to first token s",
            "time_to_first_token",
            alone(1, |m| m.first_token),
            1.0,
        ),
        (
            "ms per token",
            "time_per_output_token",
            alone(1, |m| m.per_token),
            1e3,
        ),
        (&total, "total", alone(most, |m| m.total), 1.0),
    ];
    for (name, key, alone, unit) in rows {
        let seen = number(&own["bare"], key);
        writeln!(
            out,
            "| {name} | {:.3} | {:.3} | {:.2} |",
            seen * unit,
            alone * unit,
            seen / alone
        )?;
    }
    writeln!(
        out,
        "\nAs users start them, each with its own defaults ({}, at most 8 sequences for the rivals): \
         requests by one,\nseveral at once, the same picture again, and {} streams while {} prompts with new \
         pictures arrive one after the\nother.",
        match contender::has_bf16() {
            true => "in bf16",
            false => "vLLM in f32, others in bf16",
        },
        own["streams"],
        own["arrivals"],
    )?;
    let names: Vec<&str> = servers.iter().map(|(name, _)| name.as_str()).collect();
    head(out, &format!(" | {}", names.join(" | ")))?;
    let rows = [
        ("a new picture: first token s", "time_to_first_token", 1.0),
        ("ms per token", "time_per_output_token", 1e3),
        (&total, "total", 1.0),
        (
            "the same picture and question: first token s",
            "same_again",
            1.0,
        ),
        (
            "the same picture, another question: first token s",
            "other_question",
            1.0,
        ),
        (
            "between two tokens of a stream ms: median",
            "gap_median",
            1e3,
        ),
        ("90th percentile", "gap_p90", 1e3),
        ("99th percentile", "gap_p99", 1e3),
        (
            "first token of a prompt that arrives then s",
            "arrival_first",
            1.0,
        ),
    ];
    for (name, key, unit) in rows {
        let cells = servers.iter().map(|(_, value)| match unit {
            1.0 => format!("{:.3}", number(value, key)),
            unit => format!("{:.1}", number(value, key) * unit),
        });
        writeln!(
            out,
            "| {name} | {} |",
            cells.collect::<Vec<_>>().join(" | ")
        )?;
    }
    Ok(())
}

/// A token's cost by context and by batch.
fn grown(out: &mut String, details: &Value, args: &Args) -> std::fmt::Result {
    let chart = args.out.with_extension("svg");
    let chart = chart.file_name().unwrap_or_default().to_string_lossy();
    writeln!(
        out,
        "\n## Growth\n\nKiln bf16 on shape {}: one step after contexts of so many tokens, and of so \
         many sequences of 512.\n\n![ms per token by context and by batch]({chart})\n",
        args.shapes.first().map_or("", String::as_str),
    )?;
    let points = |key: &str| details["growth"][key].as_array().into_iter().flatten();
    let beside = |step: &Value| {
        format!(
            "{:.1} | {:.1} | {:.0}% of {}",
            1e-9 * number(step, "operations"),
            1e-6 * number(step, "bytes"),
            1e2 * number(step, "fraction_of_limit"),
            step["limit"].as_str().unwrap_or_default(),
        )
    };
    writeln!(
        out,
        "A step reads the weights once, and the keys and values of each sequence: beside the time is what \
         it multiplied and read, and how near that came to the limit that holds."
    )?;
    head(out, "context | ms per token | Gop | MB read | of the limit")?;
    for step in points("by_context") {
        let (context, ms) = (&step["context"], 1e3 * number(step, "seconds"));
        writeln!(out, "| {context} | {ms:.1} | {} |", beside(step))?;
    }
    head(
        out,
        "batch | ms per step | ms per token | Gop | MB read | of the limit",
    )?;
    for step in points("by_batch") {
        let (batch, ms) = (number(step, "batch"), 1e3 * number(step, "seconds"));
        writeln!(
            out,
            "| {batch} | {ms:.1} | {:.2} | {} |",
            ms / batch,
            beside(step)
        )?;
    }
    Ok(())
}

/// The commit that is checked out, which may be another one by the time the page is written.
pub(crate) fn commit() -> String {
    said("git", &["rev-parse", "--short", "HEAD"])
}

/// What a program says in one line; empty where there is none.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// As the page says it.
pub(crate) fn today() -> String {
    said("date", &["-u", "+%Y-%m-%d"])
}

/// The processor, its cores, and what it has of what matters here.
pub(crate) fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = cpu.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(": "))
            .map(|(_, value)| value)
    };
    let flags: Vec<&str> = field("flags").unwrap_or_default().split(' ').collect();
    let wanted = [
        "avx2",
        "avx512f",
        "avx512_bf16",
        "avx512_vnni",
        "amx_bf16",
        "amx_int8",
    ];
    let has: Vec<_> = wanted
        .into_iter()
        .filter(|flag| flags.contains(flag))
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, {cores} cores, {}",
        field("model name").unwrap_or("a CPU"),
        has.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::state::{Entry, Place, State};
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_rival_is_compared_with_kiln_beside_it() {
        let line = [
            "bench",
            "--transformers",
            "python",
            "--shapes",
            "A",
            "--concurrency",
            "1",
        ];
        let args = Line::parse_from(line).args;
        let contenders = contender::all(Path::new("python"), &args);
        let measured = |first_token: f64| {
            let run = format!(
                r#"{{"load": 1, "run": {{"time_to_first_token": {first_token}, "time_per_output_token": 0.1,
                "total": 2, "output_tokens_per_second": 9}}}}"#
            );
            Measured::parse(&run).unwrap()
        };
        let rival = contenders.last().unwrap().name();
        let entry = |contender: String, first_token, beside: Option<f64>| Entry {
            at: Place {
                round: 1,
                shape: "A".to_owned(),
                contender,
                concurrency: 1,
            },
            measured: measured(first_token),
            beside: beside.map(measured),
        };
        // Any file serves as the binary.
        let mut state = State::open(Path::new("src/bench/page.rs"), &args).unwrap();
        state.entries.push(entry("Kiln bf16".to_owned(), 2.0, None));
        state.entries.push(entry(rival.clone(), 4.0, Some(3.0)));
        let run = Run {
            contenders,
            state,
            failed: [("another".to_owned(), "not\nthere".to_owned())].into(),
            args: &args,
        };
        let page = page(&run).unwrap();
        let has = |line: &str| assert!(page.contains(line), "{line} in {page}");
        has("\n\n| engine | time to first token s |");
        has("\n| Kiln bf16 | 2.000 | 100.0 | 2.00 | 9.0 | 1.00 | NaN |  |  |  |\n");
        has(&format!(
            "\n| {rival} | 4.000 | 100.0 | 2.00 | 9.0 | 1.00 | NaN | 0.75 | 1.00 | 1.00 |\n"
        ));
        has("\n- another: not there\n");
        assert!(
            !page.contains("Kiln q8"),
            "nothing of it was measured: {page}"
        );
    }
}
