//! Forward and backward passes over a micro-batch, with tensors kept from step to step.

use crate::packing::MicroBatch;
use mgsd_compute::Tensor;
use mgsd_compute::ops::loss::TokenStats;
use mgsd_model::config::Config;
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Activations, Keep, Qwen3Vl, Recompute};
use mgsd_model::reduction::Told;

/// Buffers of the passes; nothing is allocated in them once the largest batch was seen.
pub(crate) struct Passes {
    acts: Activations,
    /// States at the rows that predict, after [`forward`](Self::forward).
    pub(crate) hidden: Tensor,
    /// Gradient of `hidden`, to be filled before [`backward`](Self::backward).
    pub(crate) d_hidden: Tensor,
    weights: Vec<f32>,
    /// Per predicted token, filled by the losses.
    pub(crate) stats: TokenStats,
}

impl Passes {
    pub(crate) fn new(config: &Config, recompute: Option<Recompute>) -> Self {
        let mut acts = Activations::new(config);
        if let Some(recompute) = recompute {
            acts.set_recompute(recompute);
        }
        Self {
            acts,
            hidden: Tensor::empty(),
            d_hidden: Tensor::empty(),
            weights: Vec::new(),
            stats: TokenStats::default(),
        }
    }

    /// Runs the model; the states that predict the targets are in `self.hidden`.
    pub(crate) fn forward(&mut self, model: &Qwen3Vl, micro: &MicroBatch, adapter: Adapter, keep: Keep) {
        model.forward_rows(&micro.batch, &micro.rows, &mut self.acts, adapter, keep);
        self.acts.swap_hidden(&mut self.hidden);
    }

    /// The same weight for every predicted token of the micro-batch.
    pub(crate) fn weights(&mut self, count: usize, weight: f32) -> Vec<f32> {
        let mut weights = std::mem::take(&mut self.weights);
        weights.clear();
        weights.resize(count, weight);
        weights
    }

    /// Hands the vector of [`weights`](Self::weights) back for reuse.
    pub(crate) fn return_weights(&mut self, weights: Vec<f32>) {
        self.weights = weights;
    }

    /// From `self.d_hidden`: adds the gradients of the trained parameters and tells of them.
    pub(crate) fn backward(&mut self, model: &mut Qwen3Vl, micro: &MicroBatch, told: Told) {
        model.backward_telling(&micro.batch, &mut self.acts, &self.d_hidden, told);
    }
}
