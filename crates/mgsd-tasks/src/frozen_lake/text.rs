//! The instance text of FrozenLake.

use super::Board;
use crate::fields::{Fields, put, put_plan, put_positions, python_float};
use crate::grid::trajectory;
use crate::{Details, Error, Instance, Result};

/// Everything after the common fields.
pub(crate) fn write(out: &mut String, instance: &Instance, board: &Board) {
    let (frozen_probability, is_slippery) = match instance.details {
        Details::FrozenLake { frozen_probability, is_slippery } => (frozen_probability, is_slippery),
        _ => (1.0, false),
    };
    put(out, "level", board.side());
    put(out, "index", instance.index);
    put(out, "seed", instance.seed);
    put(out, "frozen_probability", python_float(frozen_probability));
    put(out, "is_slippery", is_slippery);
    put(out, "start_row", board.start().row);
    put(out, "start_col", board.start().col);
    put(out, "goal_row", board.goal().row);
    put(out, "goal_col", board.goal().col);
    put_plan(out, &instance.plan);
    put_positions(out, "trajectory_states", &trajectory(board.side(), board.start(), &instance.plan));
    out.push_str("map:\n");
    for row in board.rows() {
        out.push_str(&row);
        out.push('\n');
    }
}

/// Board and details.
pub(crate) fn parse(fields: &Fields) -> Result<(Board, Details)> {
    let side = fields.number("level")?;
    let board = Board::from_rows(fields.grid("map", side)?)?;
    for (row, col, stands) in [("start_row", "start_col", board.start()), ("goal_row", "goal_col", board.goal())] {
        if fields.text(row).is_ok() {
            let said = fields.position(row, col, side)?;
            if said != stands {
                let problem = format!("say {said}, the map has it at {stands}");
                return Err(Error::field(format!("{row}, {col}"), problem));
            }
        }
    }
    let details = Details::FrozenLake {
        frozen_probability: fields.value_or("frozen_probability", "a number", 1.0)?,
        is_slippery: fields.value_or("is_slippery", "true or false", false)?,
    };
    Ok((board, details))
}
