//! Lakes from a seed, in the published generator's order of random draws.

use super::Board;
use crate::generate::{FrozenLakeOptions, Sample};
use crate::rng::Pcg64;
use crate::{Details, Error, Plan, Position, Result, Task};

/// Cells drawn before the generator gives up on a probability that leaves no way across.
const MAX_CELLS: usize = 20_000_000;
/// Pairs of start and goal tried on one lake.
const MAX_PAIRS: usize = 512;

/// The board for one seed, or `None` when no start and goal far enough apart were found on it.
pub(crate) fn sample(side: usize, seed: u64, options: &FrozenLakeOptions) -> Result<Option<Sample>> {
    let probability = options.frozen_probability.min(1.0);
    let holes = draw_holes(side, seed, probability)?;
    let last = Position::new(side - 1, side - 1);
    let found = if options.random_start_goal {
        place_start_and_goal(side, seed, holes, options.min_path_length)
    } else {
        let board = Board::from_parts(side, holes, Position::new(0, 0), last);
        with_plan(board, options.min_path_length)
    };
    Ok(found.map(|(board, plan)| Sample {
        board: board.into(),
        plan,
        details: Details::FrozenLake { frozen_probability: options.frozen_probability, is_slippery: options.slippery },
    }))
}

fn with_plan(board: Board, min_path_length: usize) -> Option<(Board, Plan)> {
    let plan = board.solve()?;
    (plan.len() >= min_path_length).then_some((board, plan))
}

/// Draws whole lakes from one stream until the corners are connected.
fn draw_holes(side: usize, seed: u64, probability: f64) -> Result<Vec<bool>> {
    // numpy compares with the normalised cumulative sum, not with p itself.
    let threshold = probability / (probability + (1.0 - probability));
    let mut rng = Pcg64::new(seed);
    let cells = side * side;
    let (first, last) = (Position::new(0, 0), Position::new(side - 1, side - 1));
    for _ in 0..(MAX_CELLS / cells).max(1) {
        let mut holes: Vec<bool> = (0..cells).map(|_| rng.next_f64() >= threshold).collect();
        holes[0] = false;
        holes[cells - 1] = false;
        let board = Board::from_parts(side, holes, first, last);
        if board.solve().is_some() {
            return Ok(board.into_holes());
        }
    }
    Err(Error::Exhausted {
        task: Task::FrozenLake,
        level: side,
        seed,
        problem: format!(
            "no lake with a safe way across at frozen-probability {probability}; raise it (above 0.6 for large boards)"
        ),
    })
}

fn place_start_and_goal(side: usize, seed: u64, holes: Vec<bool>, min_path_length: usize) -> Option<(Board, Plan)> {
    let frozen: Vec<usize> = (0..holes.len()).filter(|i| !holes[*i]).collect();
    let mut rng = Pcg64::new(seed.wrapping_add(17));
    let mut board = Board::from_parts(side, holes, Position::new(0, 0), Position::new(0, 0));
    for _ in 0..MAX_PAIRS {
        let (start, goal) = rng.choose_two(frozen.len() as u32);
        let cell = |choice: u32| Position::from_index(frozen[choice as usize], side);
        board = Board::from_parts(side, board.into_holes(), cell(start), cell(goal));
        if let Some(plan) = board.solve()
            && plan.len() >= min_path_length
        {
            return Some((board, plan));
        }
    }
    None
}
