//! Why a plan failed: how its walk ended, and whether the board was misread or the plan was wrong.

use std::fmt;

use mgsd_tasks::score::{BenchmarkCase, benchmark};
use mgsd_tasks::stated::{Difference, Stated};
use mgsd_tasks::{Board, Plan, plan};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rows::{PlanRow, Row};

/// How an answer that does not solve its board ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// No plan can be read, or only stray words and digits of a text that neither marks an answer nor is a plan.
    WrongFormat,
    /// The same, and the answer was cut at its longest.
    CutOff,
    /// The walk met a hole, a wall, the table or the printer.
    HitObstacle,
    /// The walk left the board.
    LeftBoard,
    /// MiniBehaviour: picked up or put down where that is not possible.
    WrongGrip,
    /// The walk came to its end elsewhere, having been somewhere twice.
    Wandered,
    /// The walk came to its end elsewhere.
    StoppedShort,
}

impl Ending {
    /// All, in the order of tables.
    pub const ALL: [Self; 7] = [
        Self::WrongFormat,
        Self::CutOff,
        Self::HitObstacle,
        Self::LeftBoard,
        Self::WrongGrip,
        Self::Wandered,
        Self::StoppedShort,
    ];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::WrongFormat => "wrong_format",
            Self::CutOff => "cut_off",
            Self::HitObstacle => "hit_obstacle",
            Self::LeftBoard => "left_board",
            Self::WrongGrip => "wrong_grip",
            Self::Wandered => "wandered",
            Self::StoppedShort => "stopped_short",
        }
    }

    /// The ending of an answered row; `None` when it solves its board, or has no answer.
    pub fn of(row: &PlanRow) -> Option<Self> {
        if row.failed() || row.flag("success") {
            return None;
        }
        if row.actions.as_ref().is_none_or(Vec::is_empty) || !holds_a_plan(row) {
            return Some(if row.truncated { Self::CutOff } else { Self::WrongFormat });
        }
        Some(match row.invalid_reason().unwrap_or("").split(':').next().unwrap_or("") {
            "fell_into_hole" | "wall_blocked" | "entered_table" | "entered_printer" => Self::HitObstacle,
            "out_of_bounds" => Self::LeftBoard,
            "" if row.flag("fell_into_hole") => Self::HitObstacle,
            "" if walks_in_circles(row) => Self::Wandered,
            "" => Self::StoppedShort,
            _ => Self::WrongGrip,
        })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// Whether the answer marks its plan, or is nothing but a plan. (The benchmark walks whatever looks like an action in
/// the whole text when no answer is marked; how such a walk ends says nothing.) A row without its text is believed.
fn holds_a_plan(row: &PlanRow) -> bool {
    let Some((text, task)) = row.answer_text.as_deref().zip(row.task.parse().ok()) else { return true };
    plan::parse_benchmark(task, text).has_block || text.parse::<Plan>().is_ok()
}

/// Whether the walk was in the same state twice (in MiniBehaviour a state is a cell and what the hands hold).
fn walks_in_circles(row: &PlanRow) -> bool {
    let path = row.eval_result.as_ref().and_then(|verdict| verdict.get("path")).and_then(Value::as_array);
    path.is_some_and(|path| path.iter().enumerate().any(|(at, state)| path[..at].contains(state)))
}

/// Where a failure comes from, as far as the answer lets one see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The plan solves the board that the answer states, which is not the one that is there.
    Perception,
    /// The board is stated right, the plan does not solve it.
    Reasoning,
    /// The board is stated wrong, and the plan does not solve the stated one either.
    Both,
    /// The board is stated wrong and in a way that no plan can be tried on (something missing, or impossible).
    Incoherent,
    /// The answer does not state the board, or the row does not say which board it was.
    Unstated,
}

impl Cause {
    /// All, in the order of tables.
    pub const ALL: [Self; 5] = [Self::Perception, Self::Reasoning, Self::Both, Self::Incoherent, Self::Unstated];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perception => "perception",
            Self::Reasoning => "reasoning",
            Self::Both => "both",
            Self::Incoherent => "incoherent",
            Self::Unstated => "unstated",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// What an answer states of its board, beside what is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// What is stated.
    pub stated: Stated,
    /// What is stated otherwise than it is.
    pub differences: Vec<Difference>,
    /// Whether the answer's plan solves the board that it states; `None` when that board cannot be.
    pub solves_stated: Option<bool>,
}

impl Reading {
    /// Reads an answer about a board; `None` when it states none.
    pub fn of(board: &Board, answer: &str) -> Option<Self> {
        let stated = Stated::read(board.task(), answer)?;
        let differences = stated.differences(board);
        let solves_stated = stated.board().ok().map(|believed| {
            let parsed = plan::parse_benchmark(board.task(), answer);
            benchmark::score_parsed(&BenchmarkCase::from_board(&believed), parsed).success
        });
        Some(Self { stated, differences, solves_stated })
    }

    /// Whether all that is stated is right.
    pub fn is_exact(&self) -> bool {
        self.differences.is_empty()
    }

    /// The cause of a failure with this reading.
    pub fn cause(&self) -> Cause {
        match (self.is_exact(), self.solves_stated) {
            (true, _) => Cause::Reasoning,
            (false, Some(true)) => Cause::Perception,
            (false, Some(false)) => Cause::Both,
            (false, None) => Cause::Incoherent,
        }
    }
}

/// A row's board, when the row carries its key.
pub fn board_of(row: &PlanRow) -> Option<Board> {
    crate::board_key::parse(row.board.as_deref()?).ok()
}

/// What a row's answer states of its board.
pub fn reading_of(row: &PlanRow) -> Option<Reading> {
    Reading::of(&board_of(row)?, row.answer_text.as_deref()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgsd_tasks::frozen_lake;

    fn lake() -> Board {
        frozen_lake::Board::from_rows(&["SFF", "FHF", "FFG"]).expect("board").into()
    }

    fn row(answer: &str) -> PlanRow {
        let board = lake();
        let parsed = plan::parse_benchmark(board.task(), answer);
        PlanRow {
            task: "frozenlake".into(),
            board: Some(board.key()),
            actions: Some(parsed.actions.iter().map(|action| action.word().into()).collect()),
            eval_result: serde_json::to_value(benchmark::score_parsed(&BenchmarkCase::from_board(&board), parsed)).ok(),
            answer_text: Some(answer.into()),
            ..PlanRow::default()
        }
    }

    #[test]
    fn endings_are_told_apart() {
        for (plan, ending) in [
            ("<answer>RRDD</answer>", None),
            ("I do not know.", Some(Ending::WrongFormat)),
            ("<answer>RD</answer>", Some(Ending::HitObstacle)),
            ("<answer>U</answer>", Some(Ending::LeftBoard)),
            ("<answer>RLRL</answer>", Some(Ending::Wandered)),
            ("<answer>RR</answer>", Some(Ending::StoppedShort)),
            ("R, R, D", Some(Ending::StoppedShort)),
            ("1. Go 2 cells right, then down.", Some(Ending::WrongFormat)),
        ] {
            assert_eq!(Ending::of(&row(plan)), ending, "{plan}");
        }
        let cut = PlanRow { truncated: true, ..row("1. The map") };
        assert_eq!(Ending::of(&cut), Some(Ending::CutOff));
        let failed = PlanRow { error: Some("HTTP 500".into()), ..PlanRow::default() };
        assert_eq!(Ending::of(&failed), None);
    }

    #[test]
    fn a_wrong_plan_is_blamed_on_the_eye_or_on_the_head() {
        let answer = |hole: &str, plan: &str| format!("1. 3x3\n2. (0,0)\n3. (2,2)\n4. {hole}\n<answer>{plan}</answer>");
        let cause = |text: &str| reading_of(&row(text)).map(|reading| reading.cause());
        assert_eq!(cause(&answer("(0,1)", "DRRD")), Some(Cause::Perception), "right on the board it believed in");
        assert_eq!(cause(&answer("(1,1)", "DRRD")), Some(Cause::Reasoning), "saw the hole and fell in");
        assert_eq!(cause(&answer("(0,1)", "RD")), Some(Cause::Both));
        assert_eq!(cause(&answer("(0,0)", "RD")), Some(Cause::Incoherent), "a hole under the player");
        assert_eq!(cause("<answer>RD</answer>"), None);
    }
}
