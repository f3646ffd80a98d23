//! The boards of an evaluation, wherever they come from, and the questions asked about them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use mgsd_data::benchmarks;
use mgsd_data::folder::Example;
use mgsd_data::prompts::{PromptContext, Prompts};
use mgsd_tasks::score::BenchmarkCase;
use mgsd_tasks::{Board, Instance, RenderOptions, Task};

use crate::client::{Message, Picture};
use crate::error::{Error, Result};

/// How a board is shown to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Modality {
    /// As a picture.
    Image,
    /// As text.
    Text,
}

impl fmt::Display for Modality {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Image => "image",
            Self::Text => "text",
        })
    }
}

impl FromStr for Modality {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "image" => Ok(Self::Image),
            "text" => Ok(Self::Text),
            _ => Err(Error::Value {
                field: "modality",
                value: text.to_string(),
                expected: "expected image or text".to_string(),
            }),
        }
    }
}

/// A board to ask about.
#[derive(Clone, Debug)]
pub struct EvalCase {
    /// Identity, unique within a run.
    pub case_id: String,
    /// The task.
    pub task: Task,
    /// The benchmark's split, if it has any.
    pub split: Option<String>,
    /// Side of the grid.
    pub level: u32,
    /// Place in the benchmark's file.
    pub dataset_line_index: Option<u64>,
    /// The board.
    pub board: Board,
    /// What scoring a plan needs.
    pub scoring: BenchmarkCase,
    /// The board's picture.
    pub picture: Picture,
}

impl EvalCase {
    /// A board of a task folder; shown by its own picture file, or drawn when it has none.
    pub fn from_example(example: &Example, options: &Arc<RenderOptions>) -> Self {
        let mut case = Self::from_instance(example.id.clone(), &example.instance, options);
        if example.image_path.is_file() {
            case.picture = Picture::File(example.image_path.clone());
        }
        case
    }

    /// A board in memory, drawn when it is shown.
    pub fn from_instance(case_id: String, instance: &Instance, options: &Arc<RenderOptions>) -> Self {
        let (board, options) = (instance.board.clone(), Arc::clone(options));
        Self {
            case_id,
            task: instance.task(),
            split: Some(instance.split.clone()),
            level: instance.level() as u32,
            dataset_line_index: None,
            scoring: BenchmarkCase::from_instance(instance),
            picture: Picture::drawn({
                let board = board.clone();
                move || board.render(&options).map_err(|error| error.to_string())
            }),
            board,
        }
    }

    /// A case of a public benchmark.
    pub fn from_benchmark(case: &Arc<benchmarks::Case>, options: &Arc<RenderOptions>) -> Self {
        let (shown, options) = (Arc::clone(case), Arc::clone(options));
        Self {
            case_id: case.case_id.clone(),
            task: case.task,
            split: Some(case.split.clone()),
            level: case.level as u32,
            dataset_line_index: Some(case.dataset_line_index as u64),
            board: case.board.clone(),
            scoring: case.scoring.clone(),
            picture: Picture::drawn(move || shown.picture(&options).map_err(|error| error.to_string())),
        }
    }

    fn ask(
        &self,
        modality: Modality,
        image: mgsd_data::Result<String>,
        text: mgsd_data::Result<String>,
    ) -> Result<Vec<Message>> {
        let (content, pictures) = match modality {
            Modality::Image => (image, std::slice::from_ref(&self.picture)),
            Modality::Text => (text, [].as_slice()),
        };
        let content =
            content.map_err(|error| Error::Case { case_id: self.case_id.clone(), message: error.to_string() })?;
        Ok(vec![Message::user(&content, pictures)])
    }

    /// "How does one get to the goal?"
    pub fn ask_for_plan(&self, prompts: &Prompts, modality: Modality) -> Result<Vec<Message>> {
        self.ask(modality, prompts.student(self.task), prompts.text(&PromptContext::new(&self.board)))
    }

    /// "What is on the board?"
    pub fn ask_what_is_there(&self, prompts: &Prompts, modality: Modality) -> Result<Vec<Message>> {
        self.ask(modality, prompts.perception(self.task), prompts.text_perception(&PromptContext::new(&self.board)))
    }
}
