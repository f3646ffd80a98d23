//! The published benchmark's evaluation.

use crate::plan::{Parsed, parse_benchmark};
use crate::{Action, Board, Direction, Instance, Plan, Position};
use crate::{frozen_lake, maze, mini_behaviour};
use serde::{Serialize, Serializer};
use std::fmt;

/// What a response is scored against: a board read once, and what its record says.
#[derive(Clone, Debug)]
pub struct BenchmarkCase {
    /// The board.
    pub board: Board,
    /// Length of the shortest plan, if the record says it; without it no plan counts as optimal.
    pub expected_action_count: Option<usize>,
    /// MiniBehaviour: cells from which the record allows PICK.
    pub printer_neighbors: Vec<Position>,
    /// MiniBehaviour: cells from which the record allows DROP.
    pub table_neighbors: Vec<Position>,
}

impl BenchmarkCase {
    /// The case of a board, its neighbours and shortest plan worked out from it.
    pub fn from_board(board: &Board) -> Self {
        Self::new(board, board.solve().map(|plan| plan.len()))
    }

    /// The case of an instance: as long as its reference plan is expected.
    pub fn from_instance(instance: &Instance) -> Self {
        Self::new(&instance.board, Some(instance.plan.len()))
    }

    fn new(board: &Board, expected_action_count: Option<usize>) -> Self {
        let (printer_neighbors, table_neighbors) = match board {
            Board::MiniBehaviour(room) => (room.printer_neighbors(), room.table_neighbors()),
            _ => Default::default(),
        };
        Self { board: board.clone(), expected_action_count, printer_neighbors, table_neighbors }
    }
}

/// Why a plan stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidReason {
    /// The move leaves the board.
    OutOfBounds(Direction),
    /// FrozenLake: the cell is a hole.
    FellIntoHole,
    /// Maze: a wall is in the way.
    WallBlocked(Direction),
    /// MiniBehaviour: the cell belongs to the table.
    EnteredTable,
    /// MiniBehaviour: the printer stands there.
    EnteredPrinter,
    /// MiniBehaviour: PICK away from the printer.
    PickNotAdjacentToPrinter,
    /// MiniBehaviour: PICK with full hands.
    PickWhileCarrying,
    /// MiniBehaviour: DROP with empty hands.
    DropWithoutPrinter,
    /// MiniBehaviour: DROP away from the table.
    DropNotAdjacentToTable,
}

impl InvalidReason {
    /// Whether summaries count it as an illegal movement: a hole, a wall, the table.
    pub fn is_illegal_movement(self) -> bool {
        use InvalidReason::*;
        matches!(self, FellIntoHole | WallBlocked(_) | EnteredTable)
    }
}

impl fmt::Display for InvalidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidReason::OutOfBounds(direction) => write!(f, "out_of_bounds:{direction}"),
            InvalidReason::FellIntoHole => f.write_str("fell_into_hole"),
            InvalidReason::WallBlocked(direction) => write!(f, "wall_blocked:{direction}"),
            InvalidReason::EnteredTable => f.write_str("entered_table"),
            InvalidReason::EnteredPrinter => f.write_str("entered_printer"),
            InvalidReason::PickNotAdjacentToPrinter => f.write_str("pick_not_adjacent_to_printer"),
            InvalidReason::PickWhileCarrying => f.write_str("pick_while_carrying"),
            InvalidReason::DropWithoutPrinter => f.write_str("drop_without_printer"),
            InvalidReason::DropNotAdjacentToTable => f.write_str("drop_not_adjacent_to_table"),
        }
    }
}

impl Serialize for InvalidReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The states a plan went through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Path {
    /// FrozenLake, Maze: cells.
    Cells(Vec<Position>),
    /// MiniBehaviour: cells, and whether the printer is in hand.
    States(Vec<(Position, bool)>),
}

impl Path {
    /// The cells alone.
    pub fn cells(&self) -> Vec<Position> {
        match self {
            Path::Cells(cells) => cells.clone(),
            Path::States(states) => states.iter().map(|(cell, _)| *cell).collect(),
        }
    }
}

/// The evaluation of one response. Fields that a task does not have are left out when serialised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BenchmarkScore {
    /// Whether there are actions, and no word that is an action of another task.
    pub parse_success: bool,
    /// Whether the aim was reached.
    pub success: bool,
    /// Whether it was reached in as many steps as expected.
    pub optimal_success: bool,
    /// Length of the shortest plan, if known.
    pub expected_action_count: Option<usize>,
    /// Actions read.
    pub action_count: usize,
    /// Actions carried out, the one that failed included.
    pub steps_executed: usize,
    /// Where the plan ended.
    pub final_coord: Position,
    /// FrozenLake, Maze: where it should end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_coord: Option<Position>,
    /// MiniBehaviour: whether the printer is in hand at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrying: Option<bool>,
    /// MiniBehaviour: whether the printer was picked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picked: Option<bool>,
    /// MiniBehaviour: whether it was put on the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<bool>,
    /// The states gone through, the start included.
    pub path: Path,
    /// FrozenLake: whether the plan ended in a hole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fell_into_hole: Option<bool>,
    /// Why the plan stopped early.
    pub invalid_reason: Option<InvalidReason>,
    /// Words read that are actions of another task.
    pub invalid_action_tokens: Vec<String>,
}

impl BenchmarkScore {
    /// Whether summaries count an illegal movement.
    pub fn illegal_movement(&self) -> bool {
        self.invalid_reason.is_some_and(InvalidReason::is_illegal_movement)
    }
}

/// Reads and scores a response; none counts as an empty one.
pub fn score(case: &BenchmarkCase, response: Option<&str>) -> BenchmarkScore {
    score_parsed(case, parse_benchmark(case.board.task(), response.unwrap_or("")))
}

/// Scores a plan.
pub fn score_plan(case: &BenchmarkCase, plan: &Plan) -> BenchmarkScore {
    score_parsed(case, Parsed { actions: plan.0.clone(), has_block: true, ..Parsed::default() })
}

/// Scores what [`parse_benchmark`] has read.
pub fn score_parsed(case: &BenchmarkCase, parsed: Parsed) -> BenchmarkScore {
    let actions = &parsed.actions;
    let mut score = match &case.board {
        Board::FrozenLake(board) => cross(board, actions),
        Board::Maze(board) => walk(board, actions),
        Board::MiniBehaviour(board) => carry(case, board, actions),
    };
    score.parse_success = !actions.is_empty() && parsed.invalid.is_empty();
    score.action_count = actions.len();
    score.expected_action_count = case.expected_action_count;
    score.optimal_success = score.success && case.expected_action_count == Some(score.steps_executed);
    score.invalid_action_tokens = parsed.invalid;
    score
}

/// A score before the first action.
fn at_start(start: Position, path: Path) -> BenchmarkScore {
    BenchmarkScore {
        parse_success: false,
        success: false,
        optimal_success: false,
        expected_action_count: None,
        action_count: 0,
        steps_executed: 0,
        final_coord: start,
        target_coord: None,
        carrying: None,
        picked: None,
        dropped: None,
        path,
        fell_into_hole: None,
        invalid_reason: None,
        invalid_action_tokens: Vec::new(),
    }
}

/// Follows moves until the target, the end, or a step that fails; `step` also tells whether to go there all the same.
fn follow(
    start: Position,
    target: Position,
    actions: &[Action],
    step: impl Fn(Position, Direction) -> Result<Position, (InvalidReason, Option<Position>)>,
) -> BenchmarkScore {
    let mut path = Vec::with_capacity(actions.len() + 1);
    path.push(start);
    let mut score = at_start(start, Path::Cells(Vec::new()));
    score.target_coord = Some(target);
    let mut cell = start;
    for action in actions {
        let Action::Move(direction) = *action else { continue };
        score.steps_executed += 1;
        match step(cell, direction) {
            Ok(next) => cell = next,
            Err((reason, ended)) => {
                score.invalid_reason = Some(reason);
                if let Some(next) = ended {
                    cell = next;
                    path.push(cell);
                }
                break;
            }
        }
        path.push(cell);
        if cell == target {
            break;
        }
    }
    score.final_coord = cell;
    score.success = cell == target && score.invalid_reason.is_none();
    score.path = Path::Cells(path);
    score
}

fn cross(board: &frozen_lake::Board, actions: &[Action]) -> BenchmarkScore {
    let mut score =
        follow(board.start(), board.goal(), actions, |cell, direction| match cell.step(direction, board.side()) {
            None => Err((InvalidReason::OutOfBounds(direction), None)),
            Some(next) if board.is_hole(next) => Err((InvalidReason::FellIntoHole, Some(next))),
            Some(next) => Ok(next),
        });
    score.fell_into_hole = Some(score.invalid_reason == Some(InvalidReason::FellIntoHole));
    score
}

fn walk(board: &maze::Board, actions: &[Action]) -> BenchmarkScore {
    follow(board.start(), board.target(), actions, |cell, direction| {
        if !board.is_open(cell, direction) {
            return Err((InvalidReason::WallBlocked(direction), None));
        }
        cell.step(direction, board.side()).ok_or((InvalidReason::OutOfBounds(direction), None))
    })
}

fn carry(case: &BenchmarkCase, board: &mini_behaviour::Board, actions: &[Action]) -> BenchmarkScore {
    let mut path = Vec::with_capacity(actions.len() + 1);
    path.push((board.start(), false));
    let mut score = at_start(board.start(), Path::Cells(Vec::new()));
    let (mut cell, mut carrying, mut picked) = (board.start(), false, false);
    for action in actions {
        score.steps_executed += 1;
        let reason = match *action {
            Action::Move(direction) => match cell.step(direction, board.side()) {
                None => Some(InvalidReason::OutOfBounds(direction)),
                Some(next) if board.is_table(next) => Some(InvalidReason::EnteredTable),
                Some(next) if !picked && next == board.printer() => Some(InvalidReason::EnteredPrinter),
                Some(next) => {
                    cell = next;
                    None
                }
            },
            Action::Pick if carrying => Some(InvalidReason::PickWhileCarrying),
            Action::Pick if !case.printer_neighbors.contains(&cell) => Some(InvalidReason::PickNotAdjacentToPrinter),
            Action::Pick => {
                (carrying, picked) = (true, true);
                None
            }
            Action::Drop if !carrying => Some(InvalidReason::DropWithoutPrinter),
            Action::Drop if !case.table_neighbors.contains(&cell) => Some(InvalidReason::DropNotAdjacentToTable),
            Action::Drop => {
                carrying = false;
                score.success = true;
                None
            }
        };
        if reason.is_some() {
            score.invalid_reason = reason;
            break;
        }
        path.push((cell, carrying));
        if score.success {
            break;
        }
    }
    score.final_coord = cell;
    score.carrying = Some(carrying);
    score.picked = Some(picked);
    score.dropped = Some(score.success);
    score.path = Path::States(path);
    score
}
