//! Shortest way to the printer and on to the table.

use super::Board;
use crate::grid::{Distances, shortest_path};
use crate::{Action, Direction, Plan, Position};

/// Up, down, left, right: the order in which the published code looks at neighbours.
const ORDER: [Direction; 4] = [Direction::Up, Direction::Down, Direction::Left, Direction::Right];

impl Board {
    /// A shortest plan: the first of the best pairs of cells, moves tried up, down, left, right.
    pub fn solve(&self) -> Option<Plan> {
        let pairs = self.best_pairs();
        pairs.first().and_then(|pair| self.plan_through(*pair))
    }

    /// All pairs (cell to pick from, cell to drop from) on a shortest plan, in reading order.
    pub fn best_pairs(&self) -> Vec<(Position, Position)> {
        let to_printer = self.distances(self.start(), false);
        let table_neighbors = self.table_neighbors();
        let mut best = u32::MAX;
        let mut pairs = Vec::new();
        for pick in self.printer_neighbors() {
            let Some(first_leg) = to_printer.to(pick) else { continue };
            let to_table = self.distances(pick, true);
            for drop in &table_neighbors {
                let Some(second_leg) = to_table.to(*drop) else { continue };
                let total = first_leg + second_leg;
                if total < best {
                    best = total;
                    pairs.clear();
                }
                if total == best {
                    pairs.push((pick, *drop));
                }
            }
        }
        pairs
    }

    /// The shortest plan through a pair of cells.
    pub(super) fn plan_through(&self, (pick, drop): (Position, Position)) -> Option<Plan> {
        let leg = |from, to, carrying| {
            shortest_path(self.side(), from, to, ORDER, |cell, d| self.free_step(cell, d, carrying))
        };
        let mut actions: Vec<Action> = leg(self.start(), pick, false)?.into_iter().map(Action::Move).collect();
        actions.push(Action::Pick);
        actions.extend(leg(pick, drop, true)?.into_iter().map(Action::Move));
        actions.push(Action::Drop);
        Some(Plan(actions))
    }

    /// Distances from a cell with or without the printer in hand.
    pub(super) fn distances(&self, from: Position, carrying: bool) -> Distances {
        Distances::from(self.side(), from, |cell, d| self.free_step(cell, d, carrying))
    }
}
