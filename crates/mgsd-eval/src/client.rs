//! Who answers: anything that turns conversations into texts. A model in process is one such client, an endpoint
//! ([`crate::endpoint`]) another.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mgsd_model::chat::{self, Message as ChatMessage};
use mgsd_model::generate::{Finish, Generator};
use mgsd_model::image::{ImageSource, PixelLimits};
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Device, Qwen3Vl};
use mgsd_model::processor::{Processor, Prompt};
use mgsd_model::sampling::Sampling;
use mgsd_tasks::RgbImage;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// A picture of a message.
#[derive(Clone)]
pub enum Picture {
    /// A PNG or JPEG file.
    File(PathBuf),
    /// Drawn when it is needed, so that thousands of waiting requests hold no pixels.
    Drawn(Arc<dyn Fn() -> std::result::Result<RgbImage, String> + Send + Sync>),
}

impl fmt::Debug for Picture {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => out.debug_tuple("File").field(path).finish(),
            Self::Drawn(_) => out.write_str("Drawn(..)"),
        }
    }
}

impl Picture {
    /// A picture that `draw` makes.
    pub fn drawn(draw: impl Fn() -> std::result::Result<RgbImage, String> + Send + Sync + 'static) -> Self {
        Self::Drawn(Arc::new(draw))
    }

    /// The picture as a file of its kind: its media type, and its bytes.
    pub(crate) fn encoded(&self) -> std::result::Result<(&'static str, Vec<u8>), String> {
        match self {
            Self::Drawn(draw) => Ok(("image/png", draw()?.to_png().map_err(|error| error.to_string())?)),
            Self::File(path) => {
                let bytes = std::fs::read(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
                let kind = match bytes.as_slice() {
                    [0x89, b'P', b'N', b'G', ..] => "image/png",
                    [0xff, 0xd8, 0xff, ..] => "image/jpeg",
                    _ => return Err(format!("{}: expected a PNG or JPEG picture", path.display())),
                };
                Ok((kind, bytes))
            }
        }
    }

    fn source(&self) -> std::result::Result<ImageSource, String> {
        match self {
            Self::File(path) => Ok(ImageSource::Path(path.clone())),
            Self::Drawn(draw) => {
                let image = draw()?;
                let RgbImage { width, height, pixels } = image;
                Ok(ImageSource::Rgb(Arc::new(mgsd_model::image::RgbImage { width, height, pixels })))
            }
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug)]
pub enum Part {
    /// Text.
    Text(String),
    /// A picture at this place.
    Picture(Picture),
}

/// One message of a conversation.
#[derive(Clone, Debug)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Texts and pictures in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A user's message from text in which `<image>` marks the places of the pictures, in order.
    pub fn user(content: &str, pictures: &[Picture]) -> Self {
        let mut pictures = pictures.iter();
        let parts = mgsd_data::message::parts(content)
            .into_iter()
            .filter_map(|part| match part {
                mgsd_data::message::Part::Text(text) => Some(Part::Text(text.to_string())),
                mgsd_data::message::Part::Image => pictures.next().cloned().map(Part::Picture),
            })
            .collect();
        Self { role: "user", parts }
    }
}

/// A question to a client.
#[derive(Clone, Debug)]
pub struct Request {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Length at which the answer is cut, in tokens.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Seed of this request's own random numbers.
    pub seed: u64,
}

/// A client's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text; empty when it failed.
    pub text: String,
    /// Tokens of the answer, where the client tells.
    pub tokens: Option<u64>,
    /// Tokens of the prompt, where the client tells.
    pub prompt_tokens: Option<u64>,
    /// Whether the answer was cut at `max_new_tokens`.
    pub truncated: bool,
    /// Why there is no answer.
    pub error: Option<String>,
}

/// What a client has used up since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests sent, attempts counted one by one.
    pub requests: u64,
    /// Of these, second and later attempts.
    pub retries: u64,
    /// Answers that came.
    pub answers: u64,
    /// Tokens of the prompts of these answers.
    pub prompt_tokens: u64,
    /// Tokens of these answers.
    pub answer_tokens: u64,
    /// Answers whose tokens the server did not tell.
    pub untold: u64,
    /// Whether something was left unasked because the budget of requests ran out.
    pub budget_used_up: bool,
}

impl Spent {
    /// Counts an answer.
    pub fn add(&mut self, answer: &Answer) {
        self.answers += 1;
        self.prompt_tokens += answer.prompt_tokens.unwrap_or(0);
        self.answer_tokens += answer.tokens.unwrap_or(0);
        self.untold += u64::from(answer.prompt_tokens.is_none() || answer.tokens.is_none());
    }
}

/// Anything that answers requests.
pub trait Client {
    /// Its name, for messages and summaries.
    fn name(&self) -> String;

    /// Answers all requests, in any order; `on_answer` gets each request's index and answer once, as soon as it is
    /// there. A request that fails gets an answer with its error; an `Err` means that nothing more can be answered.
    /// Requests that a client was not allowed to send (its budget was used up) get no answer.
    fn answer(&mut self, requests: &[Request], on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()>;

    /// What was used up so far, where the client counts it.
    fn spent(&self) -> Option<Spent> {
        None
    }
}

/// A value of one's own, or one that somebody else holds.
enum Held<'a, T> {
    Own(Box<T>),
    Lent(&'a T),
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Own(value) => value,
            Self::Lent(value) => value,
        }
    }
}

/// A model in this process.
pub struct LocalClient<'a> {
    name: String,
    model: Held<'a, Qwen3Vl>,
    processor: Held<'a, Processor>,
    generator: Generator,
    adapter: Adapter,
    stop: Vec<u32>,
}

/// Prepared pictures may take this many bytes before they are run.
const PREPARED_BYTES: usize = 256 << 20;
/// Requests that are prepared together.
const PREPARED_AT_ONCE: usize = 64;

impl LocalClient<'static> {
    /// Loads a model folder to `device`, with the PEFT adapter of another folder on top if one is named. `slots` is the
    /// number of answers that advance at once.
    pub fn open(
        folder: &Path,
        adapter: Option<&Path>,
        limits: PixelLimits,
        slots: usize,
        device: Device,
    ) -> Result<Self> {
        let mut name = folder.display().to_string();
        if let Some(adapter) = adapter {
            name = format!("{name} + {}", adapter.display());
        }
        let failed =
            |error: mgsd_model::error::Error| Error::Client { client: name.clone(), message: error.to_string() };
        let processor = Processor::open(folder, limits).map_err(failed)?;
        let model = Qwen3Vl::for_inference(folder, adapter, device).map_err(failed)?;
        Ok(Self::new(name, Held::Own(Box::new(model)), Held::Own(Box::new(processor)), slots))
    }
}

impl<'a> LocalClient<'a> {
    /// A client on a model that is loaded already.
    pub fn over(name: &str, model: &'a Qwen3Vl, processor: &'a Processor, slots: usize) -> Self {
        Self::new(name.to_string(), Held::Lent(model), Held::Lent(processor), slots)
    }

    fn new(name: String, model: Held<'a, Qwen3Vl>, processor: Held<'a, Processor>, slots: usize) -> Self {
        let generator = Generator::new(&model.config, slots);
        let stop = model.config.eos_token_ids.clone();
        Self { name, model, processor, generator, adapter: Adapter::On, stop }
    }

    /// Whether answers come from the model with its adapter (the default) or from the base alone.
    pub fn with_adapter(mut self, adapter: Adapter) -> Self {
        self.adapter = adapter;
        self
    }

    fn prepare(&self, request: &Request) -> std::result::Result<Prompt, String> {
        let mut messages = Vec::with_capacity(request.messages.len());
        for message in &request.messages {
            let mut parts = Vec::with_capacity(message.parts.len());
            for part in &message.parts {
                parts.push(match part {
                    Part::Text(text) => chat::Part::Text(text.clone()),
                    Part::Picture(picture) => chat::Part::Image(picture.source()?),
                });
            }
            messages.push(match parts.as_slice() {
                [chat::Part::Text(text)] => ChatMessage::text(message.role, text.clone()),
                _ => ChatMessage::parts(message.role, parts),
            });
        }
        self.processor.prompt(&messages).map_err(|error| error.to_string())
    }

    /// Runs prepared requests, `(index, prompt)`, to their ends.
    fn run(
        &mut self,
        requests: &[Request],
        prepared: &[(usize, Arc<Prompt>)],
        on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>,
    ) -> Result<()> {
        let queue: Vec<mgsd_model::generate::Request> = prepared
            .iter()
            .map(|(index, prompt)| {
                let asked = &requests[*index];
                let sampling =
                    Sampling { temperature: asked.temperature, top_p: asked.top_p, ..Sampling::policy(asked.seed) };
                mgsd_model::generate::Request {
                    prompt: Arc::clone(prompt),
                    sampling,
                    max_new_tokens: asked.max_new_tokens,
                    stop: self.stop.clone(),
                }
            })
            .collect();
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); queue.len()];
        let mut outcome = Ok(());
        let processor = &self.processor;
        let generated = self.generator.generate(&self.model, &queue, self.adapter, &mut |event| {
            let ids = &mut tokens[event.request];
            ids.push(event.token);
            let Some(finish) = event.finish else { return };
            let count = ids.len() as u64;
            if finish == Finish::Stop {
                ids.pop();
            }
            let (index, prompt) = &prepared[event.request];
            let decoded = processor.tokenizer.decode(ids);
            let mut answer = Answer {
                tokens: Some(count),
                prompt_tokens: Some(prompt.ids.len() as u64),
                truncated: finish == Finish::Length,
                ..Answer::default()
            };
            match decoded {
                Ok(text) => answer.text = text,
                Err(error) => answer.error = Some(error.to_string()),
            }
            if outcome.is_ok() {
                outcome = on_answer(*index, answer);
            }
        });
        generated.map_err(|error| Error::Client { client: self.name.clone(), message: error.to_string() })?;
        outcome
    }
}

impl Client for LocalClient<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn answer(&mut self, requests: &[Request], on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()> {
        let mut prepared: Vec<(usize, Arc<Prompt>)> = Vec::new();
        let mut bytes = 0;
        for start in (0..requests.len()).step_by(PREPARED_AT_ONCE) {
            let end = (start + PREPARED_AT_ONCE).min(requests.len());
            let prompts: Vec<_> = requests[start..end].par_iter().map(|request| self.prepare(request)).collect();
            for (index, prompt) in (start..end).zip(prompts) {
                match prompt {
                    Ok(prompt) => {
                        bytes +=
                            prompt.images.iter().map(|image| size_of_val(image.pixel_values.as_slice())).sum::<usize>();
                        prepared.push((index, Arc::new(prompt)));
                    }
                    Err(message) => on_answer(index, Answer { error: Some(message), ..Answer::default() })?,
                }
            }
            if bytes >= PREPARED_BYTES || end == requests.len() {
                self.run(requests, &prepared, on_answer)?;
                prepared.clear();
                bytes = 0;
            }
        }
        Ok(())
    }
}
