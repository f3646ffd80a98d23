//! Every answer of every planning run, as small as it can be, for the part of the page that a reader filters. Boards
//! travel as their keys and are drawn by the page when they come into view.

use std::collections::{BTreeMap, HashMap};

use mgsd_tasks::Board;
use serde::{Deserialize, Serialize};

use super::data::{Outcome, verdict};
use crate::analysis::{self, PlanAnalysis, shortest};
use crate::board_key;
use crate::failures::{Cause, Ending, Reading};
use crate::rows::{PlanRow, Row};

/// Planning runs and their answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explorer {
    /// The runs.
    pub evaluations: Vec<Evaluation>,
    /// The boards that any of them was asked about.
    pub boards: Vec<ShownBoard>,
    /// The answers.
    pub answers: Vec<ShownAnswer>,
}

/// A planning run: one model, one modality.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What the page calls it.
    pub label: String,
    /// `image` or `text`.
    pub modality: String,
    /// Its numbers.
    pub analysis: PlanAnalysis,
}

/// A board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownBoard {
    /// The case's identity.
    pub case_id: String,
    /// Task.
    pub task: String,
    /// Side of the grid.
    pub level: u32,
    /// Its key; empty when no row tells it.
    pub key: String,
    /// Steps of the shortest plan.
    pub shortest: Option<u64>,
}

/// How the last step of a walk went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastStep {
    /// As it should.
    #[default]
    Done,
    /// Something was in the way: the walk stays where it was.
    Blocked,
    /// It led into a hole.
    Fell,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownAnswer {
    /// Place of the run.
    pub evaluation: usize,
    /// Place of the board.
    pub board: usize,
    /// How it ended.
    pub outcome: Outcome,
    /// How it failed, if it did.
    pub ending: Option<Ending>,
    /// Why, as far as one can tell.
    pub cause: Option<Cause>,
    /// The ending in words.
    pub verdict: String,
    /// The plan as it was walked: L, D, R, U, P (pick), O (drop).
    pub steps: String,
    /// How its last step went.
    pub last: LastStep,
    /// Actions in the plan, walked or not.
    pub planned: usize,
    /// The answer's text, its middle left out when it is long.
    pub text: String,
    /// Key of the board that the answer states, when that is another one.
    pub stated: Option<String>,
    /// What is stated otherwise than it is: question, what is stated, what is there.
    pub misread: Vec<[String; 3]>,
}

/// Characters kept of an answer's beginning and of its end.
const KEPT: [usize; 2] = [1200, 1800];

impl Explorer {
    /// Adds a run. `boards` helps where rows do not carry their boards.
    pub fn add(&mut self, label: &str, modality: &str, rows: &[PlanRow], boards: &BTreeMap<String, Board>) {
        if rows.is_empty() {
            return;
        }
        let with_boards: Vec<PlanRow> = rows
            .iter()
            .map(|row| {
                let known = || boards.get(&row.case_id).map(Board::key);
                PlanRow { board: row.board.clone().or_else(known), ..row.clone() }
            })
            .collect();
        let evaluation = self.evaluations.len();
        self.evaluations.push(Evaluation {
            label: label.to_string(),
            modality: modality.to_string(),
            analysis: analysis::of_plans(&with_boards),
        });
        let mut places: HashMap<(String, String), usize> = self
            .boards
            .iter()
            .enumerate()
            .map(|(place, board)| ((board.case_id.clone(), board.key.clone()), place))
            .collect();
        for row in with_boards.iter().filter(|row| !row.failed()) {
            let key = row.board.clone().unwrap_or_default();
            let place = *places.entry((row.case_id.clone(), key.clone())).or_insert_with(|| {
                self.boards.push(ShownBoard {
                    case_id: row.case_id.clone(),
                    task: row.task.clone(),
                    level: row.level.unwrap_or(0),
                    key,
                    shortest: shortest(row),
                });
                self.boards.len() - 1
            });
            self.answers.push(shown(row, evaluation, place));
        }
    }
}

fn shown(row: &PlanRow, evaluation: usize, board: usize) -> ShownAnswer {
    let text = row.answer_text.as_deref().unwrap_or("");
    let there = row.board.as_deref().and_then(|key| board_key::parse(key).ok());
    let reading = there.as_ref().and_then(|board| Reading::of(board, text));
    let ending = Ending::of(row);
    let stated = reading.as_ref().filter(|reading| !reading.is_exact());
    let walked = row.eval_result.as_ref().and_then(|verdict| verdict.get("steps_executed")?.as_u64());
    let actions = row.actions.as_deref().unwrap_or(&[]);
    let letter = |action: &String| match action.as_str() {
        "left" => 'L',
        "down" => 'D',
        "right" => 'R',
        "up" => 'U',
        "pick" => 'P',
        _ => 'O',
    };
    let reason = row.invalid_reason().unwrap_or("");
    ShownAnswer {
        evaluation,
        board,
        outcome: Outcome::of(row),
        ending,
        cause: ending.map(|_| reading.as_ref().map_or(Cause::Unstated, Reading::cause)),
        verdict: match ending {
            // The walk over stray words and digits is the benchmark's, and not what the answer means.
            Some(Ending::WrongFormat | Ending::CutOff) if !actions.is_empty() => {
                format!("no plan is marked; read anyhow: {}", verdict(row))
            }
            _ => verdict(row),
        },
        steps: actions.iter().take(walked.unwrap_or(actions.len() as u64) as usize).map(letter).collect(),
        last: match reason {
            _ if reason.starts_with("fell") || row.flag("fell_into_hole") => LastStep::Fell,
            "" => LastStep::Done,
            _ => LastStep::Blocked,
        },
        planned: actions.len(),
        text: clipped(text),
        stated: stated.and_then(|reading| reading.stated.board().ok()).map(|board| board.key()),
        misread: stated.map_or_else(Vec::new, |reading| {
            let differences = reading.differences.iter();
            differences.map(|wrong| [wrong.question.to_string(), wrong.stated.clone(), wrong.there.clone()]).collect()
        }),
    }
}

/// A long text without its middle.
fn clipped(text: &str) -> String {
    let count = text.chars().count();
    if count <= KEPT[0] + KEPT[1] + 40 {
        return text.to_string();
    }
    let start: String = text.chars().take(KEPT[0]).collect();
    let end: String = text.chars().skip(count - KEPT[1]).collect();
    format!("{start}\n[... {} characters left out ...]\n{end}", count - KEPT[0] - KEPT[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_keeps_its_ends_and_a_short_one_everything() {
        assert_eq!(clipped("short"), "short");
        let long = format!("begin{}end", "\u{e4}".repeat(5000));
        let cut = clipped(&long);
        assert!(cut.starts_with("begin") && cut.ends_with("end") && cut.contains("2008 characters left out"), "{cut}");
    }

    #[test]
    fn runs_over_the_same_boards_share_them() {
        let row = PlanRow {
            case_id: "frozenlake_1".into(),
            task: "frozenlake".into(),
            board: Some("frozenlake:SFF/FHF/FFG".into()),
            actions: Some(["right", "down", "down"].map(String::from).to_vec()),
            answer_text: Some("1. 3x3\n2. (0,0)\n3. (2,2)\n4. none\n<answer>RDD</answer>".into()),
            eval_result: Some(serde_json::json!({
                "success": false, "steps_executed": 2, "invalid_reason": "fell_into_hole", "fell_into_hole": true,
            })),
            ..PlanRow::default()
        };
        let mut explorer = Explorer::default();
        explorer.add("a", "image", std::slice::from_ref(&row), &BTreeMap::new());
        explorer.add("b", "image", &[PlanRow { error: Some("HTTP 500".into()), ..row.clone() }, row], &BTreeMap::new());
        assert_eq!((explorer.evaluations.len(), explorer.boards.len(), explorer.answers.len()), (2, 1, 2));
        let answer = &explorer.answers[1];
        assert_eq!((answer.steps.as_str(), answer.last, answer.planned), ("RD", LastStep::Fell, 3));
        assert_eq!(answer.stated.as_deref(), Some("frozenlake:SFF/FFF/FFG"));
        assert_eq!(answer.cause, Some(Cause::Both), "three steps do not solve the stated board either");
    }
}
