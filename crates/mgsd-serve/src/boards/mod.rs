//! The page's own JSON API: boards made, drawn and checked, answers walked and scored against the teacher. The model is
//! asked through the chat API like any other client's.

mod questions;
mod state;
mod walk;

use crate::app::App;
use crate::body;
use crate::error::Result;
use crate::openai::{check_prompt, conversation, held_bytes};
use crate::remote::Fetched;
use crate::reply::{ApiError, Reply};
use axum::extract::{Request, State as Shared};
use axum::routing::{get, post};
use axum::{Json, Router};
use mgsd_data::prompts::Prompts;
use mgsd_model::config::Config;
use mgsd_model::processor::Prompt;
use mgsd_tasks::{Board, Difficulty, GenerateOptions, RenderOptions, Task, generate};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use state::{MOST_SIDE, State};
use std::sync::Arc;

/// Texts and pictures of boards.
pub struct Boards {
    prompts: Prompts,
    /// Name of the set of texts.
    set: String,
    pictures: RenderOptions,
}

impl Boards {
    /// Opens a set of texts.
    pub fn new(prompts: &str, pictures: RenderOptions) -> Result<Self> {
        Ok(Self { prompts: Prompts::open(prompts)?, set: prompts.to_string(), pictures })
    }

    /// Everything that the page shows of a board.
    fn described(&self, board: &Board) -> Reply<Value> {
        Ok(json!({
            "board": State::of(board),
            "side": board.side(),
            "start": board.start(),
            "plan": board.solve().map(|plan| plan.answer(board.task())),
            "picture": questions::picture(board, &self.pictures)?,
            "messages": questions::messages(board, &self.prompts)?,
        }))
    }
}

/// Addresses of the page's API.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/info", get(info))
        .route("/api/generate", post(make))
        .route("/api/board", post(describe))
        .route("/api/walk", post(walked))
        .route("/api/kl", post(divergence))
}

/// Reads a body and works on it away from the connections.
async fn worked<B, F>(app: &Arc<App>, request: Request, work: F) -> Reply<Json<Value>>
where
    B: DeserializeOwned + Send + 'static,
    F: FnOnce(&App, B) -> Reply<Value> + Send + 'static,
{
    let body = body::read_json(app, request).await?;
    let theirs = Arc::clone(app);
    app.on_worker(move || work(&theirs, parsed(&body)?)).await?.map(Json)
}

fn parsed<B: DeserializeOwned>(body: &[u8]) -> Reply<B> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        ApiError::invalid(path.clone(), format!("{path}: {}", error.inner()))
    })
}

async fn info(Shared(app): Shared<Arc<App>>) -> Json<Value> {
    let info = &app.engine.info;
    let tasks = Task::ALL
        .map(|task| json!({"task": task, "name": task.dir_name(), "sides": [task.sides().start(), MOST_SIDE]}));
    Json(json!({
        "model": app.name,
        "parameters": info.parameters,
        "context": info.context,
        "teacher": info.teacher.is_some(),
        "prompts": app.boards.set,
        "tasks": tasks,
    }))
}

#[derive(Deserialize)]
struct Wanted {
    task: Task,
    level: usize,
    #[serde(default)]
    seed: u64,
    difficulty: Option<String>,
}

async fn make(Shared(app): Shared<Arc<App>>, request: Request) -> Reply<Json<Value>> {
    worked(&app, request, |app, wanted: Wanted| {
        if wanted.level > MOST_SIDE {
            let message = format!("level is {}; expected at most {MOST_SIDE} here", wanted.level);
            return Err(ApiError::invalid("level", message));
        }
        let mut options = GenerateOptions { seed: wanted.seed, ..GenerateOptions::default() };
        if let Some(difficulty) = wanted.difficulty {
            let difficulty = difficulty.parse::<Difficulty>();
            options.difficulties =
                vec![difficulty.map_err(|error| ApiError::invalid("difficulty", error.to_string()))?];
        }
        let made = generate(wanted.task, wanted.level, &options, 0..1);
        let mut made = made.map_err(|error| ApiError::invalid("level", error.to_string()))?;
        let instance = made.pop().ok_or_else(|| ApiError::internal("no board was made"))?;
        app.boards.described(&instance.board)
    })
    .await
}

#[derive(Deserialize)]
struct Given {
    board: State,
}

async fn describe(Shared(app): Shared<Arc<App>>, request: Request) -> Reply<Json<Value>> {
    worked(&app, request, |app, given: Given| app.boards.described(&given.board.board()?)).await
}

#[derive(Deserialize)]
struct Answered {
    board: State,
    answer: String,
}

async fn walked(Shared(app): Shared<Arc<App>>, request: Request) -> Reply<Json<Value>> {
    worked(&app, request, |_, given: Answered| Ok(walk::walk(&given.board.board()?, &given.answer))).await
}

/// Two views of the same question, and the answer's tokens.
#[derive(Deserialize)]
struct Compared {
    messages: Value,
    teacher_messages: Value,
    token_ids: Vec<u32>,
}

async fn divergence(Shared(app): Shared<Arc<App>>, request: Request) -> Reply<Json<Value>> {
    let info = &app.engine.info;
    if info.teacher.is_none() {
        return Err(ApiError::not_found("no teacher is loaded; start the server with --teacher DIR"));
    }
    let body = body::read_json(&app, request).await?;
    let theirs = Arc::clone(&app);
    let prepared = app.on_worker(move || {
        let given: Compared = parsed(&body)?;
        if given.token_ids.is_empty() {
            return Err(ApiError::invalid("token_ids", "token_ids is empty; expected the tokens of an answer"));
        }
        let info = &theirs.engine.info;
        let teacher = info.teacher.as_ref().unwrap_or(&info.config);
        let student = prompt(&theirs, &given.messages, &info.config, given.token_ids.len())?;
        let teacher = prompt(&theirs, &given.teacher_messages, teacher, given.token_ids.len())?;
        Ok((student, teacher, given.token_ids))
    });
    let (student, teacher, ids) = prepared.await??;
    let held = app.engine.hold_pictures(held_bytes(&student) + held_bytes(&teacher))?;
    let scores = app.engine.score(Arc::new(student), Arc::new(teacher), ids.clone()).await?;
    drop(held);
    let mean = scores.iter().map(|score| f64::from(score.kl)).sum::<f64>() / scores.len() as f64;
    let text = |id: &u32| app.processor.tokenizer.decode_with_special(&[*id]).unwrap_or_default();
    let token = |(id, score)| json!({"id": id, "text": text(id), "score": score});
    Ok(Json(json!({"mean_kl": mean, "tokens": ids.iter().zip(&scores).map(token).collect::<Vec<_>>()})))
}

fn prompt(app: &App, messages: &Value, config: &Config, answer: usize) -> Reply<Prompt> {
    let messages = conversation(messages, app.pictures, &Fetched::default())?;
    let prompt = app.processor.prompt(&messages);
    let prompt = prompt.map_err(|error| ApiError::invalid("messages", error.to_string()))?;
    check_prompt(&prompt, config, app.engine.info.context.saturating_sub(answer - 1))?;
    Ok(prompt)
}
