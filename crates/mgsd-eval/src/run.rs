//! Asks a client about cases and keeps the rows: appended as they come, resumable, in the order of the cases at the end.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::cases::{EvalCase, Modality};
use crate::client::{Answer, Client, Message, Request};
use crate::error::{Error, Result};
use crate::rows::{Row, RowLog, done, latest};
use crate::settings::Settings;

/// Whether rows that are there already are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Start over.
    #[default]
    Fresh,
    /// Skip cases that were answered, try failed ones again.
    Continue,
}

/// How an evaluation asks.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// How boards are shown.
    pub modality: Modality,
    /// Length at which an answer is cut, in tokens (published: 4096).
    pub max_new_tokens: usize,
    /// 0, the default, takes the likeliest token each time.
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Seed of sampling; a case's own seed also depends on its place.
    pub seed: u64,
    /// Whether rows that are there already are kept.
    pub resume: Resume,
}

impl RunOptions {
    /// Greedy, at most 4096 new tokens, starting over.
    pub fn greedy(modality: Modality) -> Self {
        Self { modality, max_new_tokens: 4096, temperature: 0.0, top_p: 1.0, seed: 0, resume: Resume::Fresh }
    }
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Cases with a row, including those of an earlier run.
    pub done: usize,
    /// Cases in all.
    pub total: usize,
    /// Of these, how many failed.
    pub failed: usize,
}

/// What a run with these options would ask: the requests of the cases that have no row yet. Nothing is written.
pub(crate) fn pending<R: Row>(
    cases: &[EvalCase],
    options: &RunOptions,
    file: &Path,
    question: &dyn Fn(&EvalCase) -> Result<Vec<Message>>,
) -> Result<Vec<Request>> {
    let earlier: Vec<R> = match options.resume {
        Resume::Continue if file.exists() => crate::rows::read(file)?,
        _ => Vec::new(),
    };
    refuse_other_boards(cases, &earlier, file)?;
    Ok(still_open(cases, options, &earlier, question)?.1)
}

/// Rows of a run over other boards are not gone on with: identities such as `maze_level3_0000` are in every folder.
fn refuse_other_boards<R: Row>(cases: &[EvalCase], earlier: &[R], file: &Path) -> Result<()> {
    let cases: HashMap<&str, &EvalCase> = cases.iter().map(|case| (case.case_id.as_str(), case)).collect();
    let other = earlier.iter().find(|row| cases.get(row.case_id()).is_some_and(|case| !row.is_about(case)));
    other.map_or(Ok(()), |row| {
        let message = format!(
            "its row of case {} is about another board than the case of that name now: the run was over other boards; \
             choose another --out or --label, or begin anew without --resume",
            row.case_id()
        );
        Err(Error::Json { path: file.to_path_buf(), message })
    })
}

/// The cases without an answer, by their places, and their requests.
fn still_open<R: Row>(
    cases: &[EvalCase],
    options: &RunOptions,
    earlier: &[R],
    question: &dyn Fn(&EvalCase) -> Result<Vec<Message>>,
) -> Result<(Vec<usize>, Vec<Request>)> {
    let answered = done(earlier);
    let (mut open, mut requests) = (Vec::new(), Vec::new());
    for (index, case) in cases.iter().enumerate() {
        if answered.contains(&case.case_id) {
            continue;
        }
        open.push(index);
        requests.push(Request {
            messages: question(case)?,
            max_new_tokens: options.max_new_tokens,
            temperature: options.temperature,
            top_p: options.top_p,
            seed: options.seed.wrapping_add(index as u64),
        });
    }
    Ok((open, requests))
}

/// A run that asks about a part of the boards of its rows would make its results of that part alone.
fn refuse_fewer_boards<R: Row>(cases: &[EvalCase], rows: &[R], file: &Path) -> Result<()> {
    let asked: HashSet<&str> = cases.iter().map(|case| case.case_id.as_str()).collect();
    let Some(other) = rows.iter().find(|row| !asked.contains(row.case_id())) else { return Ok(()) };
    let message = format!(
        "holds a row of {}, which is not among the boards of this run: resume with the same boards (--tasks, --levels and so \
         on) or more, or choose another --out or --label",
        other.case_id()
    );
    Err(Error::Json { path: file.to_path_buf(), message })
}

/// Removes what an earlier run made of its rows: were this one stopped, it would be taken for what its rows say.
fn forget_results(rows: &Path) -> Result<()> {
    for end in ["summary.json", "analysis.json"] {
        let path = rows.with_extension(end);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("removing", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Asks about every case that has no row yet. `file` is where rows are kept; without it they live in memory only.
/// Returns one row a case, in the order of the cases; none for a case that the client left unasked.
/// How it asks is kept beside the file.
pub(crate) fn run<R: Row + Clone>(
    client: &mut dyn Client,
    cases: &[EvalCase],
    options: &RunOptions,
    file: Option<&Path>,
    question: &dyn Fn(&EvalCase) -> Result<Vec<Message>>,
    row: &dyn Fn(&EvalCase, Answer) -> R,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<R>> {
    let (mut log, earlier) = match (file, options.resume) {
        (None, _) => (None, Vec::new()),
        (Some(file), Resume::Fresh) => (Some(RowLog::create(file)?), Vec::new()),
        (Some(file), Resume::Continue) => {
            let (log, rows) = RowLog::resume::<R>(file)?;
            refuse_other_boards(cases, &rows, file)?;
            refuse_fewer_boards(cases, &rows, file)?;
            (Some(log), rows)
        }
    };
    // Only who has the file says what its rows are.
    if let Some(file) = file {
        let settings = Settings::new(client.name(), options, question)?;
        settings.keep(&file.with_extension("run.json"), options.resume)?;
    }
    let (open, requests) = still_open(cases, options, &earlier, question)?;
    file.map_or(Ok(()), forget_results)?;
    let mut state = Progress { done: cases.len() - open.len(), total: cases.len(), failed: 0 };
    progress(state);
    let mut rows = earlier;
    client.answer(&requests, &mut |at, answer| {
        let row = row(&cases[open[at]], answer);
        if let Some(log) = &mut log {
            log.append(&row)?;
        }
        state.done += 1;
        state.failed += usize::from(row.failed());
        rows.push(row);
        progress(state);
        Ok(())
    })?;
    if let Some(log) = &mut log {
        log.sync()?;
    }
    let mut by_case: HashMap<String, R> =
        latest(rows).into_iter().map(|row| (row.case_id().to_string(), row)).collect();
    Ok(cases.iter().filter_map(|case| by_case.remove(&case.case_id)).collect())
}
