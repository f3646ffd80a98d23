//! Prompts on their way into the cache: run together, packed, and each once, however many responses follow it.

use std::sync::Arc;

use mgsd_compute::Tensor;
use mgsd_compute::ops::attention::KvCache;
use mgsd_compute::ops::rows;

use crate::batch::Batch;
use crate::config::Config;
use crate::error::Result;
use crate::processor::Prompt;
use crate::text::Pass;

/// Prompt tokens that are run in one pass; a longer prompt is run alone.
pub const MOST_TOKENS: usize = 4096;

/// Tokens whose keys and values serve several slots: token `rows[i]` goes to `slots[i]`, `places[i]` as well.
#[derive(Default)]
pub(crate) struct Copies {
    pub rows: Vec<u32>,
    pub slots: Vec<u32>,
    pub places: Vec<u32>,
}

impl Copies {
    /// Tokens that are gathered at once, which bounds the memory for them.
    const AT_ONCE: usize = 32768;
    /// Most pieces, and so lists that a GPU has to keep beside those of the steps that it has recorded.
    const PIECES: usize = 8;

    /// Stores the copies of one layer; `gathered` is room for keys and values.
    pub fn store(&self, cache: &mut KvCache, k: &Tensor, v: &Tensor, gathered: &mut [Tensor; 2]) {
        let [keys, values] = gathered;
        let piece = self.rows.len().div_ceil(Self::PIECES).max(Self::AT_ONCE);
        let lists = self.rows.chunks(piece).zip(self.slots.chunks(piece)).zip(self.places.chunks(piece));
        for ((tokens, slots), places) in lists {
            rows::gather(keys, k, tokens);
            rows::gather(values, v, tokens);
            cache.store(keys, values, slots, places);
        }
    }
}

/// The prompts of one pass and the slots they go to.
pub(crate) struct Prefill {
    batch: Batch,
    /// The prompts of the batch, in order.
    prompts: Vec<Arc<Prompt>>,
    slots: Vec<u32>,
    places: Vec<u32>,
    copies: Copies,
    /// Last token of the prompt of each request.
    last: Vec<u32>,
}

impl Prefill {
    /// Nothing yet.
    pub fn new(config: &Config) -> Self {
        Self {
            batch: Batch::new(config),
            prompts: Vec::new(),
            slots: Vec::new(),
            places: Vec::new(),
            copies: Copies::default(),
            last: Vec::new(),
        }
    }

    /// Takes all requests out; the buffers stay.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.prompts.clear();
        let Copies { rows, slots, places } = &mut self.copies;
        [&mut self.slots, &mut self.places, &mut self.last, rows, slots, places].into_iter().for_each(Vec::clear);
    }

    /// Which of the prompts taken is the same.
    fn known(&self, prompt: &Arc<Prompt>) -> Option<usize> {
        self.prompts.iter().position(|known| Arc::ptr_eq(known, prompt) || known == prompt)
    }

    /// Whether there is room for a request with this prompt.
    pub fn has_room(&self, prompt: &Arc<Prompt>) -> bool {
        self.batch.tokens() == 0
            || self.batch.tokens() + prompt.ids.len() <= MOST_TOKENS
            || self.known(prompt).is_some()
    }

    /// Takes a request, which is to have `slot`; returns what its tokens' rotary positions are ahead of their places. A
    /// refused prompt leaves nothing behind.
    pub fn push(&mut self, prompt: &Arc<Prompt>, slot: u32) -> Result<i64> {
        let length = prompt.ids.len();
        let sequence = match self.known(prompt) {
            Some(sequence) => {
                let first = self.batch.bounds[sequence] as u32;
                self.copies.rows.extend(first..first + length as u32);
                self.copies.slots.extend(std::iter::repeat_n(slot, length));
                self.copies.places.extend(0..length as u32);
                sequence
            }
            None => {
                self.batch.push(prompt)?;
                self.prompts.push(Arc::clone(prompt));
                self.slots.extend(std::iter::repeat_n(slot, length));
                self.places.extend(0..length as u32);
                self.prompts.len() - 1
            }
        };
        self.last.push(self.batch.bounds[sequence + 1] as u32 - 1);
        Ok(self.batch.rope_deltas[sequence])
    }

    /// Tokens that the pass runs.
    pub fn tokens(&self) -> usize {
        self.batch.tokens()
    }

    /// The row of the last prompt token of each request.
    pub fn last_rows(&self) -> &[u32] {
        &self.last
    }

    /// What the model is to run.
    pub fn pass<'a>(&'a self, caches: &'a mut [KvCache]) -> (&'a Batch, Pass<'a>) {
        let Self { batch, slots, places, copies, .. } = self;
        (batch, Pass::Prefill { bounds: &batch.bounds, caches, slots, places, copies })
    }
}
