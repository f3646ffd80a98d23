//! State and rules of FrozenLake.

use crate::{Direction, Error, Position, Result, Task};

/// A square lake: holes, a start and a goal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Board {
    side: usize,
    holes: Vec<bool>,
    start: Position,
    goal: Position,
}

impl Board {
    /// A board from rows of `S` (start), `G` (goal), `H` (hole) and `F` (frozen).
    ///
    /// # Errors
    /// When the rows are no square of side 2 to 100, or hold other letters, or not exactly one start and goal.
    pub fn from_rows<S: AsRef<str>>(rows: &[S]) -> Result<Self> {
        let fail = |problem: String| Err(Error::board(Task::FrozenLake, problem));
        let side = rows.len();
        Task::FrozenLake.check_side(side)?;
        let (mut start, mut goal) = (None, None);
        let mut holes = vec![false; side * side];
        for (row, line) in rows.iter().enumerate() {
            let line = line.as_ref();
            if line.chars().count() != side {
                return fail(format!("row {row} is {line:?}, expected {side} letters"));
            }
            for (col, letter) in line.chars().enumerate() {
                let position = Position::new(row, col);
                let marked = match letter {
                    'F' => continue,
                    'H' => {
                        holes[position.index(side)] = true;
                        continue;
                    }
                    'S' => start.replace(position),
                    'G' => goal.replace(position),
                    _ => return fail(format!("{letter:?} at {position}, expected S, G, H or F")),
                };
                if let Some(first) = marked {
                    return fail(format!("{letter} stands at {first} and at {position}, expected once"));
                }
            }
        }
        let (Some(start), Some(goal)) = (start, goal) else {
            return fail("a start S and a goal G are expected".to_owned());
        };
        Ok(Self { side, holes, start, goal })
    }

    /// A board from its parts; the caller has seen to it that they fit.
    pub(crate) fn from_parts(side: usize, holes: Vec<bool>, start: Position, goal: Position) -> Self {
        debug_assert_eq!(holes.len(), side * side);
        Self { side, holes, start, goal }
    }

    /// The mask of holes in reading order, without a copy.
    pub(crate) fn into_holes(self) -> Vec<bool> {
        self.holes
    }

    /// Rows and columns.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Where the player stands at first.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Where the player is to go.
    pub fn goal(&self) -> Position {
        self.goal
    }

    /// Whether a cell is a hole.
    pub fn is_hole(&self, position: Position) -> bool {
        self.holes[position.index(self.side)]
    }

    /// The holes in reading order.
    pub fn holes(&self) -> Vec<Position> {
        let cells = self.holes.iter().enumerate().filter(|(_, hole)| **hole);
        cells.map(|(i, _)| Position::from_index(i, self.side)).collect()
    }

    /// The letter of a cell: `S`, `G`, `H` or `F`.
    pub fn letter(&self, position: Position) -> char {
        if position == self.start {
            'S'
        } else if position == self.goal {
            'G'
        } else if self.is_hole(position) {
            'H'
        } else {
            'F'
        }
    }

    /// The rows as they stand in the text file.
    pub fn rows(&self) -> Vec<String> {
        let line = |row| (0..self.side).map(|col| self.letter(Position::new(row, col))).collect();
        (0..self.side).map(line).collect()
    }

    /// The cell that a safe move leads to: inside the board and no hole.
    pub fn safe_step(&self, from: Position, direction: Direction) -> Option<Position> {
        from.step(direction, self.side).filter(|next| !self.is_hole(*next))
    }
}
