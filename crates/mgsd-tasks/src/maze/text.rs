//! The instance text of the maze.

use super::{Board, EAST, NORTH, SOUTH, WEST};
use crate::fields::{Fields, put, put_number, put_plan, put_positions};
use crate::grid::{Distances, trajectory};
use crate::{Details, Difficulty, Error, Instance, Position, Result};

/// Everything after the common fields.
pub(crate) fn write(out: &mut String, instance: &Instance, board: &Board) {
    let side = board.side();
    let difficulty = match instance.details {
        Details::Maze { difficulty } => difficulty,
        _ => Difficulty::Easy,
    };
    put(out, "level", side);
    put(out, "index", instance.index);
    put(out, "seed", instance.seed);
    put(out, "difficulty_bucket", difficulty);
    put(out, "start_row", board.start().row);
    put(out, "start_col", board.start().col);
    put(out, "target_row", board.target().row);
    put(out, "target_col", board.target().col);
    put(out, "start_pos", board.start().index(side));
    put(out, "target_pos", board.target().index(side));
    put_plan(out, &instance.plan);
    put_positions(out, "trajectory_states", &trajectory(side, board.start(), &instance.plan));
    put_layout_json(out, board);
    put_distance_map(out, board);
    out.push_str("layout:\n");
    for row in board.layout_rows() {
        out.push_str(&row);
        out.push('\n');
    }
}

fn put_layout_json(out: &mut String, board: &Board) {
    const SIDES: [(&str, u8); 4] =
        [("{\"north\":", NORTH), (",\"south\":", SOUTH), (",\"east\":", EAST), (",\"west\":", WEST)];
    out.push_str("layout_json=[");
    for row in 0..board.side() {
        out.push_str(if row > 0 { ",[" } else { "[" });
        for col in 0..board.side() {
            if col > 0 {
                out.push(',');
            }
            let walls = board.walls(Position::new(row, col));
            for (name, bit) in SIDES {
                out.push_str(name);
                out.push_str(if walls & bit != 0 { "true" } else { "false" });
            }
            out.push('}');
        }
        out.push(']');
    }
    out.push_str("]\n");
}

/// Distances to the target, keys sorted as text.
fn put_distance_map(out: &mut String, board: &Board) {
    let side = board.side();
    let distances = Distances::from(side, board.target(), |cell, direction| board.open_step(cell, direction));
    let mut entries: Vec<(String, u32)> =
        distances.reachable().map(|(cell, steps)| (cell.index(side).to_string(), steps)).collect();
    entries.sort();
    out.push_str("distance_map={");
    for (i, (cell, steps)) in entries.iter().enumerate() {
        out.push_str(if i > 0 { ",\"" } else { "\"" });
        out.push_str(cell);
        out.push_str("\":");
        put_number(out, *steps as usize);
    }
    out.push_str("}\n");
}

/// Board and details.
pub(crate) fn parse(fields: &Fields) -> Result<(Board, Details)> {
    let side = fields.number("level")?;
    let start = fields.position("start_row", "start_col", side)?;
    let target = fields.position("target_row", "target_col", side)?;
    let mut walls = Vec::new();
    for (row, line) in fields.grid("layout", side)?.iter().enumerate() {
        for word in line.split_whitespace() {
            let problem = || Error::field("layout", format!("row {row} holds {word:?}, expected numbers from 0 to 15"));
            walls.push(word.parse().map_err(|_| problem())?);
        }
        if walls.len() != (row + 1) * side {
            return Err(Error::field("layout", format!("row {row} is {line:?}, expected {side} numbers")));
        }
    }
    let board = Board::new(side, walls, start, target)?;
    Ok((board, Details::Maze { difficulty: fields.difficulty()? }))
}
