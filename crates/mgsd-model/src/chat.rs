//! Conversations, and the chat template that turns them into the text a model was trained on.

use std::{collections::BTreeMap, path::Path};

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig, value::Kwargs};
use serde::Serialize;

use crate::{
    config::read_json,
    error::{Error, Result},
    image::ImageSource,
};

/// The layout that every Qwen chat model shares, for folders without a template of their own.
const BUILT_IN: &str = include_str!("chat_fallback.jinja");

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said and shown.
    pub content: Content,
}

/// What a message holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Texts and pictures in order.
    Parts(Vec<Part>),
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A text.
    Text(String),
    /// A picture.
    Image(ImageSource),
}

impl Message {
    /// A message of text alone.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Content::Text(text.into()) }
    }

    /// A message of several parts.
    pub fn parts(role: &str, parts: Vec<Part>) -> Self {
        Self { role: role.into(), content: Content::Parts(parts) }
    }

    /// The pictures in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        let parts = match &self.content {
            Content::Text(_) => &[],
            Content::Parts(parts) => parts.as_slice(),
        };
        parts.iter().filter_map(|part| match part {
            Part::Image(source) => Some(source),
            Part::Text(_) => None,
        })
    }

    /// Reads a list of OpenAI-style messages: `content` a string, or parts of type `text`, `image_url` or `image`.
    /// Relative paths of pictures start at `base`.
    pub fn list_from_json(json: &serde_json::Value, base: &Path) -> Result<Vec<Message>> {
        let Some(list) = json.as_array() else {
            return Err(Error::Prompt("expected a list of messages, each with role and content".into()));
        };
        list.iter().enumerate().map(|(index, message)| message_from_json(index, message, base)).collect()
    }

    fn for_template(&self) -> Value {
        let content = match &self.content {
            Content::Text(text) => Value::from(text.as_str()),
            Content::Parts(parts) => {
                let part = |part: &Part| match part {
                    Part::Text(text) => context! { type => "text", text => text },
                    Part::Image(_) => context! { type => "image", image => "" },
                };
                parts.iter().map(part).collect()
            }
        };
        context! { role => self.role.as_str(), content => content }
    }
}

/// Fields of OpenAI-style messages that templates may write and that are not read here.
const NOT_READ: [&str; 5] = ["tool_calls", "function_call", "reasoning_content", "reasoning", "audio"];

/// The first field of an OpenAI-style message that says something and is not read.
pub fn field_not_read(message: &serde_json::Value) -> Option<&'static str> {
    let says_nothing = |value: &serde_json::Value| match value {
        serde_json::Value::Null => true,
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Array(list) => list.is_empty(),
        serde_json::Value::Object(map) => map.is_empty(),
        _ => false,
    };
    NOT_READ.into_iter().find(|field| !says_nothing(&message[*field]))
}

fn message_from_json(index: usize, message: &serde_json::Value, base: &Path) -> Result<Message> {
    let wrong = |problem: String| Error::Prompt(format!("message {index}: {problem}"));
    if let Some(field) = field_not_read(message) {
        return Err(wrong(format!("{field} is not supported; expected role and content alone, leave it out")));
    }
    let Some(role) = message["role"].as_str() else {
        return Err(wrong(format!("role is {}; expected \"system\", \"user\" or \"assistant\"", message["role"])));
    };
    let content = match &message["content"] {
        serde_json::Value::String(text) => Content::Text(text.clone()),
        serde_json::Value::Array(parts) => {
            let read = |part: &serde_json::Value| {
                let kind = part["type"].as_str().unwrap_or_default();
                let url = [&part["image_url"]["url"], &part["image_url"], &part["image"]];
                let url = url.into_iter().find_map(serde_json::Value::as_str);
                match (kind, part["text"].as_str(), url) {
                    ("text", Some(text), _) => Ok(Part::Text(text.into())),
                    ("image_url" | "image", _, Some("")) => {
                        Err(wrong("the address of a picture is empty; expected a path or a data URL".into()))
                    }
                    ("image_url" | "image", _, Some(url)) => Ok(Part::Image(ImageSource::from_url(url, base)?)),
                    _ => Err(wrong(format!(
                        "a part of type {}; expected {{\"type\": \"text\", \"text\": ...}} or \
                         {{\"type\": \"image_url\", \"image_url\": {{\"url\": ...}}}}",
                        part["type"]
                    ))),
                }
            };
            Content::Parts(parts.iter().map(read).collect::<Result<_>>()?)
        }
        other => return Err(wrong(format!("content is {other}; expected a string or a list of parts"))),
    };
    Ok(Message { role: role.into(), content })
}

/// Whether the text ends where the assistant is to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The opening of an assistant turn follows the last message.
    Add,
    /// The text ends with the last message.
    Omit,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    special_tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, `chat_template.json`, or `chat_template` in
    /// `tokenizer_config.json`, in this order; without any, the layout common to Qwen models.
    pub fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join("tokenizer_config.json");
        let config = if config_path.is_file() { read_json(&config_path)? } else { serde_json::Value::Null };
        let jinja = dir.join("chat_template.jinja");
        let json = dir.join("chat_template.json");
        let (origin, source) = if jinja.is_file() {
            let source =
                std::fs::read_to_string(&jinja).map_err(|source| Error::Read { path: jinja.clone(), source })?;
            (jinja, source)
        } else if json.is_file() {
            let source = read_json(&json)?["chat_template"].as_str().map(String::from);
            let missing = || Error::Field {
                path: json.clone(),
                field: "chat_template".into(),
                problem: "is missing; expected a text".into(),
            };
            (json.clone(), source.ok_or_else(missing)?)
        } else if let Some(source) = config_template(&config) {
            (config_path, source.into())
        } else {
            ("(built in)".into(), BUILT_IN.into())
        };
        let mut template = Self::compile(source, origin.display().to_string())?;
        for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            // A token is its text, or an object that holds it.
            let token = config[name].as_str().or_else(|| config[name]["content"].as_str());
            template.special_tokens.extend(token.map(|token| (name.to_string(), token.to_string())));
        }
        Ok(template)
    }

    /// Compiles a template; `origin` is named in errors.
    pub fn compile(source: String, origin: String) -> Result<Self> {
        let mut environment = Environment::new();
        let broken =
            |problem: minijinja::Error| Error::Template { origin: origin.clone(), problem: describe(&problem) };
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(broken)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        // As Jinja does, or a template from Windows would put other line ends into the prompt.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        environment.add_template_owned("chat", source).map_err(broken)?;
        Ok(Self { environment, origin, special_tokens: Vec::new() })
    }

    /// Where the template comes from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The text of a conversation; each picture is one `<|image_pad|>` in it.
    pub fn render(&self, messages: &[Message], generation_prompt: GenerationPrompt) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(Message::for_template).collect();
        let tokens = self.special_tokens.iter().map(|(name, token)| (name.clone(), token.clone()));
        let tokens = Value::from(tokens.collect::<BTreeMap<_, _>>());
        let values = context! {
            messages => messages,
            add_generation_prompt => generation_prompt == GenerationPrompt::Add,
            ..tokens
        };
        let rendered = self.environment.get_template("chat").and_then(|template| template.render(values));
        rendered.map_err(|problem| Error::Template { origin: self.origin.clone(), problem: describe(&problem) })
    }
}

/// `tokenizer_config.json` has one template, or a list of named ones.
fn config_template(config: &serde_json::Value) -> Option<&str> {
    match &config["chat_template"] {
        serde_json::Value::String(source) => Some(source),
        serde_json::Value::Array(list) => {
            let default = list.iter().find(|item| item["name"] == "default").or(list.first())?;
            default["template"].as_str()
        }
        _ => None,
    }
}

fn describe(error: &minijinja::Error) -> String {
    use std::error::Error as _;
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{line}{cause}")
}

/// What templates call to refuse a conversation.
fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which templates were written against: a blank after each comma and
/// colon, nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let failed = |problem: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, problem.to_string());
    match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?,
        Some(width) => {
            let blanks = vec![b' '; width];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&blanks);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
    }
    let text = String::from_utf8(out)
        .map_err(|problem| minijinja::Error::new(ErrorKind::BadSerialization, problem.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// One line, with a blank after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
