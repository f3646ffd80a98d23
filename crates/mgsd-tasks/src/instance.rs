//! A board with everything its text file says.

use crate::fields::{Fields, put};
use crate::score::{BenchmarkCase, benchmark};
use crate::{Board, Difficulty, Error, Plan, Result, Task};
use crate::{frozen_lake, maze, mini_behaviour};

/// An instance: a board, a shortest plan, and where they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Split the instance was made for (`train`, `val`, ...).
    pub split: String,
    /// Number within its level.
    pub index: usize,
    /// Seed that made the board.
    pub seed: u64,
    /// The board.
    pub board: Board,
    /// The reference plan, a shortest one.
    pub plan: Plan,
    /// The fields of one task only.
    pub details: Details,
}

/// What only the text of one task holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Details {
    /// FrozenLake.
    FrozenLake {
        /// Probability that a cell was frozen.
        frozen_probability: f64,
        /// Whether moves slip.
        is_slippery: bool,
    },
    /// Maze.
    Maze {
        /// Class of the plan's length.
        difficulty: Difficulty,
    },
    /// MiniBehaviour.
    MiniBehaviour {
        /// Class of the plan's length.
        difficulty: Difficulty,
        /// Direction the agent looks in at first; nothing depends on it.
        start_dir: u8,
    },
}

impl Instance {
    /// The task of the board.
    pub fn task(&self) -> Task {
        self.board.task()
    }

    /// The side of the board.
    pub fn level(&self) -> usize {
        self.board.side()
    }

    /// Whether moves slip (FrozenLake only).
    pub fn is_slippery(&self) -> bool {
        matches!(self.details, Details::FrozenLake { is_slippery: true, .. })
    }

    /// The text file's content, byte for byte as the published generator writes it.
    pub fn to_text(&self) -> String {
        let mut out = String::with_capacity(8192);
        put(&mut out, "task", self.task());
        put(&mut out, "split", &self.split);
        match &self.board {
            Board::FrozenLake(board) => frozen_lake::write(&mut out, self, board),
            Board::Maze(board) => maze::write(&mut out, self, board),
            Board::MiniBehaviour(board) => mini_behaviour::write(&mut out, self, board),
        }
        out
    }

    /// Reads an instance text. Distances, neighbours and the trajectory are not read: they follow from the board.
    ///
    /// # Errors
    /// When a field that is needed is missing or wrong, or the plan is no shortest one; the error names the field.
    pub fn parse(text: &str) -> Result<Self> {
        let fields = Fields::parse(text.strip_prefix('\u{feff}').unwrap_or(text));
        let (board, details): (Board, Details) =
            match fields.value("task", "a task: expected frozenlake, maze or minibehaviour")? {
                Task::FrozenLake => frozen_lake::parse(&fields).map(|(b, d)| (b.into(), d))?,
                Task::Maze => maze::parse(&fields).map(|(b, d)| (b.into(), d))?,
                Task::MiniBehaviour => mini_behaviour::parse(&fields).map(|(b, d)| (b.into(), d))?,
            };
        let wrong = |problem: String| Error::field("solution_actions", problem);
        let shortest = board.solve().ok_or_else(|| wrong("the board has no solution".to_owned()))?;
        let plan = fields.plan()?.unwrap_or_else(|| shortest.clone());
        // It is what teachers are shown and answers are measured by, and the map may have been edited.
        let of_board = BenchmarkCase::from_board(&board);
        if plan != shortest && !benchmark::score_plan(&of_board, &plan).optimal_success {
            return Err(wrong(format!("{plan} is no shortest plan of this board; one is {shortest}")));
        }
        Ok(Self {
            split: fields.text("split").unwrap_or("train").to_owned(),
            index: fields.value_or("index", "a whole number", 0)?,
            seed: fields.value_or("seed", "a whole number", 0)?,
            board,
            plan,
            details,
        })
    }
}
