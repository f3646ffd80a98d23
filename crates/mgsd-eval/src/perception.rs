//! Perception: does the model read the board? Exact match by question and for the whole answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mgsd_data::prompts::Prompts;
use serde::{Deserialize, Serialize};

use crate::analysis;
use crate::cases::{EvalCase, Modality};
use crate::client::{Answer, Client, Request};
use crate::error::Result;
use crate::json;
use crate::rows::Row;
use crate::run::{self, Progress, RunOptions};
use crate::summary::LevelKey;

/// One answered perception case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerceptionRow {
    /// The case's identity.
    pub case_id: String,
    /// The record's task, such as `maze_perception_all`.
    pub task: String,
    /// Side of the grid.
    #[serde(default)]
    pub level: Option<u32>,
    /// `image` or `text`: how the board was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modality: Option<String>,
    /// The model's whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_text: Option<String>,
    /// The answer that scores full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<String>,
    /// Each question in its order: read exactly?
    #[serde(default)]
    pub scores: IndexMap<String, bool>,
    /// Tokens in the question, pictures included, where the client tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<u64>,
    /// Whether the answer was cut at the token limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Why there is no answer; null when there is one.
    #[serde(default)]
    pub error: Option<String>,
}

impl PerceptionRow {
    /// Whether every question was read exactly.
    pub fn all_exact_match(&self) -> bool {
        !self.scores.is_empty() && self.scores.values().all(|exact| *exact)
    }
}

impl Row for PerceptionRow {
    fn case_id(&self) -> &str {
        &self.case_id
    }
    fn failed(&self) -> bool {
        self.error.as_deref().is_some_and(|error| !error.is_empty())
    }
    fn is_about(&self, case: &EvalCase) -> bool {
        self.gold.as_ref().is_none_or(|gold| *gold == mgsd_tasks::perception::gold(&case.board))
    }
}

/// Counts of a group of answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Answers asked for.
    pub total: u64,
    /// Of these, how many failed without an answer; absent when none did. They count as not read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors: u64,
    /// Answers in which every question was read exactly.
    pub all_exact_match: u64,
    /// By question, in the order of the questions.
    pub questions: IndexMap<String, u64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Counts {
    fn add(&mut self, row: &PerceptionRow) {
        self.total += 1;
        self.errors += u64::from(row.failed());
        self.all_exact_match += u64::from(row.all_exact_match());
        for (question, exact) in &row.scores {
            *self.questions.entry(question.clone()).or_default() += u64::from(*exact);
        }
    }

    /// The share of whole answers read exactly.
    pub fn exact_rate(&self) -> f64 {
        self.all_exact_match as f64 / self.total.max(1) as f64
    }
}

/// Counts of a task, with its levels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskCounts {
    /// All levels together.
    #[serde(flatten)]
    pub counts: Counts,
    /// Each level.
    pub levels: BTreeMap<LevelKey, Counts>,
}

/// The summary of one perception run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerceptionSummary {
    /// All answers.
    pub total: u64,
    /// By task.
    pub tasks: BTreeMap<String, TaskCounts>,
}

impl PerceptionSummary {
    /// The mean over tasks of the share of whole answers read exactly; 0 without tasks.
    pub fn macro_exact_rate(&self) -> f64 {
        let rates = self.tasks.values().map(|task| task.counts.exact_rate());
        rates.fold(0.0, |sum, rate| sum + rate) / self.tasks.len().max(1) as f64
    }
}

/// Counts the rows.
pub fn summarise<'a>(rows: impl IntoIterator<Item = &'a PerceptionRow>) -> PerceptionSummary {
    let mut summary = PerceptionSummary::default();
    for row in rows {
        summary.total += 1;
        let task = summary.tasks.entry(row.task.clone()).or_default();
        task.counts.add(row);
        task.levels.entry(row.level.into()).or_default().add(row);
    }
    summary
}

/// A perception run that is done.
#[derive(Clone, Debug)]
pub struct PerceptionRun {
    /// One row a case, in the order of the cases.
    pub rows: Vec<PerceptionRow>,
    /// Their summary.
    pub summary: PerceptionSummary,
}

/// Asks what is on the boards and scores the answers. `file` is where rows are kept; without it they live in memory only.
pub fn run(
    client: &mut dyn Client,
    cases: &[EvalCase],
    prompts: &Prompts,
    options: &RunOptions,
    file: Option<&Path>,
    progress: &mut dyn FnMut(Progress),
) -> Result<PerceptionRun> {
    let rows = run::run(
        client,
        cases,
        options,
        file,
        &|case| case.ask_what_is_there(prompts, options.modality),
        &|case, answer| score(case, answer, options),
        progress,
    )?;
    let summary = summarise(&rows);
    Ok(PerceptionRun { rows, summary })
}

/// Like [`run()`], with rows in `<folder>/<label>_perception.jsonl` (`_perception_text.jsonl` when boards are shown as
/// text), and the summary and the analysis beside them. Returns the summary's path too.
pub fn run_to_folder(
    client: &mut dyn Client,
    label: &str,
    cases: &[EvalCase],
    prompts: &Prompts,
    options: &RunOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PerceptionRun, PathBuf)> {
    let stem = stem(label, options);
    let rows = folder.join(format!("{stem}.jsonl"));
    let done = run(client, cases, prompts, options, Some(&rows), progress)?;
    let path = folder.join(format!("{stem}.summary.json"));
    json::write(&path, &done.summary)?;
    json::write(&folder.join(format!("{stem}.analysis.json")), &analysis::of_perception(&done.rows))?;
    Ok((done, path))
}

/// What [`run_to_folder`] would ask, without asking or writing.
///
/// # Errors
/// When rows that are there already cannot be read, or a prompt cannot be filled in.
pub fn pending(
    label: &str,
    cases: &[EvalCase],
    prompts: &Prompts,
    options: &RunOptions,
    folder: &Path,
) -> Result<Vec<Request>> {
    let file = folder.join(format!("{}.jsonl", stem(label, options)));
    run::pending::<PerceptionRow>(cases, options, &file, &|case| case.ask_what_is_there(prompts, options.modality))
}

/// What ends the names of files of perception from text, before their extension. They end like those of plans, too.
pub(crate) const PERCEPTION_FROM_TEXT: &str = "_perception_text";
/// The same from pictures.
pub(crate) const PERCEPTION: &str = "_perception";

fn stem(label: &str, options: &RunOptions) -> String {
    match options.modality {
        Modality::Image => format!("{label}{PERCEPTION}"),
        Modality::Text => format!("{label}{PERCEPTION_FROM_TEXT}"),
    }
}

/// The row of an answer.
fn score(case: &EvalCase, answer: Answer, options: &RunOptions) -> PerceptionRow {
    let mut row = PerceptionRow {
        case_id: case.case_id.clone(),
        task: format!("{}_perception_all", case.task),
        level: Some(case.level),
        modality: Some(options.modality.to_string()),
        gold: Some(mgsd_tasks::perception::gold(&case.board)),
        prompt_tokens: answer.prompt_tokens,
        answer_tokens: answer.tokens,
        truncated: answer.truncated,
        error: answer.error,
        ..PerceptionRow::default()
    };
    if row.error.is_none() {
        let scores = mgsd_tasks::perception::score(&case.board, &answer.text);
        row.scores = scores.questions.into_iter().map(|(question, exact)| (question.to_string(), exact)).collect();
        row.answer_text = Some(answer.text);
    }
    row
}
