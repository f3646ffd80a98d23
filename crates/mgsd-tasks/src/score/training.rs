//! The training reward.

use crate::plan::parse_training;
use crate::rng::Pcg64;
use crate::{Action, Board, Direction, Instance, Position, Task};
use crate::{frozen_lake, maze, mini_behaviour};
use serde::Serialize;

/// What a response is scored against.
#[derive(Clone, Debug)]
pub struct TrainingCase {
    /// The task, which decides how a response is read; `None` when the row names one that is not known.
    pub task: Option<Task>,
    /// The board; `None` when the row's state could not be read: then no plan is right.
    pub board: Option<Board>,
    /// Seed of the slipping when moves slip (FrozenLake).
    pub slip_seed: Option<u64>,
}

impl TrainingCase {
    /// The case of an instance.
    pub fn from_instance(instance: &Instance) -> Self {
        let slip_seed = instance.is_slippery().then_some(instance.seed);
        Self { task: Some(instance.task()), board: Some(instance.board.clone()), slip_seed }
    }

    /// The case of a board on which moves do not slip.
    pub fn from_board(board: &Board) -> Self {
        Self { task: Some(board.task()), board: Some(board.clone()), slip_seed: None }
    }
}

/// The reward and its parts, each 0 or 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TrainingScore {
    /// The reward.
    pub overall: f64,
    /// Same as the reward.
    pub accuracy: f64,
    /// Whether the plan reaches its aim.
    pub success: f64,
    /// Whether there is an answer block.
    pub format: f64,
    /// Whether the block holds an action.
    pub parse_success: f64,
    /// Whether the plan does what the task forbids (a hole is a failure, not an offence).
    pub illegal_action: f64,
}

/// How a plan ends.
enum End {
    Success,
    Failure,
    Illegal,
}

/// Scores a response; none counts as an empty one.
pub fn score(case: &TrainingCase, response: Option<&str>) -> TrainingScore {
    let parsed = parse_training(case.task.unwrap_or(Task::Maze), response.unwrap_or(""));
    let end = if parsed.actions.is_empty() {
        End::Failure
    } else {
        match (case.task, &case.board) {
            (Some(_), Some(Board::FrozenLake(board))) => cross(board, case.slip_seed, &parsed.actions),
            (Some(_), Some(Board::Maze(board))) => walk(board, &parsed.actions),
            (Some(_), Some(Board::MiniBehaviour(board))) => carry(board, &parsed.actions),
            _ => End::Illegal,
        }
    };
    let one = |yes: bool| f64::from(u8::from(yes));
    let success = one(matches!(end, End::Success));
    TrainingScore {
        overall: success,
        accuracy: success,
        success,
        format: one(parsed.has_block),
        parse_success: one(!parsed.actions.is_empty()),
        illegal_action: one(matches!(end, End::Illegal)),
    }
}

/// FrozenLake: the border stops a move, a hole ends the walk.
fn cross(board: &frozen_lake::Board, slip_seed: Option<u64>, actions: &[Action]) -> End {
    let mut slip = slip_seed.map(|seed| {
        let mut rng = Pcg64::new(seed);
        // The first draw picks the start state.
        rng.next_f64();
        rng
    });
    let mut cell = board.start();
    for action in actions {
        let Action::Move(direction) = *action else { continue };
        let direction = match &mut slip {
            Some(rng) => slipped(direction, rng.next_f64()),
            None => direction,
        };
        cell = cell.step(direction, board.side()).unwrap_or(cell);
        if cell == board.goal() {
            return End::Success;
        }
        if board.is_hole(cell) {
            return End::Failure;
        }
    }
    End::Failure
}

/// Where a slippery move goes: a third each to the action before, the action itself and the one after.
fn slipped(direction: Direction, draw: f64) -> Direction {
    let third = 1.0 / 3.0;
    let shift = if draw < third {
        3
    } else if draw < third + third {
        0
    } else {
        1
    };
    Direction::ALL[(direction as usize + shift) % 4]
}

fn walk(board: &maze::Board, actions: &[Action]) -> End {
    let mut cell = board.start();
    for action in actions {
        let Action::Move(direction) = *action else { continue };
        match board.open_step(cell, direction) {
            Some(next) if next == board.target() => return End::Success,
            Some(next) => cell = next,
            None => return End::Illegal,
        }
    }
    End::Failure
}

fn carry(board: &mini_behaviour::Board, actions: &[Action]) -> End {
    let mut cell: Position = board.start();
    let mut carrying = false;
    for action in actions {
        match *action {
            Action::Move(direction) => match board.free_step(cell, direction, carrying) {
                Some(next) => cell = next,
                None => return End::Illegal,
            },
            Action::Pick if !carrying && cell.is_beside(board.printer()) => carrying = true,
            Action::Drop if carrying && board.table().iter().any(|t| t.is_beside(cell)) => {
                return End::Success;
            }
            Action::Pick | Action::Drop => return End::Illegal,
        }
    }
    End::Failure
}
