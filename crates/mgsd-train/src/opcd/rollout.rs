//! The student's own answers, and how good they are.

use super::rows::BoardRow;
use crate::error::{Result, TrainError};
use crate::metrics::Scalars;
use crate::packing::{extremes, filler};
use crate::recipe::Recipe;
use crate::world::World;
use mgsd_model::generate::{Completion, Finish, Generator, MOST_PROMPT_TOKENS, Request};
use mgsd_model::linear::Adapter;
use mgsd_model::model::Qwen3Vl;
use mgsd_model::processor::{Processor, Prompt};
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

impl Response {
    /// One that takes as much memory as an answer of so many tokens.
    pub(super) fn of_length(tokens: usize) -> Self {
        Self { ids: vec![0; tokens], log_probs: vec![0.0; tokens], cut: true, score: None }
    }
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

    /// Makes room for answers of so many tokens, and runs the largest pass of prompts, all prompts, and a step after them.
    pub(super) fn rehearse(&mut self, model: &Qwen3Vl, boards: &[BoardRow], max_new_tokens: usize) -> Result<()> {
        let length = |at: usize| boards[at].student.ids.len();
        let mut prompts = Vec::new();
        let patches = |at: usize| boards[at].student.patches();
        for (at, times) in extremes(boards.len(), length, &[&patches], MOST_PROMPT_TOKENS) {
            // Each with another end, since the same prompt would be run once.
            prompts.extend((0..times).map(|end| {
                let mut prompt = Prompt::clone(&boards[at].student);
                prompt.ids.splice(length(at) - 1.., [end as u32]);
                Arc::new(prompt)
            }));
            let rest = MOST_PROMPT_TOKENS.saturating_sub(times * length(at));
            if times < boards.len() && rest > 0 {
                prompts.push(Arc::new(filler(rest)));
            }
        }
        prompts.extend(boards.iter().map(|board| Arc::clone(&board.student)));
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        self.generator.make_room(longest + max_new_tokens);
        let request = |prompt| Request {
            prompt,
            sampling: Sampling::policy(0),
            max_new_tokens: max_new_tokens.min(2),
            stop: self.stop.clone(),
        };
        let requests: Vec<Request> = prompts.into_iter().map(request).collect();
        self.generate(model, &requests).map(drop)
    }

    fn generate(&mut self, model: &Qwen3Vl, requests: &[Request]) -> Result<Vec<Completion>> {
        let completions = self.generator.generate(model, requests, Adapter::On, &mut |_| {});
        completions.map_err(TrainError::other("rollout"))
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
        let completions = self.generate(model, &requests)?;
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

/// What is measured of answers.
const SCORES: [&str; 8] = [
    "response_length",
    "cut",
    "success",
    "success_frozenlake",
    "success_maze",
    "success_minibehaviour",
    "format",
    "parse",
];

/// Puts means over the answers of all processes: length, success in all and by task, format, parse rate. What no answer
/// has is not put.
pub(super) fn put_scores<'a>(
    scalars: &mut Scalars,
    answers: impl IntoIterator<Item = (Option<Task>, &'a Response)>,
    world: &World,
) {
    let mut sums = [0.0; 2 * SCORES.len()];
    let mut add = |name: &str, value: f64| {
        let at = SCORES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name} is not in SCORES"));
        sums[2 * at] += value;
        sums[2 * at + 1] += 1.0;
    };
    for (task, response) in answers {
        add("response_length", response.ids.len() as f64);
        add("cut", f64::from(u8::from(response.cut)));
        let Some(score) = &response.score else { continue };
        add("success", score.success);
        match task {
            Some(Task::FrozenLake) => add("success_frozenlake", score.success),
            Some(Task::Maze) => add("success_maze", score.success),
            Some(Task::MiniBehaviour) => add("success_minibehaviour", score.success),
            None => {}
        }
        add("format", score.format);
        add("parse", score.parse_success);
    }
    for (name, sum) in SCORES.into_iter().zip(world.sum(sums).chunks_exact(2)) {
        if sum[1] > 0.0 {
            scalars.put(name, sum[0] / sum[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Place;
    use mgsd_compute::{Device, free_port};

    fn answer(tokens: usize, success: f64) -> Response {
        let score = Some(TrainingScore { success, format: 1.0, ..TrainingScore::default() });
        Response { ids: vec![0; tokens], log_probs: Vec::new(), cut: tokens > 2, score }
    }

    fn scores(answers: &[(Task, Response)], world: &World) -> Scalars {
        let mut scalars = Scalars::default();
        put_scores(&mut scalars, answers.iter().map(|(task, answer)| (Some(*task), answer)), world);
        scalars
    }

    #[test]
    fn means_are_over_the_answers_of_all_processes_however_they_are_dealt() {
        let answers = || {
            let maze = [(1, 1.0), (2, 0.0), (4, 1.0)].map(|(tokens, success)| (Task::Maze, answer(tokens, success)));
            maze.into_iter().chain([(Task::FrozenLake, answer(5, 0.0))]).collect::<Vec<_>>()
        };
        let alone = scores(&answers(), &World::alone());
        let expected = [
            ("response_length", 3.0),
            ("cut", 0.5),
            ("success", 0.5),
            ("success_frozenlake", 0.0),
            ("success_maze", 2.0 / 3.0),
            ("format", 1.0),
            ("parse", 0.0),
        ];
        assert_eq!(alone.0, expected);
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        // One of three has no answer at all.
        let dealt = [0..1, 1..4, 4..4];
        std::thread::scope(|scope| {
            for (rank, mine) in dealt.into_iter().enumerate() {
                let (address, alone) = (address.clone(), &alone);
                scope.spawn(move || {
                    let place = Place { rank, size: 3, local: rank, beside: 3, address };
                    let world = World::join(&place, Device::Cpu).unwrap();
                    assert_eq!(&scores(&answers()[mine], &world), alone, "rank {rank}");
                });
            }
        });
    }
}
