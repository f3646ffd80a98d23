//! What the integration tests share.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use mgsd_data::folder;
use mgsd_tasks::{GenerateOptions, Instance, RenderOptions, Task, generate};

/// A file of this crate's test data.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The reference files beside the workspace, on machines that have them.
pub fn reference(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/tasks").join(name);
    path.exists().then_some(path)
}

/// The published levels of a task.
pub fn levels(task: Task) -> std::ops::RangeInclusive<usize> {
    match task {
        Task::FrozenLake => 3..=8,
        Task::Maze => 3..=6,
        Task::MiniBehaviour => 5..=6,
    }
}

/// Boards of every task and level.
pub fn instances(per_level: usize) -> Vec<Instance> {
    let mut instances = Vec::new();
    for task in Task::ALL {
        for level in levels(task) {
            instances.extend(generate(task, level, &GenerateOptions::default(), 0..per_level).unwrap());
        }
    }
    instances
}

/// The six golden instances of every task and level as a task folder `golden_public` below `folder`, with pictures
/// in our own tiles.
pub fn golden_folder(folder: &Path) -> PathBuf {
    let root = folder.join("golden_public");
    folder::write_instances(&root, &instances(6), Some(&RenderOptions::default())).unwrap();
    root
}
