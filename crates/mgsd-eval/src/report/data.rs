//! What a report shows, as plain data.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use super::explorer::Explorer;
use crate::demo::{MACRO, short_task};
use crate::perception::{self, PerceptionRow};
use crate::rows::{PlanRow, Row};
use crate::stats::{self, Estimate};

/// Resamples behind each bootstrap interval of a report.
const RESAMPLES: usize = 2000;

/// Everything on the page, in the order of the page. Empty parts are left out of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// The page's title.
    pub title: String,
    /// One or two sentences that say what was done and what came out.
    pub lead: String,
    /// Small facts under the lead: boards, model size, seed, seconds, memory.
    pub facts: Vec<Fact>,
    /// The numbers to remember.
    pub headlines: Vec<Headline>,
    /// The model after each stage, first to last.
    pub stages: Vec<Stage>,
    /// Training curves.
    pub curves: Vec<Curve>,
    /// A board of each task after each stage, with the model's plan drawn on it.
    pub gallery: Vec<BoardCard>,
    /// Every answer, for the part of the page with filters.
    #[serde(default)]
    pub explorer: Explorer,
    /// How to make this page again, and anything else that belongs at its end.
    pub footer: Vec<String>,
}

/// A name and what it amounts to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "label and value say it")]
pub struct Fact {
    pub label: String,
    pub value: String,
}

/// A number to remember.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Headline {
    /// What it measures.
    pub label: String,
    /// The number with its unit, such as `91 %`.
    pub value: String,
    /// Its uncertainty or the number it is to be read beside.
    pub note: String,
}

/// A model after a stage of training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// `base`, `sft`, `mgsd`, or a run's name.
    pub key: String,
    /// What the page calls it.
    pub label: String,
    /// What happened in this stage, in half a sentence.
    pub note: String,
    /// Planning by task, and `macro`.
    pub planning: Vec<PlanningScore>,
    /// Perception by task.
    pub perception: Vec<PerceptionScore>,
}

/// Planning of one task (or the mean over tasks, `macro`) from pictures and from text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanningScore {
    /// Task, or `macro`.
    pub task: String,
    /// Boards.
    pub cases: u64,
    /// From the picture, if measured.
    pub image: Option<Rates>,
    /// From the text, if measured.
    pub text: Option<Rates>,
    /// Text minus picture over the same boards, if both were measured.
    pub gap: Option<Estimate>,
}

/// Planning rates in one modality.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Boards solved.
    pub accuracy: Estimate,
    /// Boards solved in as few steps as possible.
    pub optimal: Estimate,
    /// Answers that held a plan.
    pub parse_rate: f64,
}

/// Perception of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerceptionScore {
    /// Task.
    pub task: String,
    /// Answers.
    pub cases: u64,
    /// Whole answers read exactly.
    pub all_exact: Estimate,
    /// By question, in their order: name and share read exactly.
    pub questions: Vec<(String, f64)>,
}

/// A chart of one quantity over training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What the chart shows.
    pub title: String,
    /// Quantity and unit of the vertical axis.
    pub y_label: String,
    /// Quantity of the horizontal axis.
    pub x_label: String,
    /// Whether the vertical axis holds shares, to be written as per cent from 0 to 100.
    pub percent: bool,
    /// Whether the vertical axis is logarithmic; values at or below 0 are then left out.
    pub log_y: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// A line of a chart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub label: String,
    /// (x, y) in the order of x.
    pub points: Vec<[f64; 2]>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Solved in as few steps as possible.
    Optimal,
    /// Solved with steps to spare.
    Solved,
    /// A plan that does not solve the board.
    Failed,
    /// No plan could be read from the answer.
    Unparsed,
}

/// A board with an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoardCard {
    /// The case's identity: cards of the same board share it.
    pub case_id: String,
    /// Task.
    pub task: String,
    /// The stage's key.
    pub stage: String,
    /// Side of the grid.
    pub level: u32,
    /// `image` or `text`: how the board was shown.
    pub modality: String,
    /// How the answer ended.
    pub outcome: Outcome,
    /// The ending in words, such as `hit a wall at step 3`.
    pub verdict: String,
    /// The model's plan, such as `["right", "down"]`.
    pub actions: Vec<String>,
    /// Steps of the shortest plan.
    pub shortest: Option<u64>,
    /// The model's whole answer.
    pub answer: String,
    /// The board with the plan drawn on it, as a data URL (see [`png_data_url`]).
    pub picture: String,
}

/// PNG bytes as a URL that needs no file.
pub fn png_data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png))
}

impl Outcome {
    /// The outcome that a planning row records.
    pub fn of(row: &PlanRow) -> Self {
        if row.flag("optimal_success") {
            Self::Optimal
        } else if row.flag("success") {
            Self::Solved
        } else if row.actions.as_ref().is_some_and(|actions| !actions.is_empty()) {
            Self::Failed
        } else {
            Self::Unparsed
        }
    }
}

/// What a planning row's verdict says, in words.
pub fn verdict(row: &PlanRow) -> String {
    let number = |name: &str| row.eval_result.as_ref()?.get(name)?.as_u64();
    let step = number("steps_executed");
    let at_step = step.map(|step| format!(" at step {}", step.max(1))).unwrap_or_default();
    match Outcome::of(row) {
        Outcome::Optimal => "shortest plan".to_string(),
        Outcome::Solved => match (step, number("expected_action_count")) {
            (Some(steps), Some(shortest)) if steps > shortest => match steps - shortest {
                1 => "solved, one step longer".to_string(),
                extra => format!("solved, {extra} steps longer"),
            },
            _ => "solved".to_string(),
        },
        Outcome::Unparsed => "no plan in the answer".to_string(),
        Outcome::Failed => match row.invalid_reason().unwrap_or("").split(':').next().unwrap_or("") {
            "fell_into_hole" => format!("fell into a hole{at_step}"),
            "wall_blocked" => format!("ran into a wall{at_step}"),
            "out_of_bounds" => format!("left the board{at_step}"),
            "entered_table" => format!("walked into the table{at_step}"),
            "entered_printer" => format!("walked into the printer{at_step}"),
            "pick_not_adjacent_to_printer" => format!("reached for a printer that was not there{at_step}"),
            "drop_not_adjacent_to_table" => format!("let go away from the table{at_step}"),
            "drop_without_printer" => format!("dropped nothing{at_step}"),
            "pick_while_carrying" => format!("picked up twice{at_step}"),
            "" if row.flag("fell_into_hole") => format!("fell into a hole{at_step}"),
            "" => "stopped before the goal".to_string(),
            other => other.replace('_', " "),
        },
    }
}

/// Hits of the answered rows by task.
fn by_task(rows: &[PlanRow]) -> BTreeMap<&str, Vec<&PlanRow>> {
    let mut tasks = BTreeMap::<&str, Vec<&PlanRow>>::new();
    for row in rows.iter().filter(|row| !row.failed()) {
        tasks.entry(&row.task).or_default().push(row);
    }
    // As in `analysis`: in an order that does not depend on which answer came first.
    tasks.values_mut().for_each(|rows| rows.sort_by_key(|row| row.case_id()));
    tasks
}

fn hit(row: &PlanRow, name: &str) -> f64 {
    f64::from(u8::from(row.flag(name)))
}

fn task_rates(rows: &[&PlanRow]) -> Rates {
    let count = |name: &str| rows.iter().filter(|row| row.flag(name)).count() as u64;
    let cases = rows.len() as u64;
    Rates {
        accuracy: stats::rate(count("success"), cases),
        optimal: stats::rate(count("optimal_success"), cases),
        parse_rate: count("parse_success") as f64 / cases.max(1) as f64,
    }
}

fn macro_rates(tasks: &BTreeMap<&str, Vec<&PlanRow>>, seed: u64) -> Option<Rates> {
    let column = |name: &str| -> Vec<Vec<[f64; 1]>> {
        tasks.values().map(|rows| rows.iter().map(|row| [hit(row, name)]).collect()).collect()
    };
    let estimate = |name: &str| stats::macro_rate(&column(name), RESAMPLES, seed);
    let parse_rate = estimate("parse_success")?.value;
    Some(Rates { accuracy: estimate("success")?, optimal: estimate("optimal_success")?, parse_rate })
}

impl Stage {
    /// Scores a stage from its rows; empty slices for what was not measured. `seed` is that of the bootstrap.
    pub fn from_rows(
        [key, label, note]: [&str; 3],
        image: &[PlanRow],
        text: &[PlanRow],
        perception: &[PerceptionRow],
        seed: u64,
    ) -> Self {
        let (shown, told) = (by_task(image), by_task(text));
        let mut planning = vec![PlanningScore {
            task: MACRO.to_string(),
            cases: shown.values().map(Vec::len).sum::<usize>().max(told.values().map(Vec::len).sum()) as u64,
            image: macro_rates(&shown, seed),
            text: macro_rates(&told, seed),
            gap: crate::gap::paired_gap(text, image, RESAMPLES, seed),
        }];
        let tasks: std::collections::BTreeSet<&str> = shown.keys().chain(told.keys()).copied().collect();
        for task in tasks {
            let only =
                |rows: &[PlanRow]| -> Vec<PlanRow> { rows.iter().filter(|row| row.task == task).cloned().collect() };
            planning.push(PlanningScore {
                task: task.to_string(),
                cases: shown.get(task).map_or(0, Vec::len).max(told.get(task).map_or(0, Vec::len)) as u64,
                image: shown.get(task).map(|rows| task_rates(rows)),
                text: told.get(task).map(|rows| task_rates(rows)),
                gap: crate::gap::paired_gap(&only(text), &only(image), RESAMPLES, seed),
            });
        }
        let perception = perception::summarise(perception)
            .tasks
            .into_iter()
            // Where nothing was answered nothing was read wrongly.
            .filter(|(_, counted)| counted.counts.total > counted.counts.errors)
            .map(|(task, counted)| {
                let counts = counted.counts;
                let share = |count: u64| count as f64 / counts.total.max(1) as f64;
                PerceptionScore {
                    task: short_task(&task).to_string(),
                    cases: counts.total,
                    all_exact: stats::rate(counts.all_exact_match, counts.total),
                    questions: counts.questions.iter().map(|(name, count)| (name.clone(), share(*count))).collect(),
                }
            })
            .collect();
        Self { key: key.to_string(), label: label.to_string(), note: note.to_string(), planning, perception }
    }

    /// The score of a task, or of `macro`.
    pub fn planning_of(&self, task: &str) -> Option<&PlanningScore> {
        self.planning.iter().find(|score| score.task == task)
    }
}
