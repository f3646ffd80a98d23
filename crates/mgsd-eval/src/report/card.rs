//! A gallery card from an answered case.

use mgsd_tasks::{Plan, RenderOptions, draw_plan, plan};
use serde_json::Value;

use super::data::{BoardCard, Outcome, png_data_url, verdict};
use crate::cases::EvalCase;
use crate::error::{Error, Result};
use crate::rows::PlanRow;

impl BoardCard {
    /// The card of `row`, the answer about `case` after the stage with the key `stage`: the board drawn by `options`
    /// with the plan that was read from the answer on it.
    pub fn new(case: &EvalCase, row: &PlanRow, stage: &str, options: &RenderOptions) -> Result<Self> {
        let failed =
            |error: mgsd_tasks::Error| Error::Case { case_id: case.case_id.clone(), message: error.to_string() };
        let answer = row.answer_text.clone().unwrap_or_default();
        let mut image = case.board.render(options).map_err(failed)?;
        let parsed = plan::parse_benchmark(case.task, &answer);
        if !parsed.actions.is_empty() {
            draw_plan(&case.board, &Plan(parsed.actions), &mut image);
        }
        let shortest = row.eval_result.as_ref().and_then(|fields| fields.get("expected_action_count"));
        Ok(Self {
            case_id: case.case_id.clone(),
            task: case.task.to_string(),
            stage: stage.to_string(),
            level: case.level,
            modality: row.modality.clone().unwrap_or_else(|| "image".to_string()),
            outcome: Outcome::of(row),
            verdict: verdict(row),
            actions: row.actions.clone().unwrap_or_default(),
            shortest: shortest.and_then(Value::as_u64),
            picture: png_data_url(&image.to_png().map_err(failed)?),
            answer,
        })
    }
}
