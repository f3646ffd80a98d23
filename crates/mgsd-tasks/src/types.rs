//! The words of all three tasks: task, position, direction, action, plan, difficulty.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One of the three planning tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Cross a frozen lake without falling into a hole.
    FrozenLake,
    /// Find the way through a maze with walls between cells.
    Maze,
    /// Fetch the printer and put it on the table.
    MiniBehaviour,
}

impl Task {
    /// All tasks, in the order of reports.
    pub const ALL: [Task; 3] = [Task::FrozenLake, Task::Maze, Task::MiniBehaviour];

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::FrozenLake => "frozenlake",
            Task::Maze => "maze",
            Task::MiniBehaviour => "minibehaviour",
        }
    }

    /// Name of the task's folder in a dataset.
    pub fn dir_name(self) -> &'static str {
        match self {
            Task::FrozenLake => "FrozenLake",
            Task::Maze => "Maze",
            Task::MiniBehaviour => "MiniBehaviour",
        }
    }

    /// Smallest and largest side of a board for which the rules make sense.
    pub fn sides(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Task::FrozenLake | Task::Maze => 2..=100,
            Task::MiniBehaviour => 3..=100,
        }
    }

    pub(crate) fn check_side(self, side: usize) -> Result<()> {
        let sides = self.sides();
        if sides.contains(&side) {
            return Ok(());
        }
        let problem = format!("side {side} is out of range, expected {} to {}", sides.start(), sides.end());
        Err(Error::board(self, problem))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    /// Accepts the names in any case, and the American spelling of the third.
    fn from_str(text: &str) -> Result<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "frozenlake" => Ok(Task::FrozenLake),
            "maze" => Ok(Task::Maze),
            "minibehaviour" | "minibehavior" => Ok(Task::MiniBehaviour),
            _ => Err(Error::Unknown {
                what: "task",
                value: text.to_owned(),
                expected: "frozenlake, maze or minibehaviour",
            }),
        }
    }
}

/// A cell of the board, counted from the top left, both from zero. Written as `[row, col]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(from = "[usize; 2]", into = "[usize; 2]")]
pub struct Position {
    /// Row, growing downwards.
    pub row: usize,
    /// Column, growing to the right.
    pub col: usize,
}

impl Position {
    /// The cell in the given row and column.
    pub fn new(row: usize, col: usize) -> Self {
        Self { row, col }
    }

    /// Number of the cell in reading order.
    pub fn index(self, side: usize) -> usize {
        self.row * side + self.col
    }

    /// The cell with this number in reading order.
    pub fn from_index(index: usize, side: usize) -> Self {
        Self { row: index / side, col: index % side }
    }

    /// The next cell in a direction, or `None` beyond the border.
    pub fn step(self, direction: Direction, side: usize) -> Option<Self> {
        let Position { row, col } = self;
        match direction {
            Direction::Left => (col > 0).then(|| Self::new(row, col - 1)),
            Direction::Down => (row + 1 < side).then(|| Self::new(row + 1, col)),
            Direction::Right => (col + 1 < side).then(|| Self::new(row, col + 1)),
            Direction::Up => (row > 0).then(|| Self::new(row - 1, col)),
        }
    }

    /// Whether the other cell shares a side with this one.
    pub fn is_beside(self, other: Position) -> bool {
        self.row.abs_diff(other.row) + self.col.abs_diff(other.col) == 1
    }
}

impl From<[usize; 2]> for Position {
    fn from([row, col]: [usize; 2]) -> Self {
        Self { row, col }
    }
}

impl From<Position> for [usize; 2] {
    fn from(position: Position) -> Self {
        [position.row, position.col]
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.row, self.col)
    }
}

/// A move's direction; the order is that of gymnasium's action numbers 0 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// One column less.
    Left,
    /// One row more.
    Down,
    /// One column more.
    Right,
    /// One row less.
    Up,
}

impl Direction {
    /// All four, in the order of gymnasium's action numbers.
    pub const ALL: [Direction; 4] = [Direction::Left, Direction::Down, Direction::Right, Direction::Up];

    /// Lower-case English word.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Left => "left",
            Direction::Down => "down",
            Direction::Right => "right",
            Direction::Up => "up",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Go to the neighbouring cell.
    Move(Direction),
    /// Take the printer (MiniBehaviour).
    Pick,
    /// Put the printer on the table (MiniBehaviour).
    Drop,
}

impl Action {
    /// Lower-case English word: `left`, `pick`, ...
    pub fn word(self) -> &'static str {
        match self {
            Action::Move(direction) => direction.word(),
            Action::Pick => "pick",
            Action::Drop => "drop",
        }
    }

    /// The short form used in answers: `L`, `D`, `R`, `U`, `PICK`, `DROP`.
    pub fn code(self) -> &'static str {
        match self {
            Action::Move(Direction::Left) => "L",
            Action::Move(Direction::Down) => "D",
            Action::Move(Direction::Right) => "R",
            Action::Move(Direction::Up) => "U",
            Action::Pick => "PICK",
            Action::Drop => "DROP",
        }
    }

    /// The action for a lower-case word as it stands in instance files.
    pub fn from_word(word: &str) -> Result<Self> {
        Ok(match word {
            "left" => Action::Move(Direction::Left),
            "down" => Action::Move(Direction::Down),
            "right" => Action::Move(Direction::Right),
            "up" => Action::Move(Direction::Up),
            "pick" => Action::Pick,
            "drop" => Action::Drop,
            _ => {
                return Err(Error::Unknown {
                    what: "action",
                    value: word.to_owned(),
                    expected: "left, down, right, up, pick or drop",
                });
            }
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Serialize for Action {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let word = std::borrow::Cow::<str>::deserialize(d)?;
        Action::from_word(&word).map_err(serde::de::Error::custom)
    }
}

/// A sequence of actions. Serialised as a list of words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Plan(pub Vec<Action>);

impl Plan {
    /// The actions in order.
    pub fn actions(&self) -> &[Action] {
        &self.0
    }

    /// Number of actions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no action.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The answer form of a task: letters in a row (`DDRR`), for MiniBehaviour separated by
    /// commas (`L,PICK,D,DROP`).
    pub fn answer(&self, task: Task) -> String {
        let separator = if task == Task::MiniBehaviour { "," } else { "" };
        self.0.iter().map(|action| action.code()).collect::<Vec<_>>().join(separator)
    }
}

impl fmt::Display for Plan {
    /// Letters in a row, or separated by commas when PICK or DROP occurs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carries = self.0.iter().any(|a| !matches!(a, Action::Move(_)));
        f.pad(&self.answer(if carries { Task::MiniBehaviour } else { Task::Maze }))
    }
}

impl FromStr for Plan {
    type Err = Error;

    /// Reads what [`Plan`] displays: `RRD`, `R,R,D`, `L,PICK,D,DROP`, words as well; in any case.
    fn from_str(text: &str) -> Result<Self> {
        let mut actions = Vec::new();
        let separators = |c: char| c == ',' || c == ';' || c.is_whitespace();
        for word in text.split(separators).filter(|word| !word.is_empty()) {
            let lower = word.to_ascii_lowercase();
            if let Ok(action) = Action::from_word(&lower) {
                actions.push(action);
                continue;
            }
            for letter in lower.chars() {
                actions.push(Action::Move(match letter {
                    'l' => Direction::Left,
                    'd' => Direction::Down,
                    'r' => Direction::Right,
                    'u' => Direction::Up,
                    _ => {
                        return Err(Error::Unknown {
                            what: "action",
                            value: word.to_owned(),
                            expected: "letters L, D, R, U (RRD), or a comma-separated list with PICK and DROP",
                        });
                    }
                }));
            }
        }
        Ok(Plan(actions))
    }
}

/// How long the shortest plan of a board is, in three classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Difficulty {
    /// Short plans.
    Easy,
    /// Plans of about the side's length.
    Medium,
    /// Longer plans.
    Hard,
}

impl Difficulty {
    /// All three, the order in which samples cycle through them by default.
    pub const ALL: [Difficulty; 3] = [Difficulty::Easy, Difficulty::Medium, Difficulty::Hard];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Difficulty::Easy => "easy",
            Difficulty::Medium => "medium",
            Difficulty::Hard => "hard",
        }
    }
}

impl fmt::Display for Difficulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Difficulty {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Difficulty::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(text.trim())).ok_or_else(|| Error::Unknown {
            what: "difficulty",
            value: text.to_owned(),
            expected: "easy, medium or hard",
        })
    }
}
