//! What the templates may say about a board.

use mgsd_tasks::{Action, Board, Direction, Instance, Plan, Position, Task, frozen_lake, maze, mini_behaviour};
use serde::Serialize;

/// A cell; the filter `cell` writes it as "(row,col)".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellContext {
    /// Row, from 0 at the top.
    pub row: usize,
    /// Column, from 0 at the left.
    pub col: usize,
    /// Maze: the open directions, in the order up, right, down, left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Vec<&'static str>>,
    /// Maze: the sum of 1 (wall above), 2 (below), 4 (left), 8 (right).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<u8>,
}

impl From<Position> for CellContext {
    fn from(position: Position) -> Self {
        CellContext { row: position.row, col: position.col, open: None, mask: None }
    }
}

/// A step of the reference plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepContext {
    /// The action as a word: `left`, `pick`, ...
    pub action: &'static str,
    /// The action as it stands in an answer: `L`, `PICK`, ...
    pub letter: &'static str,
    /// Whether the action is a move.
    pub moves: bool,
    /// Row after the step.
    pub row: usize,
    /// Column after the step.
    pub col: usize,
}

/// The variables of a template. Those of other tasks are undefined, and using one is an error.
///
/// Beside these a template has `reference`: whether `plan` and `steps` may be shown; they are undefined otherwise.
/// Filters: `cell` ("(0,1)"), `cells` ("(0,1); (2,2)" or "none"), `words` ("up, right" or "none").
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PromptContext {
    /// Name of the task.
    pub task: Task,
    /// Side of the grid.
    pub side: usize,
    /// Side by side: `3x3`.
    pub size: String,
    /// The board in few characters, as the compact set shows it.
    pub state: String,
    /// Where the player or agent is.
    pub start: CellContext,
    /// The same cell under the name MiniBehaviour uses.
    pub agent: CellContext,
    /// FrozenLake, Maze: the goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<CellContext>,
    /// FrozenLake: the holes, in reading order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holes: Option<Vec<CellContext>>,
    /// FrozenLake (S F H G) and MiniBehaviour (A P T .): the grid, one row a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_map: Option<String>,
    /// Maze: every cell in reading order, with its open directions and its wall mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells: Option<Vec<CellContext>>,
    /// Maze: the wall masks, one row a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_masks: Option<String>,
    /// MiniBehaviour: the printer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub printer: Option<CellContext>,
    /// MiniBehaviour: the table's cells, in reading order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Vec<CellContext>>,
    /// MiniBehaviour: cells that share a side with the printer and are no table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub printer_adjacent: Option<Vec<CellContext>>,
    /// MiniBehaviour: cells that share a side with the table and are no table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_adjacent: Option<Vec<CellContext>>,
    /// MiniBehaviour: whether PICK works in the agent's cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pick_legal: Option<bool>,
    /// MiniBehaviour: whether DROP works right now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_legal: Option<bool>,
    /// Moves that are possible from the start, in the order up, right, down, left. In FrozenLake a hole is no obstacle.
    pub legal_moves: Vec<&'static str>,
    /// The gold perception answer in full sentences.
    pub perception_gold: String,
    /// A shortest plan as it stands in an answer: `RRD`, `R,PICK,D,DROP`; none when nothing solves the board.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The same plan step by step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<StepContext>>,
}

/// The order in which directions are listed to a model.
const LISTED: [Direction; 4] = [Direction::Up, Direction::Right, Direction::Down, Direction::Left];

impl PromptContext {
    /// Everything a template may say about `board`; the plan is the solver's.
    pub fn new(board: &Board) -> Self {
        PromptContext::with_plan(board, board.solve())
    }

    /// Everything a template may say about an instance; the plan is the one of its file.
    pub fn of_instance(instance: &Instance) -> Self {
        PromptContext::with_plan(&instance.board, Some(instance.plan.clone()))
    }

    /// Everything a template may say about `board`, with a plan that solves it.
    pub fn with_plan(board: &Board, plan: Option<Plan>) -> Self {
        let mut context = match board {
            Board::FrozenLake(lake) => of_frozen_lake(lake),
            Board::Maze(maze) => of_maze(maze),
            Board::MiniBehaviour(room) => of_mini_behaviour(room),
        };
        context.perception_gold = mgsd_tasks::perception::gold(board);
        if let Some(plan) = plan {
            context.plan = Some(plan.answer(board.task()));
            context.steps = Some(steps(&plan, &context));
        }
        context
    }

    /// What the tasks have in common.
    fn common(task: Task, side: usize, start: Position) -> Self {
        PromptContext {
            task,
            side,
            size: format!("{side}x{side}"),
            state: String::new(),
            start: start.into(),
            agent: start.into(),
            goal: None,
            holes: None,
            text_map: None,
            cells: None,
            wall_masks: None,
            printer: None,
            table: None,
            printer_adjacent: None,
            table_adjacent: None,
            pick_legal: None,
            drop_legal: None,
            legal_moves: Vec::new(),
            perception_gold: String::new(),
            plan: None,
            steps: None,
        }
    }
}

/// Words of the directions that `open` lets through.
fn words(open: impl Fn(Direction) -> bool) -> Vec<&'static str> {
    LISTED.into_iter().filter(|direction| open(*direction)).map(Direction::word).collect()
}

fn contexts(cells: &[Position]) -> Option<Vec<CellContext>> {
    Some(cells.iter().copied().map(CellContext::from).collect())
}

fn of_frozen_lake(lake: &frozen_lake::Board) -> PromptContext {
    let map = lake.rows().join("\n");
    PromptContext {
        state: map.clone(),
        goal: Some(lake.goal().into()),
        holes: contexts(&lake.holes()),
        text_map: Some(map),
        legal_moves: words(|direction| lake.start().step(direction, lake.side()).is_some()),
        ..PromptContext::common(Task::FrozenLake, lake.side(), lake.start())
    }
}

fn of_maze(maze: &maze::Board) -> PromptContext {
    let side = maze.side();
    let mut state = vec![
        format!("size {side}x{side}"),
        format!("start {}", shown(maze.start())),
        format!("goal {}", shown(maze.target())),
    ];
    let mut cells = Vec::with_capacity(side * side);
    for cell in (0..side * side).map(|index| Position::from_index(index, side)) {
        let open = words(|direction| maze.open_step(cell, direction).is_some());
        let listed = if open.is_empty() { "none".to_string() } else { open.join(", ") };
        state.push(format!("{}: {listed}", shown(cell)));
        cells.push(CellContext { open: Some(open), mask: Some(maze.walls(cell)), ..cell.into() });
    }
    PromptContext {
        state: state.join("\n"),
        goal: Some(maze.target().into()),
        cells: Some(cells),
        wall_masks: Some(maze.layout_rows().join("\n")),
        legal_moves: words(|direction| maze.open_step(maze.start(), direction).is_some()),
        ..PromptContext::common(Task::Maze, side, maze.start())
    }
}

fn of_mini_behaviour(room: &mini_behaviour::Board) -> PromptContext {
    let agent = room.start();
    let map = room.rows().join("\n");
    PromptContext {
        state: map.clone(),
        text_map: Some(map),
        printer: Some(room.printer().into()),
        table: contexts(room.table()),
        printer_adjacent: contexts(&room.printer_neighbors()),
        table_adjacent: contexts(&room.table_neighbors()),
        pick_legal: Some(agent.is_beside(room.printer())),
        // Nothing is carried before the first action.
        drop_legal: Some(false),
        legal_moves: words(|direction| room.free_step(agent, direction, false).is_some()),
        ..PromptContext::common(Task::MiniBehaviour, room.side(), agent)
    }
}

/// A cell as the compact prompts write it.
fn shown(cell: Position) -> String {
    format!("({},{})", cell.row, cell.col)
}

/// Walks the plan from the start; a plan of the solver never leaves the grid.
fn steps(plan: &Plan, context: &PromptContext) -> Vec<StepContext> {
    let mut at = Position::new(context.start.row, context.start.col);
    plan.actions()
        .iter()
        .map(|action| {
            if let Action::Move(direction) = action {
                at = at.step(*direction, context.side).unwrap_or(at);
            }
            StepContext {
                action: action.word(),
                letter: action.code(),
                moves: matches!(action, Action::Move(_)),
                row: at.row,
                col: at.col,
            }
        })
        .collect()
}
