//! `demo.json`: what one run of the whole method cost and what it gained.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::perception::PerceptionSummary;
use crate::summary::Summary;

/// The key under which a mean over tasks stands beside the tasks.
pub const MACRO: &str = "macro";

/// Planning in one modality: each map holds the tasks and `macro`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanningScores {
    /// Share of boards solved.
    pub accuracy: IndexMap<String, f64>,
    /// Share of boards solved in as few steps as possible.
    pub optimal_accuracy: IndexMap<String, f64>,
}

impl From<&Summary> for PlanningScores {
    fn from(summary: &Summary) -> Self {
        let mut scores = Self::default();
        for (task, group) in &summary.by_task {
            scores.accuracy.insert(task.clone(), group.accuracy);
            scores.optimal_accuracy.insert(task.clone(), group.optimal_accuracy);
        }
        scores.accuracy.insert(MACRO.into(), summary.all_tasks_macro_avg.accuracy);
        scores.optimal_accuracy.insert(MACRO.into(), summary.all_tasks_macro_avg.optimal_accuracy);
        scores
    }
}

impl PlanningScores {
    /// The mean over tasks of the share of boards solved.
    pub fn macro_accuracy(&self) -> f64 {
        self.accuracy.get(MACRO).copied().unwrap_or(0.0)
    }
}

/// What a model can do after a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageScores {
    /// Planning from the picture.
    pub picture: PlanningScores,
    /// Planning from the text of the same boards.
    pub text: PlanningScores,
    /// Whole perception answers read exactly from the picture, by task and `macro`.
    pub perception_exact_match: IndexMap<String, f64>,
}

impl StageScores {
    /// Collects the three summaries of a stage. Perception tasks are named as the planning tasks.
    pub fn new(picture: &Summary, text: &Summary, perception: &PerceptionSummary) -> Self {
        let mut exact: IndexMap<String, f64> = perception
            .tasks
            .iter()
            .map(|(task, counts)| (short_task(task).to_string(), counts.counts.exact_rate()))
            .collect();
        exact.insert(MACRO.into(), perception.macro_exact_rate());
        Self { picture: picture.into(), text: text.into(), perception_exact_match: exact }
    }
}

/// `maze_perception_all` and `maze` are both `maze`.
pub fn short_task(task: &str) -> &str {
    task.strip_suffix("_perception_all").unwrap_or(task)
}

/// The content of `demo.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demo {
    /// The run's seed.
    pub seed: u64,
    /// Seconds by phase, in their order, with `total` last.
    pub seconds: IndexMap<String, f64>,
    /// The most memory the process held, in bytes, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// The embedded model as it comes.
    pub base: StageScores,
    /// After perception SFT.
    pub sft: StageScores,
    /// After on-policy context distillation.
    pub mgsd: StageScores,
    /// Share of the base's modality gap that the picture side has made up; null when the base has no gap.
    pub gap_closed: Option<f64>,
}

/// The share of the gap that training closed: (picture after - picture before) / (text before - picture before). Text
/// is the base's, so that forgetting how to plan from text does not count as closing the gap. `None` without a gap.
pub fn gap_closed(text_before: f64, picture_before: f64, picture_after: f64) -> Option<f64> {
    let gap = text_before - picture_before;
    (gap > 0.0).then(|| (picture_after - picture_before) / gap)
}

impl Demo {
    /// Puts the three stages together; the total of seconds and the share of the gap closed follow from them.
    pub fn new(
        seed: u64,
        mut seconds: IndexMap<String, f64>,
        peak_memory_bytes: Option<u64>,
        [base, sft, mgsd]: [StageScores; 3],
    ) -> Self {
        let total = seconds.values().fold(0.0, |sum, phase| sum + phase);
        seconds.insert("total".into(), total);
        let gap_closed =
            gap_closed(base.text.macro_accuracy(), base.picture.macro_accuracy(), mgsd.picture.macro_accuracy());
        Self { seed, seconds, peak_memory_bytes, base, sft, mgsd, gap_closed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losing_text_planning_does_not_count_as_closing_the_gap() {
        assert_eq!(gap_closed(0.9, 0.1, 0.1), Some(0.0));
        assert_eq!(gap_closed(1.0, 0.0, 0.75), Some(0.75));
        assert_eq!(gap_closed(0.1, 0.2, 0.5), None);
    }

    #[test]
    fn the_demo_file_names_every_number_that_a_reader_looks_for() {
        let stage = |accuracy: f64| {
            let mut summary = Summary::default();
            summary.all_tasks_macro_avg.accuracy = accuracy;
            StageScores::new(&summary, &summary, &PerceptionSummary::default())
        };
        let seconds = IndexMap::from([("generate".to_string(), 1.5), ("sft".to_string(), 60.0)]);
        let demo = Demo::new(3, seconds, Some(1 << 30), [stage(0.5), stage(0.5), stage(0.5)]);
        let json: serde_json::Value = serde_json::from_str(&crate::json::to_string(&demo)).expect("own JSON");
        assert_eq!(json["seconds"]["total"], 61.5);
        assert_eq!(json["base"]["picture"]["accuracy"]["macro"], 0.5);
        assert_eq!(json["mgsd"]["text"]["optimal_accuracy"]["macro"], 0.0);
        assert_eq!(json["sft"]["perception_exact_match"]["macro"], 0.0);
        assert!(json["gap_closed"].is_null());
    }
}
