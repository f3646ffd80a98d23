//! Breadth-first search on a square grid, shared by the three solvers.

use crate::{Action, Direction, Plan, Position};
use std::collections::VecDeque;

/// Distance of every cell from one cell, `None` where it cannot be reached.
#[derive(Clone, Debug)]
pub(crate) struct Distances {
    side: usize,
    steps: Vec<u32>,
}

const FAR: u32 = u32::MAX;

impl Distances {
    /// Distances from `from`; `step` gives the cell that a move leads to, if it is allowed.
    pub fn from(side: usize, from: Position, mut step: impl FnMut(Position, Direction) -> Option<Position>) -> Self {
        let mut steps = vec![FAR; side * side];
        steps[from.index(side)] = 0;
        let mut queue = Vec::with_capacity(side * side);
        queue.push(from);
        let mut head = 0;
        while let Some(&cell) = queue.get(head) {
            head += 1;
            let next_steps = steps[cell.index(side)] + 1;
            for direction in Direction::ALL {
                if let Some(next) = step(cell, direction) {
                    let known = &mut steps[next.index(side)];
                    if *known == FAR {
                        *known = next_steps;
                        queue.push(next);
                    }
                }
            }
        }
        Self { side, steps }
    }

    /// Steps to a cell.
    pub fn to(&self, cell: Position) -> Option<u32> {
        let steps = self.steps[cell.index(self.side)];
        (steps != FAR).then_some(steps)
    }

    /// The reachable cells in reading order with their distances.
    pub fn reachable(&self) -> impl Iterator<Item = (Position, u32)> + '_ {
        let side = self.side;
        self.steps
            .iter()
            .enumerate()
            .filter(|(_, steps)| **steps != FAR)
            .map(move |(i, steps)| (Position::from_index(i, side), *steps))
    }
}

/// A shortest path of moves; among several the one that the order of directions finds first.
pub(crate) fn shortest_path(
    side: usize,
    start: Position,
    goal: Position,
    order: [Direction; 4],
    mut step: impl FnMut(Position, Direction) -> Option<Position>,
) -> Option<Vec<Direction>> {
    let mut came_by: Vec<Option<(Direction, Position)>> = vec![None; side * side];
    let mut queue = VecDeque::from([start]);
    while let Some(cell) = queue.pop_front() {
        if cell == goal {
            let mut path = Vec::new();
            let mut cell = goal;
            while cell != start {
                let (direction, previous) = came_by[cell.index(side)]?;
                path.push(direction);
                cell = previous;
            }
            path.reverse();
            return Some(path);
        }
        for direction in order {
            if let Some(next) = step(cell, direction)
                && next != start
                && came_by[next.index(side)].is_none()
            {
                came_by[next.index(side)] = Some((direction, cell));
                queue.push_back(next);
            }
        }
    }
    None
}

/// The moves as a plan.
pub(crate) fn moves(path: Vec<Direction>) -> Plan {
    Plan(path.into_iter().map(Action::Move).collect())
}

/// The cells that a plan of moves visits, the start included. Other actions stay where they are.
pub(crate) fn trajectory(side: usize, start: Position, plan: &Plan) -> Vec<Position> {
    let mut cell = start;
    let mut cells = vec![cell];
    for action in plan.actions() {
        if let Action::Move(direction) = action {
            cell = cell.step(*direction, side).unwrap_or(cell);
        }
        cells.push(cell);
    }
    cells
}
