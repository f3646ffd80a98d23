//! The instance text of MiniBehaviour.

use super::Board;
use crate::fields::{Fields, put, put_list, put_number, put_plan, put_position, put_positions};
use crate::grid::{Distances, trajectory};
use crate::{Action, Details, Difficulty, Error, Instance, Position, Result};

/// Everything after the common fields.
pub(crate) fn write(out: &mut String, instance: &Instance, board: &Board) {
    let side = board.side();
    let (difficulty, start_dir) = match instance.details {
        Details::MiniBehaviour { difficulty, start_dir } => (difficulty, start_dir),
        _ => (Difficulty::Easy, 0),
    };
    put(out, "level", side);
    put(out, "grid_rows", side);
    put(out, "grid_cols", side);
    put(out, "outer_ring", false);
    put(out, "index", instance.index);
    put(out, "seed", instance.seed);
    put(out, "difficulty_bucket", difficulty);
    put(out, "start_row", board.start().row);
    put(out, "start_col", board.start().col);
    put(out, "start_dir", start_dir);
    put(out, "printer_row", board.printer().row);
    put(out, "printer_col", board.printer().col);
    put(out, "printer_traversable_after_pick", true);
    let printer_neighbors = board.printer_neighbors();
    let table_neighbors = board.table_neighbors();
    put_positions(out, "table_pos", board.table());
    put_positions(out, "printer_neighbors", &printer_neighbors);
    put_positions(out, "table_neighbors", &table_neighbors);
    out.push_str("best_paths=");
    put_list(out, &board.best_pairs(), |out, (pick, drop)| put_list(out, &[*pick, *drop], put_position));
    out.push('\n');
    put_plan(out, &instance.plan);
    put_trajectory(out, instance, board);
    put_distance_maps(out, "distance_map_to_printer", board, &printer_neighbors, false);
    put_distance_maps(out, "distance_map_to_table", board, &table_neighbors, true);
    out.push_str("grid:\n");
    for row in board.rows() {
        out.push_str(&row);
        out.push('\n');
    }
}

fn put_trajectory(out: &mut String, instance: &Instance, board: &Board) {
    out.push_str("trajectory_states=[");
    let mut carrying = false;
    let cells = trajectory(board.side(), board.start(), &instance.plan);
    for (i, cell) in cells.iter().enumerate() {
        if i > 0 {
            match instance.plan.actions()[i - 1] {
                Action::Pick => carrying = true,
                Action::Drop => carrying = false,
                Action::Move(_) => {}
            }
            out.push(',');
        }
        out.push_str("{\"coord\":[");
        put_number(out, cell.row);
        out.push(',');
        put_number(out, cell.col);
        out.push_str("],\"carrying\":");
        out.push_str(if carrying { "true}" } else { "false}" });
    }
    out.push_str("]\n");
}

fn put_key(out: &mut String, cell: Position) {
    if cell.row < 10 && cell.col < 10 {
        // The maps hold hundreds of these: one copy instead of five.
        let mut key = *b"\"(0, 0)\":";
        key[2] += cell.row as u8;
        key[5] += cell.col as u8;
        out.push_str(std::str::from_utf8(&key).unwrap_or_default());
        return;
    }
    out.push_str("\"(");
    put_number(out, cell.row);
    out.push_str(", ");
    put_number(out, cell.col);
    out.push_str(")\":");
}

/// Order of the cells' names as text, where `(10, 0)` comes before `(2, 0)`.
fn name_order(cell: &Position) -> (u64, u64) {
    // Left-aligned digits compare as the text does; a shorter number ends in ',' or ')', both below '0'.
    let aligned = |n: usize| -> u64 {
        let digits = if n >= 100 {
            3
        } else if n >= 10 {
            2
        } else {
            1
        };
        (n as u64 * 10_u64.pow(3 - digits)) << 2 | u64::from(digits)
    };
    (aligned(cell.row), aligned(cell.col))
}

fn put_distance_maps(out: &mut String, name: &str, board: &Board, targets: &[Position], carrying: bool) {
    out.push_str(name);
    out.push_str("={");
    let mut targets = targets.to_vec();
    targets.sort_by_key(name_order);
    for (i, target) in targets.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        put_key(out, *target);
        put_distance_map(out, &board.distances(*target, carrying));
    }
    out.push_str("}\n");
}

fn put_distance_map(out: &mut String, distances: &Distances) {
    out.push('{');
    let mut separate = false;
    let mut entry = |(cell, steps): (Position, u32)| {
        if std::mem::replace(&mut separate, true) {
            out.push(',');
        }
        put_key(out, cell);
        put_number(out, steps as usize);
    };
    if distances.reachable().any(|(cell, _)| cell.row >= 10 || cell.col >= 10) {
        let mut entries: Vec<(Position, u32)> = distances.reachable().collect();
        entries.sort_by_key(|(cell, _)| name_order(cell));
        entries.into_iter().for_each(&mut entry);
    } else {
        // With single digits the order of reading is that of the names.
        distances.reachable().for_each(&mut entry);
    }
    out.push('}');
}

/// Board and details.
pub(crate) fn parse(fields: &Fields) -> Result<(Board, Details)> {
    let side = fields.number("level")?;
    let start = fields.position("start_row", "start_col", side)?;
    let printer = fields.position("printer_row", "printer_col", side)?;
    let board = Board::new(side, start, printer, fields.json("table_pos")?)?;
    let drawn = fields.grid("grid", side)?;
    if let Some((row, line)) = board.rows().iter().enumerate().find(|(row, line)| *line != drawn[*row]) {
        let problem = format!("row {row} is {:?}, the fields above make it {line:?}", drawn[row]);
        return Err(Error::field("grid", problem));
    }
    let details = Details::MiniBehaviour {
        difficulty: fields.difficulty()?,
        start_dir: fields.value_or("start_dir", "a number from 0 to 3", 0)?,
    };
    Ok((board, details))
}
