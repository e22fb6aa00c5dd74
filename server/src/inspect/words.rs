//! What was found out, in words for a terminal.

use super::geometry::{ratio, unseen};
use super::{Inspection, Item};
use kiln_image::{Filter, ImageProcessorConfig, Plan, Rect, Size, Stage};
use std::fmt::Write;

impl Inspection {
    /// All facts, a paragraph for each picture and one for the prompt.
    pub(crate) fn words(&self) -> String {
        let mut out = String::new();
        for item in &self.items {
            paragraph(&mut out, &item.name, &item.facts(self.max_tokens));
            out.push('\n');
        }
        let prompt = &self.prompt;
        let facts = [
            ("made by", prompt.note.clone()),
            (
                "tokens",
                format!(
                    "{}, {:.1}% of the context of {}",
                    prompt.length,
                    prompt.share(),
                    prompt.context
                ),
            ),
            ("layout", prompt.text()),
        ];
        paragraph(&mut out, "prompt", &facts);
        out
    }
}

fn paragraph(out: &mut String, title: &str, facts: &[(&str, String)]) {
    // Writing to a string can't fail.
    let _ = writeln!(out, "{title}");
    let mut before = "";
    for (name, fact) in facts {
        let label = if *name == before { "" } else { name };
        let _ = writeln!(out, "  {label:<10}{fact}");
        before = name;
    }
}

impl Item {
    fn facts(&self, max_tokens: Option<usize>) -> Vec<(&'static str, String)> {
        let mut facts = vec![("file", self.file_words())];
        let mut fact = |name, text| facts.push((name, text));
        match &self.explained {
            Some((plan, config)) => {
                for step in steps(plan, config) {
                    fact("processor", step);
                }
                fact("seen", seen_words(plan));
                if let Some(values) = values(config) {
                    fact("values", values);
                }
            }
            None => fact(
                "processor",
                "the model's own; its steps are not known here".to_owned(),
            ),
        }
        for (name, dtype, shape, bytes) in &self.tensors {
            fact(
                "tensors",
                format!("{name} {dtype} {shape:?}, {}", size_words(*bytes)),
            );
        }
        fact("views", self.views_words());
        let most = max_tokens.map_or(String::new(), |n| format!(" (an image takes at most {n})"));
        fact("takes", format!("{}{most}", self.tokens_words()));
        let separators = self.range.length - self.range.rows().min(self.range.length);
        if separators > 0 {
            fact(
                "takes",
                format!(
                    "and {separators} of the positions between them: separators that keep their \
                     text embedding"
                ),
            );
        }
        fact("positions", range_words(&self.range.range()));
        facts
    }

    /// Format, bytes, size.
    pub(super) fn file_words(&self) -> String {
        format!(
            "{}, {}, {}{}",
            self.file.format,
            size_words(self.file.bytes),
            size(self.picture.size()),
            if self.file.turned {
                ", turned upright"
            } else {
                ""
            }
        )
    }

    /// How many tokens, and what they stand for.
    pub(super) fn tokens_words(&self) -> String {
        let rows = self.range.rows();
        match self.layout.words(&self.views) {
            Some(words) => format!("{rows} tokens: {words}"),
            None => format!("{rows} tokens"),
        }
    }

    /// How many views of which size, and their patches.
    pub(super) fn views_words(&self) -> String {
        if let Some(reason) = &self.views.missing {
            return format!("not drawn: {reason}");
        }
        let count = self.views.pictures.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut words = format!("{count} view{plural} of {}", size(self.views.size()));
        if let (Some(grid), Some(patch)) = (self.views.grid(), self.views.patch) {
            let _ = write!(
                words,
                ", {} patches of {}",
                size(grid),
                size(Size::new(patch, patch))
            );
        }
        words
    }
}

/// What the processor does, step by step.
pub(super) fn steps(plan: &Plan, config: &ImageProcessorConfig) -> Vec<String> {
    let mut steps = Vec::new();
    let Some(view) = plan.views.first() else {
        return steps;
    };
    match (plan.resolution, plan.fitted, plan.views.get(1)) {
        (Some(resolution), Some(fitted), Some(tile)) => {
            let resized = view.stage.resized;
            steps.push(format!(
                "whole picture resized to {}",
                resizing(plan.picture, resized, config.resample)
            ));
            steps.push(format!(
                "picture fitted into {}, of {} resolutions the one that keeps most of it",
                size(resolution),
                config.image_grid_pinpoints.len()
            ));
            steps.push(format!(
                "resized to {}",
                resizing(plan.picture, fitted.size(), config.resample)
            ));
            if fitted.size() != resolution {
                steps.push(format!(
                    "padded with black: {}",
                    margins(fitted, resolution)
                ));
            }
            let first = tile.stage.window.size();
            let columns = resolution.width.div_ceil(first.width.max(1));
            steps.push(format!(
                "cut into {columns}x{} tiles of {}",
                plan.tiles.len().div_ceil(columns.max(1)),
                size(first)
            ));
        }
        _ => stage_steps(&mut steps, "", &view.stage, plan.picture, config.resample),
    }
    if let Some((view, again)) = plan.views.iter().find_map(|v| Some((v, v.again?))) {
        let before = view.stage.window.size();
        stage_steps(
            &mut steps,
            "each view then ",
            &again,
            before,
            config.resample,
        );
    }
    if let Some(padded) = plan.padded {
        steps.push(format!(
            "padded with zeros to {}, right and below",
            size(padded)
        ));
    }
    if steps.is_empty() {
        steps.push("taken as it is".to_owned());
    }
    steps
}

fn stage_steps(steps: &mut Vec<String>, who: &str, stage: &Stage, picture: Size, filter: Filter) {
    if stage.canvas != picture.rect() {
        let [r, g, b] = stage.background;
        let inside = Rect {
            x: -stage.canvas.x,
            y: -stage.canvas.y,
            ..picture.rect()
        };
        steps.push(format!(
            "{who}padded to {} with the colour #{r:02x}{g:02x}{b:02x}: {}",
            size(stage.canvas.size()),
            margins(inside, stage.canvas.size())
        ));
    }
    if stage.resized != stage.canvas.size() {
        let how = resizing(stage.canvas.size(), stage.resized, filter);
        steps.push(format!("{who}resized to {how}"));
    }
    if stage.window != stage.resized.rect() {
        let kept = stage.window.intersect(stage.resized.rect());
        let beyond = if kept == Some(stage.window) {
            ""
        } else {
            ", black where the picture does not reach"
        };
        steps.push(format!(
            "{who}cropped to the {} in the middle{beyond}",
            size(stage.window.size())
        ));
    }
}

/// The size, the filter, and whether the picture's shape changes.
fn resizing(from: Size, to: Size, filter: Filter) -> String {
    let mut words = format!("{} ({})", size(to), filter.name());
    // Whole pixels alone change a small picture's shape a little.
    if (ratio(from) / ratio(to)).ln().abs() > 0.05 {
        let _ = write!(
            words,
            ", its shape changes: {} to {}",
            ratio_words(from),
            ratio_words(to)
        );
    }
    words
}

/// `1.33:1`, or `1:1.33` of what is higher than wide.
fn ratio_words(size: Size) -> String {
    match ratio(size) {
        r if r < 1.0 => format!("1:{:.2}", 1.0 / r),
        r => format!("{r:.2}:1"),
    }
}

/// What lies around a rectangle in a frame.
fn margins(inside: Rect, frame: Size) -> String {
    let right = frame.width as i64 - inside.x - inside.width as i64;
    let bottom = frame.height as i64 - inside.y - inside.height as i64;
    sides([
        inside.x as f64,
        inside.y as f64,
        right as f64,
        bottom as f64,
    ])
}

/// Pixels left, above, right, below, where there are any.
fn sides(pixels: [f64; 4]) -> String {
    let words: Vec<_> = pixels
        .iter()
        .zip(["left", "above", "right", "below"])
        .filter(|(n, _)| **n > 0.0)
        .map(|(n, name)| format!("{} px {name}", decimal(*n)))
        .collect();
    words.join(", ")
}

/// How much of the picture the model sees.
pub(super) fn seen_words(plan: &Plan) -> String {
    match unseen(plan) {
        (_, share) if share < 1e-9 => "all of the picture".to_owned(),
        (lost, share) => {
            let percent = percent(share);
            format!(
                "not all: {percent} of the picture is cut off, {}",
                sides(lost)
            )
        }
    }
}

/// A share that is neither 0 nor 1 is not written as such.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if p < 1.0 => format!("{p:.2}%"),
        p if p > 99.0 && p < 100.0 => format!("{p:.2}%"),
        p => format!("{p:.0}%"),
    }
}

fn values(config: &ImageProcessorConfig) -> Option<String> {
    let three = |v: [f64; 3]| v.map(|x| format!("{x:.4}")).join(", ");
    let mut steps = vec![];
    if config.do_rescale {
        steps.push(format!("times {:.6}", config.rescale_factor));
    }
    if config.do_normalize {
        steps.push(format!("minus the mean ({})", three(config.image_mean)));
        steps.push(format!("over the deviation ({})", three(config.image_std)));
    }
    (!steps.is_empty()).then(|| steps.join(", "))
}

/// First and last position.
pub(super) fn range_words(range: &std::ops::Range<usize>) -> String {
    match range.len() {
        0 => "none".to_owned(),
        1 => format!("{}", range.start),
        _ => format!("{} to {}", range.start, range.end - 1),
    }
}

/// `640x480`.
pub(super) fn size(size: Size) -> String {
    format!("{}x{}", size.width, size.height)
}

fn decimal(n: f64) -> String {
    if (n - n.round()).abs() < 0.05 {
        format!("{n:.0}")
    } else {
        format!("{n:.1}")
    }
}

fn size_words(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
