//! Shortest safe way over the ice.

use super::Board;
use crate::grid::{moves, shortest_path};
use crate::{Direction, Plan};

impl Board {
    /// A shortest plan; among several the one found first with moves tried left, down, right, up.
    pub fn solve(&self) -> Option<Plan> {
        let step = |cell, direction| self.safe_step(cell, direction);
        shortest_path(self.side(), self.start(), self.goal(), Direction::ALL, step).map(moves)
    }
}
