//! What an answer states of a board, and the board that it states, beside the one that is there.
//!
//! Answers, to the planning question as well as to that for the board, may begin with numbered lines that say what the
//! board is like: size, start, goal (in MiniBehaviour the printer), then the holes, the open directions of each cell, or
//! the table's cells. What such lines say is read here without regard to their wording: fact by fact ([`facts`]), and as a
//! whole ([`Stated`]), so that a plan can be tried on the board its author believed in.

use crate::perception::{cells, directions, openings, questions, sections, size};
use crate::{Board, Direction, Position, Task};
use crate::{frozen_lake, maze, mini_behaviour};
use std::collections::{BTreeMap, BTreeSet};

/// Row and column as an answer states them: they may lie anywhere.
pub type Cell = (u64, u64);

/// What an answer says to one question, right or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Rows and columns.
    Size(u64, u64),
    /// One cell.
    Cell(Cell),
    /// Cells.
    Cells(BTreeSet<Cell>),
    /// Directions.
    Directions(BTreeSet<Direction>),
    /// Open directions of cells.
    Openings(BTreeMap<Cell, BTreeSet<Direction>>),
}

/// What an answer states, by the names of [`questions`] and in their order; `None` where it says nothing that can be
/// read. What follows the statement, a route or a plan, is no part of it.
pub fn facts(task: Task, answer: &str) -> Vec<(&'static str, Option<Fact>)> {
    let sections = sections(statement(answer));
    let read = |(i, name): (usize, &&'static str)| {
        let section = sections.get(&(i as u64 + 1)).copied();
        (*name, section.and_then(|section| fact(name, section)))
    };
    questions(task).iter().enumerate().map(read).collect()
}

fn fact(name: &str, section: &str) -> Option<Fact> {
    let text = entry(section);
    match name {
        "map_size" => size(text).map(|(rows, cols)| Fact::Size(rows, cols)),
        "player_position" | "goal_position" | "agent_position" | "printer_position" => {
            cells(text).next().map(|(cell, _)| Fact::Cell(cell))
        }
        // A colon after each cell tells them from what may follow.
        "open_directions" => Some(openings(section)).filter(|open| !open.is_empty()).map(Fact::Openings),
        "player_legal_actions" | "movement_legal_actions" => Some(Fact::Directions(directions(text))),
        _ => Some(Fact::Cells(cells(text).map(|(cell, _)| cell).collect())),
    }
}

/// What comes before the route and the plan.
fn statement(answer: &str) -> &str {
    let route = answer.match_indices("Route:").find(|(at, _)| *at == 0 || answer[..*at].ends_with('\n'));
    let ends = [route.map(|(at, _)| at), answer.find("<answer")];
    &answer[..ends.into_iter().flatten().min().unwrap_or(answer.len())]
}

/// The part of a numbered entry that belongs to it: its first line, and the lines after it that go on with a list. Prose
/// that follows the last entry does not.
fn entry(section: &str) -> &str {
    let goes_on = |line: &str| {
        line.trim_start().starts_with(['(', '-', '*', '\u{2022}']) || !line.chars().any(char::is_alphabetic)
    };
    let mut end = 0;
    for line in section.split_inclusive('\n') {
        if end > 0 && !goes_on(line) {
            break;
        }
        end += line.len();
    }
    &section[..end]
}

/// What an answer says about a board. Facts it does not speak of are `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The task it was asked about.
    pub task: Task,
    /// Rows and columns.
    pub size: (u64, u64),
    /// Player or agent.
    pub start: Option<Cell>,
    /// Goal; in MiniBehaviour the printer.
    pub goal: Option<Cell>,
    /// FrozenLake: the holes. MiniBehaviour: the table's cells.
    pub cells: Option<BTreeSet<Cell>>,
    /// Maze: the open directions of each cell.
    pub openings: Option<BTreeMap<Cell, BTreeSet<Direction>>>,
}

/// A fact that is stated otherwise than it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The question's name, as in [`questions`].
    pub question: &'static str,
    /// What the answer says; empty when it says nothing.
    pub stated: String,
    /// What is there.
    pub there: String,
}

impl Stated {
    /// Reads an answer; `None` when it states no board, that is, when its first numbered line holds no size such as
    /// `4x4`.
    pub fn read(task: Task, answer: &str) -> Option<Self> {
        let first = sections(statement(answer)).get(&1)?.lines().next()?;
        let between_numbers = |(at, _): (usize, &str)| {
            first[..at].trim_end().ends_with(char::is_numeric)
                && first[at + 1..].trim_start().starts_with(char::is_numeric)
        };
        // A lone number is no size here: steps are numbered too.
        let size = size(first).filter(|_| first.match_indices(['x', 'X']).any(between_numbers))?;
        let mut stated = Self { task, size, start: None, goal: None, cells: None, openings: None };
        // The questions after the fourth follow from the board.
        for (question, (_, fact)) in facts(task, answer).into_iter().enumerate().take(4) {
            match (question, fact) {
                (1, Some(Fact::Cell(cell))) => stated.start = Some(cell),
                (2, Some(Fact::Cell(cell))) => stated.goal = Some(cell),
                (_, Some(Fact::Cells(cells))) => stated.cells = Some(cells),
                (_, Some(Fact::Openings(open))) => stated.openings = Some(open),
                _ => {}
            }
        }
        Some(stated)
    }

    /// The board described.
    ///
    /// # Errors
    /// In words, when something is missing or cannot be: outside the board, two things in one cell.
    pub fn board(&self) -> Result<Board, String> {
        let side = usize::try_from(self.size.0).ok().filter(|_| self.size.0 == self.size.1);
        let side = side
            .filter(|side| self.task.sides().contains(side))
            .ok_or_else(|| format!("the size {}x{} is none of this task", self.size.0, self.size.1))?;
        let inside = |cell: Cell, what: &str| -> Result<Position, String> {
            let (row, col) = (cell.0 as usize, cell.1 as usize);
            if cell.0 >= side as u64 || cell.1 >= side as u64 {
                return Err(format!("{what} ({},{}) lies outside", cell.0, cell.1));
            }
            Ok(Position::new(row, col))
        };
        let start = inside(self.start.ok_or("no start is stated")?, "the start")?;
        let goal = inside(self.goal.ok_or("no goal is stated")?, "the goal")?;
        let listed = || -> Result<Vec<Position>, String> {
            let cells = self.cells.as_ref().ok_or("no list of cells is stated")?;
            cells.iter().map(|cell| inside(*cell, "the cell")).collect()
        };
        match self.task {
            Task::FrozenLake => {
                let mut rows = vec![vec!['F'; side]; side];
                for hole in listed()? {
                    rows[hole.row][hole.col] = 'H';
                }
                for (place, letter) in [(start, 'S'), (goal, 'G')] {
                    let cell = &mut rows[place.row][place.col];
                    if *cell != 'F' {
                        return Err(format!("two things are stated at ({},{})", place.row, place.col));
                    }
                    *cell = letter;
                }
                let rows: Vec<String> = rows.into_iter().map(String::from_iter).collect();
                frozen_lake::Board::from_rows(&rows).map(Board::from).map_err(|error| error.to_string())
            }
            Task::Maze => {
                let open = self.openings.as_ref().ok_or("no open directions are stated")?;
                let walls = (0..side * side).map(|index| {
                    let cell = Position::from_index(index, side);
                    let open = open.get(&pair(&cell)).ok_or_else(|| format!("nothing is stated of cell {cell}"))?;
                    let wall = |direction: &Direction| match direction {
                        Direction::Up => maze::NORTH,
                        Direction::Down => maze::SOUTH,
                        Direction::Left => maze::WEST,
                        Direction::Right => maze::EAST,
                    };
                    Ok(Direction::ALL.iter().filter(|direction| !open.contains(direction)).map(wall).sum())
                });
                let walls = walls.collect::<Result<Vec<u8>, String>>()?;
                maze::Board::new(side, walls, start, goal).map(Board::from).map_err(|error| error.to_string())
            }
            Task::MiniBehaviour => mini_behaviour::Board::new(side, start, goal, listed()?)
                .map(Board::from)
                .map_err(|error| error.to_string()),
        }
    }

    /// What is stated otherwise than it is on `board`, or not stated at all; empty when all four facts are right.
    pub fn differences(&self, board: &Board) -> Vec<Difference> {
        let there = Self::of(board);
        let names = questions(self.task);
        let cell = |cell: &Option<Cell>| cell.map_or(String::new(), |(row, col)| format!("({row},{col})"));
        let mut found = Vec::new();
        let mut compare = |question: usize, stated: String, there: String| {
            if stated != there {
                found.push(Difference { question: names[question], stated, there });
            }
        };
        let size = |(rows, cols): (u64, u64)| format!("{rows}x{cols}");
        compare(0, size(self.size), size(there.size));
        compare(1, cell(&self.start), cell(&there.start));
        compare(2, cell(&self.goal), cell(&there.goal));
        match self.task {
            Task::Maze => compare(3, open_list(&self.openings), open_list(&there.openings)),
            _ => compare(3, cell_list(&self.cells), cell_list(&there.cells)),
        }
        found
    }

    /// What a right answer states.
    pub fn of(board: &Board) -> Self {
        let side = board.side() as u64;
        let set = |cells: &[Position]| cells.iter().map(pair).collect();
        let (goal, cells, openings) = match board {
            Board::FrozenLake(board) => (board.goal(), Some(set(&board.holes())), None),
            Board::MiniBehaviour(board) => (board.printer(), Some(set(board.table())), None),
            Board::Maze(board) => {
                let all = (0..board.side() * board.side()).map(|index| Position::from_index(index, board.side()));
                let open = |cell: &Position| Direction::ALL.into_iter().filter(|d| board.is_open(*cell, *d)).collect();
                (board.target(), None, Some(all.map(|cell| (pair(&cell), open(&cell))).collect()))
            }
        };
        let start = Some(pair(&board.start()));
        Self { task: board.task(), size: (side, side), start, goal: Some(pair(&goal)), cells, openings }
    }
}

fn pair(cell: &Position) -> Cell {
    (cell.row as u64, cell.col as u64)
}

fn cell_list(cells: &Option<BTreeSet<Cell>>) -> String {
    match cells {
        None => String::new(),
        Some(cells) if cells.is_empty() => "none".to_string(),
        Some(cells) => cells.iter().map(|(row, col)| format!("({row},{col})")).collect::<Vec<_>>().join(" "),
    }
}

fn open_list(openings: &Option<BTreeMap<Cell, BTreeSet<Direction>>>) -> String {
    let Some(openings) = openings else { return String::new() };
    let cell = |((row, col), open): (&Cell, &BTreeSet<Direction>)| {
        let words: Vec<&str> = open.iter().map(|direction| direction.word()).collect();
        format!("({row},{col}): {}", if words.is_empty() { "none".to_string() } else { words.join(" ") })
    };
    openings.iter().map(cell).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GenerateOptions, generate, perception};

    #[test]
    fn a_right_statement_gives_back_the_board() {
        for (task, level) in [(Task::FrozenLake, 4), (Task::Maze, 4), (Task::MiniBehaviour, 5)] {
            for instance in generate(task, level, &GenerateOptions::default(), 0..20).expect("boards") {
                let route = "\nRoute: R to (0,1), D to (1,1).\n<answer>RD</answer>";
                let stated = Stated::read(task, &(perception::gold(&instance.board) + route)).expect("stated");
                assert_eq!(stated.differences(&instance.board), []);
                assert_eq!(stated.board().as_ref().map(Board::key), Ok(instance.board.key()));
                assert_eq!(Stated::of(&instance.board), stated);
            }
        }
    }

    #[test]
    fn a_misread_hole_is_named_and_the_route_is_no_hole() {
        let board = Board::from(frozen_lake::Board::from_rows(&["SFF", "FHF", "FFG"]).expect("board"));
        let answer = "1. 3x3\n2. (0,0)\n3. (2,2)\n4. (1,2)\nRoute: D (1,0) D (2,0) R (2,1)\n\n<answer>DDRR</answer>";
        let stated = Stated::read(Task::FrozenLake, answer).expect("stated");
        let differences = stated.differences(&board);
        assert_eq!(differences.len(), 1);
        assert_eq!((differences[0].question, differences[0].stated.as_str()), ("h_positions", "(1,2)"));
        assert_eq!(differences[0].there, "(1,1)");
        assert_eq!(stated.board().map(|board| board.key()), Ok("frozenlake:SFF/FFH/FFG".to_string()));
    }

    #[test]
    fn facts_are_read_one_by_one_and_the_route_is_none() {
        let answer = "1. 3x3\n2. (0,0)\n3. (2,2)\n4. (1,1); (0,9)\nRoute: D (1,0)\n\n<answer>DDRR</answer>";
        let said = facts(Task::FrozenLake, answer);
        assert_eq!(said[0], ("map_size", Some(Fact::Size(3, 3))));
        assert_eq!(said[1], ("player_position", Some(Fact::Cell((0, 0)))));
        assert_eq!(said[3], ("h_positions", Some(Fact::Cells([(0, 9), (1, 1)].into()))));
        assert!(facts(Task::FrozenLake, "no idea").iter().all(|(_, said)| said.is_none()));
        let said = facts(Task::Maze, "4.\n(0,0): down, right\n(1,0): none\nRoute: D (1,0)");
        let open = [((0, 0), [Direction::Down, Direction::Right].into()), ((1, 0), BTreeSet::new())];
        assert_eq!(said[3], ("open_directions", Some(Fact::Openings(open.into()))));
        assert_eq!(said[4], ("player_legal_actions", None));
    }

    #[test]
    fn a_list_goes_on_below_its_first_line_and_prose_does_not_belong_to_it() {
        for list in
            ["4. holes: (1,1); (0,2)", "4. The H tiles are at:\n- (1,1)\n- in row 0 (0,2)", "4.\n(1,1)\n\n(0,2)"]
        {
            let answer =
                format!("1. 3x3\n2. The player is at\n(0,0)\n3. (2,2)\n{list}\nFrom (0,0) go down to (1,0).\n(2,0)");
            let stated = Stated::read(Task::FrozenLake, &answer).expect("stated");
            assert_eq!((stated.start, stated.goal), (Some((0, 0)), Some((2, 2))), "{list:?}");
            assert_eq!(stated.cells, Some([(0, 2), (1, 1)].into()), "{list:?}");
            assert_eq!(facts(Task::FrozenLake, &answer)[3].1, Some(Fact::Cells([(0, 2), (1, 1)].into())), "{list:?}");
        }
        let legal = "5. The legal movement actions from the player position are: down.\nI go right first.";
        assert_eq!(facts(Task::Maze, legal)[4].1, Some(Fact::Directions([Direction::Down].into())));
    }

    #[test]
    fn a_right_answer_states_every_fact() {
        for (task, level) in [(Task::FrozenLake, 4), (Task::Maze, 4), (Task::MiniBehaviour, 5)] {
            for instance in generate(task, level, &GenerateOptions::default(), 0..10).expect("boards") {
                let gold = perception::gold(&instance.board);
                let said = facts(task, &gold);
                assert!(said.iter().all(|(_, fact)| fact.is_some()), "{gold}");
                assert_eq!(facts(task, &(gold + "\nRoute: R (9,9)")), said);
            }
        }
    }

    #[test]
    fn steps_in_a_numbered_list_are_no_board() {
        for answer in ["1. Go right to (0,1).\n2. Go down to (1,1).", "RRD", "", "1.\n2. (0,0)", "1. size 4\n2. (0,0)"]
        {
            assert_eq!(Stated::read(Task::Maze, answer), None, "{answer:?}");
        }
    }

    #[test]
    fn a_statement_that_cannot_be_says_why() {
        for (answer, reason) in [
            ("1. 3x3\n2. (0,0)\n3. (5,5)\n4. none", "outside"),
            ("1. 3x3\n2. (0,0)\n3. (0,0)\n4. none", "two things"),
            ("1. 3x3\n2. (0,0)\n3. (2,2)", "no list"),
            ("1. 3x4\n2. (0,0)\n3. (2,2)\n4. none", "3x4"),
            ("1. 99999999999x99999999999\n2. (0,0)\n3. (2,2)\n4. none", "none of this task"),
        ] {
            let stated = Stated::read(Task::FrozenLake, answer).expect("stated");
            assert!(stated.board().is_err_and(|said| said.contains(reason)), "{answer:?}");
        }
    }
}
