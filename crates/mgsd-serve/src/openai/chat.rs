//! `/v1/models` and `/v1/chat/completions`.

use super::messages::{conversation, remote_pictures};
use super::objects::{Choice, Completion, LogProbs, Spoken, StopReason, TokenLogProbs, Usage};
use super::prepare::{check_prompt, patches, truncate};
use super::request::ChatRequest;
use super::text::TextBuilder;
use crate::app::{App, Peer};
use crate::body;
use crate::engine::{Answers, Canceller, Client, Delivery, HeldPictures, Job, Token, Update};
use crate::remote::Fetched;
use crate::reply::{ApiError, Reply};
use crate::stream::{self, Frames};
use axum::Json;
use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse, Response};
use mgsd_model::generate::{self, Finish};
use mgsd_model::processor::Prompt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// All models that are served: the one.
pub async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&app)]}))
}

/// One model by its name.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Reply<Json<Value>> {
    if name == app.name { Ok(Json(card(&app))) } else { Err(ApiError::unknown_model(&name, &app.name)) }
}

fn card(app: &App) -> Value {
    json!({
        "id": app.name,
        "object": "model",
        "created": app.created,
        "owned_by": "mgsd",
        "max_model_len": app.engine.info.context,
    })
}

/// Answers a conversation.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Reply<Response> {
    let body = body::read_json(&app, request).await?;
    let theirs = Arc::clone(&app);
    let (request, body) =
        app.on_worker(move || Ok((ChatRequest::read(&body, &theirs.name, &theirs.defaults)?, body))).await??;
    let fetched = match &app.remote {
        Some(remote) => remote.fetch(&app, remote_pictures(&request.messages)).await?,
        None => Fetched::default(),
    };
    let theirs = Arc::clone(&app);
    let prepared = app.on_worker(move || {
        let prepared = prepare(&theirs, request, &fetched);
        // What was sent and fetched counts against the memory for as long as it is read.
        drop((fetched, body));
        prepared
    });
    let prepared = prepared.await??;
    let Prepared { request, prompt, pictures } = prepared;
    let (job, room) = job(&app, &request, &prompt, peer);
    let answers = app.engine.submit(job)?;
    let guard = answers.guard();
    let writer = Writer::new(Arc::clone(&app), request, prompt.ids.len(), room, answers.canceller());
    // The prompt itself is kept by the engine while it needs it; the memory counts until the answers have ended.
    if writer.request.stream {
        let (frames, body) = stream::channel(guard);
        tokio::spawn(stream_answers(writer, answers, frames, pictures));
        Ok(body)
    } else {
        let whole = collect(writer, answers).await;
        drop((guard, pictures));
        whole
    }
}

struct Prepared {
    request: ChatRequest,
    prompt: Arc<Prompt>,
    pictures: HeldPictures,
}

/// Everything that takes the processor's time.
fn prepare(app: &App, request: ChatRequest, fetched: &Fetched) -> Reply<Prepared> {
    let messages = conversation(&request.messages, app.pictures, fetched)?;
    let wrong = |error: mgsd_model::error::Error| ApiError::invalid("messages", error.to_string());
    let info = &app.engine.info;
    // Before pictures are cut into patches, which takes thousands of times the memory of a small file.
    let (patches, vision) = (patches(&messages, &app.processor)?, &info.config.vision);
    let tokens = patches / vision.spatial_merge_size.pow(2);
    if request.truncate.is_none() && tokens >= info.context {
        return Err(ApiError::too_long(tokens, info.context));
    }
    let pictures = app.engine.hold_pictures(patches * vision.patch_len() * size_of::<f32>())?;
    let mut prompt = app.processor.prompt(&messages).map_err(wrong)?;
    if let Some(keep) = request.truncate {
        truncate(&mut prompt, keep, &info.config, info.context)?;
    }
    check_prompt(&prompt, &info.config, info.context)?;
    Ok(Prepared { request, prompt: Arc::new(prompt), pictures })
}

/// The job, and how many tokens each answer may have.
fn job(app: &App, request: &ChatRequest, prompt: &Arc<Prompt>, peer: Peer) -> (Job, usize) {
    let info = &app.engine.info;
    let room = info.context - prompt.ids.len();
    let most = request.max_tokens.unwrap_or(room).min(room).min(app.most_tokens);
    let mut stop = request.stop_token_ids.clone();
    if !request.ignore_eos {
        stop.extend(&info.config.eos_token_ids);
    }
    let mut sampling = request.sampling.clone();
    let requests = (0..request.choices).map(|_| {
        let request = generate::Request {
            prompt: Arc::clone(prompt),
            sampling: sampling.clone(),
            max_new_tokens: most,
            stop: stop.clone(),
        };
        sampling.seed = sampling.seed.wrapping_add(1);
        request
    });
    let job = Job {
        client: Client { address: peer.0.ip(), user: request.user.clone() },
        requests: requests.collect(),
        top_log_probs: request.log_probs.unwrap_or(0),
        delivery: if request.stream || !request.stops.is_empty() { Delivery::Stream } else { Delivery::AtEnd },
    };
    (job, most)
}

/// One answer as it grows.
struct Growing {
    text: TextBuilder,
    tokens: usize,
    finish: Option<(&'static str, Option<StopReason>)>,
}

/// What is new in one answer.
#[derive(Default)]
struct Piece {
    text: String,
    log_probs: Vec<TokenLogProbs>,
    token_ids: Vec<u32>,
}

/// Turns what the engine gives into what the client gets.
struct Writer {
    app: Arc<App>,
    request: ChatRequest,
    answers: Vec<Growing>,
    prompt_tokens: usize,
    canceller: Canceller,
    id: String,
    created: u64,
}

impl Writer {
    fn new(app: Arc<App>, request: ChatRequest, prompt_tokens: usize, most: usize, canceller: Canceller) -> Self {
        debug_assert!(most > 0, "check_prompt leaves room");
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = format!("chatcmpl-{:016x}{:08x}", request.sampling.seed, app.next_id());
        let growing =
            |_| Growing { text: TextBuilder::new(request.stops.clone(), request.keep_stop), tokens: 0, finish: None };
        let answers = (0..request.choices).map(growing).collect();
        Self { app, request, answers, prompt_tokens, canceller, id, created }
    }

    fn done(&self) -> bool {
        self.answers.iter().all(|answer| answer.finish.is_some())
    }

    fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.answers.iter().map(|answer| answer.tokens).sum())
    }

    /// Takes new tokens of one answer.
    fn take(&mut self, update: Update) -> Reply<Piece> {
        let processor = &self.app.processor;
        let answer = &mut self.answers[update.choice];
        let mut piece = Piece::default();
        // What the engine made after a stop text, before it was told.
        if answer.finish.is_some() {
            return Ok(piece);
        }
        let broken = |error: mgsd_model::error::Error| ApiError::internal(error.to_string());
        let last = update.tokens.len().saturating_sub(1);
        for (at, token) in update.tokens.iter().enumerate() {
            answer.tokens += 1;
            if at == last && update.finish == Some(Finish::Stop) {
                let own = self.app.engine.info.config.eos_token_ids.contains(&token.id);
                let reason = if own && !self.request.ignore_eos { None } else { Some(StopReason::Token(token.id)) };
                answer.finish = Some(("stop", reason));
                break;
            }
            self.request.log_probs.inspect(|_| piece.log_probs.push(TokenLogProbs::new(processor, token)));
            if self.request.token_ids {
                piece.token_ids.push(token.id);
            }
            piece.text.push_str(&answer.text.push(processor, token.id).map_err(broken)?);
            if answer.text.stopped_by().is_some() {
                break;
            }
        }
        if update.finish.is_some() {
            piece.text.push_str(&answer.text.finish(processor).map_err(broken)?);
        }
        if let Some(stop) = answer.text.stopped_by() {
            answer.finish = Some(("stop", Some(StopReason::Text(stop.to_string()))));
            if update.finish.is_none() {
                self.canceller.cancel(update.choice);
            }
        } else if update.finish == Some(Finish::Length) {
            answer.finish = Some(("length", None));
        }
        Ok(piece)
    }

    fn choice(&self, index: usize, piece: Piece) -> Choice {
        let finish = self.answers[index].finish.clone();
        let (finish_reason, stop_reason) = finish.map_or((None, None), |(finish, reason)| (Some(finish), reason));
        let log_probs = self.request.log_probs.map(|_| LogProbs { content: piece.log_probs });
        let token_ids = self.request.token_ids.then_some(piece.token_ids);
        let spoken = Spoken { role: None, content: Some(piece.text) };
        Choice { index, message: None, delta: Some(spoken), logprobs: log_probs, finish_reason, stop_reason, token_ids }
    }

    fn chunk(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Completion<'_> {
        Completion {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.app.name,
            choices,
            usage: self.request.stream_usage.then_some(usage),
        }
    }

    fn broken_off(&self) -> ApiError {
        if self.app.draining.load(Ordering::Relaxed) {
            return ApiError::unavailable("the server is stopping and has given this answer up; try another one");
        }
        self.app.engine.gone()
    }
}

/// Waits for all answers and puts them into one object.
async fn collect(mut writer: Writer, mut answers: Answers) -> Reply<Response> {
    let mut pieces: Vec<Piece> = writer.answers.iter().map(|_| Piece::default()).collect();
    while !writer.done() {
        let Some(update) = answers.next().await else { return Err(writer.broken_off()) };
        let choice = update.choice;
        let Piece { text, log_probs, token_ids } = writer.take(update)?;
        pieces[choice].text.push_str(&text);
        pieces[choice].log_probs.extend(log_probs);
        pieces[choice].token_ids.extend(token_ids);
    }
    let whole = |(index, piece)| {
        let mut choice = writer.choice(index, piece);
        choice.message = choice.delta.take().map(|spoken| Spoken { role: Some("assistant"), ..spoken });
        choice
    };
    let choices = pieces.into_iter().enumerate().map(whole).collect();
    let completion =
        Completion { object: "chat.completion", usage: Some(Some(writer.usage())), ..writer.chunk(choices, None) };
    Ok(Json(completion).into_response())
}

/// Sends answers piece by piece; ends early when the client is gone, which drops the guard in the response.
async fn stream_answers(mut writer: Writer, mut answers: Answers, frames: Frames, pictures: HeldPictures) {
    let opening = |index| {
        let spoken = Spoken { role: Some("assistant"), content: Some(String::new()) };
        Choice { delta: Some(spoken), ..writer.choice(index, Piece::default()) }
    };
    let first: Vec<Choice> = (0..writer.answers.len()).map(opening).collect();
    for choice in first {
        if !frames.json(&writer.chunk(vec![choice], None)).await {
            return;
        }
    }
    let mut updates = Vec::new();
    while !writer.done() {
        if !answers.next_all(&mut updates).await {
            frames.json(&writer.broken_off().body()).await;
            return;
        }
        for update in merged(&mut updates) {
            let choice = update.choice;
            let was_open = writer.answers[choice].finish.is_none();
            let piece = match writer.take(update) {
                Ok(piece) => piece,
                Err(error) => {
                    frames.json(&error.body()).await;
                    return;
                }
            };
            let ended = was_open && writer.answers[choice].finish.is_some();
            let nothing = piece.text.is_empty() && piece.log_probs.is_empty() && piece.token_ids.is_empty();
            if nothing && !ended {
                continue;
            }
            let choice = writer.choice(choice, piece);
            if !frames.json(&writer.chunk(vec![choice], None)).await {
                return;
            }
        }
    }
    drop(pictures);
    if writer.request.stream_usage && !frames.json(&writer.chunk(Vec::new(), Some(writer.usage()))).await {
        return;
    }
    frames.text("[DONE]").await;
}

/// Joins updates of the same answer, in order, so that a client who lags behind gets fewer and longer pieces.
fn merged(updates: &mut Vec<Update>) -> Vec<Update> {
    let mut out: Vec<Update> = Vec::new();
    for update in updates.drain(..) {
        let known = out.iter_mut().find(|known| known.choice == update.choice);
        match known.filter(|known| known.finish.is_none()) {
            Some(known) => {
                known.tokens.extend::<Vec<Token>>(update.tokens);
                known.finish = update.finish;
            }
            None => out.push(update),
        }
    }
    out
}
