//! One new token a sequence: the step that generation spends its time in.
//!
//! On a GPU a step is hundreds of short kernels, so it is recorded once for each number of rows and started as a whole.
//! Numbers of rows are rounded up, the rows beyond are padding: they see nothing and are stored nowhere.

use mgsd_compute::cuda::{Cuda, Graph};
use mgsd_compute::ops::attention::KvCache;
use mgsd_compute::ops::loss;
use mgsd_compute::ops::sample::{self, Answer, Choice};
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
    choices: Vec<Choice>,
    /// The positions that the rotary tables on the GPU are filled for.
    turned: Vec<[u32; 3]>,
    recorded: Vec<Recorded>,
}

/// A recorded step and what it was recorded for.
struct Recorded {
    rows: usize,
    adapter: Adapter,
    /// Whether it chooses tokens.
    chooses: bool,
    /// Its address, to be compared.
    model: usize,
    epoch: u64,
    graph: Graph,
}

fn address(model: &Qwen3Vl) -> usize {
    std::ptr::from_ref(model) as usize
}

/// Rows of a step of `tokens`, on a GPU with padding.
fn padded(tokens: usize) -> usize {
    tokens.next_power_of_two()
}

impl Decoder {
    /// For up to `most` rows a step.
    pub fn new(config: &Config, most: usize) -> Self {
        let mut batch = Batch::new(config);
        // Recordings read these lists where they are.
        batch.ids.reserve(padded(most));
        let list = || Vec::with_capacity(padded(most));
        Self {
            most,
            batch,
            acts: Activations::new(config),
            logits: Tensor::empty(),
            slots: list(),
            places: list(),
            lengths: list(),
            choices: Vec::with_capacity(padded(most)),
            turned: Vec::new(),
            recorded: Vec::new(),
        }
    }

    /// An answer with room for every step's tokens.
    pub fn answer(&self, gpu: &'static Cuda) -> Answer {
        Answer::new(gpu, padded(self.most))
    }

    /// Logits after each of `tokens`, in their order (on a GPU padding rows follow). On a GPU `choose` has the next tokens
    /// chosen as part of the step; it must be the same answer in all steps.
    pub fn step(
        &mut self,
        model: &Qwen3Vl,
        caches: &mut [KvCache],
        adapter: Adapter,
        tokens: &[Token],
        choose: Option<(&Answer, &[Choice])>,
    ) -> &Tensor {
        let Device::Cuda(gpu) = model.device() else {
            self.fill(tokens, &[], tokens.len());
            self.acts.text.turn(Device::Cpu, &self.batch.positions);
            self.turned.clear();
            self.run(model, caches, adapter, None);
            return &self.logits;
        };
        let rows = padded(tokens.len());
        let (answer, choices) = choose.unzip();
        let choices = choices.unwrap_or_default();
        let fits = |r: &Recorded| {
            (r.rows, r.adapter, r.chooses) == (rows, adapter, answer.is_some())
                && (r.model, r.epoch) == (address(model), gpu.epoch())
        };
        if let Some(at) = self.recorded.iter().position(fits) {
            self.fill(tokens, choices, rows);
            self.send(gpu);
            gpu.refresh(&self.batch.ids);
            gpu.refresh(&self.choices);
            self.recorded[at].graph.launch();
            if let Some(answer) = answer {
                answer.expect();
            }
            // What the recording writes; the last step may have had another number of rows.
            self.logits.resize(rows, model.config.text.vocab_size);
            self.prepare(gpu, tokens.len());
            return &self.logits;
        }
        self.recorded.retain(|r| r.epoch == gpu.epoch());
        if self.recorded.is_empty() {
            // The largest step first, so that no buffer moves afterwards.
            self.fill(&[], &[], padded(self.most));
            self.turn(gpu);
            self.run(model, caches, adapter, answer);
        }
        self.fill(tokens, choices, rows);
        self.turn(gpu);
        self.run(model, caches, adapter, answer);
        if let Some(answer) = answer {
            answer.expect();
        }
        // Recording does nothing, so the step that was just done is not done twice.
        let epoch = gpu.epoch();
        let graph = gpu.record(|| self.run(model, caches, adapter, answer));
        let (model, chooses) = (address(model), answer.is_some());
        self.recorded.push(Recorded { rows, adapter, chooses, model, epoch, graph });
        &self.logits
    }

    fn fill(&mut self, tokens: &[Token], choices: &[Choice], rows: usize) {
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
        self.choices.clear();
        self.choices.extend_from_slice(choices);
        self.choices.resize(rows, Choice::default());
    }

    /// While a step of `tokens` tokens is under way: sends what follows from no sequence ending with it. Where one does, the
    /// next step sends what is right then.
    fn prepare(&mut self, gpu: &'static Cuda, tokens: usize) {
        self.batch.positions[..tokens].iter_mut().flatten().for_each(|position| *position += 1);
        self.places[..tokens].iter_mut().for_each(|place| *place += 1);
        self.lengths[..tokens].iter_mut().for_each(|length| *length += 1);
        self.send(gpu);
    }

    /// What a recorded step reads, but for the tokens and how the next are chosen.
    fn send(&mut self, gpu: &'static Cuda) {
        self.turn(gpu);
        [&self.slots, &self.places, &self.lengths].into_iter().for_each(|list| gpu.refresh(list));
    }

    fn turn(&mut self, gpu: &'static Cuda) {
        if self.turned != self.batch.positions {
            self.acts.text.turn(Device::Cuda(gpu), &self.batch.positions);
            self.turned.clone_from(&self.batch.positions);
        }
    }

    fn run(&mut self, model: &Qwen3Vl, caches: &mut [KvCache], adapter: Adapter, answer: Option<&Answer>) {
        let pass = Pass::Decode { caches, slots: &self.slots, places: &self.places, lengths: &self.lengths };
        model.decode(&self.batch, &mut self.acts, pass, adapter);
        loss::logits(&mut self.logits, self.acts.hidden(), &model.head().value);
        if let Some(answer) = answer {
            sample::sample(answer, &self.logits, &self.choices);
        }
    }
}
