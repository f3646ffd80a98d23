//! State and rules of MiniBehaviour.

use crate::{Direction, Error, Position, Result, Task};

/// A square room: an agent, a printer on the floor and the cells of a table.
///
/// The printer blocks its cell until it is picked up; the table always blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Board {
    side: usize,
    start: Position,
    printer: Position,
    /// Sorted in reading order.
    table: Vec<Position>,
}

impl Board {
    /// A board from its parts; the table's cells in any order.
    ///
    /// # Errors
    /// When the side is not 3 to 100, something lies outside, two things share a cell, or there is no table.
    pub fn new(side: usize, start: Position, printer: Position, mut table: Vec<Position>) -> Result<Self> {
        let fail = |problem: String| Err(Error::board(Task::MiniBehaviour, problem));
        Task::MiniBehaviour.check_side(side)?;
        table.sort_unstable();
        table.dedup();
        if table.is_empty() {
            return fail("the table has no cell, expected at least one".to_owned());
        }
        let named = table.iter().map(|p| ("table", *p));
        for (name, p) in named.chain([("start", start), ("printer", printer)]) {
            if p.row >= side || p.col >= side {
                return fail(format!("{name} {p} lies outside a board of side {side}"));
            }
        }
        if start == printer {
            return fail(format!("agent and printer share the cell {start}"));
        }
        for (name, p) in [("agent", start), ("printer", printer)] {
            if table.binary_search(&p).is_ok() {
                return fail(format!("{name} and table share the cell {p}"));
            }
        }
        Ok(Self { side, start, printer, table })
    }

    /// Rows and columns.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Where the agent stands at first.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Where the printer stands at first.
    pub fn printer(&self) -> Position {
        self.printer
    }

    /// The table's cells in reading order.
    pub fn table(&self) -> &[Position] {
        &self.table
    }

    /// Whether the table stands on a cell.
    pub fn is_table(&self, position: Position) -> bool {
        self.table.binary_search(&position).is_ok()
    }

    /// The cells next to the printer, in reading order, without those of the table.
    pub fn printer_neighbors(&self) -> Vec<Position> {
        self.free_beside(std::slice::from_ref(&self.printer))
    }

    /// The cells next to the table, in reading order, without those of the table itself; the printer's
    /// cell counts, since it is free once the printer is carried.
    pub fn table_neighbors(&self) -> Vec<Position> {
        self.free_beside(&self.table)
    }

    fn free_beside(&self, cells: &[Position]) -> Vec<Position> {
        let around = |cell: &Position| Direction::ALL.map(|d| cell.step(d, self.side));
        let mut found: Vec<Position> = cells.iter().flat_map(around).flatten().filter(|p| !self.is_table(*p)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The cell that an allowed move leads to, with or without the printer in hand.
    pub fn free_step(&self, from: Position, direction: Direction, carrying: bool) -> Option<Position> {
        from.step(direction, self.side).filter(|next| !self.is_table(*next) && (carrying || *next != self.printer))
    }

    /// The rows as they stand in the text file: `A` agent, `P` printer, `T` table, `.` free.
    pub fn rows(&self) -> Vec<String> {
        let mut rows = vec![vec!['.'; self.side]; self.side];
        for cell in &self.table {
            rows[cell.row][cell.col] = 'T';
        }
        rows[self.printer.row][self.printer.col] = 'P';
        rows[self.start.row][self.start.col] = 'A';
        rows.into_iter().map(String::from_iter).collect()
    }
}
