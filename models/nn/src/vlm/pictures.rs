//! Pictures through tower and projector, at once or in pieces.

use crate::layers::Projector;
use crate::vision::{TowerPass, VisionTower};
use burn::tensor::Tensor;
use kiln_registry::{EncodeTask, Encoded, NamedTensors, Result};
use std::collections::VecDeque;
use std::sync::Arc;

/// A vision tower with its projector.
pub struct PictureEncoder {
    /// The tower.
    pub tower: VisionTower,
    projector: Projector,
}

impl PictureEncoder {
    pub(super) fn new(tower: VisionTower, projector: Projector) -> Self {
        Self { tower, projector }
    }

    /// Pictures, or the frames of a video: through the tower and the projector, one behind the other.
    ///
    /// # Shapes
    /// `pixels`: `[pictures, 3, image_size, image_size]`; `tower`: f32 `[pictures, tokens, width]`;
    /// `features`: f32 `[pictures * tokens, hidden]`.
    ///
    /// # Errors
    /// As [`VisionTower::features`].
    pub fn encode(&self, shape: [usize; 4], pixels: &[f32]) -> Result<Encoded> {
        Ok(self.project(self.tower.features(shape, pixels)?))
    }

    fn project(&self, tower: Tensor<3>) -> Encoded {
        let [pictures, tokens, width] = tower.dims();
        let rows = tower.clone().reshape([pictures * tokens, width]);
        Encoded {
            features: self.projector.forward(rows),
            tower: Some(tower),
        }
    }
}

/// The pixels of an item: `[pictures, 3, image_size, image_size]`.
pub type Pixels = for<'a> fn(&'a NamedTensors) -> Result<([usize; 4], &'a [f32])>;
/// What a model makes of an item and its projected features.
pub type Arrange = Box<dyn Fn(&NamedTensors, Encoded) -> Result<Encoded> + Send>;

/// Items on their way, one picture after the other: a piece is a layer over one picture, so that it
/// is short however many tiles the item has.
pub struct PictureTask {
    encoder: Arc<PictureEncoder>,
    items: VecDeque<Arc<NamedTensors>>,
    pixels: Pixels,
    arrange: Arrange,
    /// Pictures of the first item that have been through the tower.
    seen: Vec<Tensor<3>>,
    /// The one that is in it.
    pass: Option<TowerPass>,
    /// Layers of all pictures that are not in the tower yet, and one each to begin it.
    ahead: usize,
    done: Vec<Encoded>,
}

impl PictureTask {
    /// A task of items whose pixels and whose rows are found so.
    ///
    /// # Errors
    /// What `pixels` says of an item.
    pub fn new(
        encoder: Arc<PictureEncoder>,
        items: &[Arc<NamedTensors>],
        pixels: Pixels,
        arrange: Arrange,
    ) -> Result<Self> {
        let mut pictures = 0;
        for item in items {
            pictures += pixels(item)?.0[0];
        }
        Ok(Self {
            ahead: pictures * (1 + encoder.tower.depth()),
            encoder,
            items: items.iter().cloned().collect(),
            pixels,
            arrange,
            seen: vec![],
            pass: None,
            done: vec![],
        })
    }

    /// The next picture of the first item into the tower.
    fn begin(&mut self) -> Result<()> {
        let Some(item) = self.items.front() else {
            return Ok(());
        };
        let ([pictures, planes @ ..], pixels) = (self.pixels)(item)?;
        let [channels, height, width] = planes;
        if self.seen.len() < pictures {
            let size = channels * height * width;
            let at = self.seen.len() * size;
            let picture = pixels.get(at..at + size).unwrap_or_default();
            let shape = [1, channels, height, width];
            self.pass = Some(self.encoder.tower.begin(shape, picture)?);
            self.ahead = self.ahead.saturating_sub(1 + self.encoder.tower.depth());
        }
        Ok(())
    }

    /// The picture that is in the tower out of it; with the last one of an item, its rows.
    fn end(&mut self, pass: TowerPass) -> Result<()> {
        self.seen.push(pass.finish(&self.encoder.tower));
        let Some(item) = self.items.front() else {
            return Ok(());
        };
        if self.seen.len() >= (self.pixels)(item)?.0[0] {
            let tower = Tensor::cat(std::mem::take(&mut self.seen), 0);
            let encoded = self.encoder.project(tower);
            self.done.push((self.arrange)(item, encoded)?);
            self.items.pop_front();
        }
        Ok(())
    }
}

impl EncodeTask for PictureTask {
    fn remaining(&self) -> usize {
        let pass = self.pass.as_ref();
        self.ahead + pass.map_or(0, |pass| pass.remaining(&self.encoder.tower))
    }

    fn advance(&mut self) -> Result<()> {
        let tower = &self.encoder.tower;
        match &mut self.pass {
            Some(pass) if pass.remaining(tower) > 0 => pass.advance(tower),
            _ if self.ahead == 0 => {}
            _ => {
                if let Some(pass) = self.pass.take() {
                    self.end(pass)?;
                }
                self.begin()?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Encoded>> {
        while self.remaining() > 0 {
            self.advance()?;
        }
        if let Some(pass) = self.pass.take() {
            self.end(pass)?;
        }
        Ok(self.done)
    }
}
