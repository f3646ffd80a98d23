//! The way through a maze.

use super::Board;
use crate::grid::{moves, shortest_path};
use crate::{Direction, Plan};

/// North, east, south, west: the order in which the published code looks at neighbours.
pub(super) const ORDER: [Direction; 4] = [Direction::Up, Direction::Right, Direction::Down, Direction::Left];

impl Board {
    /// A shortest plan; among several the one found first with moves tried up, right, down, left.
    pub fn solve(&self) -> Option<Plan> {
        let step = |cell, direction| self.open_step(cell, direction);
        shortest_path(self.side(), self.start(), self.target(), ORDER, step).map(moves)
    }
}
