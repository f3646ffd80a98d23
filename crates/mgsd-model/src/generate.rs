//! Text generation with a key-value cache, many requests at once.
//!
//! Requests wait in a queue; each of a fixed number of slots serves one. Prompts of waiting requests are run together,
//! packed, and then all slots advance by one token a step. A finished slot is filled again from the queue. Requests with
//! the same prompt that enter together have it run once, and its keys and values copied to the slots of the others.
//!
//! On a GPU the next step is started before the tokens of the one under way are known, if no sequence ends with it by its
//! length. One that ends by a stop token goes on for nothing in that step, which the others need anyway.

use std::collections::VecDeque;
use std::sync::Arc;

use mgsd_compute::ops::attention::KvCache;
use mgsd_compute::ops::loss;
use mgsd_compute::ops::sample::{self, Answer, Choice};
use mgsd_compute::{Device, Tensor};
use rayon::prelude::*;

use crate::config::Config;
use crate::decode::{Decoder, Token};
use crate::error::{Error, Result};
use crate::linear::Adapter;
use crate::model::{Activations, Keep, Qwen3Vl};
pub use crate::prefill::MOST_TOKENS as MOST_PROMPT_TOKENS;
use crate::prefill::Prefill;
use crate::processor::Prompt;
use crate::sampling::{Sampler, Sampling, likeliest};

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens and pictures before the response.
    pub prompt: Arc<Prompt>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Length at which the response is cut.
    pub max_new_tokens: usize,
    /// Tokens that end the response; empty: only the length does.
    pub stop: Vec<u32>,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model gave one of the stop tokens.
    Stop,
    /// `max_new_tokens` was reached, or the slot was full.
    Length,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The tokens; the stop token, if there was one, is the last.
    pub ids: Vec<u32>,
    /// For each token the logarithm of its probability under the model's own distribution, at temperature 1 and without
    /// filters, whatever the sampling was.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

impl Completion {
    /// The tokens without the stop token.
    pub fn content(&self) -> &[u32] {
        match self.finish {
            Finish::Stop => &self.ids[..self.ids.len() - 1],
            Finish::Length => &self.ids,
        }
    }
}

/// One new token.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Which request: its index in [`Generator::generate`], or what [`Generator::submit`] returned.
    pub request: usize,
    /// The token.
    pub token: u32,
    /// Its log-probability, as in [`Completion::log_probs`].
    pub log_prob: f32,
    /// Set on the last token of a response.
    pub finish: Option<Finish>,
    /// The likeliest tokens at this place with their log-probabilities, likeliest first; as many as were asked for in
    /// [`Generator::submit_with_top`].
    pub top: Vec<(u32, f32)>,
}

/// A request in its slot.
struct Active {
    id: usize,
    slot: u32,
    request: Request,
    sampler: Sampler,
    /// Tokens in the cache.
    length: usize,
    /// What is added to the length for the rotary position.
    rope_delta: i64,
    produced: usize,
    last: (u32, f32),
    finish: Option<Finish>,
    top_count: usize,
    top: Vec<(u32, f32)>,
}

/// Serves generation requests on a fixed number of slots. Its buffers are kept from call to call.
pub struct Generator {
    config: Config,
    slots: usize,
    capacity: usize,
    caches: Vec<KvCache>,
    waiting: VecDeque<(usize, Request, usize)>,
    active: Vec<Active>,
    free: Vec<u32>,
    next_id: usize,
    prefill: Prefill,
    prefilled: u64,
    acts: Activations,
    logits: Tensor,
    entering: Vec<Token>,
    /// The requests of the step under way, row by row; some may be withdrawn or done. Empty if there is none.
    under_way: Vec<usize>,
    decoder: Decoder,
    chooser: Chooser,
}

/// Picks tokens from logits, on the device where they are if it can.
#[derive(Default)]
struct Chooser {
    host_logits: Vec<f32>,
    choices: Vec<Choice>,
    answer: Option<Answer>,
}

impl Chooser {
    /// What `device` needs to pick a token for each request, if it can.
    fn ask(&mut self, device: Device, active: &mut [Active], decoder: &Decoder) -> Option<(&mut Answer, &[Choice])> {
        let fits = |active: &Active| active.sampler.fits_a_gpu() && active.top_count == 0;
        let Device::Cuda(gpu) = device else { return None };
        if !active.iter().all(fits) {
            return None;
        }
        let answer = self.answer.get_or_insert_with(|| decoder.answer(gpu));
        let place = answer.place();
        self.choices.clear();
        self.choices.extend(active.iter_mut().map(|active| Choice { place, ..active.sampler.choice() }));
        Some((answer, &self.choices))
    }

    /// The tokens that were asked for longest ago, for requests that have `ids` in this order; those that are not among
    /// `active` any more are passed over.
    fn hear(&mut self, active: &mut [Active], ids: impl IntoIterator<Item = usize>) {
        let Some(answer) = &mut self.answer else { return };
        let (tokens, log_probs) = answer.read();
        let mut active = active.iter_mut().peekable();
        for (id, chosen) in ids.into_iter().zip(tokens.iter().zip(log_probs)) {
            if let Some(active) = active.next_if(|active| active.id == id) {
                active.last = (*chosen.0, *chosen.1);
            }
        }
    }

    fn forget(&mut self) {
        if let Some(answer) = &mut self.answer {
            answer.forget();
        }
    }

    /// Picks a token for each request here; their logits are the first rows in order.
    fn pick(&mut self, active: &mut [Active], logits: &Tensor) {
        let vocab = logits.cols();
        self.host_logits.resize(active.len() * vocab, 0.0);
        logits.read_rows(0, active.len(), &mut self.host_logits);
        let chosen = active.par_iter_mut().zip(self.host_logits.par_chunks_exact(vocab));
        let chosen = chosen.with_min_len((1 << 14) / vocab + 1);
        chosen.for_each(|(active, logits)| {
            active.last = active.sampler.pick(logits);
            if active.top_count > 0 {
                likeliest(logits, active.top_count, &mut active.top);
            }
        });
    }
}

/// The cache of [`Generator::generate`] grows by so many tokens.
const ROOM: usize = 64;

impl Generator {
    /// A generator that advances up to `slots` responses at once. Its cache is made, and made larger, as
    /// [`generate`](Self::generate) needs it; for [`submit`](Self::submit) call [`reserve`](Self::reserve) first.
    pub fn new(config: &Config, slots: usize) -> Self {
        let slots = slots.max(1);
        Self {
            config: config.clone(),
            slots,
            capacity: 0,
            caches: Vec::new(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            free: (0..slots as u32).rev().collect(),
            next_id: 0,
            prefill: Prefill::new(config),
            prefilled: 0,
            acts: Activations::new(config),
            logits: Tensor::empty(),
            entering: Vec::with_capacity(slots),
            under_way: Vec::with_capacity(slots),
            decoder: Decoder::new(config, slots),
            chooser: Chooser::default(),
        }
    }

    /// Gives every slot room for `capacity` tokens of prompt and response. Not while responses are under way.
    pub fn reserve(&mut self, capacity: usize) {
        assert!(self.active.is_empty(), "the cache cannot grow while responses are under way");
        if capacity > self.capacity {
            let text = &self.config.text;
            self.caches.clear();
            for _ in 0..text.num_hidden_layers {
                self.caches.push(KvCache::new(self.slots, capacity, text.num_key_value_heads, text.head_dim));
            }
            self.capacity = capacity;
        }
    }

    /// [`reserve`](Self::reserve) for at least so many tokens: what is a little longer another time finds room already.
    pub fn make_room(&mut self, tokens: usize) {
        self.reserve(tokens.next_multiple_of(ROOM));
    }

    /// Tokens of prompt and response that a slot holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Prompt tokens that were run so far: less than the requests have where they shared a prompt.
    pub fn prefilled_tokens(&self) -> u64 {
        self.prefilled
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Queues a request for [`step`](Self::step); returns its number.
    pub fn submit(&mut self, request: Request) -> Result<usize> {
        self.submit_with_top(request, 0)
    }

    /// [`submit`](Self::submit), with the `top_count` likeliest tokens of each place in [`Event::top`].
    pub fn submit_with_top(&mut self, request: Request, top_count: usize) -> Result<usize> {
        if let Some(problem) = request.sampling.problem() {
            return Err(Error::Model(format!("sampling: {problem}")));
        }
        let length = request.prompt.ids.len();
        if length == 0 || request.max_new_tokens == 0 {
            return Err(Error::Prompt("generation needs at least one prompt token and one token to generate".into()));
        }
        if length >= self.capacity {
            return Err(Error::Prompt(format!(
                "the prompt has {length} tokens, but a slot holds {} of prompt and response together",
                self.capacity
            )));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back((id, request, top_count));
        Ok(id)
    }

    /// Withdraws a request; returns whether it was still waiting or under way.
    pub fn cancel(&mut self, id: usize) -> bool {
        let before = self.waiting.len() + self.active.len();
        self.waiting.retain(|(waiting, ..)| *waiting != id);
        let free = &mut self.free;
        self.active.retain(|active| {
            if active.id == id {
                free.push(active.slot);
            }
            active.id != id
        });
        self.waiting.len() + self.active.len() < before
    }

    /// Generates for all `requests`; `on_token` sees each token as it comes. The answers are in the order of the
    /// requests. Nothing else may be under way.
    pub fn generate(
        &mut self,
        model: &Qwen3Vl,
        requests: &[Request],
        adapter: Adapter,
        on_token: &mut dyn FnMut(Event),
    ) -> Result<Vec<Completion>> {
        assert!(self.is_idle(), "generate needs a generator with nothing under way");
        let room = requests.iter().map(|r| r.prompt.ids.len() + r.max_new_tokens).max().unwrap_or(0);
        self.make_room(room);
        self.next_id = 0;
        for request in requests {
            self.submit(request.clone()).inspect_err(|_| self.waiting.clear())?;
        }
        let mut answers: Vec<Completion> = requests
            .iter()
            .map(|r| Completion {
                ids: Vec::with_capacity(r.max_new_tokens.min(4096)),
                log_probs: Vec::with_capacity(r.max_new_tokens.min(4096)),
                finish: Finish::Length,
            })
            .collect();
        while !self.is_idle() {
            let stepped = self.step(model, adapter, &mut |event| {
                let answer = &mut answers[event.request];
                answer.ids.push(event.token);
                answer.log_probs.push(event.log_prob);
                answer.finish = event.finish.unwrap_or(answer.finish);
                on_token(event);
            });
            stepped.inspect_err(|_| self.abandon())?;
        }
        Ok(answers)
    }

    fn abandon(&mut self) {
        self.waiting.clear();
        self.active.clear();
        self.under_way.clear();
        self.chooser.forget();
        self.free = (0..self.slots as u32).rev().collect();
    }

    /// Starts waiting requests if slots are free, then advances every response by one token.
    pub fn step(&mut self, model: &Qwen3Vl, adapter: Adapter, on_token: &mut dyn FnMut(Event)) -> Result<()> {
        // A pass over few prompts is inefficient: wait until an eighth of the slots is free, unless nothing runs.
        let enough = (self.slots / 8).clamp(1, self.waiting.len().max(1));
        let mut advanced = false;
        while !self.waiting.is_empty() && (self.free.len() >= enough || self.active.is_empty()) {
            if self.under_way.is_empty() {
                self.prefill(model, adapter, on_token)?;
            } else {
                self.finish(false, on_token);
                advanced = true;
            }
        }
        if !advanced && !self.active.is_empty() {
            self.decode(model, adapter, on_token);
        }
        Ok(())
    }

    fn prefill(&mut self, model: &Qwen3Vl, adapter: Adapter, on_token: &mut dyn FnMut(Event)) -> Result<()> {
        self.prefill.clear();
        let first = self.active.len();
        while let (Some((_, request, _)), Some(&slot)) = (self.waiting.front(), self.free.last()) {
            if !self.prefill.has_room(&request.prompt) {
                break;
            }
            let Some((id, request, top_count)) = self.waiting.pop_front() else { break };
            let rope_delta = self.prefill.push(&request.prompt, slot)?;
            self.free.pop();
            let sampler = Sampler::new(request.sampling.clone(), &request.prompt.ids, self.config.text.vocab_size);
            self.active.push(Active {
                id,
                slot,
                sampler,
                length: request.prompt.ids.len(),
                request,
                rope_delta,
                produced: 0,
                last: (0, 0.0),
                finish: None,
                top_count,
                top: Vec::new(),
            });
        }
        let (batch, pass) = self.prefill.pass(&mut self.caches);
        model.run(batch, &mut self.acts, pass, Some(self.prefill.last_rows()), adapter, Keep::Nothing, None);
        self.prefilled += self.prefill.tokens() as u64;
        loss::logits(&mut self.logits, self.acts.hidden(), &model.head().value);
        let entered = &mut self.active[first..];
        if let Some((answer, choices)) = self.chooser.ask(model.device(), entered, &self.decoder) {
            sample::sample(answer, &self.logits, choices, None);
            answer.expect();
            let ids: Vec<usize> = entered.iter().map(|active| active.id).collect();
            self.chooser.hear(entered, ids);
        } else {
            self.chooser.pick(entered, &self.logits);
        }
        self.tell(first, on_token);
        Ok(())
    }

    fn decode(&mut self, model: &Qwen3Vl, adapter: Adapter, on_token: &mut dyn FnMut(Event)) {
        if self.under_way.is_empty() {
            self.entering.clear();
            self.entering.extend(self.active.iter().map(|active| Token {
                id: active.last.0,
                slot: active.slot,
                place: active.length as u32,
                position: (active.length as i64 + active.rope_delta) as u32,
            }));
            let choose = self.chooser.ask(model.device(), &mut self.active, &self.decoder);
            let asked = choose.is_some();
            let logits = self.decoder.step(model, &mut self.caches, adapter, &self.entering, choose);
            if !asked {
                self.chooser.pick(&mut self.active, logits);
                self.active.iter_mut().for_each(|active| active.length += 1);
                return self.tell(0, on_token);
            }
            self.under_way.extend(self.active.iter().map(|active| active.id));
        }
        // A step under way of more rows has some that are not wanted any more: the next one does without them.
        let continues =
            |active: &Active| active.produced + 1 < active.request.max_new_tokens && active.length + 1 < self.capacity;
        let mut goes_on = false;
        if self.under_way.len() == self.active.len()
            && self.active.iter().all(continues)
            && self.decoder.can_step_ahead(model, adapter)
            && let Device::Cuda(gpu) = model.device()
            && let Some((answer, choices)) = self.chooser.ask(model.device(), &mut self.active, &self.decoder)
        {
            self.decoder.step_ahead(gpu, answer, choices);
            goes_on = true;
        }
        self.finish(goes_on, on_token);
    }

    /// Waits for the tokens of the step under way; `goes_on`: another of the same rows is under way then.
    fn finish(&mut self, goes_on: bool, on_token: &mut dyn FnMut(Event)) {
        self.chooser.hear(&mut self.active, self.under_way.iter().copied());
        if !goes_on {
            self.under_way.clear();
        }
        self.active.iter_mut().for_each(|active| active.length += 1);
        self.tell(0, on_token);
        if self.active.is_empty() {
            self.under_way.clear();
            self.chooser.forget();
        }
    }

    /// Counts and reports the last tokens of the requests from `first` on, and frees the slots of those that are done.
    fn tell(&mut self, first: usize, on_token: &mut dyn FnMut(Event)) {
        for active in &mut self.active[first..] {
            active.produced += 1;
            active.finish = if active.request.stop.contains(&active.last.0) {
                Some(Finish::Stop)
            } else if active.produced >= active.request.max_new_tokens || active.length >= self.capacity {
                Some(Finish::Length)
            } else {
                None
            };
            let (token, log_prob) = active.last;
            let top = std::mem::take(&mut active.top);
            on_token(Event { request: active.id, token, log_prob, finish: active.finish, top });
        }
        let free = &mut self.free;
        self.active.retain(|active| {
            if active.finish.is_some() {
                free.push(active.slot);
            }
            active.finish.is_none()
        });
    }
}
