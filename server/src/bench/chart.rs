//! Where the time of a request goes, as a bar chart in SVG: a bar a phase, the part of it that the
//! machine's limit asks for in a darker tone. Below it, where that was measured, how a token's cost
//! grows with the context and with the batch.

use super::{Phase, Report};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 170.0;
const ROW: f64 = 34.0;
const TOP: f64 = 56.0;

/// The chart. A request's tokens count as one bar.
///
/// # Errors
/// None: a string takes everything.
pub(crate) fn svg(report: &Report) -> Result<String, std::fmt::Error> {
    let steps = report.output_tokens.saturating_sub(1) as f64;
    let bars: Vec<(String, f64, Option<f64>)> = report
        .phases
        .iter()
        .map(|phase: &Phase| {
            let (name, times) = if phase.name == "one new token" {
                (
                    format!("{} more tokens", report.output_tokens.saturating_sub(1)),
                    steps,
                )
            } else {
                (phase.name.to_owned(), 1.0)
            };
            (name, phase.seconds * times, phase.fraction(&report.limits))
        })
        .collect();
    let longest = bars
        .iter()
        .map(|(_, seconds, _)| *seconds)
        .fold(1e-9, f64::max);
    let bottom = TOP + ROW * bars.len() as f64 + 12.0;
    let height = bottom + report.growth.as_ref().map_or(0.0, |_| CURVES);
    let mut out = String::new();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n\
         <title>Where the time of a request goes</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-weight=\"bold\">{}</text>\n\
         <text x=\"12\" y=\"40\" fill=\"#555\">{} prompt tokens ({} of pictures), {} new; dark: what \
         the machine's limit asks for</text>",
        escaped(&format!("{} ({})", report.model, report.dtype)),
        report.prompt_tokens,
        report.image_tokens,
        report.output_tokens,
    )?;
    for (at, (name, seconds, fraction)) in bars.iter().enumerate() {
        let y = TOP + ROW * at as f64;
        let width = (WIDTH - LEFT - RIGHT) * seconds / longest;
        let middle = y + 16.0;
        let limit = width * fraction.unwrap_or(0.0).min(1.0);
        let share =
            fraction.map_or_else(String::new, |f| format!(", {:.0}% of the limit", 100.0 * f));
        writeln!(
            out,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"22\" fill=\"#9ecae1\"/>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{limit:.1}\" height=\"22\" fill=\"#3182bd\"/>\n\
             <text x=\"{:.1}\" y=\"{middle}\">{:.1} ms{share}</text>",
            LEFT - 8.0,
            escaped(name),
            LEFT + width + 8.0,
            1e3 * seconds,
        )?;
    }
    if let Some(growth) = &report.growth {
        let by_context: Vec<(usize, f64)> = growth
            .by_context
            .iter()
            .map(|(context, step)| (*context, 1e3 * step.seconds))
            .collect();
        let by_batch: Vec<(usize, f64)> = growth
            .by_batch
            .iter()
            .map(|(batch, step)| (*batch, 1e3 * step.seconds / *batch as f64))
            .collect();
        curve(&mut out, (0.0, bottom), "tokens of context", &by_context)?;
        let right = (WIDTH / 2.0, bottom);
        curve(&mut out, right, "sequences of a step", &by_batch)?;
    }
    out.push_str("</svg>\n");
    Ok(out)
}

/// Height of the curves.
const CURVES: f64 = 220.0;

/// Milliseconds a token over powers of two, the ordinate from 0.
fn curve(
    out: &mut String,
    (left, top): (f64, f64),
    what: &str,
    points: &[(usize, f64)],
) -> std::fmt::Result {
    let most = points.iter().map(|(_, y)| *y).fold(1e-9, f64::max);
    let (x0, y0) = (left + 40.0, top + 34.0);
    let (width, height) = (WIDTH / 2.0 - 80.0, CURVES - 80.0);
    let step = width / points.len().saturating_sub(1).max(1) as f64;
    let place = |i: usize, y: f64| (x0 + step * i as f64, y0 + height * (1.0 - y / most));
    let line: Vec<String> = points
        .iter()
        .enumerate()
        .map(|(i, (_, y))| {
            let (x, y) = place(i, *y);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">ms per token by {what}</text>\n\
         <line x1=\"{x0}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#bbb\"/>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#3182bd\" stroke-width=\"2\"/>",
        left + 12.0,
        top + 14.0,
        y0 + height,
        x0 + width,
        y0 + height,
        line.join(" "),
    )?;
    for (i, (at, y)) in points.iter().enumerate() {
        let (x, high) = place(i, *y);
        writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{high:.1}\" r=\"3\" fill=\"#3182bd\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\">{y:.1}</text>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" \
             fill=\"#555\">{at}</text>",
            high - 8.0,
            y0 + height + 18.0,
        )?;
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
