//! The thread that owns the model.

use super::queue::{Client, FairQueue};
use super::score::Scorer;
use super::{Capacity, Command, Delivery, Job, Loader, ModelInfo, Models, Shared, Token, Update};
use crate::error::{Error, Result};
use mgsd_model::config::Config;
use mgsd_model::generate::{Event, Finish, Generator, Request};
use mgsd_model::linear::Adapter;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc as blocking};
use std::time::Instant;
use tokio::sync::mpsc;

/// Memory of the key-value cache when the number of slots is left open.
const CACHE_BYTES: usize = 1 << 30;
/// Most slots when their number is left open.
const MOST_SLOTS: usize = 32;
/// Longest context when it is left open.
const MOST_CONTEXT: usize = 4096;

/// An answer, from its submission to its end.
struct Answer {
    ticket: u64,
    choice: usize,
    top_log_probs: usize,
    delivery: Delivery,
    updates: mpsc::Sender<Update>,
    submitted: Instant,
    /// Tokens not handed out yet.
    tokens: Vec<Token>,
    any: bool,
}

struct Worker {
    models: Models,
    generator: Generator,
    scorer: Option<Scorer>,
    slots: usize,
    queue: FairQueue<(Answer, Request)>,
    /// Answers under way, by the generator's number.
    active: HashMap<usize, (Client, Answer)>,
    /// Where an answer is: whose lane, and the generator's number once it has begun.
    tickets: HashMap<u64, (Client, Option<usize>)>,
    shared: Arc<Shared>,
}

/// Loads the models, tells what they are, and serves until told to stop.
pub(super) fn run(
    capacity: &Capacity,
    shared: Arc<Shared>,
    load: Loader,
    inbox: blocking::Receiver<Command>,
    ready: blocking::Sender<Result<ModelInfo>>,
) {
    let loaded = load().map_err(Error::from).and_then(|models| Worker::new(models, capacity, Arc::clone(&shared)));
    let mut worker = match loaded {
        Ok((worker, info)) => {
            // If nobody listens, the inbox is closed too.
            let _ = ready.send(Ok(info));
            worker
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let ended = worker.serve(&inbox);
    let mut failure = shared.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    *failure = Some(ended.err().map_or_else(|| "the server was stopped".into(), |error| error.to_string()));
}

impl Worker {
    fn new(models: Models, capacity: &Capacity, shared: Arc<Shared>) -> Result<(Self, ModelInfo)> {
        let config = models.model.config.clone();
        let context = context(&config, capacity.context)?;
        let slots = match capacity.slots {
            Some(0) => {
                let problem = "expected at least 1".into();
                return Err(Error::Option { option: "--slots", value: "0".into(), problem });
            }
            Some(slots) => slots,
            None => (CACHE_BYTES / slot_bytes(&config, context)).clamp(1, MOST_SLOTS),
        };
        let scorer = models.teacher.as_ref().map(|teacher| Scorer::new(&models.model, teacher)).transpose()?;
        let mut generator = Generator::new(&config, slots);
        generator.reserve(context);
        let teacher = models.teacher.as_ref().map(|teacher| teacher.config.clone());
        let info = ModelInfo { parameters: models.model.parameter_count(), config, slots, context, teacher };
        let (queue, active, tickets) = (FairQueue::default(), HashMap::new(), HashMap::new());
        Ok((Self { models, generator, scorer, slots, queue, active, tickets, shared }, info))
    }

    fn serve(&mut self, inbox: &blocking::Receiver<Command>) -> mgsd_model::error::Result<()> {
        loop {
            if self.generator.is_idle() && self.tickets.is_empty() {
                match inbox.recv() {
                    Ok(Command::Stop) | Err(_) => return Ok(()),
                    Ok(command) => self.obey(command),
                }
            }
            loop {
                match inbox.try_recv() {
                    Ok(Command::Stop) | Err(blocking::TryRecvError::Disconnected) => return Ok(()),
                    Ok(command) => self.obey(command),
                    Err(blocking::TryRecvError::Empty) => break,
                }
            }
            self.begin_waiting()?;
            if !self.generator.is_idle() {
                self.step()?;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Generate { first_ticket, job, updates, submitted } => {
                self.enqueue(first_ticket, job, &updates, submitted);
            }
            Command::Cancel(ticket) => self.cancel(ticket),
            Command::Score { student, teacher, response, reply } => {
                let scores = match (&mut self.scorer, &self.models.teacher) {
                    (Some(scorer), Some(other)) => {
                        scorer.score(&self.models.model, other, &student, &teacher, &response)
                    }
                    _ => Err(super::score::no_teacher()),
                };
                self.shared.metrics.scored_tokens.fetch_add(response.len() as u64, Relaxed);
                // The client may have gone.
                let _ = reply.send(scores);
            }
            // Handled where the commands are taken.
            Command::Stop => {}
        }
    }

    fn enqueue(&mut self, first_ticket: u64, job: Job, updates: &mpsc::Sender<Update>, submitted: Instant) {
        for (choice, request) in job.requests.into_iter().enumerate() {
            let answer = Answer {
                ticket: first_ticket + choice as u64,
                choice,
                top_log_probs: job.top_log_probs,
                delivery: job.delivery,
                updates: updates.clone(),
                submitted,
                tokens: Vec::new(),
                any: false,
            };
            self.tickets.insert(answer.ticket, (job.client.clone(), None));
            self.queue.push(&job.client, (answer, request));
        }
    }

    fn cancel(&mut self, ticket: u64) {
        let Some((client, number)) = self.tickets.remove(&ticket) else { return };
        let metrics = &self.shared.metrics;
        match number {
            Some(number) => {
                self.generator.cancel(number);
                self.active.remove(&number);
                self.queue.finished(&client);
                metrics.active.fetch_sub(1, Relaxed);
            }
            None => {
                self.queue.remove(&client, |(answer, _)| answer.ticket == ticket);
                metrics.waiting.fetch_sub(1, Relaxed);
            }
        }
        metrics.cancelled.fetch_add(1, Relaxed);
    }

    /// Hands waiting requests to the generator while it has free slots. No more: what waits there is first come,
    /// first served.
    fn begin_waiting(&mut self) -> mgsd_model::error::Result<()> {
        while self.active.len() < self.slots {
            let Some((client, (answer, request))) = self.queue.pop() else { break };
            let metrics = &self.shared.metrics;
            metrics.waiting.fetch_sub(1, Relaxed);
            if answer.updates.is_closed() {
                self.tickets.remove(&answer.ticket);
                self.queue.finished(&client);
                metrics.cancelled.fetch_add(1, Relaxed);
                continue;
            }
            metrics.active.fetch_add(1, Relaxed);
            metrics.prompt_tokens.fetch_add(request.prompt.ids.len() as u64, Relaxed);
            metrics.queue_time.observe(answer.submitted.elapsed());
            let number = self.generator.submit_with_top(request, answer.top_log_probs)?;
            self.tickets.insert(answer.ticket, (client.clone(), Some(number)));
            self.active.insert(number, (client, answer));
        }
        Ok(())
    }

    fn step(&mut self) -> mgsd_model::error::Result<()> {
        let began = Instant::now();
        let metrics = &self.shared.metrics;
        let active = &mut self.active;
        let mut ended = Vec::new();
        let mut abandoned = Vec::new();
        self.generator.step(&self.models.model, Adapter::On, &mut |event: Event| {
            metrics.generated_tokens.fetch_add(1, Relaxed);
            let Some((_, answer)) = active.get_mut(&event.request) else { return };
            if !std::mem::replace(&mut answer.any, true) {
                metrics.first_token_time.observe(answer.submitted.elapsed());
            }
            answer.tokens.push(Token { id: event.token, log_prob: event.log_prob, top: event.top });
            if event.finish.is_some() {
                ended.push(event.request);
                metrics.answer_time.observe(answer.submitted.elapsed());
                let end = if event.finish == Some(Finish::Stop) { &metrics.stopped } else { &metrics.cut };
                end.fetch_add(1, Relaxed);
                // Before the client hears of it, whose next request may find the slot free.
                metrics.active.fetch_sub(1, Relaxed);
            }
            if event.finish.is_some() || answer.delivery == Delivery::Stream {
                let tokens = std::mem::take(&mut answer.tokens);
                let update = Update { choice: answer.choice, tokens, finish: event.finish };
                if answer.updates.try_send(update).is_err() && event.finish.is_none() {
                    abandoned.push(answer.ticket);
                }
            }
        })?;
        metrics.prefilled_tokens.store(self.generator.prefilled_tokens(), Relaxed);
        metrics.step_time.observe(began.elapsed());
        for number in ended {
            if let Some((client, answer)) = self.active.remove(&number) {
                self.tickets.remove(&answer.ticket);
                self.queue.finished(&client);
            }
        }
        abandoned.into_iter().for_each(|ticket| self.cancel(ticket));
        Ok(())
    }
}

/// Tokens of prompt and answer together.
fn context(config: &Config, asked: Option<usize>) -> Result<usize> {
    let most = config.text.max_position_embeddings;
    match asked {
        None => Ok(most.min(MOST_CONTEXT)),
        Some(context) if (2..=most).contains(&context) => Ok(context),
        Some(context) => Err(Error::Option {
            option: "--context",
            value: context.to_string(),
            problem: format!("expected 2 to {most} tokens, the model's max_position_embeddings"),
        }),
    }
}

/// Bytes of keys and values that one slot takes.
fn slot_bytes(config: &Config, context: usize) -> usize {
    let text = &config.text;
    2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * context * size_of::<f32>()
}
