//! The decoder's buffers, and what of them is kept for a pass back.

use mgsd_compute::ops::linear::few;
use mgsd_compute::ops::rows;
use mgsd_compute::{Device, Tensor, Write};

use crate::config::TextConfig;
use crate::rope::{RopeTable, text_picks};

/// What a pass forward keeps of each layer for the pass back; the rest is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Everything is kept: fastest where memory is plentiful, as on a CPU.
    Nothing,
    /// Norms, rotations and the gated product are made again: they cost little and are a third of the memory.
    Cheap,
    /// Only the layer's input is kept, and the whole layer runs again.
    Layers,
}

impl Recompute {
    /// `Nothing` on the CPU, `Cheap` on a GPU.
    pub fn usual(device: Device) -> Self {
        if device.is_cpu() { Self::Nothing } else { Self::Cheap }
    }
}

/// What one layer leaves for its pass back and what would be dear to make again.
#[derive(Default)]
pub(super) struct LayerActivations {
    pub(super) q_raw: Tensor,
    pub(super) k_raw: Tensor,
    pub(super) v: Tensor,
    pub(super) attended: Tensor,
    pub(super) log_sum_exp: Tensor,
    pub(super) mid: Tensor,
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
    /// `scale * x Aᵀ` of q, k, v, o, gate, up, down.
    pub(super) low: [Tensor; 7],
}

/// What a layer's pass back also reads, and what is cheap to make from [`LayerActivations`] and the layer's input.
#[derive(Default)]
pub(super) struct CheapActivations {
    pub(super) attn_in: Tensor,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) mlp_in: Tensor,
    pub(super) gated: Tensor,
}

/// Gradients on their way down; one set for all layers.
#[derive(Default)]
pub(super) struct Descent {
    pub(super) stream: Tensor,
    pub(super) norm: Tensor,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) q_raw: Tensor,
    pub(super) k_raw: Tensor,
    pub(super) attended: Tensor,
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
    pub(super) gated: Tensor,
    /// Of the adapters of layers that share an input.
    pub(super) low: [Tensor; 3],
    pub(super) nothing: Tensor,
    /// Of the rows that are wanted alone.
    pub(super) few: Tensor,
    /// Output of a layer that runs again; nobody reads it.
    pub(super) again: Tensor,
}

/// Where only the rows that are wanted go on: not to be computed are the feed-forward of the last layer and what follows.
#[derive(Default)]
pub(super) struct Cut {
    /// `None`: all rows are wanted.
    pub(super) rows: Option<Vec<u32>>,
    /// Whether the last layer's feed-forward is cut; else only the final norm is, since DeepStack adds to the layer's output.
    pub(super) in_layer: bool,
    /// These rows of the layer's input; if only the final norm is cut, of the layer's output.
    pub(super) x: Tensor,
    /// These rows of what attention gave.
    pub(super) attended: Tensor,
}

impl Cut {
    /// `within`: the last layer's feed-forward may be cut.
    pub(super) fn begin(&mut self, rows: Option<&[u32]>, within: bool) {
        self.in_layer = within && rows.is_some_and(|rows| !rows.is_empty());
        match rows {
            None => self.rows = None,
            Some(rows) => {
                let own = self.rows.get_or_insert_default();
                own.clear();
                own.extend_from_slice(rows);
            }
        }
    }

    /// Whether it cuts layer `index` of `count`.
    pub(super) fn is_in(&self, index: usize, count: usize) -> bool {
        self.in_layer && index + 1 == count
    }

    /// Takes the rows of a stream and of what attention gave.
    pub(super) fn take(&mut self, x: &Tensor, attended: Option<&Tensor>) {
        let rows = self.rows.as_deref().unwrap_or_default();
        rows::gather(&mut self.x, x, rows);
        if let Some(attended) = attended {
            rows::gather(&mut self.attended, attended, rows);
        }
    }

    /// `some`, a row for each that is wanted, at their places among `tokens` rows, zeros elsewhere.
    pub(super) fn spread(&self, all: &mut Tensor, some: &Tensor, tokens: usize) {
        all.place(some, tokens, some.cols());
        all.fill(0.0);
        rows::scatter(all, some, self.rows.as_deref().unwrap_or_default(), Write::Set);
    }
}

/// The decoder's buffers, resized for each batch and never given back.
pub(crate) struct TextActivations {
    pub(super) table: RopeTable,
    pub(super) picks: Vec<(usize, usize)>,
    pub cos: Tensor,
    pub sin: Tensor,
    /// Cosines and sines of the first positions, where steps of new tokens look theirs up.
    early: [Tensor; 2],
    /// Input of each layer, then the last layer's output.
    pub(super) streams: Vec<Tensor>,
    pub(super) layers: Vec<LayerActivations>,
    pub(super) cheap: Vec<CheapActivations>,
    /// What the caller wants, and what the last pass did.
    pub chosen: Option<Recompute>,
    pub(super) recompute: Recompute,
    /// After the final norm.
    pub normed: Tensor,
    pub(super) cut: Cut,
    /// What steps of few rows have in between.
    pub(super) few: few::Scratch,
    /// Keys and values on their way to further slots.
    pub(super) copied: [Tensor; 2],
    pub(super) descent: Descent,
}

impl TextActivations {
    pub fn new(config: &TextConfig) -> Self {
        Self {
            table: RopeTable::new(config.rope_theta, config.head_dim),
            picks: text_picks(config.head_dim, config.mrope_section),
            cos: Tensor::empty(),
            sin: Tensor::empty(),
            early: [Tensor::empty(), Tensor::empty()],
            streams: Vec::new(),
            layers: Vec::new(),
            cheap: Vec::new(),
            chosen: None,
            recompute: Recompute::Nothing,
            normed: Tensor::empty(),
            cut: Cut::default(),
            few: few::Scratch::new(),
            copied: [Tensor::empty(), Tensor::empty()],
            descent: Descent::default(),
        }
    }

    /// Fills the rotary tables for `positions`.
    pub fn turn(&mut self, device: Device, positions: &[[u32; 3]]) {
        self.table.fill(device, &mut self.cos, &mut self.sin, positions, &self.picks);
    }

    /// Makes the tables that [`turn_early`](Self::turn_early) needs for positions below `positions`.
    pub fn reserve_early(&mut self, device: Device, positions: usize) {
        let [cos, sin] = &mut self.early;
        if cos.rows() < positions || cos.device().is_cpu() != device.is_cpu() {
            self.table.first(device, cos, sin, positions);
        }
    }

    /// Fills the rotary tables for tokens that stand at the same position on all axes, without the host.
    pub fn turn_early(&mut self, positions: &[u32]) {
        let [cos, sin] = &self.early;
        rows::gather(&mut self.cos, cos, positions);
        rows::gather(&mut self.sin, sin, positions);
    }

    /// Makes room for the kept activations of `layers` layers (1: nothing is kept).
    pub(super) fn reserve(&mut self, layers: usize, recompute: Recompute) {
        self.recompute = recompute;
        let own = if recompute == Recompute::Layers { 1 } else { layers };
        while self.layers.len() < own {
            self.layers.push(LayerActivations::default());
        }
        let own = if recompute == Recompute::Nothing { layers } else { 1 };
        while self.cheap.len() < own {
            self.cheap.push(CheapActivations::default());
        }
        while self.streams.len() < layers + 1 {
            self.streams.push(Tensor::empty());
        }
    }
}

/// Input and output of layer `index`: a stream each if they are kept, else two in turn.
pub(crate) fn neighbours(streams: &mut [Tensor], index: usize, keep: bool) -> (&Tensor, &mut Tensor) {
    let (below, above) = streams.split_at_mut(if keep { index + 1 } else { 1 });
    match keep || index.is_multiple_of(2) {
        true => (&below[below.len() - 1], &mut above[0]),
        false => (&above[0], &mut below[0]),
    }
}

/// Where layer `index` puts its activations: places of its own as far as they are kept.
pub(super) fn places<'a>(
    layers: &'a mut [LayerActivations],
    cheap: &'a mut [CheapActivations],
    index: usize,
    keep: bool,
) -> (&'a mut LayerActivations, &'a mut CheapActivations) {
    let index = if keep { index } else { 0 };
    // A single place serves all layers.
    let (layer, cheap_at) = (index.min(layers.len() - 1), index.min(cheap.len() - 1));
    (&mut layers[layer], &mut cheap[cheap_at])
}
