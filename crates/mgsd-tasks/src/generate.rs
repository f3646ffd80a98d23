//! Many instances from one seed, in parallel, the same whatever the number of threads.

use crate::{Board, Details, Difficulty, Error, Instance, Plan, Result, Task};
use crate::{frozen_lake, maze, mini_behaviour};
use rayon::prelude::*;
use std::collections::HashSet;
use std::ops::Range;

/// What the generators can be told. The defaults are the published ones.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Base seed.
    pub seed: u64,
    /// Added to every seed, so that splits do not overlap.
    pub seed_offset: u64,
    /// Name of the split as it stands in the text.
    pub split: String,
    /// Difficulties of Maze and MiniBehaviour, cycled over the samples' indices.
    pub difficulties: Vec<Difficulty>,
    /// Options of FrozenLake alone.
    pub frozen_lake: FrozenLakeOptions,
    /// Keys ([`Board::key`]) of boards that must not be made, for instance those of another split.
    pub exclude: HashSet<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            seed: 42,
            seed_offset: 0,
            split: "train".to_owned(),
            difficulties: Difficulty::ALL.to_vec(),
            frozen_lake: FrozenLakeOptions::default(),
            exclude: HashSet::new(),
        }
    }
}

/// Options of FrozenLake.
#[derive(Clone, Debug)]
pub struct FrozenLakeOptions {
    /// Probability that a cell is frozen, above 0 and at most 1.
    pub frozen_probability: f64,
    /// Start and goal on random cells instead of opposite corners.
    pub random_start_goal: bool,
    /// Fewest steps from start to goal.
    pub min_path_length: usize,
    /// Written to the text: whether moves slip.
    pub slippery: bool,
}

impl Default for FrozenLakeOptions {
    fn default() -> Self {
        Self { frozen_probability: 0.9, random_start_goal: false, min_path_length: 2, slippery: false }
    }
}

/// A generated board before it gets its index.
pub(crate) struct Sample {
    pub board: Board,
    pub plan: Plan,
    pub details: Details,
}

impl GenerateOptions {
    fn check(&self, task: Task, level: usize) -> Result<()> {
        task.check_side(level)?;
        let wrong = |option, value: String, problem: String| Err(Error::Option { option, value, problem });
        if task == Task::FrozenLake {
            let lake = &self.frozen_lake;
            if !(lake.frozen_probability > 0.0 && lake.frozen_probability <= 1.0) {
                let value = lake.frozen_probability.to_string();
                return wrong("frozen-probability", value, "expected above 0 and at most 1".to_owned());
            }
            if lake.min_path_length >= level * level {
                let problem = format!("a board of side {level} has {} cells", level * level);
                return wrong("min-path-length", lake.min_path_length.to_string(), problem);
            }
        } else if self.difficulties.is_empty() {
            return wrong("difficulty", "none".to_owned(), "expected at least one of easy, medium, hard".to_owned());
        }
        Ok(())
    }

    /// Seed of the first try on a level; the tries count up from it.
    fn first_seed(&self, task: Task, level: usize) -> u64 {
        let mut seed = self.seed_offset.wrapping_add(self.seed).wrapping_add(level as u64 * 100_000);
        if task == Task::FrozenLake {
            seed = seed.wrapping_add((self.frozen_lake.frozen_probability * 1000.0) as u64 * 1000);
        }
        seed
    }

    fn sample(&self, task: Task, level: usize, seed: u64, index: usize) -> Result<Option<Sample>> {
        let wanted = || self.difficulties[index % self.difficulties.len()];
        match task {
            Task::FrozenLake => frozen_lake::sample(level, seed, &self.frozen_lake),
            Task::Maze => maze::sample(level, seed, wanted()).map(Some),
            Task::MiniBehaviour => mini_behaviour::sample(level, seed, wanted()).map(Some),
        }
    }
}

/// The instances of one level with the given indices, no two boards alike.
///
/// Seeds count up from the level's first one whatever the first index is, as the published generator
/// does; the first index decides where the cycle of difficulties begins.
///
/// # Errors
/// When the options do not fit the task, or the boards run out.
pub fn generate(task: Task, level: usize, options: &GenerateOptions, indices: Range<usize>) -> Result<Vec<Instance>> {
    options.check(task, level)?;
    let count = indices.len();
    let first_seed = options.first_seed(task, level);
    // A rejected board shifts the difficulty of all that follow, except where there is none.
    let rejection_shifts = task != Task::FrozenLake;
    let most_rejections = (count * 1000).max(100_000);
    let mut seen: HashSet<String> = HashSet::new();
    let mut instances: Vec<Instance> = Vec::new();
    let (mut attempt, mut rejected, mut batch) = (0_u64, 0, 64);
    while instances.len() < count {
        let next_index = indices.start + instances.len();
        let size = batch.min(count - instances.len());
        let samples: Vec<(u64, Result<Option<Sample>>)> = (0..size)
            .into_par_iter()
            .map(|i| {
                let seed = first_seed.wrapping_add(attempt + i as u64);
                (seed, options.sample(task, level, seed, next_index + i))
            })
            .collect();
        batch = (batch * 2).min(1024);
        for (seed, sample) in samples {
            attempt += 1;
            let fresh = sample?.filter(|s| {
                let key = s.board.key();
                !options.exclude.contains(&key) && seen.insert(key)
            });
            if let Some(Sample { board, plan, details }) = fresh {
                let index = indices.start + instances.len();
                rejected = 0;
                instances.push(Instance { split: options.split.clone(), index, seed, board, plan, details });
                continue;
            }
            rejected += 1;
            if rejected > most_rejections {
                let problem = format!(
                    "{rejected} boards in a row were known already or unfit; {} of {count} were made, ask for fewer",
                    instances.len()
                );
                return Err(Error::Exhausted { task, level, seed, problem });
            }
            if rejection_shifts {
                batch = (size / 2).max(1);
                break;
            }
        }
    }
    Ok(instances)
}
