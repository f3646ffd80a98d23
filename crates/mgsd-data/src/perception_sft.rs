//! Perception questions with gold answers in LLaMA-Factory's sharegpt form, and a reader for any such file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::message::{Message, Role, image_count};
use crate::picture::{self, Picture};
use crate::prompts::{PromptContext, Prompts};
use crate::{DataError, Example, Result, files};

/// One perception record, with the keys in the order of the published evaluator's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `<task>_perception_all`.
    pub task: String,
    /// Side of the grid.
    pub level: usize,
    /// The question with its picture mark, and the gold answer.
    pub messages: Vec<Message>,
    /// The picture, relative to the file that holds the record.
    pub images: Vec<String>,
    /// The instance file, relative to the file that holds the record; its stem names the case.
    pub source_text: String,
}

/// Makes one record an example; paths are written relative to `folder`, where the file will lie.
pub fn records(examples: &[Example], prompts: &Prompts, folder: &Path) -> Result<Vec<Record>> {
    examples
        .iter()
        .map(|example| {
            let image = example.existing_image()?;
            let context = PromptContext::of_instance(&example.instance);
            Ok(Record {
                task: format!("{}_perception_all", example.task),
                level: example.level,
                messages: vec![
                    Message::user(prompts.perception(example.task)?),
                    Message::assistant(prompts.perception_answer(&context)?),
                ],
                images: vec![picture::reference(image, folder)],
                source_text: picture::reference(&example.text_path, folder),
            })
        })
        .collect()
}

/// Writes the records to `path` and enters them in the `dataset_info.json` beside it (other entries stay), under the
/// file's stem.
pub fn write(path: &Path, records: &[Record]) -> Result<()> {
    let text = serde_json::to_string_pretty(records).map_err(|error| DataError::format(path, "records", error))?;
    files::write(path, text.as_bytes())?;
    write_dataset_info(path)
}

fn write_dataset_info(path: &Path) -> Result<()> {
    let info_path = path.with_file_name("dataset_info.json");
    let mut info: Map<String, Value> = if info_path.is_file() {
        serde_json::from_str(&files::read_text(&info_path)?).map_err(|error| {
            DataError::format(
                &info_path,
                format!("line {}", error.line()),
                format!("{error}; expected one JSON object with an entry a data set"),
            )
        })?
    } else {
        Map::new()
    };
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    info.insert(
        name.into_owned(),
        json!({
            "file_name": file_name,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system"
            }
        }),
    );
    let text = serde_json::to_string_pretty(&info).map_err(|error| DataError::format(&info_path, "entries", error))?;
    files::write(&info_path, text.as_bytes())
}

/// A conversation of a sharegpt file: its messages and the pictures their marks stand for, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Messages; the last one is the assistant's.
    pub messages: Vec<Message>,
    /// As many pictures as the messages have marks.
    pub images: Vec<Picture>,
    /// The `task` field, when there is one.
    pub task: Option<String>,
}

/// Reads a LLaMA-Factory sharegpt file (a JSON array, or JSON lines): `messages` with role and content, or
/// `conversations` with from and value; `images` as a list or one string; `system` as a string of its own.
pub fn read(path: &Path) -> Result<Vec<Conversation>> {
    let text = files::read_text(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    json_records(path, &text)?
        .iter()
        .enumerate()
        .map(|(index, record)| {
            conversation(record, folder).map_err(|(field, problem)| {
                DataError::format(path, format!("record {index}, field \"{field}\""), problem)
            })
        })
        .collect()
}

/// The objects of a JSON array or of JSON lines.
pub(crate) fn json_records(path: &Path, text: &str) -> Result<Vec<Value>> {
    let lines = path.extension().is_some_and(|extension| extension == "jsonl");
    if lines {
        return text
            .split('\n')
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| {
                serde_json::from_str(line).map_err(|error| {
                    DataError::format(path, format!("line {}", index + 1), format!("not JSON: {error}"))
                })
            })
            .collect();
    }
    match serde_json::from_str(text) {
        Ok(Value::Array(records)) => Ok(records),
        Ok(_) => Err(DataError::format(path, "top level", "expected a JSON array of records")),
        Err(error) => Err(DataError::format(path, format!("line {}", error.line()), format!("not JSON: {error}"))),
    }
}

/// A field's name and what is wrong with it.
type FieldProblem = (&'static str, String);

fn conversation(record: &Value, folder: &Path) -> Result<Conversation, FieldProblem> {
    let mut messages = messages(record)?;
    if let Some(system) = record.get("system").and_then(Value::as_str)
        && !system.is_empty()
    {
        messages.insert(0, Message::system(system));
    }
    if messages.last().map(|message| message.role) != Some(Role::Assistant) {
        return Err(("messages", "the last message must be the assistant's answer".to_string()));
    }
    let references: Vec<&str> = match record.get("images") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| item.as_str())
            .collect::<Option<_>>()
            .ok_or_else(|| ("images", "expected a list of strings".to_string()))?,
        Some(other) => return Err(("images", format!("expected a list of strings, found {other}"))),
    };
    let marks: usize = messages.iter().map(|message| image_count(&message.content)).sum();
    if marks != references.len() {
        return Err((
            "images",
            format!(
                "{} pictures, and {marks} <image> marks in the messages; each picture needs its mark",
                references.len()
            ),
        ));
    }
    let images = references
        .into_iter()
        .map(|reference| Picture::locate(reference, folder))
        .collect::<Result<_>>()
        .map_err(|error| ("images", error.to_string()))?;
    Ok(Conversation { messages, images, task: record.get("task").and_then(Value::as_str).map(str::to_string) })
}

fn messages(record: &Value) -> Result<Vec<Message>, FieldProblem> {
    let (field, role_key, content_key) = if record.get("messages").is_some() {
        ("messages", "role", "content")
    } else if record.get("conversations").is_some() {
        ("conversations", "from", "value")
    } else {
        return Err((
            "messages",
            "missing; expected \"messages\" (role, content) or \"conversations\" (from, value)".to_string(),
        ));
    };
    let list = record[field].as_array().ok_or_else(|| (field, "expected a list of messages".to_string()))?;
    list.iter()
        .enumerate()
        .map(|(index, message)| {
            let text = |key: &str| {
                message.get(key).and_then(Value::as_str).ok_or_else(|| {
                    (field, format!("message {index} needs \"{key}\", a string"))
                })
            };
            let role = match text(role_key)? {
                "user" | "human" => Role::User,
                "assistant" | "gpt" => Role::Assistant,
                "system" => Role::System,
                other => {
                    return Err((
                        field,
                        format!(
                            "message {index} has {role_key} \"{other}\"; expected user (human), assistant (gpt) or system"
                        ),
                    ));
                }
            };
            Ok(Message {
                role,
                content: text(content_key)?.to_string(),
            })
        })
        .collect()
}
