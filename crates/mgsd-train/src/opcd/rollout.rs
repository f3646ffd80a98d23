//! The student's own answers, and how good they are.

use super::rows::BoardRow;
use crate::error::{Result, TrainError};
use crate::metrics::Scalars;
use crate::recipe::Recipe;
use mgsd_model::generate::{Completion, Finish, Generator, Request};
use mgsd_model::linear::Adapter;
use mgsd_model::model::Qwen3Vl;
use mgsd_model::processor::Processor;
use mgsd_model::sampling::Sampling;
use mgsd_tasks::Task;
use mgsd_tasks::score::training::TrainingScore;
use std::sync::Arc;

/// One answer.
pub(super) struct Response {
    /// Its tokens; the end token is the last one unless the answer was cut.
    pub(super) ids: Vec<u32>,
    /// The policy's log-probability of each token when it was sampled.
    pub(super) log_probs: Vec<f32>,
    cut: bool,
    score: Option<TrainingScore>,
}

/// Generates and scores.
pub(super) struct Roller {
    generator: Generator,
    processor: Arc<Processor>,
    stop: Vec<u32>,
}

impl Roller {
    pub(super) fn new(recipe: &Recipe, model: &Qwen3Vl, processor: Arc<Processor>) -> Result<Self> {
        let stop = model.config.eos_token_ids.clone();
        if stop.is_empty() {
            return Err(TrainError::file(
                &recipe.model.base.join("generation_config.json"),
                "no eos_token_id, so that an answer would never end; expected the id of <|im_end|>",
            ));
        }
        let generator = Generator::new(&model.config, recipe.opcd.rollout_batch);
        Ok(Self { generator, processor, stop })
    }

    /// One answer a board. `sampling` gives the settings for the board at an index.
    pub(super) fn responses(
        &mut self,
        model: &Qwen3Vl,
        boards: &[BoardRow],
        max_new_tokens: usize,
        sampling: impl Fn(usize) -> Sampling,
    ) -> Result<Vec<Response>> {
        let request = |(i, board): (usize, &BoardRow)| Request {
            prompt: Arc::clone(&board.student),
            sampling: sampling(i),
            max_new_tokens,
            stop: self.stop.clone(),
        };
        let requests: Vec<Request> = boards.iter().enumerate().map(request).collect();
        let completions = self
            .generator
            .generate(model, &requests, Adapter::On, &mut |_| {})
            .map_err(TrainError::other("rollout"))?;
        boards.iter().zip(completions).map(|(board, completion)| self.response(board, completion)).collect()
    }

    fn response(&self, board: &BoardRow, completion: Completion) -> Result<Response> {
        let score = match &board.case {
            Some(case) => {
                let decoded = self.processor.tokenizer.decode(completion.content());
                let text = decoded.map_err(TrainError::other(format!("decoding the answer to {}", board.name)))?;
                Some(mgsd_tasks::score::training::score(case, Some(&text)))
            }
            None => None,
        };
        Ok(Response {
            cut: completion.finish == Finish::Length,
            ids: completion.ids,
            log_probs: completion.log_probs,
            score,
        })
    }
}

/// What [`put_scores`] may put.
pub(super) const SCORES: [&str; 8] = [
    "response_length",
    "cut",
    "success",
    "success_frozenlake",
    "success_maze",
    "success_minibehaviour",
    "format",
    "parse",
];

/// Means over the answers: length, success in all and by task, format, parse rate.
pub(super) fn put_scores(scalars: &mut Scalars, boards: &[BoardRow], responses: &[Response]) {
    let count = responses.len() as f64;
    let tokens: usize = responses.iter().map(|response| response.ids.len()).sum();
    scalars.put("response_length", tokens as f64 / count);
    scalars.put("cut", responses.iter().filter(|response| response.cut).count() as f64 / count);
    let scored: Vec<(Option<Task>, &TrainingScore)> = boards
        .iter()
        .zip(responses)
        .filter_map(|(board, response)| Some((board.task, response.score.as_ref()?)))
        .collect();
    let mean = |of: &dyn Fn(&TrainingScore) -> f64, task: Option<Task>| {
        let chosen: Vec<f64> = scored
            .iter()
            .filter(|(of_task, _)| task.is_none() || *of_task == task)
            .map(|(_, score)| of(score))
            .collect();
        (!chosen.is_empty()).then(|| chosen.iter().sum::<f64>() / chosen.len() as f64)
    };
    let mut put = |name, value: Option<f64>| {
        if let Some(value) = value {
            scalars.put(name, value);
        }
    };
    put("success", mean(&|score| score.success, None));
    put("success_frozenlake", mean(&|score| score.success, Some(Task::FrozenLake)));
    put("success_maze", mean(&|score| score.success, Some(Task::Maze)));
    put("success_minibehaviour", mean(&|score| score.success, Some(Task::MiniBehaviour)));
    put("format", mean(&|score| score.format, None));
    put("parse", mean(&|score| score.parse_success, None));
}
