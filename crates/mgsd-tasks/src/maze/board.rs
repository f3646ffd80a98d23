//! State and rules of the maze.

use crate::{Direction, Error, Position, Result, Task};

/// Bit of a wall on the upper side.
pub const NORTH: u8 = 1;
/// Bit of a wall on the lower side.
pub const SOUTH: u8 = 2;
/// Bit of a wall on the left side.
pub const WEST: u8 = 4;
/// Bit of a wall on the right side.
pub const EAST: u8 = 8;

pub(super) fn wall_bit(direction: Direction) -> u8 {
    match direction {
        Direction::Left => WEST,
        Direction::Down => SOUTH,
        Direction::Right => EAST,
        Direction::Up => NORTH,
    }
}

/// A square maze: the walls around each cell, a start and a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Board {
    side: usize,
    walls: Vec<u8>,
    start: Position,
    target: Position,
}

impl Board {
    /// A board from the wall bits of its cells in reading order ([`NORTH`] | [`SOUTH`] | [`WEST`] | [`EAST`]).
    ///
    /// A wall between two cells is asked of the cell one leaves, as the published benchmark does.
    ///
    /// # Errors
    /// When the side is not 2 to 100, the number of cells is not its square, a cell is above 15,
    /// or start or target lie outside.
    pub fn new(side: usize, walls: Vec<u8>, start: Position, target: Position) -> Result<Self> {
        let fail = |problem: String| Err(Error::board(Task::Maze, problem));
        Task::Maze.check_side(side)?;
        if walls.len() != side * side {
            return fail(format!("{} cells, expected {side} x {side}", walls.len()));
        }
        if let Some(i) = walls.iter().position(|w| *w > 15) {
            let at = Position::from_index(i, side);
            return fail(format!(
                "walls {} at {at}, expected a sum of 1 (north), 2 (south), 4 (west), 8 (east)",
                walls[i]
            ));
        }
        for (name, p) in [("start", start), ("target", target)] {
            if p.row >= side || p.col >= side {
                return fail(format!("{name} {p} lies outside a board of side {side}"));
            }
        }
        Ok(Self { side, walls, start, target })
    }

    /// Rows and columns.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Where the player stands at first.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Where the player is to go.
    pub fn target(&self) -> Position {
        self.target
    }

    /// The wall bits of a cell.
    pub fn walls(&self, position: Position) -> u8 {
        self.walls[position.index(self.side)]
    }

    /// Whether no wall stands on that side of the cell.
    pub fn is_open(&self, position: Position, direction: Direction) -> bool {
        self.walls(position) & wall_bit(direction) == 0
    }

    /// The cell that an allowed move leads to.
    pub fn open_step(&self, from: Position, direction: Direction) -> Option<Position> {
        if self.is_open(from, direction) { from.step(direction, self.side) } else { None }
    }

    /// The wall numbers row by row, separated by spaces.
    pub fn layout_rows(&self) -> Vec<String> {
        let line = |row: &[u8]| row.iter().map(u8::to_string).collect::<Vec<_>>().join(" ");
        self.walls.chunks(self.side).map(line).collect()
    }
}
