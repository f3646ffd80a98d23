//! Planning results counted: over all cases, by task, by task and level, and as means over levels and over tasks.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::rows::{PlanRow, Row};

/// Counts and rates of a group of cases. Rates divide by the cases that were answered, at least 1. The optional
/// entries name the kind of illegal movement and are there only in groups where it occurred.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the field names are the published ones and say what they hold")]
pub struct Group {
    pub num_cases: u64,
    pub num_errors: u64,
    pub num_parse_success: u64,
    pub num_success: u64,
    pub num_optimal_success: u64,
    pub num_illegal_movement: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_fell_into_hole: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_crossed_wall: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_entered_table: Option<u64>,
    pub parse_rate: f64,
    pub success_rate: f64,
    pub optimal_success_rate: f64,
    pub illegal_movement_rate: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fell_into_hole_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crossed_wall_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_table_rate: Option<f64>,
    pub accuracy: f64,
    pub optimal_accuracy: f64,
}

/// Means of rates over groups, each group counting the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the field names are the published ones and say what they hold")]
pub struct Macro {
    pub num_groups: u64,
    pub parse_rate: f64,
    pub success_rate: f64,
    pub optimal_success_rate: f64,
    pub illegal_movement_rate: f64,
    pub accuracy: f64,
    pub optimal_accuracy: f64,
}

/// A level as a key of a summary: numbers in their order, rows without a level last, as `unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum LevelKey {
    /// Side of the grid.
    Level(u32),
    /// The row names no level.
    Unknown,
}

impl From<Option<u32>> for LevelKey {
    fn from(level: Option<u32>) -> Self {
        level.map_or(Self::Unknown, Self::Level)
    }
}

impl fmt::Display for LevelKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(level) => write!(out, "{level}"),
            Self::Unknown => out.write_str("unknown"),
        }
    }
}

impl From<LevelKey> for String {
    fn from(key: LevelKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for LevelKey {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if matches!(text.as_str(), "unknown" | "None") {
            return Ok(Self::Unknown);
        }
        u32::from_str(&text).map(Self::Level).map_err(|_| format!("level {text:?}: expected a number or \"unknown\""))
    }
}

/// The summary of one planning run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// All cases together (micro).
    pub total: Group,
    /// Each task.
    pub by_task: BTreeMap<String, Group>,
    /// Each task and level.
    pub by_task_level: BTreeMap<String, BTreeMap<LevelKey, Group>>,
    /// Per task the mean over its levels.
    pub task_macro_avg_by_level: BTreeMap<String, Macro>,
    /// The mean over tasks: the headline number.
    pub all_tasks_macro_avg: Macro,
    /// Which run this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<Experiment>,
}

/// What was measured, as a summary names it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// The model's name in tables.
    pub model_label: String,
    /// `image` or `text`.
    pub input_modality: String,
    /// The model's folder or its name at an endpoint.
    pub model: String,
    /// The row file's name.
    pub output: String,
}

/// The kinds of illegal movement that are counted by name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Illegal {
    FellIntoHole,
    CrossedWall,
    EnteredTable,
}

impl Illegal {
    fn of(row: &PlanRow) -> Option<Self> {
        let reason = row.invalid_reason().unwrap_or("");
        let reason = reason.split(':').next().unwrap_or("");
        match reason {
            _ if row.flag("fell_into_hole") => Some(Self::FellIntoHole),
            "fell_into_hole" => Some(Self::FellIntoHole),
            "wall_blocked" => Some(Self::CrossedWall),
            "entered_table" => Some(Self::EnteredTable),
            _ => None,
        }
    }
}

impl Group {
    fn add(&mut self, row: &PlanRow, name_the_kind: bool) {
        self.num_cases += 1;
        if row.failed() {
            self.num_errors += 1;
            return;
        }
        self.num_parse_success += u64::from(row.flag("parse_success"));
        self.num_success += u64::from(row.flag("success"));
        self.num_optimal_success += u64::from(row.flag("optimal_success"));
        let Some(kind) = Illegal::of(row) else { return };
        self.num_illegal_movement += 1;
        if name_the_kind {
            let count = match kind {
                Illegal::FellIntoHole => &mut self.num_fell_into_hole,
                Illegal::CrossedWall => &mut self.num_crossed_wall,
                Illegal::EnteredTable => &mut self.num_entered_table,
            };
            *count = Some(count.unwrap_or(0) + 1);
        }
    }

    /// Cases that were answered.
    pub fn answered(&self) -> u64 {
        self.num_cases - self.num_errors.min(self.num_cases)
    }

    fn with_rates(mut self) -> Self {
        let answered = self.answered().max(1) as f64;
        let rate = |count: u64| count as f64 / answered;
        self.parse_rate = rate(self.num_parse_success);
        self.success_rate = rate(self.num_success);
        self.optimal_success_rate = rate(self.num_optimal_success);
        self.illegal_movement_rate = rate(self.num_illegal_movement);
        self.fell_into_hole_rate = self.num_fell_into_hole.map(rate);
        self.crossed_wall_rate = self.num_crossed_wall.map(rate);
        self.entered_table_rate = self.num_entered_table.map(rate);
        self.accuracy = self.success_rate;
        self.optimal_accuracy = self.optimal_success_rate;
        self
    }
}

impl Macro {
    fn over<'a>(groups: impl Iterator<Item = &'a Group> + Clone) -> Self {
        let count = groups.clone().count();
        let mean =
            |rate: fn(&Group) -> f64| groups.clone().map(rate).fold(0.0, |sum, rate| sum + rate) / count.max(1) as f64;
        Self {
            num_groups: count as u64,
            parse_rate: mean(|group| group.parse_rate),
            success_rate: mean(|group| group.success_rate),
            optimal_success_rate: mean(|group| group.optimal_success_rate),
            illegal_movement_rate: mean(|group| group.illegal_movement_rate),
            accuracy: mean(|group| group.accuracy),
            optimal_accuracy: mean(|group| group.optimal_accuracy),
        }
    }
}

/// Counts the rows. Rows that failed enter the number of cases and of errors only; a group of nothing but errors
/// still enters the means, as 0.
pub fn summarise<'a>(rows: impl IntoIterator<Item = &'a PlanRow>) -> Summary {
    let mut summary = Summary::default();
    for row in rows {
        summary.total.add(row, false);
        summary.by_task.entry(row.task.clone()).or_default().add(row, true);
        let levels = summary.by_task_level.entry(row.task.clone()).or_default();
        levels.entry(row.level.into()).or_default().add(row, true);
    }
    summary.total = summary.total.with_rates();
    for group in summary.by_task.values_mut() {
        *group = std::mem::take(group).with_rates();
    }
    for (task, levels) in &mut summary.by_task_level {
        for group in levels.values_mut() {
            *group = std::mem::take(group).with_rates();
        }
        summary.task_macro_avg_by_level.insert(task.clone(), Macro::over(levels.values()));
    }
    summary.all_tasks_macro_avg = Macro::over(summary.by_task.values());
    summary
}
