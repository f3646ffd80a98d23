//! What the model is asked about a board, as messages of the chat API.

use crate::reply::{ApiError, Reply};
use base64::Engine as _;
use mgsd_data::message::{Part, parts};
use mgsd_data::prompts::{PromptContext, Prompts, ReferencePlan};
use mgsd_tasks::{Board, RenderOptions};
use serde_json::{Value, json};

/// The board's picture as a data URL.
pub fn picture(board: &Board, options: &RenderOptions) -> Reply<String> {
    let png = board.render(options).and_then(|image| image.to_png());
    let png = png.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png)))
}

/// The questions by modality and kind, and the teacher's view of the planning question. The picture's place is marked
/// by the URL `board`, so that it is sent once and put in by whoever asks.
pub fn messages(board: &Board, prompts: &Prompts) -> Reply<Value> {
    let broken = |error: mgsd_data::DataError| ApiError::internal(error.to_string());
    let context = PromptContext::new(board);
    let reference = if context.plan.is_some() { ReferencePlan::Given } else { ReferencePlan::Withheld };
    let user = |text: String| json!([{"role": "user", "content": content(&text)}]);
    let task = board.task();
    let system = prompts.teacher_system(task).map_err(broken)?;
    let seen = prompts.teacher_context(&context, reference).map_err(broken)?;
    let mut teacher: Vec<Value> = system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    teacher.push(json!({"role": "user", "content": seen}));
    Ok(json!({
        "image": {
            "plan": user(prompts.student(task).map_err(broken)?),
            "read": user(prompts.perception(task).map_err(broken)?),
        },
        "text": {
            "plan": user(prompts.text(&context).map_err(broken)?),
            "read": user(prompts.text_perception(&context).map_err(broken)?),
        },
        "teacher": teacher,
    }))
}

fn content(text: &str) -> Value {
    let parts = parts(text);
    match parts.as_slice() {
        [Part::Text(text)] => json!(text),
        parts => parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => json!({"type": "text", "text": text}),
                Part::Image => json!({"type": "image_url", "image_url": {"url": "board"}}),
            })
            .collect(),
    }
}
