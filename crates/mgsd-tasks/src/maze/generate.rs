//! Perfect mazes from a seed, in the published generator's order of random draws.

use super::board::{Board, wall_bit};
use super::solve::ORDER;
use crate::generate::Sample;
use crate::rng::Mt19937;
use crate::{Details, Difficulty, Direction, Error, Position, Result, Task};

/// Mazes tried for the wanted difficulty before the first one is taken as it is.
const MAX_TRIES: usize = 4096;

/// The maze for one seed; its difficulty is the wanted one unless none was found.
pub(crate) fn sample(side: usize, seed: u64, wanted: Difficulty) -> Result<Sample> {
    let mut rng = Mt19937::new(seed);
    let mut first = None;
    for _ in 0..MAX_TRIES {
        let walls = carve(side, &mut rng);
        let ends = rng.sample(side * side, 2);
        let cell = |i: usize| Position::from_index(ends[i], side);
        let board = Board::new(side, walls, cell(0), cell(1))?;
        let Some(plan) = board.solve() else { continue };
        let difficulty = classify(side, plan.len());
        let sample = Sample { board: board.into(), plan, details: Details::Maze { difficulty } };
        if difficulty == wanted {
            return Ok(sample);
        }
        first.get_or_insert(sample);
    }
    first.ok_or_else(|| Error::Exhausted {
        task: Task::Maze,
        level: side,
        seed,
        problem: "no maze could be made".to_owned(),
    })
}

/// The class of a plan's length.
fn classify(side: usize, steps: usize) -> Difficulty {
    if steps <= (side / 2).max(1) {
        Difficulty::Easy
    } else if steps <= side {
        Difficulty::Medium
    } else {
        Difficulty::Hard
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Left => Direction::Right,
        Direction::Down => Direction::Up,
        Direction::Right => Direction::Left,
        Direction::Up => Direction::Down,
    }
}

/// Depth-first carving: from the top of a stack go to a random unvisited neighbour, else step back.
fn carve(side: usize, rng: &mut Mt19937) -> Vec<u8> {
    let mut walls = vec![15_u8; side * side];
    let mut visited = vec![false; side * side];
    let row = rng.below(side);
    let start = Position::new(row, rng.below(side));
    visited[start.index(side)] = true;
    let mut stack = vec![start];
    while let Some(&cell) = stack.last() {
        let mut candidates = [(Direction::Up, start); 4];
        let mut count = 0;
        for direction in ORDER {
            if let Some(next) = cell.step(direction, side)
                && !visited[next.index(side)]
            {
                candidates[count] = (direction, next);
                count += 1;
            }
        }
        if count == 0 {
            stack.pop();
            continue;
        }
        let (direction, next) = *rng.choose(&candidates[..count]);
        walls[cell.index(side)] &= !wall_bit(direction);
        walls[next.index(side)] &= !wall_bit(opposite(direction));
        visited[next.index(side)] = true;
        stack.push(next);
    }
    walls
}
