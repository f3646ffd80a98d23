//! What stands beside a summary: how sure its numbers are, how they change with the length of the plan, how and why
//! plans fail, and what the answers cost in tokens. (Summaries keep the published form to the last digit.)

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failures::{Cause, Ending, Reading, board_of};
use crate::perception::{self, Counts, PerceptionRow};
use crate::rows::{PlanRow, Row};
use crate::stats::{self, Estimate};
use crate::summary::LevelKey;

/// Resamples behind each bootstrap interval.
pub const RESAMPLES: usize = 2000;
/// Seed of the bootstrap, the same in every run.
pub const SEED: u64 = 0;

/// Planning rates of a group with Wilson's intervals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Answered boards.
    pub cases: u64,
    /// Of these, boards solved.
    pub solved: u64,
    /// Of these, boards solved in as few steps as possible.
    pub shortest: u64,
    /// Share of boards solved; none without cases.
    pub accuracy: Option<Estimate>,
    /// Share of boards solved in as few steps as possible; none without cases.
    pub optimal_accuracy: Option<Estimate>,
}

impl Shares {
    fn add(&mut self, row: &PlanRow) {
        self.cases += 1;
        self.solved += u64::from(row.flag("success"));
        self.shortest += u64::from(row.flag("optimal_success"));
        self.accuracy = Some(stats::rate(self.solved, self.cases));
        self.optimal_accuracy = Some(stats::rate(self.shortest, self.cases));
    }
}

/// A task's rates, in all and split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskShares {
    /// All its boards.
    pub all: Shares,
    /// By level.
    pub by_level: BTreeMap<LevelKey, Shares>,
    /// By the length of the shortest plan, where the rows tell it.
    pub by_plan_length: BTreeMap<u64, Shares>,
}

/// What answers state of their boards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Readings {
    /// Answers that state their board.
    pub stated: u64,
    /// Of these, all right.
    pub exact: u64,
    /// Of these, all right: the share.
    pub exact_rate: Option<Estimate>,
    /// Wrong statements by question.
    pub wrong: BTreeMap<String, u64>,
    /// Boards solved among those stated right.
    pub solved_when_exact: Option<Estimate>,
    /// Boards solved among those stated wrong.
    pub solved_when_wrong: Option<Estimate>,
}

/// Tokens of all answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the questions.
    pub prompt: u64,
    /// Of the answers.
    pub answer: u64,
    /// Answers whose tokens are not known.
    pub untold: u64,
}

impl Tokens {
    fn add(&mut self, prompt: Option<u64>, answer: Option<u64>) {
        self.prompt += prompt.unwrap_or(0);
        self.answer += answer.unwrap_or(0);
        self.untold += u64::from(prompt.is_none() || answer.is_none());
    }

    /// What they cost at prices for a million tokens each.
    pub fn cost(&self, prices: Prices) -> f64 {
        (self.prompt as f64 * prices.prompt + self.answer as f64 * prices.answer) / 1e6
    }
}

/// Prices for a million tokens, in any currency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prices {
    /// Of the questions.
    pub prompt: f64,
    /// Of the answers.
    pub answer: f64,
}

/// A board that was not solved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The case.
    pub case_id: String,
    /// How it ended.
    pub ending: Ending,
    /// Where that comes from.
    pub cause: Cause,
    /// What was stated otherwise than it is, by question: what is stated, what is there.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub misread: IndexMap<String, [String; 2]>,
}

/// The analysis of a planning run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanAnalysis {
    /// Boards asked about.
    pub cases: u64,
    /// Of these, without an answer.
    pub errors: u64,
    /// Answers cut at their longest.
    pub truncated: u64,
    /// Mean over tasks of the share solved, with a bootstrap interval over boards within tasks.
    pub macro_accuracy: Option<Estimate>,
    /// The same of boards solved in as few steps as possible.
    pub macro_optimal_accuracy: Option<Estimate>,
    /// All boards together.
    pub total: Shares,
    /// Each task.
    pub by_task: BTreeMap<String, TaskShares>,
    /// Failures by ending, then by cause.
    pub failures: BTreeMap<Ending, BTreeMap<Cause, u64>>,
    /// What the answers state of their boards.
    pub readings: Readings,
    /// What was used up.
    pub tokens: Tokens,
    /// Every board that was not solved.
    pub failed_cases: Vec<Failure>,
}

/// Analyses planning rows.
pub fn of_plans(rows: &[PlanRow]) -> PlanAnalysis {
    let mut analysis = PlanAnalysis::default();
    let mut columns = BTreeMap::<&str, [Vec<[f64; 1]>; 2]>::new();
    let mut solved_by_reading = [[0_u64; 2]; 2];
    // In an order that does not depend on which answer came first.
    let mut rows: Vec<&PlanRow> = rows.iter().collect();
    rows.sort_by_key(|row| row.case_id());
    for row in rows {
        analysis.cases += 1;
        if row.failed() {
            analysis.errors += 1;
            continue;
        }
        analysis.truncated += u64::from(row.truncated);
        analysis.tokens.add(row.prompt_tokens, row.answer_tokens);
        analysis.total.add(row);
        let task = analysis.by_task.entry(row.task.clone()).or_default();
        task.all.add(row);
        task.by_level.entry(row.level.into()).or_default().add(row);
        if let Some(length) = shortest(row) {
            task.by_plan_length.entry(length).or_default().add(row);
        }
        let hit = |name: &str| [f64::from(u8::from(row.flag(name)))];
        let column = columns.entry(&row.task).or_default();
        column[0].push(hit("success"));
        column[1].push(hit("optimal_success"));

        let reading = board_of(row).and_then(|board| Reading::of(&board, row.answer_text.as_deref()?));
        if let Some(reading) = &reading {
            analysis.readings.stated += 1;
            analysis.readings.exact += u64::from(reading.is_exact());
            for difference in &reading.differences {
                *analysis.readings.wrong.entry(difference.question.to_string()).or_default() += 1;
            }
            let counts = &mut solved_by_reading[usize::from(reading.is_exact())];
            counts[0] += u64::from(row.flag("success"));
            counts[1] += 1;
        }
        let Some(ending) = Ending::of(row) else { continue };
        let cause = reading.as_ref().map_or(Cause::Unstated, Reading::cause);
        *analysis.failures.entry(ending).or_default().entry(cause).or_default() += 1;
        let misread = reading.into_iter().flat_map(|reading| reading.differences);
        analysis.failed_cases.push(Failure {
            case_id: row.case_id.clone(),
            ending,
            cause,
            misread: misread.map(|wrong| (wrong.question.to_string(), [wrong.stated, wrong.there])).collect(),
        });
    }
    let known = |[hits, cases]: [u64; 2]| (cases > 0).then(|| stats::rate(hits, cases));
    analysis.readings.exact_rate = known([analysis.readings.exact, analysis.readings.stated]);
    analysis.readings.solved_when_wrong = known(solved_by_reading[0]);
    analysis.readings.solved_when_exact = known(solved_by_reading[1]);
    let [solved, shortest]: [Vec<Vec<[f64; 1]>>; 2] =
        [0, 1].map(|at| columns.values().map(|column| column[at].clone()).collect());
    analysis.macro_accuracy = stats::macro_rate(&solved, RESAMPLES, SEED);
    analysis.macro_optimal_accuracy = stats::macro_rate(&shortest, RESAMPLES, SEED);
    analysis
}

/// Length of the shortest plan, as the row's verdict tells it.
pub fn shortest(row: &PlanRow) -> Option<u64> {
    row.eval_result.as_ref()?.get("expected_action_count").and_then(Value::as_u64)
}

/// Perception rates of a group with Wilson's intervals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadShares {
    /// Answers asked for.
    pub cases: u64,
    /// Share of whole answers read exactly.
    pub all_exact_match: Option<Estimate>,
    /// Share read exactly, by question.
    pub questions: IndexMap<String, Estimate>,
}

impl From<&Counts> for ReadShares {
    fn from(counts: &Counts) -> Self {
        let share = |hits: u64| stats::rate(hits, counts.total);
        Self {
            cases: counts.total,
            all_exact_match: (counts.total > 0).then(|| share(counts.all_exact_match)),
            questions: counts.questions.iter().map(|(name, hits)| (name.clone(), share(*hits))).collect(),
        }
    }
}

/// The analysis of a perception run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerceptionAnalysis {
    /// Boards asked about.
    pub cases: u64,
    /// Of these, without an answer.
    pub errors: u64,
    /// Answers cut at their longest.
    pub truncated: u64,
    /// Each task.
    pub by_task: BTreeMap<String, ReadShares>,
    /// Each task and level.
    pub by_task_level: BTreeMap<String, BTreeMap<LevelKey, ReadShares>>,
    /// What was used up.
    pub tokens: Tokens,
}

/// Analyses perception rows.
pub fn of_perception(rows: &[PerceptionRow]) -> PerceptionAnalysis {
    let summary = perception::summarise(rows);
    let mut analysis = PerceptionAnalysis { cases: summary.total, ..PerceptionAnalysis::default() };
    for (task, counts) in &summary.tasks {
        analysis.by_task.insert(task.clone(), (&counts.counts).into());
        let levels = counts.levels.iter().map(|(level, counts)| (*level, counts.into()));
        analysis.by_task_level.insert(task.clone(), levels.collect());
    }
    for row in rows {
        analysis.errors += u64::from(row.failed());
        analysis.truncated += u64::from(row.truncated);
        if !row.failed() {
            analysis.tokens.add(row.prompt_tokens, row.answer_tokens);
        }
    }
    analysis
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case_id: &str, level: u32, length: u64, success: bool, actions: &[&str]) -> PlanRow {
        PlanRow {
            case_id: case_id.into(),
            task: "frozenlake".into(),
            level: Some(level),
            actions: Some(actions.iter().map(ToString::to_string).collect()),
            answer_text: Some("1. 3x3\n2. (0,0)\n3. (2,2)\n4. (0,1)\n<answer>DDRR</answer>".into()),
            board: Some("frozenlake:SFF/FHF/FFG".into()),
            eval_result: Some(serde_json::json!({
                "success": success, "optimal_success": success, "expected_action_count": length, "path": [[0, 0]],
            })),
            prompt_tokens: Some(1000),
            answer_tokens: Some(50),
            ..PlanRow::default()
        }
    }

    #[test]
    fn rates_are_split_by_plan_length_and_failures_by_cause() {
        let rows = [
            row("a", 3, 4, true, &["down"]),
            row("b", 3, 4, false, &["up"]),
            row("c", 3, 6, false, &[]),
            PlanRow { error: Some("HTTP 500".into()), ..row("d", 3, 4, false, &[]) },
        ];
        let analysis = of_plans(&rows);
        assert_eq!((analysis.cases, analysis.errors, analysis.total.cases), (4, 1, 3));
        let lake = &analysis.by_task["frozenlake"];
        assert_eq!(
            (lake.by_plan_length[&4].solved, lake.by_plan_length[&4].cases, lake.by_plan_length[&6].solved),
            (1, 2, 0)
        );
        assert_eq!(lake.all.accuracy, Some(stats::rate(1, 3)));
        // The plan in the text solves the stated board (a hole at (0,1)), which is not the one that is there.
        assert_eq!(analysis.failures[&Ending::WrongFormat][&Cause::Perception], 1);
        assert_eq!(analysis.failures[&Ending::StoppedShort][&Cause::Perception], 1);
        assert_eq!(
            (analysis.readings.stated, analysis.readings.exact, analysis.readings.wrong["h_positions"]),
            (3, 0, 3)
        );
        assert_eq!(analysis.failed_cases[0].misread["h_positions"], ["(0,1)".to_string(), "(1,1)".to_string()]);
        let json = crate::json::to_string(&analysis);
        assert_eq!(serde_json::from_str::<PlanAnalysis>(&json).expect("own JSON"), analysis);
    }

    #[test]
    fn tokens_are_summed_and_priced() {
        let rows =
            [row("a", 3, 4, true, &["down"]), PlanRow { prompt_tokens: None, ..row("b", 3, 4, true, &["down"]) }];
        let tokens = of_plans(&rows).tokens;
        assert_eq!(tokens, Tokens { prompt: 1000, answer: 100, untold: 1 });
        assert!((tokens.cost(Prices { prompt: 2.5, answer: 10.0 }) - 0.0035).abs() < 1e-12);
    }
}
