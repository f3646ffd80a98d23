//! The model on a thread of its own, and how requests reach it.
//!
//! The thread takes waiting requests into free slots, advances all of them by one token a step, and hands tokens out
//! through one channel a request. The channel has room for every token that the request may get, so that a client who
//! reads slowly, or not at all, never holds the others up.

mod queue;
mod score;
mod worker;

pub use queue::Client;
pub use score::TokenScore;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::reply::{ApiError, Reply};
use mgsd_model::config::Config;
use mgsd_model::generate::{Finish, Request};
use mgsd_model::model::Qwen3Vl;
use mgsd_model::processor::Prompt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use tokio::sync::{mpsc, oneshot};

/// The models that a server has.
pub struct Models {
    /// Answers.
    pub model: Qwen3Vl,
    /// Scores answers, if there is one.
    pub teacher: Option<Qwen3Vl>,
}

/// Loads the models; called on the thread that will own them.
pub type Loader = Box<dyn FnOnce() -> mgsd_model::error::Result<Models> + Send>;

/// How much may be under way and wait.
#[derive(Clone, Debug)]
pub struct Capacity {
    /// Answers that advance at once; `None`: as many as a gibibyte of cache holds, at most 32.
    pub slots: Option<usize>,
    /// Tokens of prompt and answer together; `None`: the model's own limit, at most 4096.
    pub context: Option<usize>,
    /// Answers that may wait for a slot.
    pub queue: usize,
    /// Bytes of prepared pictures that may be held for answers under way and waiting.
    pub picture_bytes: usize,
}

/// One token of an answer.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// Its log-probability under the model's own distribution.
    pub log_prob: f32,
    /// The likeliest tokens at its place, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What is new in an answer.
#[derive(Debug)]
pub struct Update {
    /// Which of the answers to the same request, from 0.
    pub choice: usize,
    /// The new tokens; if it ended by a stop token, that is the last.
    pub tokens: Vec<Token>,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// When tokens are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Each as it comes.
    Stream,
    /// All together when the answer has ended, which wakes nobody in between.
    AtEnd,
}

/// A request for one or more answers to the same prompt.
pub struct Job {
    /// For whom.
    pub client: Client,
    /// What is generated; one entry an answer.
    pub requests: Vec<Request>,
    /// How many of the likeliest tokens are told at each place.
    pub top_log_probs: usize,
    /// When tokens are handed out.
    pub delivery: Delivery,
}

/// Answers under way. [`Answers::cancel`] or dropping its guard gives them up.
pub struct Answers {
    updates: mpsc::Receiver<Update>,
    cancel: Canceller,
}

impl Answers {
    /// What is new, as soon as there is anything; `None` when all answers have ended or the model is gone.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Moves everything that is new into `updates`, at least one; returns false when nothing comes any more.
    pub async fn next_all(&mut self, updates: &mut Vec<Update>) -> bool {
        self.updates.recv_many(updates, 1024).await > 0
    }

    /// For giving single answers up.
    pub fn canceller(&self) -> Canceller {
        self.cancel.clone()
    }

    /// Gives all answers up when it is dropped.
    pub fn guard(&self) -> CancelOnDrop {
        CancelOnDrop(self.cancel.clone())
    }
}

/// Gives answers up.
#[derive(Clone)]
pub struct Canceller {
    first_ticket: u64,
    count: usize,
    commands: blocking::Sender<Command>,
}

impl Canceller {
    /// Gives one answer up; nothing happens if it has ended.
    pub fn cancel(&self, choice: usize) {
        // An engine that is gone has nothing under way.
        let _ = self.commands.send(Command::Cancel(self.first_ticket + choice as u64));
    }
}

/// Gives answers up when it is dropped: kept where the client's connection is.
pub struct CancelOnDrop(Canceller);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        (0..self.0.count).for_each(|choice| self.0.cancel(choice));
    }
}

/// What the thread is told.
enum Command {
    Generate {
        first_ticket: u64,
        job: Job,
        updates: mpsc::Sender<Update>,
        submitted: std::time::Instant,
    },
    Cancel(u64),
    Score {
        student: Arc<Prompt>,
        teacher: Arc<Prompt>,
        response: Vec<u32>,
        reply: oneshot::Sender<Reply<Vec<TokenScore>>>,
    },
    Stop,
}

/// What is shared with the thread.
struct Shared {
    metrics: Arc<Metrics>,
    picture_bytes: AtomicUsize,
    failure: Mutex<Option<String>>,
}

/// What is known of the model once it is loaded.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Sizes and settings.
    pub config: Config,
    /// Numbers in its weights.
    pub parameters: usize,
    /// Answers that advance at once.
    pub slots: usize,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// The teacher's configuration, if there is a teacher.
    pub teacher: Option<Config>,
}

/// The handle on the model's thread.
pub struct Engine {
    /// What is known of the model.
    pub info: ModelInfo,
    capacity: Capacity,
    commands: blocking::Sender<Command>,
    shared: Arc<Shared>,
    tickets: AtomicU64,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread, which loads the models; waits until they are there.
    pub fn start(capacity: Capacity, metrics: Arc<Metrics>, load: Loader) -> Result<Self> {
        let (commands, inbox) = blocking::channel();
        let (ready, loaded) = blocking::channel();
        let shared = Arc::new(Shared {
            metrics: Arc::clone(&metrics),
            picture_bytes: AtomicUsize::new(0),
            failure: Mutex::new(None),
        });
        let (asked, theirs) = (capacity.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("model".into())
            .spawn(move || worker::run(&asked, theirs, load, inbox, ready))
            .map_err(|source| Error::Start { what: "the model's thread", source })?;
        let info = loaded.recv().unwrap_or_else(|_| Err(Error::ModelStopped("it panicked while loading".into())))?;
        metrics.slots.store(info.slots, Ordering::Relaxed);
        let thread = Mutex::new(Some(thread));
        Ok(Self { info, capacity, commands, shared, tickets: AtomicU64::new(0), thread })
    }

    /// Queues a request. Refuses it when too much waits already.
    pub fn submit(&self, job: Job) -> Reply<Answers> {
        let count = job.requests.len();
        let waiting = &self.shared.metrics.waiting;
        let limit = self.capacity.queue;
        if count > limit + self.info.slots {
            let most = limit + self.info.slots;
            return Err(ApiError::invalid(
                "n",
                format!("n is {count}; this server takes at most {most} answers at once"),
            ));
        }
        // What waits while slots are free is about to begin, and counts against the slots.
        let most = (limit + self.info.slots).saturating_sub(self.shared.metrics.active.load(Ordering::Relaxed));
        let room = |now: usize| (now + count <= most).then_some(now + count);
        if waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return Err(ApiError::busy(format!("{limit} answers wait already; try again in a moment")));
        }
        // Each token wakes the reader once at most, and there is never more than this in the channel.
        let most = |request: &Request| match job.delivery {
            Delivery::Stream => request.max_new_tokens + 1,
            Delivery::AtEnd => 1,
        };
        let (updates, receiver) = mpsc::channel(job.requests.iter().map(most).sum::<usize>().max(1));
        let first_ticket = self.tickets.fetch_add(count as u64, Ordering::Relaxed);
        let cancel = Canceller { first_ticket, count, commands: self.commands.clone() };
        let command = Command::Generate { first_ticket, job, updates, submitted: std::time::Instant::now() };
        self.commands.send(command).map_err(|_| self.gone())?;
        Ok(Answers { updates: receiver, cancel })
    }

    /// Sets memory for prepared pictures aside until the result is dropped. Refuses when there is too much already.
    pub fn hold_pictures(&self, bytes: usize) -> Reply<HeldPictures> {
        let most = self.capacity.picture_bytes;
        let room = |now: usize| (now == 0 || now + bytes <= most).then_some(now + bytes);
        match self.shared.picture_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(HeldPictures { bytes, shared: Arc::clone(&self.shared) }),
            Err(_) => {
                Err(ApiError::busy(format!("pictures of waiting requests fill {most} bytes; try again in a moment")))
            }
        }
    }

    /// For each token of `response` the exact divergence between the model after one prompt and the teacher after
    /// another.
    pub async fn score(
        &self,
        student: Arc<Prompt>,
        teacher: Arc<Prompt>,
        response: Vec<u32>,
    ) -> Reply<Vec<TokenScore>> {
        let (reply, scores) = oneshot::channel();
        let command = Command::Score { student, teacher, response, reply };
        self.commands.send(command).map_err(|_| self.gone())?;
        scores.await.map_err(|_| self.gone())?
    }

    /// Whether anything waits or is under way.
    pub fn is_idle(&self) -> bool {
        let metrics = &self.shared.metrics;
        metrics.waiting.load(Ordering::Relaxed) == 0 && metrics.active.load(Ordering::Relaxed) == 0
    }

    /// Why the thread has ended, if it has.
    pub fn failure(&self) -> Option<String> {
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let ended = thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished);
        let told = self.shared.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        ended.then(|| told.clone().unwrap_or_else(|| "it panicked; see the messages above".into()))
    }

    /// The answer to requests that can no longer be served.
    pub fn gone(&self) -> ApiError {
        ApiError::unavailable(format!("the model has stopped: {}", self.failure().unwrap_or_default()))
    }

    /// Ends the thread; answers under way are given up.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // A panic has been reported by its own message.
            let _ = thread.join();
        }
    }
}

/// Memory of prepared pictures, given back when dropped.
pub struct HeldPictures {
    bytes: usize,
    shared: Arc<Shared>,
}

impl Drop for HeldPictures {
    fn drop(&mut self) {
        self.shared.picture_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
