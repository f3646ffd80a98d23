//! Readers of the two public benchmarks: DiffThinker's FrozenLake maps and VisualPlanning's maze and MiniBehaviour; and
//! [`vlmevalkit`], which writes boards for another evaluation tool.

mod diffthinker;
pub(crate) mod png;
mod visual_planning;
pub mod vlmevalkit;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use mgsd_tasks::score::BenchmarkCase;
use mgsd_tasks::{Board, RenderOptions, RgbImage, Task};
use serde_json::Value;

use crate::{DataError, Result};

pub use diffthinker::read as read_diffthinker;
pub use visual_planning::read as read_visual_planning;

/// One benchmark case. The names of the fields are those of the published loader.
#[derive(Debug, Clone)]
pub struct Case {
    /// The published name, `maze_test_level3_0000`.
    pub case_id: String,
    /// The task.
    pub task: Task,
    /// `test` or `train`.
    pub split: String,
    /// Side of the grid.
    pub level: usize,
    /// Number of the line, or of the picture for DiffThinker.
    pub dataset_line_index: usize,
    /// Where the published loader puts the case's picture, below its output folder.
    pub image: String,
    /// Start: number of the cell, for MiniBehaviour `[row, col]`.
    pub start_pos: Value,
    /// Target: number of the cell, null for MiniBehaviour.
    pub target_pos: Value,
    /// Actions of the recorded or shortest plan; none when the record does not say.
    pub expected_action_count: Option<usize>,
    /// The files of a DiffThinker case, whose picture is used as it is.
    pub source: Option<Source>,
    /// The board.
    pub board: Board,
    /// What `mgsd_tasks::score::benchmark` needs, with the record's own lists of neighbours and count of actions.
    pub scoring: BenchmarkCase,
}

/// Files that a DiffThinker case comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The published name of the benchmark.
    pub bench: &'static str,
    /// The picture.
    pub image: PathBuf,
    /// The map as a table.
    pub table: PathBuf,
    /// The map as plain text, when there is such a file.
    pub pure_text: Option<PathBuf>,
}

impl Case {
    /// The picture that a model is asked about: the source's own, resized when its size differs, or the board drawn.
    pub fn picture(&self, options: &RenderOptions) -> Result<RgbImage> {
        match &self.source {
            Some(source) => source_picture(&source.image, options.image_size),
            None => self
                .board
                .render(options)
                .map_err(|error| DataError::missing(Path::new(&self.case_id), error.to_string())),
        }
    }
}

fn source_picture(path: &Path, size: usize) -> Result<RgbImage> {
    Ok(self::png::read(path)?.resized(size))
}

/// Which cases of a benchmark to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// These tasks only; all that are there when empty.
    pub tasks: Vec<Task>,
    /// These levels only; all when empty.
    pub levels: Vec<usize>,
    /// VisualPlanning's split, `test` or `train`.
    pub split: String,
    /// Skip this many cases of each task.
    pub start_index: usize,
    /// Take this many cases of each task; all when none. Counted over the whole task, so a small number stays within
    /// its first level, as in the published loader.
    pub samples_per_task: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tasks: Vec::new(),
            levels: Vec::new(),
            split: "test".to_string(),
            start_index: 0,
            samples_per_task: None,
        }
    }
}

/// Whether `root` looks like a benchmark's folder rather than a task folder.
pub fn is_benchmark(root: &Path) -> bool {
    diffthinker_root(root).is_some() || visual_planning_root(root).is_some()
}

/// Reads all benchmarks found at `root`: DiffThinker's maps (`root` itself, or `frozenlake_maps` below it), and
/// VisualPlanning's records (`root` itself, or `visualplanning_dataset` below it); FrozenLake first, then Maze, then
/// MiniBehaviour.
///
/// An error when a task or a level that the options name is not there, and when the split is none.
pub fn read(root: &Path, options: &Options) -> Result<Vec<Case>> {
    if !root.is_dir() {
        return Err(DataError::missing(root, format!("no such folder; {LAYOUT}")));
    }
    let split = options.split.as_str();
    if !["test", "train"].contains(&split) {
        return Err(DataError::missing(root, format!("split {split:?}: expected test or train")));
    }
    let (mut cases, mut levels) = (Vec::new(), HashSet::new());
    for task in Task::ALL {
        if !options.tasks.is_empty() && !options.tasks.contains(&task) {
            continue;
        }
        let of_task = match task {
            Task::FrozenLake => {
                // Its maps are for testing.
                let root = diffthinker_root(root).filter(|_| split == "test");
                root.map(|root| read_diffthinker(&root, &options.levels)).transpose()?
            }
            _ => visual_planning_root(root)
                .filter(|root| root.join(task.name()).is_dir())
                .map(|root| read_visual_planning(&root, task, split, &options.levels))
                .transpose()?,
        };
        levels.extend(of_task.iter().flatten().map(|case| case.level));
        let Some(of_task) = of_task else {
            // A task asked for by name must not be left out in silence.
            if options.tasks.contains(&task) {
                return Err(DataError::missing(root, format!("no benchmark for {task}, split {split}; {LAYOUT}")));
            }
            continue;
        };
        cases
            .extend(of_task.into_iter().skip(options.start_index).take(options.samples_per_task.unwrap_or(usize::MAX)));
    }
    if let Some(level) = options.levels.iter().find(|level| !levels.contains(*level)) {
        return Err(DataError::missing(root, format!("no case of level {level}; {LAYOUT}")));
    }
    if cases.is_empty() {
        return Err(DataError::missing(
            root,
            format!("no benchmark case matches tasks, levels and start index; {LAYOUT}"),
        ));
    }
    Ok(cases)
}

/// The layouts, for error messages.
const LAYOUT: &str = "expected [frozenlake_maps/]level<N>/{img,table} (DiffThinker) or \
    [visualplanning_dataset/]{maze,minibehaviour}/tokenized_dataset/SFT/<split>_dataset.jsonl (VisualPlanning)";

fn diffthinker_root(root: &Path) -> Option<PathBuf> {
    let holds_levels = |folder: &PathBuf| {
        let entries = std::fs::read_dir(folder).ok();
        entries.is_some_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.path().join("table").is_dir()))
        })
    };
    [root.join("frozenlake_maps"), root.to_path_buf()].into_iter().find(holds_levels)
}

fn visual_planning_root(root: &Path) -> Option<PathBuf> {
    let holds_tasks = |folder: &PathBuf| {
        [Task::Maze, Task::MiniBehaviour].iter().any(|task| folder.join(task.name()).join("tokenized_dataset").is_dir())
    };
    [root.join("visualplanning_dataset"), root.to_path_buf()].into_iter().find(holds_tasks)
}

/// Whether the filter lets a level through; an empty filter lets all.
fn in_levels(levels: &[usize], level: usize) -> bool {
    levels.is_empty() || levels.contains(&level)
}
