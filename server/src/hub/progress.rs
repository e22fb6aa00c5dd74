//! How far a download is: a bar on a terminal, a line a file elsewhere.

use hf_hub::api::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Files smaller than this come faster than one can read.
const WORTH_A_WORD: usize = 4 << 20;

/// The bar of one file.
#[derive(Default)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    told: bool,
}

impl Progress for Bar {
    /// Called again when a download is taken up where it broke off.
    fn init(&mut self, size: usize, filename: &str) {
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(size as u64);
                let style = ProgressStyle::with_template(
                    "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                );
                if let Ok(style) = style {
                    bar.set_style(style);
                }
                bar
            });
            bar.set_message(filename.to_owned());
            bar.set_position(0);
        } else if !self.told && size >= WORTH_A_WORD {
            self.told = true;
            eprintln!("fetching {filename}, {} MiB", size >> 20);
        }
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
