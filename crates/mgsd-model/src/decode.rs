//! One new token a sequence: the step that generation spends its time in.
//!
//! On a GPU a step is hundreds of short kernels, so it is recorded once for each number of rows and started as a whole.
//! Numbers of rows are rounded up, the rows beyond are padding: they see nothing and are stored nowhere. Where the tokens are
//! chosen there, a step begins with those of the step before it, and can be started while that is under way.

use mgsd_compute::cuda::{Cuda, Graph};
use mgsd_compute::ops::attention::KvCache;
use mgsd_compute::ops::loss;
use mgsd_compute::ops::sample::{self, Answer, Choice};
use mgsd_compute::{Device, Tensor};

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
    ids: Vec<u32>,
    acts: Activations,
    logits: Tensor,
    lists: Lists,
    recorded: Vec<Recorded>,
    /// The recording that the last step was, and the tokens that went in.
    last: Option<(usize, usize)>,
}

/// What a step reads besides the tokens, in one piece, so that it is sent at once: room for `most` rows of each.
struct Lists {
    words: Vec<u32>,
    most: usize,
    rows: usize,
}

impl Lists {
    const SLOTS: usize = 0;
    const PLACES: usize = 1;
    const LENGTHS: usize = 2;
    const POSITIONS: usize = 3;
    const CHOICES: usize = 4;

    fn new(most: usize) -> Self {
        let words = Self::CHOICES + size_of::<Choice>() / size_of::<u32>();
        Self { words: vec![0; most * words], most, rows: 0 }
    }

    fn part(&self, part: usize) -> &[u32] {
        &self.words[part * self.most..][..self.rows]
    }

    fn part_mut(&mut self, part: usize) -> &mut [u32] {
        &mut self.words[part * self.most..][..self.rows]
    }

    fn choices(&self) -> &[Choice] {
        &bytemuck::cast_slice(&self.words[Self::CHOICES * self.most..])[..self.rows]
    }

    fn choices_mut(&mut self) -> &mut [Choice] {
        &mut bytemuck::cast_slice_mut(&mut self.words[Self::CHOICES * self.most..])[..self.rows]
    }
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

impl Recorded {
    fn fits(&self, model: &Qwen3Vl, adapter: Adapter, gpu: &Cuda) -> bool {
        (self.model, self.adapter, self.epoch) == (address(model), adapter, gpu.epoch())
    }
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
        Self {
            most,
            // Recordings read this list where it is.
            ids: Vec::with_capacity(padded(most)),
            acts: Activations::new(config),
            logits: Tensor::empty(),
            lists: Lists::new(padded(most)),
            recorded: Vec::new(),
            last: None,
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
        choose: Option<(&mut Answer, &[Choice])>,
    ) -> &Tensor {
        self.last = None;
        let positions = caches.first().map_or(0, KvCache::capacity);
        self.acts.text.reserve_early(model.device(), positions);
        let Device::Cuda(gpu) = model.device() else {
            self.fill(tokens, &[], tokens.len());
            self.run(model, caches, adapter, None);
            return &self.logits;
        };
        let rows = padded(tokens.len());
        let (answer, choices) = choose.unzip();
        let choices = choices.unwrap_or_default();
        let fits = |r: &Recorded| (r.rows, r.chooses) == (rows, answer.is_some()) && r.fits(model, adapter, gpu);
        if let Some(at) = self.recorded.iter().position(fits) {
            self.fill(tokens, choices, rows);
            gpu.refresh(&self.ids);
            // What the recording writes; the last step may have had another number of rows.
            self.logits.resize(rows, model.config.text.vocab_size);
            self.start(gpu, at, tokens.len(), answer);
            return &self.logits;
        }
        self.recorded.retain(|r| r.epoch == gpu.epoch());
        if self.recorded.is_empty() {
            // The largest step first, so that no buffer moves afterwards.
            self.fill(&[], &[], padded(self.most));
            gpu.hold(&self.lists.words);
            self.run(model, caches, adapter, answer.as_deref());
            gpu.changed(&self.ids);
        }
        self.fill(tokens, choices, rows);
        self.run(model, caches, adapter, answer.as_deref());
        // Recording does nothing, so the step that was just done is not done twice.
        let epoch = gpu.epoch();
        let graph = gpu.record(|| self.run(model, caches, adapter, answer.as_deref()));
        gpu.changed(&self.ids);
        let (model, chooses) = (address(model), answer.is_some());
        if let Some(answer) = answer {
            answer.expect();
        }
        self.recorded.push(Recorded { rows, adapter, chooses, model, epoch, graph });
        &self.logits
    }

    /// Whether [`step_ahead`](Self::step_ahead) can follow the last step.
    pub fn can_step_ahead(&self, model: &Qwen3Vl, adapter: Adapter) -> bool {
        let Device::Cuda(gpu) = model.device() else { return false };
        let last = self.last.map(|(at, _)| &self.recorded[at]);
        last.is_some_and(|last| last.chooses && last.fits(model, adapter, gpu))
    }

    /// The step after the last, which may be under way, of the same sequences: with the tokens that it chooses, and as if none
    /// ended with it.
    pub fn step_ahead(&mut self, gpu: &'static Cuda, answer: &mut Answer, choices: &[Choice]) {
        let Some((at, tokens)) = self.last else { return };
        self.lists.choices_mut()[..tokens].copy_from_slice(choices);
        // As the lists stand after the step before, but one place on.
        for part in [Lists::PLACES, Lists::LENGTHS, Lists::POSITIONS] {
            self.lists.part_mut(part)[..tokens].iter_mut().for_each(|number| *number += 1);
        }
        self.start(gpu, at, tokens, Some(answer));
    }

    fn start(&mut self, gpu: &'static Cuda, at: usize, tokens: usize, answer: Option<&mut Answer>) {
        gpu.refresh(&self.lists.words);
        self.recorded[at].graph.launch();
        if let Some(answer) = answer {
            gpu.changed(&self.ids);
            answer.expect();
        }
        self.last = Some((at, tokens));
    }

    fn fill(&mut self, tokens: &[Token], choices: &[Choice], rows: usize) {
        let (ids, lists) = (&mut self.ids, &mut self.lists);
        lists.rows = rows;
        // Padding sees nothing and is stored nowhere.
        for (part, nothing) in
            [(Lists::SLOTS, 0), (Lists::PLACES, u32::MAX), (Lists::LENGTHS, 0), (Lists::POSITIONS, 0)]
        {
            lists.part_mut(part)[tokens.len()..].fill(nothing);
        }
        lists.choices_mut().fill(Choice::default());
        lists.choices_mut()[..choices.len()].copy_from_slice(choices);
        ids.clear();
        ids.resize(rows, 0);
        for (row, token) in tokens.iter().enumerate() {
            ids[row] = token.id;
            lists.part_mut(Lists::SLOTS)[row] = token.slot;
            lists.part_mut(Lists::PLACES)[row] = token.place;
            lists.part_mut(Lists::LENGTHS)[row] = token.place + 1;
            lists.part_mut(Lists::POSITIONS)[row] = token.position;
        }
    }

    fn run(&mut self, model: &Qwen3Vl, caches: &mut [KvCache], adapter: Adapter, answer: Option<&Answer>) {
        let [slots, places, lengths] = [Lists::SLOTS, Lists::PLACES, Lists::LENGTHS].map(|part| self.lists.part(part));
        let pass = Pass::Decode { caches, slots, places, lengths };
        self.acts.text.turn_early(self.lists.part(Lists::POSITIONS));
        model.decode(&self.ids, &mut self.acts, pass, adapter);
        loss::logits(&mut self.logits, self.acts.hidden(), &model.head().value);
        if let Some(answer) = answer {
            sample::sample(answer, &self.logits, self.lists.choices(), Some(&self.ids));
        }
    }
}
