//! Every item of the sweep through processor, mapper and encoder, once: what the checks of the
//! placeholder law and of the maximum look at.

use crate::fault::{Fault, Of, guard};
use crate::media::{Draw, drawn};
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
            for modality in self.entry.modalities() {
                match drawn(modality) {
                    Some(draw) => {
                        self.sweep_shapes(draw, &mut sweep);
                        self.sweep_files(draw, &mut sweep);
                        self.sweep_counts(draw, &mut sweep);
                    }
                    None => self.sweep_dummies(modality, &mut sweep),
                }
            }
            sweep
        })
    }

    fn sweep_shapes(&self, draw: &dyn Draw, sweep: &mut Sweep) {
        for shape in draw.shapes(self.configs()) {
            if let Ok(item) = draw.draw(&shape, 3) {
                self.note(sweep, draw.name(&shape), vec![item]);
            }
        }
    }

    fn sweep_files(&self, draw: &dyn Draw, sweep: &mut Sweep) {
        for (name, bytes) in draw.files() {
            let what = format!("the file {name}");
            match self.decode(draw.modality(), bytes) {
                Ok(item) => self.note(sweep, what, vec![item]),
                Err(fault) => sweep.problems.push(fault.problem(&what)),
            }
        }
    }

    /// Prompts of several items, each of another size.
    fn sweep_counts(&self, draw: &dyn Draw, sweep: &mut Sweep) {
        let small = draw.usual(0);
        for count in 1..=ITEMS {
            let items = (0..count).filter_map(|n| {
                // Neither small nor square, and the last one as a strip.
                let sides = small.iter().zip([15, 2, 40].into_iter().cycle().skip(n));
                let shape: Vec<_> = sides.map(|(side, by)| (side * by / 4).max(1)).collect();
                draw.draw(&shape, 5).ok()
            });
            let what = format!("{count} {} item(s)", draw.modality());
            self.note(sweep, what, items.collect());
        }
    }

    fn sweep_dummies(&self, modality: &str, sweep: &mut Sweep) {
        for count in 1..=ITEMS {
            if let Ok((_, items)) = self.dummy(modality, count) {
                self.note(sweep, format!("{count} {modality} item(s)"), items);
            }
        }
    }

    pub(crate) fn decode(&self, modality: &str, bytes: &[u8]) -> Result<MediaItem, Fault> {
        let spec = self.registry.modality(modality).of(Piece::Registration)?;
        guard(|| spec.decode(bytes, &DecodeLimits::default())).of(Piece::Decoder)
    }

    fn note(&self, sweep: &mut Sweep, what: String, items: Vec<MediaItem>) {
        match self.count(&what, &items) {
            Ok(counted) => sweep.counted.extend(counted),
            Err(fault) if fault.error.is_callers_fault() => sweep.refused += 1,
            Err(fault) => sweep.problems.push(fault.problem(&what)),
        }
    }

    /// Positions of a blank item alone; 0 where it is refused.
    pub(crate) fn positions(&self, draw: &dyn Draw, shape: &[usize]) -> Result<usize, Fault> {
        let id = self.placeholders.get(draw.modality()).copied();
        let item = [draw.blank(shape).of(Piece::Engine)?];
        match self.process(id.into_iter().collect(), &item) {
            Ok(processed) => Ok(processed.placeholders.iter().map(|p| p.rows()).sum()),
            Err(fault) if fault.error.is_callers_fault() => Ok(0),
            Err(fault) => Err(fault),
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
