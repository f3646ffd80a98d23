//! Which examples become rows, and in which order: the published preparation, random stream by random stream.

use mgsd_tasks::rng::Mt19937;

use crate::{DataError, Example, Result};

/// Options of the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectOptions {
    /// Take this many at random of each task and level, kept in the order of their names.
    pub sample_per_level: Option<usize>,
    /// Take only the first this many of each task and level.
    pub limit_per_level: Option<usize>,
    /// Seed of the sampling and of the shuffle.
    pub seed: u64,
    /// Whether to shuffle the rows at the end.
    pub order: RowOrder,
}

/// Order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowOrder {
    /// By task, level and name.
    #[default]
    ByName,
    /// Shuffled by the seed.
    Shuffled,
}

impl Default for SelectOptions {
    fn default() -> Self {
        SelectOptions { sample_per_level: None, limit_per_level: None, seed: 42, order: RowOrder::ByName }
    }
}

impl SelectOptions {
    /// The published options of the validation rows beside these for the training rows: the next seed, never shuffled,
    /// the same limit unless `sample_per_level` is given.
    pub fn for_validation(&self, sample_per_level: Option<usize>) -> Self {
        SelectOptions {
            sample_per_level,
            limit_per_level: self.limit_per_level.filter(|_| sample_per_level.is_none()),
            seed: self.seed + 1,
            order: RowOrder::ByName,
        }
    }
}

/// Selects and orders examples, which come grouped by task and level as [`crate::folder::read`] gives them.
pub fn select(examples: Vec<Example>, options: &SelectOptions) -> Result<Vec<Example>> {
    for (name, value) in [("sample_per_level", options.sample_per_level), ("limit_per_level", options.limit_per_level)]
    {
        if value == Some(0) {
            return Err(DataError::Option {
                name,
                value: "0".to_string(),
                problem: "expected at least 1; leave it out to take all".to_string(),
            });
        }
    }
    // One stream for the sampling of all levels, a fresh one for the shuffle.
    let mut sampling = Mt19937::new(options.seed);
    let mut selected = Vec::new();
    for group in groups(examples) {
        let mut group = match options.sample_per_level {
            Some(count) if count < group.len() => sample(group, count, &mut sampling),
            _ => group,
        };
        group.truncate(options.limit_per_level.unwrap_or(usize::MAX));
        selected.append(&mut group);
    }
    if options.order == RowOrder::Shuffled {
        Mt19937::new(options.seed).shuffle(&mut selected);
    }
    Ok(selected)
}

/// Consecutive examples of the same task and level.
fn groups(examples: Vec<Example>) -> Vec<Vec<Example>> {
    let mut groups: Vec<Vec<Example>> = Vec::new();
    for example in examples {
        match groups.last_mut() {
            Some(group) if group[0].task == example.task && group[0].level == example.level => {
                group.push(example);
            }
            _ => groups.push(vec![example]),
        }
    }
    groups
}

/// A random subset in the order of the group.
fn sample(group: Vec<Example>, count: usize, random: &mut Mt19937) -> Vec<Example> {
    let mut chosen = random.sample(group.len(), count);
    chosen.sort_unstable();
    let mut chosen = chosen.into_iter().peekable();
    group.into_iter().enumerate().filter_map(|(index, example)| chosen.next_if_eq(&index).map(|_| example)).collect()
}

/// Repeats rows, whole rounds and then a part of one, until there are `count`. Fewer than there are changes nothing.
pub fn duplicate_to<T: Clone>(rows: &mut Vec<T>, count: usize) {
    let distinct = rows.len();
    if distinct == 0 {
        return;
    }
    for index in distinct..count {
        rows.push(rows[index % distinct].clone());
    }
}

#[cfg(test)]
mod tests {
    use super::duplicate_to;

    #[test]
    fn rows_are_repeated_in_whole_rounds_and_a_part_of_one() {
        let mut rows = vec![1, 2];
        duplicate_to(&mut rows, 5);
        assert_eq!(rows, [1, 2, 1, 2, 1]);
        duplicate_to(&mut rows, 3);
        assert_eq!(rows.len(), 5);
    }
}
