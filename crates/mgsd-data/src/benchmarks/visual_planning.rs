//! VisualPlanning's records: `<root>/{maze,minibehaviour}/tokenized_dataset/SFT/{train,test}_dataset.jsonl`.

use std::collections::HashMap;
use std::path::Path;

use mgsd_tasks::score::BenchmarkCase;
use mgsd_tasks::{Board, Position, Task, maze, mini_behaviour};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Case, in_levels};
use crate::{DataError, Result, files};

/// Reads the records of one task below `root`; `split` is `test` or `train`. The token lists are left alone.
pub fn read(root: &Path, task: Task, split: &str, levels: &[usize]) -> Result<Vec<Case>> {
    let path = file(root, task, split);
    let text = files::read_text(&path)?;
    let mut cases = Vec::new();
    let lines = text.split('\n').filter(|line| !line.trim().is_empty());
    for (index, line) in lines.enumerate() {
        let case = match task {
            Task::Maze => maze_case(line, index, split),
            Task::MiniBehaviour => mini_behaviour_case(line, index, split),
            Task::FrozenLake => Err("this benchmark's FrozenLake file is not used; DiffThinker's maps are".to_string()),
        }
        .map_err(|problem| DataError::format(&path, format!("line {}", index + 1), problem))?;
        if in_levels(levels, case.level) {
            cases.push(case);
        }
    }
    Ok(cases)
}

/// Where the records of a task lie.
fn file(root: &Path, task: Task, split: &str) -> std::path::PathBuf {
    root.join(task.name()).join("tokenized_dataset/SFT").join(format!("{split}_dataset.jsonl"))
}

/// A line; `input_state` has one entry more than the recorded plan has actions.
#[derive(Deserialize)]
struct Line<Meta> {
    input_state: Option<Vec<Value>>,
    meta: Meta,
}

#[derive(Deserialize)]
struct MazeMeta {
    level: usize,
    start_pos: usize,
    target_pos: usize,
    layout: Vec<Vec<Walls>>,
    #[serde(default)]
    distance_map: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Walls {
    north: bool,
    south: bool,
    east: bool,
    west: bool,
}

#[derive(Deserialize)]
struct RoomMeta {
    level: usize,
    start_pos: Position,
    printer_pos: Position,
    table_pos: Vec<Position>,
    printer_neighbors: Vec<Position>,
    table_neighbors: Vec<Position>,
    idx: Option<usize>,
}

impl Walls {
    fn bits(&self) -> u8 {
        [(self.north, maze::NORTH), (self.south, maze::SOUTH), (self.west, maze::WEST), (self.east, maze::EAST)]
            .into_iter()
            .map(|(wall, bit)| if wall { bit } else { 0 })
            .sum()
    }
}

fn parse<Meta: DeserializeOwned>(line: &str) -> Result<Line<Meta>, String> {
    serde_json::from_str(line)
        .map_err(|error| format!("{error}; expected a VisualPlanning record with input_state and meta"))
}

fn maze_case(line: &str, index: usize, split: &str) -> Result<Case, String> {
    let Line { input_state, meta } = parse::<MazeMeta>(line)?;
    let level = meta.level;
    if meta.layout.len() != level || meta.layout.iter().any(|row| row.len() != level) {
        return Err(format!("field \"meta.layout\": expected {level} rows of {level} cells"));
    }
    for (name, value) in [("start_pos", meta.start_pos), ("target_pos", meta.target_pos)] {
        if value >= level * level {
            return Err(format!("field \"meta.{name}\": {value} is beyond the last cell, {}", level * level - 1));
        }
    }
    let expected_action_count = recorded_actions(input_state.as_deref())
        .or_else(|| meta.distance_map.get(&meta.start_pos.to_string()).copied());
    let walls = meta.layout.iter().flatten().map(Walls::bits).collect();
    let at = |index: usize| Position::from_index(index, level);
    let board: Board = maze::Board::new(level, walls, at(meta.start_pos), at(meta.target_pos))
        .map_err(|error| format!("field \"meta\": {error}"))?
        .into();
    let case_id = format!("maze_{split}_level{level}_{index:04}");
    Ok(Case {
        image: format!("maze/{split}/level{level}/{case_id}.png"),
        case_id,
        task: Task::Maze,
        split: split.to_string(),
        level,
        dataset_line_index: index,
        start_pos: json!(meta.start_pos),
        target_pos: json!(meta.target_pos),
        expected_action_count,
        source: None,
        scoring: BenchmarkCase { expected_action_count, ..BenchmarkCase::from_board(&board) },
        board,
    })
}

fn mini_behaviour_case(line: &str, index: usize, split: &str) -> Result<Case, String> {
    let Line { input_state, meta } = parse::<RoomMeta>(line)?;
    let level = meta.level;
    let board: Board = mini_behaviour::Board::new(level, meta.start_pos, meta.printer_pos, meta.table_pos.clone())
        .map_err(|error| format!("field \"meta\": {error}"))?
        .into();
    let expected_action_count = recorded_actions(input_state.as_deref());
    let case_id = format!("minibehaviour_{split}_level{level}_{:04}", meta.idx.unwrap_or(index));
    Ok(Case {
        image: format!("minibehaviour/{split}/level{level}/{case_id}.png"),
        case_id,
        task: Task::MiniBehaviour,
        split: split.to_string(),
        level,
        dataset_line_index: index,
        start_pos: json!(meta.start_pos),
        target_pos: Value::Null,
        expected_action_count,
        source: None,
        scoring: BenchmarkCase {
            board: board.clone(),
            expected_action_count,
            printer_neighbors: meta.printer_neighbors,
            table_neighbors: meta.table_neighbors,
        },
        board,
    })
}

/// How many actions lie between the recorded states.
fn recorded_actions(states: Option<&[Value]>) -> Option<usize> {
    states.and_then(|states| states.len().checked_sub(1))
}
