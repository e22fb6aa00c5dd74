//! A tower's pass over pictures, one layer at a time.

use super::VisionTower;
use burn::tensor::Tensor;
use kiln_registry::{Error, Result};

/// Pictures on their way through a tower.
pub struct TowerPass {
    pictures: usize,
    /// `[pictures * tokens, width]`, behind so many layers as have run.
    x: Tensor<2>,
    layers: usize,
    /// What the selection takes of the states so far, each with its index.
    states: Vec<(usize, Tensor<2>)>,
}

impl VisionTower {
    /// Begins a pass: patches and positions.
    ///
    /// # Shapes
    /// `pixels`: `[pictures, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the pixels have another size: the processor's configuration and
    /// the tower's do not fit.
    pub fn begin(&self, shape: [usize; 4], pixels: &[f32]) -> Result<TowerPass> {
        let [pictures, channels, height, width] = shape;
        let side = self.config.image_size;
        if [channels, height, width] != [self.config.num_channels, side, side] {
            return Err(Error::checkpoint(
                "preprocessor_config.json",
                format!(
                    "the processor makes pictures of {width}x{height}, the vision tower takes \
                     {side}x{side}"
                ),
            ));
        }
        let mut pass = TowerPass {
            pictures,
            x: self.embed(pictures, pixels),
            layers: 0,
            states: vec![],
        };
        pass.keep(self);
        Ok(pass)
    }

    /// Layers that are run, the deepest that the selection needs being the last.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }
}

impl TowerPass {
    /// Layers that are left.
    pub fn remaining(&self, tower: &VisionTower) -> usize {
        tower.depth().saturating_sub(self.layers)
    }

    /// Runs the next layer; nothing where none is left. The tower is the one that began the pass.
    pub fn advance(&mut self, tower: &VisionTower) {
        if let Some(layer) = tower.layers.get(self.layers) {
            let tokens = tower.config.tokens();
            self.x = layer.forward(self.x.clone(), self.pictures, tokens);
            self.layers += 1;
            self.keep(tower);
        }
    }

    fn keep(&mut self, tower: &VisionTower) {
        if tower.selection.layers.contains(&self.layers) {
            self.states.push((self.layers, self.x.clone()));
        }
    }

    /// Runs what is left, and gives the selected features.
    ///
    /// # Shapes
    /// f32 `[pictures, tokens, width]` with the selection's tokens and width.
    pub fn finish(mut self, tower: &VisionTower) -> Tensor<3> {
        while self.remaining(tower) > 0 {
            self.advance(tower);
        }
        let (tokens, width) = (tower.config.tokens(), tower.config.hidden_size);
        let first = usize::from(tower.selection.drop_first);
        let parts: Vec<Tensor<3>> = tower
            .selection
            .layers
            .iter()
            .filter_map(|i| self.states.iter().find(|(at, _)| at == i))
            .map(|(_, state)| {
                let state = state.clone().reshape([self.pictures, tokens, width]);
                state.slice([0..self.pictures, first..tokens, 0..width])
            })
            .collect();
        Tensor::cat(parts, 2)
    }
}
