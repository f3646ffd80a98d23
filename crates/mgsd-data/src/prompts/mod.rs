//! Prompts and gold answers: minijinja templates in files, two sets inside the binary, any other from a folder.
//!
//! A set has one file for each [`PromptKind`] and task, named `<kind>_<task>.txt` (`student_maze.txt`); it may have
//! further `.txt` files that these include. What a template may use is in [`PromptContext`]. The prompts that go with
//! a picture ([`PromptKind::Student`], [`PromptKind::Perception`]) are rendered without it: the state cannot leak.

mod context;
mod embedded;

use std::path::{Path, PathBuf};

use mgsd_tasks::Task;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

pub use context::{CellContext, PromptContext, StepContext};

use crate::{DataError, Result, files};

/// What a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PromptKind {
    /// Planning from the picture; the picture's place is marked `<image>`.
    Student,
    /// The perception question about the picture.
    Perception,
    /// The teacher's system prompt; an empty one means no system message.
    TeacherSystem,
    /// The teacher's user message: the symbolic state and, when given, a reference plan.
    TeacherContext,
    /// Planning from the state as text, without a reference plan.
    Text,
    /// The perception question about the state as text.
    TextPerception,
    /// The gold planning response: the board as read, the route, one `<answer>` block.
    PlanAnswer,
    /// The gold perception answer.
    PerceptionAnswer,
}

impl PromptKind {
    /// All kinds.
    pub const ALL: [PromptKind; 8] = [
        PromptKind::Student,
        PromptKind::Perception,
        PromptKind::TeacherSystem,
        PromptKind::TeacherContext,
        PromptKind::Text,
        PromptKind::TextPerception,
        PromptKind::PlanAnswer,
        PromptKind::PerceptionAnswer,
    ];

    /// The first part of the template's file name.
    pub fn file_stem(self) -> &'static str {
        match self {
            PromptKind::Student => "student",
            PromptKind::Perception => "perception",
            PromptKind::TeacherSystem => "teacher_system",
            PromptKind::TeacherContext => "teacher_context",
            PromptKind::Text => "text",
            PromptKind::TextPerception => "text_perception",
            PromptKind::PlanAnswer => "plan_answer",
            PromptKind::PerceptionAnswer => "perception_answer",
        }
    }

    /// File name of this kind's template for `task`.
    pub fn file_name(self, task: Task) -> String {
        format!("{}_{task}.txt", self.file_stem())
    }
}

/// Whether the teacher is shown a shortest plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReferencePlan {
    /// Shown (the published setting).
    #[default]
    Given,
    /// Not shown.
    Withheld,
}

/// A set of prompt templates.
#[derive(Debug, Clone)]
pub struct Prompts {
    environment: Environment<'static>,
    /// The folder of a set read from disk, for messages.
    folder: Option<PathBuf>,
}

impl Prompts {
    /// The set for published models: full sentences, the rules, the form of the answer and an example.
    pub fn standard() -> Result<Prompts> {
        Prompts::embedded(embedded::STANDARD)
    }

    /// The set for tiny models: as few tokens as possible.
    pub fn compact() -> Result<Prompts> {
        Prompts::embedded(embedded::COMPACT)
    }

    /// `standard`, `compact`, or a folder of templates.
    pub fn open(set: &str) -> Result<Prompts> {
        match set {
            "standard" => Prompts::standard(),
            "compact" => Prompts::compact(),
            folder => Prompts::from_folder(Path::new(folder)),
        }
    }

    /// A set read from `folder`, which must hold every file that [`PromptKind::file_name`] names.
    pub fn from_folder(folder: &Path) -> Result<Prompts> {
        if !folder.is_dir() {
            return Err(DataError::missing(
                folder,
                "no such folder of prompt templates; expected \"standard\", \"compact\" or a folder",
            ));
        }
        let mut environment = environment()?;
        for path in files::list(folder)? {
            let name = match path.file_name().and_then(|name| name.to_str()) {
                Some(name) if name.ends_with(".txt") => name.to_string(),
                _ => continue,
            };
            let source = files::read_text(&path)?;
            environment
                .add_template_owned(name.clone(), source)
                .map_err(|error| prompt_error(Some(folder), &name, &error))?;
        }
        Prompts { environment, folder: Some(folder.to_path_buf()) }.checked()
    }

    fn embedded(templates: &[(&'static str, &'static str)]) -> Result<Prompts> {
        let mut environment = environment()?;
        for (name, source) in templates {
            environment.add_template(name, source).map_err(|error| prompt_error(None, name, &error))?;
        }
        Prompts { environment, folder: None }.checked()
    }

    /// Makes sure that no template is missing before any work begins.
    fn checked(self) -> Result<Prompts> {
        for kind in PromptKind::ALL {
            for task in Task::ALL {
                let name = kind.file_name(task);
                if self.environment.get_template(&name).is_err() {
                    let folder = self.folder.clone().unwrap_or_default();
                    return Err(DataError::missing(
                        &folder.join(&name),
                        "this prompt template is missing; a set needs one for each kind and task \
                         (copy crates/mgsd-data/prompts/standard and change it)",
                    ));
                }
            }
        }
        Ok(self)
    }

    /// The planning question about the picture; the content has one `<image>` (appended when the template has none).
    pub fn student(&self, task: Task) -> Result<String> {
        let text = self.render(PromptKind::Student, task, task_only(task))?;
        Ok(with_image_mark(text))
    }

    /// The perception question about the picture; the content has one `<image>`.
    pub fn perception(&self, task: Task) -> Result<String> {
        let text = self.render(PromptKind::Perception, task, task_only(task))?;
        Ok(with_image_mark(text))
    }

    /// The teacher's system prompt; `None` when the set has an empty one.
    pub fn teacher_system(&self, task: Task) -> Result<Option<String>> {
        let text = self.render(PromptKind::TeacherSystem, task, task_only(task))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The teacher's user message.
    pub fn teacher_context(&self, board: &PromptContext, plan: ReferencePlan) -> Result<String> {
        let reference = plan == ReferencePlan::Given;
        self.render_board(PromptKind::TeacherContext, board, reference)
    }

    /// The planning question with the state as text.
    pub fn text(&self, board: &PromptContext) -> Result<String> {
        self.render_board(PromptKind::Text, board, false)
    }

    /// The perception question with the state as text.
    pub fn text_perception(&self, board: &PromptContext) -> Result<String> {
        self.render_board(PromptKind::TextPerception, board, false)
    }

    /// The gold planning response. An error when the board has no plan.
    pub fn plan_answer(&self, board: &PromptContext) -> Result<String> {
        self.render_board(PromptKind::PlanAnswer, board, true)
    }

    /// The gold perception answer.
    pub fn perception_answer(&self, board: &PromptContext) -> Result<String> {
        self.render_board(PromptKind::PerceptionAnswer, board, false)
    }

    /// Renders with everything that is known of the board; `reference` says whether `plan` and `steps` are there.
    fn render_board(&self, kind: PromptKind, board: &PromptContext, reference: bool) -> Result<String> {
        if reference && board.plan.is_none() {
            return Err(DataError::Prompt {
                name: kind.file_name(board.task),
                problem: "the board has no plan to show; leave it out".to_string(),
            });
        }
        let values = if reference {
            context! { reference, ..Value::from(Serde(board)) }
        } else {
            let mut board = board.clone();
            board.plan = None;
            board.steps = None;
            context! { reference, ..Value::from(Serde(&board)) }
        };
        self.render(kind, board.task, values)
    }

    /// Renders and strips white space at both ends.
    fn render(&self, kind: PromptKind, task: Task, values: Value) -> Result<String> {
        let name = kind.file_name(task);
        let folder = self.folder.as_deref();
        let text = self
            .environment
            .get_template(&name)
            .and_then(|template| template.render(values))
            .map_err(|error| prompt_error(folder, &name, &error))?;
        Ok(text.trim().to_string())
    }
}

/// What the prompts with a picture may know.
fn task_only(task: Task) -> Value {
    context! { task => task.to_string() }
}

/// Appends the picture after a blank line when the text does not place it.
fn with_image_mark(text: String) -> String {
    if text.contains(crate::message::IMAGE_MARK) { text } else { format!("{text}\n\n{}", crate::message::IMAGE_MARK) }
}

/// The template engine with our filters, strict about unknown variables.
fn environment() -> Result<Environment<'static>> {
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|error| prompt_error(None, "(syntax)", &error))?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("cell", cell_filter);
    environment.add_filter("cells", cells_filter);
    environment.add_filter("words", words_filter);
    Ok(environment)
}

/// `{row, col}` as "(row,col)".
fn cell_filter(cell: Value) -> Result<String, minijinja::Error> {
    let part = |name: &str| {
        cell.get_attr(name)?.as_usize().ok_or_else(|| {
            minijinja::Error::new(
                ErrorKind::InvalidOperation,
                format!("filter \"cell\" needs something with row and col, and {name} is missing"),
            )
        })
    };
    Ok(format!("({},{})", part("row")?, part("col")?))
}

/// A list of cells as "(0,1); (2,2)", or "none".
fn cells_filter(cells: Value) -> Result<String, minijinja::Error> {
    join(cells, "; ", cell_filter)
}

/// A list of words as "up, right", or "none".
fn words_filter(words: Value) -> Result<String, minijinja::Error> {
    join(words, ", ", |word| Ok(word.to_string()))
}

fn join(
    list: Value,
    between: &str,
    show: impl Fn(Value) -> Result<String, minijinja::Error>,
) -> Result<String, minijinja::Error> {
    if list.kind() != ValueKind::Seq {
        return Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("expected a list, found {}", list.kind()),
        ));
    }
    let shown: Vec<String> = list.try_iter()?.map(show).collect::<Result<_, _>>()?;
    if shown.is_empty() {
        return Ok("none".to_string());
    }
    Ok(shown.join(between))
}

/// The engine's error with the file it is about.
fn prompt_error(folder: Option<&Path>, name: &str, error: &minijinja::Error) -> DataError {
    let place = match folder {
        Some(folder) => folder.join(name).display().to_string(),
        None => name.to_string(),
    };
    // The engine's own text repeats the template and line at its end.
    let line = error.line().map(|line| format!("line {line}: "));
    let detail = error.detail().map(|detail| format!(": {detail}"));
    DataError::Prompt {
        name: place,
        problem: format!("{}{}{}", line.unwrap_or_default(), error.kind(), detail.unwrap_or_default()),
    }
}
