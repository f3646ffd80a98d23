//! Planning: does the model find its way? Scored by the benchmark's rules.

use std::path::{Path, PathBuf};

use mgsd_data::prompts::Prompts;
use mgsd_tasks::score::benchmark;

use crate::analysis;
use crate::cases::EvalCase;
use crate::client::{Answer, Client, Request};
use crate::error::{Error, Result};
use crate::json;
use crate::perception::PERCEPTION;
use crate::rows::PlanRow;
use crate::run::{self, Progress, RunOptions};
use crate::summary::{self, Experiment, Summary};

/// A planning run that is done.
#[derive(Clone, Debug)]
pub struct PlanRun {
    /// One row a case, in the order of the cases.
    pub rows: Vec<PlanRow>,
    /// Their summary.
    pub summary: Summary,
}

/// Asks for plans and scores them. `file` is where rows are kept; without it they live in memory only.
pub fn run(
    client: &mut dyn Client,
    cases: &[EvalCase],
    prompts: &Prompts,
    options: &RunOptions,
    file: Option<&Path>,
    progress: &mut dyn FnMut(Progress),
) -> Result<PlanRun> {
    let rows = run::run(
        client,
        cases,
        options,
        file,
        &|case| case.ask_for_plan(prompts, options.modality),
        &|case, answer| score(case, answer, options),
        progress,
    )?;
    let summary = summary::summarise(&rows);
    Ok(PlanRun { rows, summary })
}

/// Like [`run()`], with rows in `<folder>/<label>_<modality>.jsonl`, and beside them the summary, named so that
/// [`crate::gap::read_folder`] finds it, and the analysis ([`crate::analysis`]). Returns the summary's path too.
pub fn run_to_folder(
    client: &mut dyn Client,
    label: &str,
    cases: &[EvalCase],
    prompts: &Prompts,
    options: &RunOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PlanRun, PathBuf)> {
    // Files of perception would have the same names.
    if label.ends_with(PERCEPTION) {
        let expected = format!("a name that does not end in {PERCEPTION}, as files of `mgsd eval perception` do");
        return Err(Error::Value { field: "label", value: label.to_string(), expected });
    }
    let stem = stem(label, options);
    let output = format!("{stem}.jsonl");
    let mut done = run(client, cases, prompts, options, Some(&folder.join(&output)), progress)?;
    done.summary.experiment = Some(Experiment {
        model_label: label.to_string(),
        input_modality: options.modality.to_string(),
        model: client.name(),
        output,
    });
    let path = folder.join(format!("{stem}.summary.json"));
    json::write(&path, &done.summary)?;
    json::write(&folder.join(format!("{stem}.analysis.json")), &analysis::of_plans(&done.rows))?;
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
    run::pending::<PlanRow>(cases, options, &file, &|case| case.ask_for_plan(prompts, options.modality))
}

fn stem(label: &str, options: &RunOptions) -> String {
    format!("{label}_{}", options.modality)
}

/// The row of an answer.
fn score(case: &EvalCase, answer: Answer, options: &RunOptions) -> PlanRow {
    let mut row = PlanRow {
        case_id: case.case_id.clone(),
        task: case.task.to_string(),
        split: case.split.clone(),
        level: Some(case.level),
        dataset_line_index: case.dataset_line_index,
        modality: Some(options.modality.to_string()),
        board: Some(case.board.key()),
        prompt_tokens: answer.prompt_tokens,
        answer_tokens: answer.tokens,
        truncated: answer.truncated,
        error: answer.error,
        ..PlanRow::default()
    };
    if row.error.is_none() {
        let parsed = mgsd_tasks::plan::parse_benchmark(case.task, &answer.text);
        row.actions = Some(parsed.actions.iter().map(|action| action.word().to_string()).collect());
        let verdict = benchmark::score_parsed(&case.scoring, parsed);
        row.eval_result = serde_json::to_value(&verdict).ok();
        row.answer_text = Some(answer.text);
    }
    row
}
