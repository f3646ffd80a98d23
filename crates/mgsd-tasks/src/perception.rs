//! Questions about what a picture shows: their names, the right answers, and scoring.
//!
//! An answer is a numbered list, one entry a question (`1. The map size is 4x4.`). Scoring reads numbers, cells
//! and words out of each entry and does not care about the wording.

use crate::plan::is_word;
use crate::{Board, Direction, Position, Task};
use crate::{frozen_lake, maze, mini_behaviour};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Directions in the order in which answers list them.
const ORDER: [Direction; 4] = [Direction::Up, Direction::Right, Direction::Down, Direction::Left];

/// The names of a task's questions, in the order of their numbers from 1.
pub fn questions(task: Task) -> &'static [&'static str] {
    match task {
        Task::FrozenLake => &["map_size", "player_position", "goal_position", "h_positions"],
        Task::Maze => &["map_size", "player_position", "goal_position", "open_directions", "player_legal_actions"],
        Task::MiniBehaviour => &[
            "map_size",
            "agent_position",
            "printer_position",
            "table_cells",
            "printer_adjacent_cells",
            "table_adjacent_cells",
            "movement_legal_actions",
        ],
    }
}

/// What the right answer to a question is.
enum Fact {
    Size(usize),
    Cell(Position),
    Cells(Vec<Position>),
    Directions(Vec<Direction>),
    /// Open directions of every cell, in reading order.
    Openings(Vec<(Position, Vec<Direction>)>),
}

fn facts(board: &Board) -> Vec<Fact> {
    match board {
        Board::FrozenLake(board) => frozen_lake_facts(board),
        Board::Maze(board) => maze_facts(board),
        Board::MiniBehaviour(board) => mini_behaviour_facts(board),
    }
}

fn frozen_lake_facts(board: &frozen_lake::Board) -> Vec<Fact> {
    vec![Fact::Size(board.side()), Fact::Cell(board.start()), Fact::Cell(board.goal()), Fact::Cells(board.holes())]
}

fn maze_facts(board: &maze::Board) -> Vec<Fact> {
    let side = board.side();
    let open = |cell| ORDER.into_iter().filter(|d| board.is_open(cell, *d)).collect::<Vec<_>>();
    let cells = (0..side * side).map(|i| Position::from_index(i, side));
    vec![
        Fact::Size(side),
        Fact::Cell(board.start()),
        Fact::Cell(board.target()),
        Fact::Openings(cells.map(|cell| (cell, open(cell))).collect()),
        Fact::Directions(open(board.start())),
    ]
}

fn mini_behaviour_facts(board: &mini_behaviour::Board) -> Vec<Fact> {
    let legal = |d: &Direction| board.free_step(board.start(), *d, false).is_some();
    vec![
        Fact::Size(board.side()),
        Fact::Cell(board.start()),
        Fact::Cell(board.printer()),
        Fact::Cells(board.table().to_vec()),
        Fact::Cells(board.printer_neighbors()),
        Fact::Cells(board.table_neighbors()),
        Fact::Directions(ORDER.into_iter().filter(legal).collect()),
    ]
}

/// The words before the fact, by question.
fn lead(name: &str) -> &'static str {
    match name {
        "map_size" => "The map size is",
        "player_position" => "The player is at",
        "goal_position" => "The goal is at",
        "h_positions" => "The H tiles are at:",
        "open_directions" => "Open directions by cell:",
        "player_legal_actions" => "The legal movement actions from the player position are:",
        "agent_position" => "The agent is at",
        "printer_position" => "The printer is at",
        "table_cells" => "The table cells are:",
        "printer_adjacent_cells" => "The cells adjacent to the printer are:",
        "table_adjacent_cells" => "The cells adjacent to the table are:",
        _ => "The legal movement actions from the agent position are:",
    }
}

fn cell_name(cell: &Position) -> String {
    format!("({},{})", cell.row, cell.col)
}

fn list(items: impl Iterator<Item = String>, separator: &str) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(separator) }
}

fn direction_list(directions: &[Direction]) -> String {
    list(directions.iter().map(|d| d.word().to_owned()), ", ")
}

/// The right answers as a numbered list.
pub fn gold(board: &Board) -> String {
    let mut text = String::new();
    for (i, (name, fact)) in questions(board.task()).iter().zip(facts(board)).enumerate() {
        if i > 0 {
            text.push('\n');
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{}. {}", i + 1, lead(name));
        let _ = match fact {
            Fact::Size(side) => write!(text, " {side}x{side}."),
            Fact::Cell(cell) => write!(text, " {}.", cell_name(&cell)),
            Fact::Cells(cells) => write!(text, " {}.", list(cells.iter().map(cell_name), "; ")),
            Fact::Directions(directions) => write!(text, " {}.", direction_list(&directions)),
            Fact::Openings(cells) => cells
                .iter()
                .try_for_each(|(cell, open)| write!(text, "\n{}: {}", cell_name(cell), direction_list(open))),
        };
    }
    text
}

/// Which questions were answered exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerceptionScore {
    /// Question names and whether the answer is right, in order.
    pub questions: Vec<(&'static str, bool)>,
}

impl PerceptionScore {
    /// Whether all answers are right.
    pub fn all_exact_match(&self) -> bool {
        self.questions.iter().all(|(_, right)| *right)
    }

    /// Whether one question was answered right; `None` for a name the task does not have.
    pub fn get(&self, name: &str) -> Option<bool> {
        self.questions.iter().find(|(known, _)| *known == name).map(|(_, right)| *right)
    }
}

impl Serialize for PerceptionScore {
    /// An object of the question names and `all_exact_match`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.questions.len() + 1))?;
        for (name, right) in &self.questions {
            map.serialize_entry(name, right)?;
        }
        map.serialize_entry("all_exact_match", &self.all_exact_match())?;
        map.end()
    }
}

/// Scores an answer. Without a numbered line nothing is right.
pub fn score(board: &Board, answer: &str) -> PerceptionScore {
    let sections = sections(answer);
    let names = questions(board.task()).iter().copied();
    let right = |(i, fact): (usize, Fact)| {
        !sections.is_empty() && matches_fact(&fact, sections.get(&(i as u64 + 1)).copied().unwrap_or(""))
    };
    let scores = facts(board).into_iter().enumerate().map(right);
    PerceptionScore { questions: names.zip(scores).collect() }
}

fn matches_fact(fact: &Fact, text: &str) -> bool {
    match fact {
        Fact::Size(side) => size(text) == Some((*side as u64, *side as u64)),
        Fact::Cell(cell) => cells(text).next().is_some_and(|(found, _)| found == pair(cell)),
        Fact::Cells(expected) => {
            let found: BTreeSet<(u64, u64)> = cells(text).map(|(cell, _)| cell).collect();
            found == expected.iter().map(pair).collect()
        }
        Fact::Directions(expected) => directions(text) == expected.iter().copied().collect(),
        Fact::Openings(expected) => {
            let set = |(cell, open): &(Position, Vec<Direction>)| (pair(cell), open.iter().copied().collect());
            let expected: BTreeMap<(u64, u64), BTreeSet<Direction>> = expected.iter().map(set).collect();
            openings(text) == expected
        }
    }
}

fn pair(cell: &Position) -> (u64, u64) {
    (cell.row as u64, cell.col as u64)
}

/// A decimal digit of any script. In Unicode they come in runs of ten from a zero.
fn digit(c: char) -> Option<u64> {
    /// The zeros outside ASCII.
    const ZEROS: &[u32] = &[
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20,
        0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0,
        0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x11066, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6,
    ];
    if c.is_ascii() {
        return c.to_digit(10).map(u64::from);
    }
    let code = c as u32;
    ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code)).map(|zero| u64::from(code - zero))
}

/// A number at the start of a text and what follows. Too large ones stay at the limit.
fn number(text: &str) -> Option<(u64, &str)> {
    let mut value: Option<u64> = None;
    let mut rest = text;
    while let Some(d) = rest.chars().next().and_then(digit) {
        value = Some(value.unwrap_or(0).saturating_mul(10).saturating_add(d));
        rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
    }
    value.map(|value| (value, rest))
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// The entries of a numbered list by number; a repeated number replaces the earlier one.
pub(crate) fn sections(text: &str) -> BTreeMap<u64, &str> {
    let mut heads: Vec<(u64, usize, usize)> = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if let Some((value, rest)) = number(skip_blanks(line))
            && (rest.starts_with('.') || rest.starts_with(')'))
        {
            heads.push((value, start, start + line.len() - rest.len() + 1));
        }
        start += line.len();
    }
    let ends = heads.iter().skip(1).map(|head| head.1).chain([text.len()]).collect::<Vec<_>>();
    heads.iter().zip(ends).map(|((value, _, from), to)| (*value, &text[*from..to])).collect()
}

/// The positions after which a number can start: where no digit stands before.
fn number_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut after_digit = false;
    text.char_indices().filter_map(move |(i, c)| {
        let is_digit = digit(c).is_some();
        let starts = is_digit && !after_digit;
        after_digit = is_digit;
        starts.then_some(i)
    })
}

/// The first `AxB`, else the first number standing alone, taken twice.
pub(crate) fn size(text: &str) -> Option<(u64, u64)> {
    for start in number_starts(text) {
        if let Some((a, rest)) = number(&text[start..])
            && let Some(rest) = skip_blanks(rest).strip_prefix(['x', 'X'])
            && let Some((b, _)) = number(skip_blanks(rest))
        {
            return Some((a, b));
        }
    }
    for start in number_starts(text) {
        let before = text[..start].chars().next_back();
        if let Some((a, rest)) = number(&text[start..])
            && !before.is_some_and(is_word)
            && !rest.chars().next().is_some_and(is_word)
        {
            return Some((a, a));
        }
    }
    None
}

/// The `(r,c)` of a text, each with the text after it.
pub(crate) fn cells(text: &str) -> impl Iterator<Item = ((u64, u64), &str)> {
    text.match_indices('(').filter_map(|(i, _)| {
        let (row, rest) = number(&text[i + 1..])?;
        let (col, rest) = number(skip_blanks(skip_blanks(rest).strip_prefix(',')?))?;
        Some(((row, col), rest.strip_prefix(')')?))
    })
}

/// The directions named as whole words.
pub(crate) fn directions(text: &str) -> BTreeSet<Direction> {
    let words = text.split(|c: char| !is_word(c));
    words.filter_map(|word| ORDER.into_iter().find(|d| d.word().eq_ignore_ascii_case(word))).collect()
}

/// The cells followed by a colon, each with the directions in the rest of its line. An empty rest takes the next line.
pub(crate) fn openings(text: &str) -> BTreeMap<(u64, u64), BTreeSet<Direction>> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((cell, after)) = cells(rest).find(|(_, after)| skip_blanks(after).starts_with(':')) {
        let line = skip_blanks(&skip_blanks(after)[1..]);
        let end = line.find('\n').unwrap_or(line.len());
        found.insert(cell, directions(&line[..end]));
        rest = &line[end..];
    }
    found
}
