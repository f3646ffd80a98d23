//! Rows of the distillation stage (OPCD): made from a task folder, as JSON and as parquet, and read from both.

mod parquet;
mod select;

use std::path::Path;

use mgsd_tasks::{Instance, Task};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use select::{RowOrder, SelectOptions, duplicate_to, select};

use crate::message::{Message, Role};
use crate::perception_sft::json_records;
use crate::picture::{self, Picture};
use crate::prompts::{PromptContext, Prompts, ReferencePlan};
use crate::{DataError, Example, Result, files};

/// A row of the JSON file; the fields are written in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// `<task>_level<N>_<stem>`.
    #[serde(default)]
    pub sample_id: String,
    /// Name of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Side of the grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<usize>,
    /// The student's question with its picture mark, and the reference answer in an `<answer>` block.
    pub messages: Vec<Message>,
    /// Pictures of the student's question: paths relative to the file's folder, data URLs or base64.
    #[serde(default)]
    pub images: Vec<String>,
    /// Pictures of the teacher: those of `images` first, then those that only the teacher sees; ours have none.
    #[serde(default)]
    pub teacher_images: Vec<String>,
    /// A text map for the teacher; only in other people's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_text_map: Option<String>,
    /// The instance file under its older name; only in other people's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozenlake_task_text: Option<String>,
    /// The instance file, verbatim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsp_task_text: Option<String>,
    /// The teacher's system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_system_prompt: Option<String>,
    /// The teacher's user message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_text_context: Option<String>,
}

/// A row as training reads it, the same from JSON and from parquet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// The student's question; its pictures are marked `<image>`.
    pub problem: String,
    /// The reference answer without its tags.
    pub answer: String,
    /// Pictures of the question.
    pub images: Vec<Picture>,
    /// Pictures that only the teacher sees.
    pub teacher_images: Vec<Picture>,
    /// A text map for the teacher.
    pub teacher_text_map: Option<String>,
    /// The instance file under its older name.
    pub frozenlake_task_text: Option<String>,
    /// Name of the task.
    pub task: Option<String>,
    /// The instance file, verbatim.
    pub vsp_task_text: Option<String>,
    /// The teacher's system prompt.
    pub teacher_system_prompt: Option<String>,
    /// The teacher's user message.
    pub teacher_text_context: Option<String>,
}

impl Sample {
    /// The board behind the row, from the instance file that it carries, if it does. An error when that cannot be read.
    pub fn instance(&self) -> Result<Option<Instance>, String> {
        let mut texts = [&self.vsp_task_text, &self.frozenlake_task_text].into_iter().flatten();
        let Some(text) = texts.find(|text| !text.trim().is_empty()) else { return Ok(None) };
        Instance::parse(text).map(Some).map_err(|error| format!("instance text: {error}"))
    }

    /// What the row itself tells the teacher about the board, if it does.
    pub fn teacher_context(&self) -> Option<&str> {
        self.teacher_text_context.as_deref().filter(|text| !text.trim().is_empty())
    }
}

/// Makes one row an example, in the examples' order. `folder` is where the JSON file will lie.
pub fn rows(examples: &[Example], prompts: &Prompts, plan: ReferencePlan, folder: &Path) -> Result<Vec<Row>> {
    examples.iter().map(|example| row(example, prompts, plan, folder)).collect()
}

fn row(example: &Example, prompts: &Prompts, plan: ReferencePlan, folder: &Path) -> Result<Row> {
    let context = PromptContext::of_instance(&example.instance);
    let answer = context
        .plan
        .as_deref()
        .ok_or_else(|| DataError::format(&example.text_path, "board", "no plan solves it; leave the instance out"))?;
    Ok(Row {
        sample_id: example.id.clone(),
        task: Some(example.task.to_string()),
        level: Some(example.level),
        messages: vec![
            Message::user(prompts.student(example.task)?),
            Message::assistant(format!("<answer>{answer}</answer>")),
        ],
        images: vec![picture::reference(example.existing_image()?, folder)],
        teacher_images: Vec::new(),
        teacher_text_map: None,
        frozenlake_task_text: None,
        vsp_task_text: Some(example.text.clone()),
        teacher_system_prompt: Some(prompts.teacher_system(example.task)?.unwrap_or_default()),
        teacher_text_context: Some(prompts.teacher_context(&context, plan)?),
    })
}

/// Writes rows as JSON: two spaces of indent, non-ASCII as it is, no line end at the end.
pub fn write_json(path: &Path, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows).map_err(|error| DataError::format(path, "rows", error))?;
    files::write(path, text.as_bytes())
}

/// Reads the rows of a JSON file.
pub fn read_json(path: &Path) -> Result<Vec<Row>> {
    let text = files::read_text(path)?;
    json_records(path, &text)?.into_iter().enumerate().map(|(index, record)| read_row(path, index, record)).collect()
}

fn read_row(path: &Path, index: usize, mut record: Value) -> Result<Row> {
    // A null column means the same as a missing one.
    if let Some(fields) = record.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let row: Row = serde_json::from_value(record).map_err(|error| {
        DataError::format(
            path,
            format!("row {index}"),
            format!("{error}; expected an OPCD row (messages, images, vsp_task_text, ...)"),
        )
    })?;
    if !row.messages.iter().any(|message| message.role == Role::User) {
        let place = format!("row {index}, field \"messages\"");
        return Err(DataError::format(path, place, "no message of the role \"user\": expected the student's question"));
    }
    Ok(row)
}

/// Turns a JSON row into a sample; its pictures are looked for below `folder`, the JSON file's folder.
pub fn sample(row: &Row, folder: &Path) -> Result<Sample> {
    let content =
        |role: Role| row.messages.iter().find(|message| message.role == role).map(|message| message.content.as_str());
    let locate = |references: &[String]| {
        references.iter().map(|reference| Picture::locate(reference, folder)).collect::<Result<Vec<_>>>()
    };
    // The published converter takes the pictures that the student sees to lead the teacher's list as well.
    let only_teacher = row.teacher_images.get(row.images.len()..);
    Ok(Sample {
        problem: content(Role::User).unwrap_or_default().to_string(),
        answer: answer(content(Role::Assistant).unwrap_or_default()),
        images: locate(&row.images)?,
        teacher_images: locate(only_teacher.unwrap_or_default())?,
        teacher_text_map: row.teacher_text_map.clone(),
        frozenlake_task_text: row.frozenlake_task_text.clone(),
        task: row.task.clone(),
        vsp_task_text: row.vsp_task_text.clone(),
        teacher_system_prompt: row.teacher_system_prompt.clone(),
        teacher_text_context: row.teacher_text_context.clone(),
    })
}

/// The answer column: what stands in the `<answer>` block. As in the published converter a response without one counts
/// as choice "A", and a single letter a to d as a choice in upper case.
fn answer(response: &str) -> String {
    let inside = response
        .split_once("<answer>")
        .and_then(|(_, rest)| rest.split_once("</answer>"))
        .map(|(inside, _)| inside.trim());
    match inside {
        None => "A".to_string(),
        Some(choice) if choice.len() == 1 && "abcd".contains(choice) => choice.to_uppercase(),
        Some(inside) => inside.to_string(),
    }
}

/// Writes samples as parquet with their pictures embedded; pictures are looked for below `folder`.
pub fn write_parquet(path: &Path, samples: &[Sample], folder: &Path) -> Result<()> {
    parquet::write(path, samples, folder)
}

/// Reads samples from a `.json`, `.jsonl` or `.parquet` file.
pub fn read(path: &Path) -> Result<Vec<Sample>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => parquet::read(path),
        Some("json" | "jsonl") => {
            let folder = path.parent().unwrap_or(Path::new("."));
            read_json(path)?
                .iter()
                .enumerate()
                .map(|(index, row)| {
                    sample(row, folder)
                        .map_err(|error| DataError::format(path, format!("row {index}, field \"images\""), error))
                })
                .collect()
        }
        _ => Err(DataError::missing(path, "unknown kind of file; expected .json, .jsonl or .parquet with OPCD rows")),
    }
}

/// The task a sample belongs to.
pub fn task_of(sample: &Sample) -> Option<Task> {
    sample.task.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[test]
    fn the_answer_column_follows_the_published_converter() {
        assert_eq!(answer("so <answer> RRD </answer>"), "RRD");
        assert_eq!(answer("no tags"), "A");
        assert_eq!(answer("<answer>d</answer>"), "D");
        assert_eq!(answer("<answer>u</answer>"), "u");
    }
}
