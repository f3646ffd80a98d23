//! A board as the page holds it.

use crate::reply::{ApiError, Reply};
use mgsd_tasks::{Board, Position, Task, frozen_lake, maze, mini_behaviour};
use serde::{Deserialize, Serialize};

/// Largest side that is drawn and asked about here; larger boards are for the command line.
pub const MOST_SIDE: usize = 20;

/// The state in JSON: `rows` of letters (FrozenLake `S F H G`, MiniBehaviour `A P T .`), or for a maze `walls` (sums of
/// 1 above, 2 below, 4 left, 8 right), `start` and `goal`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    task: Task,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rows: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    walls: Option<Vec<Vec<u8>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<Position>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    goal: Option<Position>,
}

impl State {
    /// The state of a board.
    pub fn of(board: &Board) -> Self {
        let empty = Self { task: board.task(), rows: None, walls: None, start: None, goal: None };
        match board {
            Board::FrozenLake(lake) => Self { rows: Some(lake.rows()), ..empty },
            Board::MiniBehaviour(room) => Self { rows: Some(room.rows()), ..empty },
            Board::Maze(maze) => {
                let side = maze.side();
                let row = |row| (0..side).map(|col| maze.walls(Position::new(row, col))).collect();
                let walls = Some((0..side).map(row).collect());
                Self { walls, start: Some(maze.start()), goal: Some(maze.target()), ..empty }
            }
        }
    }

    /// The board, if the rules allow it.
    pub fn board(&self) -> Reply<Board> {
        let missing = |field: &str, expected: &str| {
            ApiError::invalid(format!("board.{field}"), format!("board.{field} is missing; expected {expected}"))
        };
        let side = self.rows.as_ref().map(Vec::len).or(self.walls.as_ref().map(Vec::len)).unwrap_or(0);
        if side > MOST_SIDE {
            let message = format!("the board has {side} rows; expected at most {MOST_SIDE} here");
            return Err(ApiError::invalid("board", message));
        }
        let broken = |error: mgsd_tasks::Error| ApiError::invalid("board", error.to_string());
        let rows = || self.rows.as_deref().ok_or_else(|| missing("rows", "a list of texts, one letter a cell"));
        match self.task {
            Task::FrozenLake => frozen_lake::Board::from_rows(rows()?).map(Board::from).map_err(broken),
            Task::MiniBehaviour => room(rows()?).map(Board::from),
            Task::Maze => {
                let walls = self.walls.as_ref().ok_or_else(|| missing("walls", "a list of rows of numbers 0 to 15"))?;
                let start = self.start.ok_or_else(|| missing("start", "[row, column]"))?;
                let goal = self.goal.ok_or_else(|| missing("goal", "[row, column]"))?;
                if let Some(row) = walls.iter().position(|row| row.len() != side) {
                    let message = format!("board.walls[{row}] has {} numbers; expected {side}", walls[row].len());
                    return Err(ApiError::invalid("board.walls", message));
                }
                maze::Board::new(side, walls.concat(), start, goal).map(Board::from).map_err(broken)
            }
        }
    }
}

/// A room from its letters.
fn room(rows: &[String]) -> Reply<mini_behaviour::Board> {
    let side = rows.len();
    let (mut agent, mut printer, mut table) = (None, None, Vec::new());
    for (row, line) in rows.iter().enumerate() {
        let wrong = |problem: String| ApiError::invalid(format!("board.rows[{row}]"), problem);
        if line.chars().count() != side {
            return Err(wrong(format!("row {row} is {line:?}; expected {side} letters")));
        }
        for (col, letter) in line.chars().enumerate() {
            let cell = Position::new(row, col);
            let twice = match letter {
                '.' => None,
                'T' => {
                    table.push(cell);
                    None
                }
                'A' => agent.replace(cell),
                'P' => printer.replace(cell),
                _ => return Err(wrong(format!("{letter:?} at {cell}; expected A, P, T or ."))),
            };
            if let Some(first) = twice {
                return Err(wrong(format!("{letter} stands at {first} and at {cell}; expected it once")));
            }
        }
    }
    let (Some(agent), Some(printer)) = (agent, printer) else {
        return Err(ApiError::invalid("board.rows", "the room lacks its agent A or its printer P"));
    };
    mini_behaviour::Board::new(side, agent, printer, table)
        .map_err(|error| ApiError::invalid("board", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgsd_tasks::{GenerateOptions, generate};

    #[test]
    fn every_board_comes_back_from_its_json() {
        for task in Task::ALL {
            for instance in generate(task, 5, &GenerateOptions::default(), 0..4).expect("boards") {
                let json = serde_json::to_string(&State::of(&instance.board)).expect("json");
                let state: State = serde_json::from_str(&json).expect("state");
                assert_eq!(state.board().expect("board"), instance.board);
            }
        }
    }

    #[test]
    fn what_the_rules_forbid_is_named() {
        for (json, words) in [
            (r#"{"task": "frozenlake", "rows": ["SF", "FF"]}"#, "a start S and a goal G"),
            (r#"{"task": "minibehaviour", "rows": ["A..", "A.T", "..P"]}"#, "expected it once"),
            (r#"{"task": "minibehaviour", "rows": ["A..", "..T", "..."]}"#, "lacks its agent A or its printer P"),
            (r#"{"task": "maze", "walls": [[5, 9], [6]], "start": [0, 0], "goal": [1, 1]}"#, "expected 2"),
            (r#"{"task": "maze", "rows": ["SF", "FG"]}"#, "board.walls is missing"),
        ] {
            let state: State = serde_json::from_str(json).expect(json);
            let error = state.board().expect_err(json);
            assert!(error.message.contains(words), "{}", error.message);
        }
    }
}
