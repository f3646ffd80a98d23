//! One new token a sequence: the step that generation spends its time in.
//!
//! On a GPU a step is hundreds of short kernels, so it is recorded once for each number of rows and started as a whole.
//! Numbers of rows are rounded up, the rows beyond are padding: they see nothing and are stored nowhere.

use mgsd_compute::cuda::Graph;
use mgsd_compute::ops::attention::KvCache;
use mgsd_compute::ops::loss;
use mgsd_compute::{Device, Tensor};

use crate::batch::Batch;
use crate::config::Config;
use crate::linear::Adapter;
use crate::model::{Activations, Qwen3Vl};
use crate::text::Pass;

/// A token that goes in: after how many others, in which slot, at which rotary position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub id: u32,
    pub slot: u32,
    pub place: u32,
    pub position: u32,
}

/// Runs steps; keeps buffers, and recordings where they help.
pub(crate) struct Decoder {
    most: usize,
    batch: Batch,
    acts: Activations,
    logits: Tensor,
    slots: Vec<u32>,
    places: Vec<u32>,
    lengths: Vec<u32>,
    recorded: Vec<Recorded>,
}

/// A recorded step and what it was recorded for.
struct Recorded {
    rows: usize,
    adapter: Adapter,
    /// Its address, to be compared.
    model: usize,
    epoch: u64,
    graph: Graph,
}

fn address(model: &Qwen3Vl) -> usize {
    std::ptr::from_ref(model) as usize
}

impl Decoder {
    /// For up to `most` rows a step.
    pub fn new(config: &Config, most: usize) -> Self {
        let mut batch = Batch::new(config);
        // Recordings read these lists where they are.
        batch.ids.reserve(most.next_power_of_two());
        let list = || Vec::with_capacity(most.next_power_of_two());
        Self {
            most,
            batch,
            acts: Activations::new(config),
            logits: Tensor::empty(),
            slots: list(),
            places: list(),
            lengths: list(),
            recorded: Vec::new(),
        }
    }

    /// Logits after each of `tokens`, in their order (on a GPU padding rows follow).
    pub fn step(&mut self, model: &Qwen3Vl, caches: &mut [KvCache], adapter: Adapter, tokens: &[Token]) -> &Tensor {
        match model.device() {
            Device::Cpu => {
                self.fill(tokens, tokens.len());
                self.acts.text.turn(Device::Cpu, &self.batch.positions);
                self.run(model, caches, adapter);
            }
            Device::Cuda(gpu) => {
                let rows = tokens.len().next_power_of_two();
                let fits = |r: &Recorded| {
                    r.rows == rows && r.adapter == adapter && r.model == address(model) && r.epoch == gpu.epoch()
                };
                if let Some(at) = self.recorded.iter().position(fits) {
                    self.fill(tokens, rows);
                    self.acts.text.turn(model.device(), &self.batch.positions);
                    for list in [&self.batch.ids, &self.slots, &self.places, &self.lengths] {
                        gpu.refresh(list);
                    }
                    self.recorded[at].graph.launch();
                    // What the recording writes; the last step may have had another number of rows.
                    self.logits.resize(rows, model.config.text.vocab_size);
                    return &self.logits;
                }
                self.recorded.retain(|r| r.epoch == gpu.epoch());
                if self.recorded.is_empty() {
                    // The largest step first, so that no buffer moves afterwards.
                    self.fill(&[], self.most.next_power_of_two());
                    self.acts.text.turn(model.device(), &self.batch.positions);
                    self.run(model, caches, adapter);
                }
                self.fill(tokens, rows);
                self.acts.text.turn(model.device(), &self.batch.positions);
                self.run(model, caches, adapter);
                // Recording does nothing, so the step that was just done is not done twice.
                let epoch = gpu.epoch();
                let graph = gpu.record(|| self.run(model, caches, adapter));
                self.recorded.push(Recorded { rows, adapter, model: address(model), epoch, graph });
            }
        }
        &self.logits
    }

    fn fill(&mut self, tokens: &[Token], rows: usize) {
        let batch = &mut self.batch;
        batch.clear();
        [&mut self.slots, &mut self.places, &mut self.lengths].into_iter().for_each(Vec::clear);
        for token in tokens {
            batch.ids.push(token.id);
            batch.positions.push([token.position; 3]);
            self.slots.push(token.slot);
            self.places.push(token.place);
            self.lengths.push(token.place + 1);
        }
        batch.ids.resize(rows, 0);
        batch.positions.resize(rows, [0; 3]);
        self.slots.resize(rows, 0);
        self.places.resize(rows, u32::MAX);
        self.lengths.resize(rows, 0);
    }

    fn run(&mut self, model: &Qwen3Vl, caches: &mut [KvCache], adapter: Adapter) {
        let pass = Pass::Decode { caches, slots: &self.slots, places: &self.places, lengths: &self.lengths };
        model.decode(&self.batch, &mut self.acts, pass, adapter);
        loss::logits(&mut self.logits, self.acts.hidden(), &model.head().value);
    }
}
