//! The demo's boards: for each task and level one stream from the seed, cut in two by what is on the board.

use super::Scale;
use mgsd_data::folder::{self, Filter};
use mgsd_data::{Example, split};
use mgsd_tasks::{FrozenLakeOptions, GenerateOptions, RenderOptions, Task, TileSet, files};
use std::path::Path;

/// Boards on disk.
pub struct Boards {
    /// For both training stages.
    pub train: Vec<Example>,
    /// For measuring: held out by content, so neither the embedded model nor any stage was trained on them.
    pub test: Vec<Example>,
}

/// A level's boards.
struct Level {
    task: Task,
    side: usize,
    /// Boards to generate.
    boards: usize,
    /// Of these, at most so many of the held-out tenth are measured on.
    test: usize,
}

/// Small sides have few boards: MiniBehaviour of side 4 has some 500 in all, FrozenLake of side 3 some 1,200 likely ones.
const LEVELS: [Level; 6] = [
    Level { task: Task::FrozenLake, side: 3, boards: 900, test: 100 },
    Level { task: Task::FrozenLake, side: 4, boards: 2200, test: 130 },
    Level { task: Task::Maze, side: 3, boards: 1500, test: 110 },
    Level { task: Task::Maze, side: 4, boards: 2200, test: 110 },
    Level { task: Task::MiniBehaviour, side: 4, boards: 300, test: 100 },
    Level { task: Task::MiniBehaviour, side: 5, boards: 2600, test: 200 },
];

/// Side of the pictures in pixels.
const IMAGE_SIZE: usize = 128;

/// Generates below `folder`: `train/` and `test/`.
pub fn make(folder: &Path, seed: u64, scale: Scale) -> anyhow::Result<Boards> {
    let pictures = RenderOptions { image_size: IMAGE_SIZE, tiles: TileSet::drawn() };
    for level in &LEVELS {
        let share = |count: usize| if scale == Scale::Quick { count.div_ceil(25) } else { count };
        let options = GenerateOptions {
            seed,
            frozen_lake: FrozenLakeOptions {
                frozen_probability: 0.8,
                random_start_goal: true,
                ..FrozenLakeOptions::default()
            },
            ..GenerateOptions::default()
        };
        let instances = mgsd_tasks::generate(level.task, level.side, &options, 0..share(level.boards))?;
        let (mut test, train): (Vec<_>, Vec<_>) =
            instances.into_iter().partition(|instance| split::held_out(&instance.board.key()));
        test.truncate(share(level.test));
        files::write_instances(&folder.join("train"), &train, Some(&pictures), || ())?;
        files::write_instances(&folder.join("test"), &test, Some(&pictures), || ())?;
    }
    let read = |name: &str| folder::read(&folder.join(name), &Filter::default());
    Ok(Boards { train: read("train")?, test: read("test")? })
}
