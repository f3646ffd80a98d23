//! Rooms from a seed, in the published generator's order of random draws.

use super::Board;
use crate::generate::Sample;
use crate::rng::Mt19937;
use crate::{Details, Difficulty, Error, Position, Result, Task};

/// Rooms tried for the wanted difficulty.
const MAX_TRIES: usize = 20_000;

/// The room for one seed with the wanted difficulty.
pub(crate) fn sample(side: usize, seed: u64, wanted: Difficulty) -> Result<Sample> {
    let mut rng = Mt19937::new(seed);
    let corners = side - 2;
    let mut free = Vec::with_capacity(side * side);
    for _ in 0..MAX_TRIES {
        let corner = Position::from_index(rng.below((side - 1) * corners), corners);
        let in_table = |p: Position| {
            (corner.row..corner.row + 2).contains(&p.row) && (corner.col..corner.col + 3).contains(&p.col)
        };
        free.clear();
        free.extend((0..side * side).map(|i| Position::from_index(i, side)).filter(|p| !in_table(*p)));
        let printer = free.remove(rng.below(free.len()));
        let table: Vec<Position> = (0..6).map(|i| Position::new(corner.row + i / 3, corner.col + i % 3)).collect();
        // The published generator looks for neighbours before it draws the start; a room without
        // them ends the try one draw earlier.
        let placed = |start| Board::new(side, start, printer, table.clone());
        let somewhere = free.first().copied().unwrap_or_default();
        let probe = placed(somewhere)?;
        if probe.printer_neighbors().is_empty() || probe.table_neighbors().is_empty() {
            continue;
        }
        let board = placed(*rng.choose(&free))?;
        let pairs = board.best_pairs();
        if pairs.is_empty() {
            continue;
        }
        let Some(plan) = board.plan_through(*rng.choose(&pairs)) else { continue };
        let difficulty = classify(side, plan.len());
        if difficulty == wanted {
            let details = Details::MiniBehaviour { difficulty, start_dir: 0 };
            return Ok(Sample { board: board.into(), plan, details });
        }
    }
    Err(Error::Exhausted {
        task: Task::MiniBehaviour,
        level: side,
        seed,
        problem: format!("no {wanted} room in {MAX_TRIES} tries; leave {wanted} out of the difficulties"),
    })
}

/// The class of a plan's length, PICK and DROP included.
fn classify(side: usize, actions: usize) -> Difficulty {
    if actions < side {
        Difficulty::Easy
    } else if actions <= side + 1 {
        Difficulty::Medium
    } else {
        Difficulty::Hard
    }
}
