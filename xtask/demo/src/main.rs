//! Hands scenes to the trainer and to people: a binary stream, or PNG files with their
//! questions.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use kiln_demo::{SIDE, Scene, Split};

const USAGE: &str = "\
usage:
  kiln-demo stream SPLIT SEED START COUNT      records to stdout: u32 length and JSON
                                               (scene, questions), then RGB bytes
  kiln-demo write  SPLIT SEED START COUNT DIR  PNG files and questions.jsonl
SPLIT is train or eval";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["stream", split, seed, start, count] => {
            let out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
            match stream(out, scenes(split, seed, start, count)?) {
                // The trainer has hung up: it has all it needs.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => Ok(other?),
            }
        }
        ["write", split, seed, start, count, dir] => {
            write(Path::new(dir), scenes(split, seed, start, count)?)
        }
        _ => bail!(USAGE),
    }
}

fn scenes(
    split: &str,
    seed: &str,
    start: &str,
    count: &str,
) -> Result<impl Iterator<Item = Scene> + use<>> {
    let split = match split {
        "train" => Split::Train,
        "eval" => Split::Eval,
        _ => bail!(USAGE),
    };
    let seed: u64 = seed.parse().context("SEED")?;
    let start: u64 = start.parse().context("START")?;
    let count: u64 = count.parse().context("COUNT")?;
    let end = start
        .checked_add(count)
        .context("START + COUNT is too large")?;
    Ok((start..end).map(move |i| Scene::generate(seed, i, split)))
}

fn record(scene: &Scene) -> serde_json::Value {
    serde_json::json!({ "scene": scene, "questions": scene.questions() })
}

fn stream(mut out: impl Write, scenes: impl Iterator<Item = Scene>) -> io::Result<()> {
    for scene in scenes {
        let json = serde_json::to_vec(&record(&scene))?;
        out.write_all(&(json.len() as u32).to_le_bytes())?;
        out.write_all(&json)?;
        out.write_all(&scene.render())?;
    }
    out.flush()
}

fn write(dir: &Path, scenes: impl Iterator<Item = Scene>) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut lines = String::new();
    for scene in scenes {
        let file = dir.join(format!("{}.png", scene.index));
        image::save_buffer(&file, &scene.render(), SIDE, SIDE, image::ColorType::Rgb8)
            .with_context(|| file.display().to_string())?;
        lines.push_str(&record(&scene).to_string());
        lines.push('\n');
    }
    Ok(fs::write(dir.join("questions.jsonl"), lines)?)
}
