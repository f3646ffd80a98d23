//! A board of any of the three tasks.

use crate::render::CELL;
use crate::{Plan, Position, RenderOptions, Result, RgbImage, Task};
use crate::{frozen_lake, maze, mini_behaviour};

/// The state that a picture shows and a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Board {
    /// A frozen lake with holes.
    FrozenLake(frozen_lake::Board),
    /// A maze.
    Maze(maze::Board),
    /// A room with an agent, a printer and a table.
    MiniBehaviour(mini_behaviour::Board),
}

impl Board {
    /// Which task the board belongs to.
    pub fn task(&self) -> Task {
        match self {
            Board::FrozenLake(_) => Task::FrozenLake,
            Board::Maze(_) => Task::Maze,
            Board::MiniBehaviour(_) => Task::MiniBehaviour,
        }
    }

    /// Number of rows, which is also the number of columns; the level.
    pub fn side(&self) -> usize {
        match self {
            Board::FrozenLake(board) => board.side(),
            Board::Maze(board) => board.side(),
            Board::MiniBehaviour(board) => board.side(),
        }
    }

    /// Where the plan starts.
    pub fn start(&self) -> Position {
        match self {
            Board::FrozenLake(board) => board.start(),
            Board::Maze(board) => board.start(),
            Board::MiniBehaviour(board) => board.start(),
        }
    }

    /// A shortest plan that solves the board, or `None` when there is none.
    pub fn solve(&self) -> Option<Plan> {
        match self {
            Board::FrozenLake(board) => board.solve(),
            Board::Maze(board) => board.solve(),
            Board::MiniBehaviour(board) => board.solve(),
        }
    }

    /// The picture of the board.
    ///
    /// # Errors
    /// When the image size is out of range.
    pub fn render(&self, options: &RenderOptions) -> Result<RgbImage> {
        options.check(if let Board::FrozenLake(_) = self { 0 } else { CELL * self.side() })?;
        Ok(match self {
            Board::FrozenLake(board) => frozen_lake::render(board, options),
            Board::Maze(board) => maze::render(board, options.image_size),
            Board::MiniBehaviour(board) => mini_behaviour::render(board, options.image_size),
        })
    }

    /// A text that is the same for two boards exactly when the boards are the same.
    pub fn key(&self) -> String {
        match self {
            Board::FrozenLake(board) => format!("frozenlake:{}", board.rows().join("/")),
            Board::Maze(board) => format!(
                "maze:{}>{}:{}",
                board.start().index(board.side()),
                board.target().index(board.side()),
                board.layout_rows().join("/")
            ),
            Board::MiniBehaviour(board) => format!("minibehaviour:{}", board.rows().join("/")),
        }
    }
}

impl From<frozen_lake::Board> for Board {
    fn from(board: frozen_lake::Board) -> Self {
        Board::FrozenLake(board)
    }
}

impl From<maze::Board> for Board {
    fn from(board: maze::Board) -> Self {
        Board::Maze(board)
    }
}

impl From<mini_behaviour::Board> for Board {
    fn from(board: mini_behaviour::Board) -> Self {
        Board::MiniBehaviour(board)
    }
}
