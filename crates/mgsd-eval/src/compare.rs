//! One model against another on the same boards.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::rows::{PlanRow, Row};
use crate::stats::{self, Estimate};

/// Two runs on the boards that both answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pairing {
    /// Boards that both answered.
    pub cases: u64,
    /// Share solved by the first.
    pub first: f64,
    /// Share solved by the second.
    pub second: f64,
    /// Boards that only the first solved.
    pub only_first: u64,
    /// Boards that only the second solved.
    pub only_second: u64,
    /// First minus second, with its paired bootstrap interval over boards (within tasks, for the mean over tasks).
    pub difference: Estimate,
}

/// The comparison: the mean over tasks, and each task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the first run.
    pub first: String,
    /// Name of the second run.
    pub second: String,
    /// Mean over tasks.
    #[serde(rename = "macro")]
    pub mean: Pairing,
    /// By task.
    pub by_task: BTreeMap<String, Pairing>,
}

/// Hits of both runs on the boards that both answered, by task.
pub fn pairs(first: &[PlanRow], second: &[PlanRow]) -> BTreeMap<String, Vec<[f64; 2]>> {
    let known: HashMap<&str, &PlanRow> =
        second.iter().filter(|row| !row.failed()).map(|row| (row.case_id(), row)).collect();
    let hit = |row: &PlanRow| f64::from(u8::from(row.flag("success")));
    let mut groups = BTreeMap::<String, Vec<[f64; 2]>>::new();
    // In an order that does not depend on which answer came first.
    let mut first: Vec<&PlanRow> = first.iter().filter(|row| !row.failed()).collect();
    first.sort_by_key(|row| row.case_id());
    for row in first {
        // Identities repeat from folder to folder; boards, where rows tell, do not.
        if let Some(other) = known.get(row.case_id())
            && (row.board.is_none() || other.board.is_none() || row.board == other.board)
        {
            groups.entry(row.task.clone()).or_default().push([hit(row), hit(other)]);
        }
    }
    groups
}

/// Compares two runs; `None` if they share no board.
pub fn compare([first, second]: [&str; 2], rows: [&[PlanRow]; 2], resamples: usize, seed: u64) -> Option<Comparison> {
    let groups = pairs(rows[0], rows[1]);
    let all: Vec<Vec<[f64; 2]>> = groups.values().cloned().collect();
    let by_task = groups.into_iter().filter_map(|(task, group)| Some((task, pairing(&[group], resamples, seed)?)));
    Some(Comparison {
        first: first.to_string(),
        second: second.to_string(),
        mean: pairing(&all, resamples, seed)?,
        by_task: by_task.collect(),
    })
}

fn pairing(groups: &[Vec<[f64; 2]>], resamples: usize, seed: u64) -> Option<Pairing> {
    let difference = stats::paired_difference(groups, resamples, seed)?;
    let pairs = || groups.iter().flatten();
    let mean = |at: usize| {
        let means = groups.iter().map(|group| group.iter().map(|pair| pair[at]).sum::<f64>() / group.len() as f64);
        means.sum::<f64>() / groups.len() as f64
    };
    Some(Pairing {
        cases: pairs().count() as u64,
        first: mean(0),
        second: mean(1),
        only_first: pairs().filter(|[first, second]| first > second).count() as u64,
        only_second: pairs().filter(|[first, second]| first < second).count() as u64,
        difference,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(solved: &[bool]) -> Vec<PlanRow> {
        let row = |(at, solved): (usize, &bool)| PlanRow {
            case_id: format!("maze_{at}"),
            task: "maze".into(),
            eval_result: Some(serde_json::json!({"success": solved})),
            ..PlanRow::default()
        };
        solved.iter().enumerate().map(row).collect()
    }

    #[test]
    fn the_order_of_rows_changes_nothing() {
        let (first, second) = (rows(&[true, true, false, true, false]), rows(&[true, false, true, false, false]));
        let mut turned = first.clone();
        turned.reverse();
        assert_eq!(compare(["a", "b"], [&first, &second], 200, 0), compare(["a", "b"], [&turned, &second], 200, 0));
    }

    #[test]
    fn only_boards_that_both_answered_are_compared() {
        let (first, mut second) = (rows(&[true, true, false, true]), rows(&[true, false, true, false]));
        second[3].error = Some("HTTP 500".into());
        let compared = compare(["a", "b"], [&first, &second], 500, 0).expect("shared boards");
        let maze = &compared.by_task["maze"];
        assert_eq!((maze.cases, maze.only_first, maze.only_second, maze.difference.value), (3, 1, 1, 0.0));
        assert_eq!(*maze, compared.mean);
        assert!(maze.difference.interval.low < 0.0 && maze.difference.interval.high > 0.0);
        assert_eq!(compare(["a", "b"], [&first, &second], 500, 0), Some(compared), "the seed is fixed");
        assert_eq!(compare(["a", "b"], [&first, &[]], 500, 0), None);
        let on = |key: &str| {
            let row = |row: PlanRow| PlanRow { board: Some(key.into()), ..row };
            rows(&[true, true]).into_iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(compare(["a", "b"], [&on("x"), &on("y")], 500, 0), None, "other boards of the same names");
    }
}
