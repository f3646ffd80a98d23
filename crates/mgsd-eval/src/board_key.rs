//! A board from its key ([`Board::key`]): rows carry it, so that a run folder can be looked at without its boards.

use mgsd_tasks::{Board, Position, frozen_lake, maze, mini_behaviour};

/// The board that a key names.
///
/// # Errors
/// In words, when the text is no key.
pub fn parse(key: &str) -> Result<Board, String> {
    let bad = || format!("board {key:?}: expected a key such as frozenlake:SF/FG, as `mgsd eval` writes it");
    let (task, rest) = key.split_once(':').ok_or_else(bad)?;
    let wrong = |error: mgsd_tasks::Error| format!("board {key:?}: {error}");
    match task {
        "frozenlake" => {
            let rows: Vec<&str> = rest.split('/').collect();
            frozen_lake::Board::from_rows(&rows).map(Board::from).map_err(wrong)
        }
        "maze" => {
            let (ends, layout) = rest.split_once(':').ok_or_else(bad)?;
            let (start, target) = ends.split_once('>').ok_or_else(bad)?;
            let rows: Vec<&str> = layout.split('/').collect();
            let walls: Result<Vec<u8>, _> = rows.iter().flat_map(|row| row.split(' ')).map(str::parse).collect();
            let at = |text: &str| text.parse().map(|index| Position::from_index(index, rows.len())).map_err(|_| bad());
            maze::Board::new(rows.len(), walls.map_err(|_| bad())?, at(start)?, at(target)?)
                .map(Board::from)
                .map_err(wrong)
        }
        "minibehaviour" => {
            let rows: Vec<&str> = rest.split('/').collect();
            let (mut agent, mut printer, mut table) = (None, None, Vec::new());
            for (row, line) in rows.iter().enumerate() {
                for (col, letter) in line.chars().enumerate() {
                    let here = Position::new(row, col);
                    match letter {
                        'A' => agent = Some(here),
                        'P' => printer = Some(here),
                        'T' => table.push(here),
                        '.' => {}
                        _ => return Err(bad()),
                    }
                }
            }
            let (agent, printer) = agent.zip(printer).ok_or_else(bad)?;
            mini_behaviour::Board::new(rows.len(), agent, printer, table).map(Board::from).map_err(wrong)
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgsd_tasks::{GenerateOptions, Task, generate};

    #[test]
    fn every_key_gives_back_its_board() {
        for (task, level) in [(Task::FrozenLake, 8), (Task::Maze, 6), (Task::MiniBehaviour, 7)] {
            for instance in generate(task, level, &GenerateOptions::default(), 0..10).expect("boards") {
                assert_eq!(parse(&instance.board.key()), Ok(instance.board));
            }
        }
    }

    #[test]
    fn what_is_no_key_is_an_error_and_no_panic() {
        for key in
            ["", "maze", "maze:1>2", "maze:0>99:1 2/3 4", "maze:0>1:1 2/3", "frozenlake:", "minibehaviour:A./.", "x:y"]
        {
            assert!(parse(key).is_err(), "{key:?}");
        }
    }
}
