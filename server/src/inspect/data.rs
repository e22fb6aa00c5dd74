//! What was found out, as JSON for the web page.

use super::words::{seen_words, steps};
use super::{Inspection, Item};
use serde_json::{Value, json};

impl Inspection {
    /// All facts but the sheet. Positions are half-open: `to` is the first one behind.
    pub(crate) fn data(&self) -> Value {
        let prompt = &self.prompt;
        let items: Vec<Value> = self.items.iter().map(|i| i.data(self.max_tokens)).collect();
        let segments: Vec<Value> = prompt
            .segments
            .iter()
            .map(|segment| {
                json!({
                    "item": segment.range.and_then(|at| self.items.get(at)).map(|i| i.range.item),
                    "from": segment.positions.start,
                    "to": segment.positions.end,
                    "text": segment.text,
                })
            })
            .collect();
        json!({
            "items": items,
            "prompt": {
                "made_by": prompt.note,
                "tokens": prompt.length,
                "context": prompt.context,
                "segments": segments,
            },
        })
    }
}

impl Item {
    fn data(&self, max_tokens: Option<usize>) -> Value {
        let size = self.views.size();
        let patches = self
            .views
            .grid()
            .map(|grid| json!([grid.width, grid.height]));
        let explained = self.explained.as_ref();
        let tensors: Vec<Value> = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                json!({ "name": name, "dtype": dtype, "shape": shape, "bytes": bytes })
            })
            .collect();
        json!({
            "file": {
                "format": self.file.format,
                "bytes": self.file.bytes,
                "width": self.picture.width(),
                "height": self.picture.height(),
                "turned_upright": self.file.turned,
            },
            "steps": explained.map(|(plan, config)| steps(plan, config)),
            "seen": explained.map(|(plan, _)| seen_words(plan)),
            "views": {
                "count": self.views.pictures.len(),
                "width": size.width,
                "height": size.height,
                "patch": self.views.patch,
                "patches": patches,
                "missing": self.views.missing,
            },
            "tensors": tensors,
            "tokens": self.range.rows(),
            "max_tokens": max_tokens,
            "tokens_are": self.layout.words(&self.views),
            "positions": self.range.length,
        })
    }
}
