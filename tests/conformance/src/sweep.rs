//! Every picture of the sweep through processor, mapper and encoder, once: what the checks of the
//! placeholder law and of the maximum look at.

use crate::fault::{Fault, Of};
use crate::pictures::{FILES, picture, sizes};
use crate::report::{Piece, Problem};
use crate::subject::{ITEMS, Subject};
use kiln_registry::{DecodeLimits, MediaItem};

/// The two counts of an item.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    pub(crate) what: String,
    pub(crate) modality: String,
    /// Positions that the input processor made for encoder rows.
    pub(crate) positions: usize,
    /// Rows that the encoder gave, where it gave any.
    pub(crate) rows: usize,
}

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    pub(crate) counted: Vec<Counted>,
    /// Calls that failed, but for what the caller is told to mend.
    pub(crate) problems: Vec<Problem>,
    pub(crate) refused: usize,
}

impl Subject {
    /// The sweep, run at the first call.
    pub(crate) fn sweep(&self) -> &Sweep {
        self.sweep.get_or_init(|| {
            let mut sweep = Sweep::default();
            if self.entry.supports(kiln_image::MODALITY) {
                self.sweep_sizes(&mut sweep);
                self.sweep_files(&mut sweep);
            }
            self.sweep_counts(&mut sweep);
            sweep
        })
    }

    fn sweep_sizes(&self, sweep: &mut Sweep) {
        for (width, height) in sizes([self.context.config(), self.context.processor()]) {
            let what = format!("a picture of {width}x{height}");
            if let Ok(item) = picture(width, height, 3) {
                self.note(sweep, what, vec![item]);
            }
        }
    }

    fn sweep_files(&self, sweep: &mut Sweep) {
        for (name, bytes) in FILES {
            let what = format!("the file {name}");
            let decoded = self
                .registry
                .modality(kiln_image::MODALITY)
                .and_then(|spec| spec.decode(bytes, &DecodeLimits::default()))
                .of(Piece::Decoder);
            match decoded {
                Ok(item) => self.note(sweep, what, vec![item]),
                Err(fault) => sweep.problems.push(fault.problem(&what)),
            }
        }
    }

    /// Prompts of several items, each of another size where the kit can make it.
    fn sweep_counts(&self, sweep: &mut Sweep) {
        for modality in self.entry.modalities() {
            for count in 1..=ITEMS {
                let items = match self.dummy(modality, count) {
                    Ok((_, items)) if modality != kiln_image::MODALITY => items,
                    _ if modality != kiln_image::MODALITY => continue,
                    _ => (0..count)
                        .filter_map(|n| picture([40, 300, 9][n % 3], [90, 30, 9][n % 3], 5).ok())
                        .collect(),
                };
                self.note(sweep, format!("{count} {modality} item(s)"), items);
            }
        }
    }

    fn note(&self, sweep: &mut Sweep, what: String, items: Vec<MediaItem>) {
        match self.count(&what, &items) {
            Ok(counted) => sweep.counted.extend(counted),
            Err(fault) if fault.error.is_callers_fault() => sweep.refused += 1,
            Err(fault) => sweep.problems.push(fault.problem(&what)),
        }
    }

    /// Positions and rows of each item of one prompt.
    pub(crate) fn count(&self, what: &str, items: &[MediaItem]) -> Result<Vec<Counted>, Fault> {
        let prepared = self.prepare(self.prompt(0, items), items)?;
        let ranges = &prepared.processed.placeholders;
        let mut counted = vec![];
        for (range, (modality, tensors)) in ranges.iter().zip(&prepared.mapped) {
            let first = |shape: &[usize]| shape.first() == Some(&1);
            if tensors.is_empty() || !tensors.iter().all(|(_, t)| first(t.shape())) {
                let shapes: Vec<_> = tensors.iter().map(|(name, t)| (name, t.shape())).collect();
                return Err(kiln_registry::Error::internal(format!(
                    "the first axis of every tensor counts items and must be 1: {shapes:?}"
                )))
                .of(Piece::Mapper);
            }
            let features = self.encode(self.model.as_ref(), modality, &[tensors])?;
            let rows = features.iter().map(|f| f.rows).sum();
            let width = self.model.hidden_size();
            if let Some(odd) = features.iter().find(|f| f.width != width) {
                return Err(kiln_registry::Error::internal(format!(
                    "rows of {} elements, `hidden_size` is {width}",
                    odd.width
                )))
                .of(Piece::Encoder);
            }
            counted.push(Counted {
                what: format!("{what}, item {}", range.item),
                modality: modality.clone(),
                positions: range.rows(),
                rows,
            });
        }
        Ok(counted)
    }
}
