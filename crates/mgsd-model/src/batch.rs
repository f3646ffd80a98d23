//! Sequences laid end to end, without padding, with everything about them that does not need the weights.

use std::sync::Arc;

use mgsd_compute::Tensor;
use mgsd_compute::ops::interpolate::Taps;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::patches::{Grid, ImagePatches};
use crate::positions::position_ids;
use crate::processor::Prompt;

/// Packed sequences. Holds host memory only, so that another thread can prepare it; [`clear`](Self::clear) keeps the
/// buffers for the next batch.
pub struct Batch {
    config: Config,
    /// Token ids of all sequences.
    pub ids: Vec<u32>,
    /// `[sequences + 1]` offsets into `ids`.
    pub bounds: Vec<usize>,
    /// Time, height and width of every token.
    pub positions: Vec<[u32; 3]>,
    /// Per sequence: highest position + 1 - length.
    pub rope_deltas: Vec<i64>,
    /// Which tokens are replaced by image features, in the order of the features.
    pub image_rows: Vec<u32>,
    /// The pictures, in order of appearance.
    pub images: Vec<Arc<ImagePatches>>,
    /// `[frames + 1]` offsets into the patches: attention stays within one frame of one image.
    pub patch_bounds: Vec<usize>,
    /// Where each patch reads the learned position table.
    pub taps: Vec<Taps>,
    /// Row and column of each patch.
    pub patch_positions: Vec<[u32; 2]>,
}

impl Batch {
    /// An empty batch for models of this configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            ids: Vec::new(),
            bounds: vec![0],
            positions: Vec::new(),
            rope_deltas: Vec::new(),
            image_rows: Vec::new(),
            images: Vec::new(),
            patch_bounds: vec![0],
            taps: Vec::new(),
            patch_positions: Vec::new(),
        }
    }

    /// Takes all sequences out.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.bounds.truncate(1);
        self.positions.clear();
        self.rope_deltas.clear();
        self.image_rows.clear();
        self.images.clear();
        self.patch_bounds.truncate(1);
        self.taps.clear();
        self.patch_positions.clear();
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Number of patches of all images.
    pub fn patches(&self) -> usize {
        self.taps.len()
    }

    /// Appends one sequence; returns the row of its first token.
    pub fn push(&mut self, prompt: &Prompt) -> Result<usize> {
        self.push_with(prompt, &[])
    }

    /// Appends a prompt and the response that follows it; returns the row of the prompt's first token. In the response
    /// an image token is a token like any other, as when the model has generated it.
    pub fn push_with(&mut self, prompt: &Prompt, response: &[u32]) -> Result<usize> {
        let length = prompt.ids.len() + response.len();
        if length == 0 {
            return Err(Error::Prompt("an empty sequence cannot be packed".into()));
        }
        let vocab = self.config.text.vocab_size;
        if let Some(id) = prompt.ids.iter().chain(response).find(|&&id| id as usize >= vocab) {
            return Err(Error::Prompt(format!(
                "token id {id} is not below the model's vocab_size of {vocab}; tokenizer and model do not belong together"
            )));
        }
        let grids: Vec<Grid> = prompt.images.iter().map(|image| image.grid).collect();
        let (positions, delta) = position_ids(&prompt.ids, &grids, &self.config)?;
        let start = self.ids.len();
        self.ids.extend_from_slice(&prompt.ids);
        self.ids.extend_from_slice(response);
        self.positions.extend(positions);
        for at in prompt.ids.len()..length {
            let position = (at as i64 + delta) as u32;
            self.positions.push([position; 3]);
        }
        for (at, _) in prompt.ids.iter().enumerate().filter(|(_, id)| **id == self.config.image_token_id) {
            self.image_rows.push((start + at) as u32);
        }
        self.bounds.push(self.ids.len());
        self.rope_deltas.push(delta);
        for image in &prompt.images {
            self.push_image(image);
        }
        Ok(start)
    }

    fn push_image(&mut self, image: &Arc<ImagePatches>) {
        let Grid { t, h, w } = image.grid;
        let vision = &self.config.vision;
        let merge = vision.spatial_merge_size;
        let side = vision.position_side();
        for _ in 0..t {
            for block_row in 0..h / merge {
                for block_column in 0..w / merge {
                    for row in 0..merge {
                        for column in 0..merge {
                            let (y, x) = (block_row * merge + row, block_column * merge + column);
                            self.patch_positions.push([y as u32, x as u32]);
                            self.taps.push(taps(y, h, x, w, side));
                        }
                    }
                }
            }
            self.patch_bounds.push(self.taps.len());
        }
        self.images.push(image.clone());
    }

    /// Writes the patches of all images to `out: [patches, patch_len]`, where `weight` lies.
    pub(crate) fn write_patches(&self, out: &mut Tensor, weight: &Tensor) {
        let width = self.config.vision.patch_len();
        out.place(weight, self.patches(), width);
        let mut row = 0;
        for image in &self.images {
            out.write_rows(row, &image.pixel_values);
            row += image.pixel_values.len() / width;
        }
    }
}

/// The four table entries around patch (`y` of `h`, `x` of `w`): bilinear, corners aligned.
fn taps(y: usize, h: usize, x: usize, w: usize, side: usize) -> Taps {
    let axis = |at: usize, count: usize| {
        let place = if count > 1 { ((at * (side - 1)) as f64 / (count - 1) as f64) as f32 } else { 0.0 };
        let low = (place as usize).min(side - 1);
        (low, (low + 1).min(side - 1), place - low as f32)
    };
    let (top, bottom, down) = axis(y, h);
    let (left, right, across) = axis(x, w);
    let entry = |row: usize, column: usize, weight: f32| ((row * side + column) as u32, weight);
    [
        entry(top, left, (1.0 - down) * (1.0 - across)),
        entry(top, right, (1.0 - down) * across),
        entry(bottom, left, down * (1.0 - across)),
        entry(bottom, right, down * across),
    ]
}
