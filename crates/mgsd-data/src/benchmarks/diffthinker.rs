//! DiffThinker's FrozenLake maps: `<root>/level<N>/{img/K.png, table/K.txt, pure_text/K.txt, metadata.json}`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use mgsd_tasks::score::BenchmarkCase;
use mgsd_tasks::{Board, Plan, Position, Task, frozen_lake};
use serde_json::json;

use super::{Case, Source, in_levels};
use crate::{DataError, Result, files};

/// Reads the maps below `root`; each picture of a level is a case and needs a table of the same stem.
pub fn read(root: &Path, levels: &[usize]) -> Result<Vec<Case>> {
    let mut found: Vec<(usize, PathBuf)> = files::list(root)?
        .into_iter()
        .filter_map(|path| {
            let level = path.file_name()?.to_str()?.strip_prefix("level")?.parse().ok()?;
            path.is_dir().then_some((level, path))
        })
        .filter(|(level, _)| in_levels(levels, *level))
        .collect();
    found.sort();
    let (mut cases, mut ids) = (Vec::new(), HashSet::new());
    for (level, folder) in found {
        for image in pictures(&folder.join("img"))? {
            let case = case(&folder, level, &image)?;
            if !ids.insert(case.case_id.clone()) {
                let problem = format!("a second one for {}, such as 0.png beside 00.png; rename it", case.case_id);
                return Err(DataError::format(&image, "picture", problem));
            }
            cases.push(case);
        }
    }
    Ok(cases)
}

/// The pictures of a level: numeric stems by number, then the others by name.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures: Vec<PathBuf> = files::list(folder)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")))
        .collect();
    pictures.sort_by_key(|path| {
        let stem = stem(path);
        (stem.parse::<u64>().unwrap_or(u64::MAX), stem)
    });
    Ok(pictures)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn case(folder: &Path, level: usize, image: &Path) -> Result<Case> {
    let stem = stem(image);
    let table = folder.join("table").join(format!("{stem}.txt"));
    let pure_text = folder.join("pure_text").join(format!("{stem}.txt"));
    let board =
        parse_table(&files::read_text(&table)?).map_err(|problem| DataError::format(&table, "table", problem))?;
    let side = board.side();
    if side != level {
        return Err(DataError::format(
            &table,
            "table",
            format!("{side} rows in the folder of level {level}; move the file"),
        ));
    }
    let number = stem.parse::<usize>().ok();
    let case_id = match number {
        Some(number) => format!("frozenlake_diffthinker_vsp_level{level}_{number:04}"),
        None => format!("frozenlake_diffthinker_vsp_level{level}_{stem}"),
    };
    let plan = board.solve();
    let index = |position: Position| json!(position.row * side + position.col);
    let (start_pos, target_pos) = (index(board.start()), index(board.goal()));
    let board = Board::FrozenLake(board);
    Ok(Case {
        image: format!("frozenlake/diffthinker_vsp/level{level}/{case_id}.png"),
        case_id,
        task: Task::FrozenLake,
        split: "test".to_string(),
        level,
        dataset_line_index: number.unwrap_or(0),
        start_pos,
        target_pos,
        expected_action_count: plan.as_ref().map(Plan::len),
        source: Some(Source {
            bench: "diffthinker_frozenlake_vsp",
            image: image.to_path_buf(),
            table,
            pure_text: Some(pure_text).filter(|path| path.is_file()),
        }),
        scoring: BenchmarkCase::from_board(&board),
        board,
    })
}

/// The board of a Markdown table: "| Row 1 | @ | _ | # |" is a row; @ or S is the start, * or G the goal, # or H a
/// hole, anything else frozen. Empty cells vanish, as in the published loader.
fn parse_table(text: &str) -> Result<frozen_lake::Board, String> {
    let rows: Vec<String> = text
        .lines()
        .filter(|line| line.contains('|') && !line.contains("Col") && !line.contains("---"))
        .map(|line| {
            line.split('|')
                .map(str::trim)
                .filter(|cell| !cell.is_empty() && !cell.starts_with("Row"))
                .map(letter)
                .collect()
        })
        .collect();
    frozen_lake::Board::from_rows(&rows).map_err(|error| {
        format!("{error}; expected rows like \"| Row 1 | @ | _ | # |\" with one @ (start) and one * (goal)")
    })
}

fn letter(cell: &str) -> char {
    match cell {
        "@" | "S" => 'S',
        "*" | "G" => 'G',
        "#" | "H" => 'H',
        _ => 'F',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_both_alphabets_and_skips_its_head() {
        let table = "| | Col 1 | Col 2 |\n|---|---|---|\n| Row 1 | @ | H |\n| Row 2 | F | * |\n";
        assert_eq!(parse_table(table).unwrap().rows(), ["SH", "FG"]);
    }

    #[test]
    fn a_blank_cell_is_an_error_that_says_what_is_expected() {
        let error = parse_table("| Row 1 | @ |   |\n| Row 2 | _ | * |\n").unwrap_err();
        assert!(error.contains("row 0") && error.contains("@ (start)"), "{error}");
    }
}
