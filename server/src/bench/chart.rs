//! Where the time of a request goes, as a bar chart in SVG: a bar a phase, the part of it that the
//! machine's limit asks for in a darker tone.

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
            (name, phase.seconds * times, phase.fraction())
        })
        .collect();
    let longest = bars
        .iter()
        .map(|(_, seconds, _)| *seconds)
        .fold(1e-9, f64::max);
    let height = TOP + ROW * bars.len() as f64 + 12.0;
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
    out.push_str("</svg>\n");
    Ok(out)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
