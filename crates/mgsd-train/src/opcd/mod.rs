//! On-policy context distillation: the student answers from the picture, a teacher that sees the symbolic state scores
//! the student's own tokens, and the student moves towards the teacher (arXiv 2602.12275; losses: arXiv 2306.13649).

mod rollout;
mod rows;
mod teacher;

use crate::error::{Result, TrainError};
use crate::metrics::Scalars;
use crate::packing::{MicroBatch, extremes, runs};
use crate::passes::Passes;
use crate::prefetch::{Prefetch, worker_count};
use crate::random::derive;
use crate::recipe::{Loss, Recipe};
use crate::session::{self, Gradients, Stage};
use crate::source::{Part, Source};
use crate::supervised::Supervised;
use crate::world::World;
use crate::{Control, Summary, student};
use mgsd_compute::Tensor;
use mgsd_compute::ops::loss::{self, Clip, Divergence, Grads};
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Keep, Qwen3Vl};
use mgsd_model::processor::Prompt;
use mgsd_model::reduction::{Reduction, Told};
use mgsd_model::sampling::Sampling;
use mgsd_model::weights::Array;
use rollout::{Response, Roller};
use rows::{BoardRow, Rows};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use teacher::Teacher;

/// Stream of seeds for rollouts.
const ROLLOUT: u64 = 0x726f_6c6c;
/// Stream of seeds for validation responses.
const VALIDATION: u64 = 0x7661_6c69;

/// Runs an `opcd` recipe.
pub(crate) fn run(recipe: &Recipe, control: &Control) -> Result<Summary> {
    let rows = Arc::new(Rows::open(recipe)?);
    let steps = recipe.steps.unwrap_or_else(|| {
        let boards = recipe.epochs.unwrap_or(1.0) * rows.count().unwrap_or(0) as f64;
        (boards / recipe.batch.samples_per_step as f64).ceil().max(1.0) as u64
    });
    let (session, from) = session::open(recipe, control, steps)?;
    let student = student::load(recipe, control.device)?;
    let model = &student.model;
    let (count, weight) = (recipe.opcd.replay_samples, recipe.opcd.replay_weight);
    let replay = if count > 0 {
        let source = Arc::new(Source::open(recipe)?);
        Some(Supervised::new(recipe, source, model, count, weight, &control.world))
    } else {
        None
    };
    let mut stage = Distillation {
        recipe,
        replay,
        teacher: Teacher::load(recipe, control.device)?,
        roller: Roller::new(recipe, model, rows.processor())?,
        passes: Passes::new(&model.config, recipe.model.recompute),
        student_micro: MicroBatch::new(&model.config),
        teacher_micro: MicroBatch::new(&model.config),
        teacher_hidden: Tensor::empty(),
        teacher_log_probs: Vec::new(),
        workers: worker_count(model.device()),
        prefetch: None,
        validation: None,
        rows,
        world: control.world.clone(),
    };
    session.run(student, &mut stage, from)
}

struct Distillation<'a> {
    recipe: &'a Recipe,
    /// Supervised samples trained on in the same steps, so that stage 1 is not forgotten.
    replay: Option<Supervised<'a>>,
    rows: Arc<Rows>,
    teacher: Teacher,
    roller: Roller,
    passes: Passes,
    student_micro: MicroBatch,
    teacher_micro: MicroBatch,
    teacher_hidden: Tensor,
    teacher_log_probs: Vec<f32>,
    /// Threads that make boards.
    workers: usize,
    /// This process's boards of a step, with their numbers.
    prefetch: Option<Prefetch<Vec<(u64, BoardRow)>>>,
    validation: Option<Vec<(u64, BoardRow)>>,
    world: World,
}

/// Sums over the response tokens of a step.
#[derive(Default)]
struct Sums {
    loss: f64,
    sampled_kl: f64,
    entropy: f64,
    /// Largest difference between a token's log-probability when sampled and when trained on.
    sampler_gap: f64,
    teacher_seconds: f64,
    update_seconds: f64,
}

impl Distillation<'_> {
    /// Teacher scores and student gradients for some of the step's responses; every token weighs `weight`.
    fn micro_step(
        &mut self,
        model: &mut Qwen3Vl,
        answers: &[(&BoardRow, &Response)],
        weight: f32,
        sums: &mut Sums,
        told: Told,
    ) -> Result<()> {
        self.student_micro.clear();
        self.teacher_micro.clear();
        for (board, response) in answers {
            self.student_micro.push_response(&board.name, &board.student, &response.ids)?;
            self.teacher_micro.push_response(&board.name, &board.teacher, &response.ids)?;
        }
        let began = Instant::now();
        self.teacher.hidden(model, &mut self.passes, &self.teacher_micro, &mut self.teacher_hidden);
        sums.teacher_seconds += began.elapsed().as_secs_f64();
        let began = Instant::now();
        self.passes.forward(model, &self.student_micro, Adapter::On, Keep::ForBackward);
        sums.loss += self.loss(model, answers, weight);
        self.passes.backward(model, &self.student_micro, told);
        sums.update_seconds += began.elapsed().as_secs_f64();
        let stats = &self.passes.stats;
        let gaps = stats.log_prob.iter().zip(&self.teacher_log_probs);
        sums.sampled_kl += gaps.map(|(mine, theirs)| f64::from(mine - theirs)).sum::<f64>();
        let sampled = answers.iter().flat_map(|(_, response)| &response.log_probs);
        let gap = stats.log_prob.iter().zip(sampled).map(|(now, then)| f64::from((now - then).abs()));
        sums.sampler_gap = gap.fold(sums.sampler_gap, f64::max);
        sums.entropy += stats.entropy.iter().map(|&entropy| f64::from(entropy)).sum::<f64>();
        Ok(())
    }

    /// The loss of `self.student_micro` and the gradient of its hidden states.
    fn loss(&mut self, model: &mut Qwen3Vl, answers: &[(&BoardRow, &Response)], weight: f32) -> f64 {
        let settings = &self.recipe.opcd;
        let targets = &self.student_micro.targets;
        let weights = self.passes.weights(targets.len(), weight);
        let (head, dhead) = model.head_mut();
        let teacher_head = self.teacher.own_head().unwrap_or(head);
        let Passes { hidden, d_hidden, stats, .. } = &mut self.passes;
        let kind = match settings.loss {
            Loss::ReverseKl => Some(Divergence::ReverseKl),
            Loss::ForwardKl => Some(Divergence::ForwardKl),
            Loss::Jsd => Some(Divergence::Jsd { beta: settings.beta }),
            Loss::PolicyGradient => None,
        };
        let sum = if let Some(kind) = kind {
            let teacher = loss::Teacher { hidden: &self.teacher_hidden, head: teacher_head, top_k: settings.top_k };
            let grads = Some(Grads { dhidden: d_hidden, dhead });
            loss::distill(stats, &mut self.teacher_log_probs, kind, hidden, head, &teacher, targets, &weights, grads)
        } else {
            loss::log_probs(stats, &self.teacher_hidden, teacher_head, targets);
            self.teacher_log_probs.clone_from(&stats.log_prob);
            let old: Vec<f32> = answers.iter().flat_map(|(_, response)| response.log_probs.iter().copied()).collect();
            let advantage: Vec<f32> =
                self.teacher_log_probs.iter().zip(&old).map(|(theirs, mine)| theirs - mine).collect();
            let clip = Clip { low: settings.clip_low, high: settings.clip_high, dual: settings.clip_dual };
            let grads = Some(Grads { dhidden: d_hidden, dhead });
            loss::policy_gradient(stats, clip, hidden, head, targets, &old, &advantage, &weights, grads)
        };
        self.passes.return_weights(weights);
        sum
    }

    /// Cuts the step where student and teacher sequences both fit the limit.
    fn cuts(&self, answers: &[(&BoardRow, &Response)]) -> Vec<std::ops::Range<usize>> {
        let lengths: Vec<usize> = answers.iter().map(|(board, response)| board.longer() + response.ids.len()).collect();
        runs(&lengths, self.recipe.batch.max_tokens_per_micro_batch)
    }
}

impl Stage for Distillation<'_> {
    fn start(&mut self, step: u64, steps: u64) -> Result<()> {
        let rows = Arc::clone(&self.rows);
        let count = self.recipe.batch.samples_per_step as u64;
        let world = self.world.clone();
        self.prefetch = Some(Prefetch::new(step, steps, self.workers, move |step| {
            let mine = world.mine(step * count..(step + 1) * count);
            mine.map(|index| Ok((index, rows.row(Part::Train, index)?))).collect()
        }));
        self.replay.as_mut().map_or(Ok(()), |replay| replay.start(step, steps))
    }

    fn rehearse(&mut self, model: &mut Qwen3Vl, step: u64) -> Result<()> {
        let count = self.recipe.batch.samples_per_step as u64;
        let numbers = self.world.mine(step * count..(step + 1) * count);
        let boards: Vec<BoardRow> = numbers.map(|at| self.rows.row(Part::Train, at)).collect::<Result<_>>()?;
        let longest = self.recipe.opcd.max_new_tokens;
        self.roller.rehearse(model, &boards, longest)?;
        let limit = self.recipe.batch.max_tokens_per_micro_batch;
        // Most patches where answers are short, most predictions where they are long.
        let patches = |at: usize| boards[at].student.patches();
        let measures: [(usize, &dyn Fn(usize) -> usize); 2] = [(1, &patches), (longest, &|_| longest)];
        for (length, measure) in measures {
            let response = Response::of_length(length);
            for (at, times) in extremes(boards.len(), |at| boards[at].longer() + length, &[measure], limit) {
                let board = &boards[at];
                let rest = |prompt: &Prompt| limit.saturating_sub(times * (prompt.ids.len() + length) + 1);
                let (end, last) = (board.filler(rest(&board.student), rest(&board.teacher)), Response::of_length(1));
                let mut answers = vec![(board, &response); times];
                if times < boards.len() && rest(&board.student).min(rest(&board.teacher)) > 0 {
                    answers.push((&end, &last));
                }
                self.micro_step(model, &answers, 0.0, &mut Sums::default(), Told::nobody())?;
            }
        }
        self.replay.as_mut().map_or(Ok(()), |replay| replay.rehearse(model, step))
    }

    fn gradients(&mut self, model: &mut Qwen3Vl, step: u64, reduction: &mut Reduction) -> Result<Gradients> {
        let next = self.prefetch.as_mut().and_then(Prefetch::next);
        let boards = next.unwrap_or_else(|| Err(TrainError::other("training data")("ended before the run")))?;
        let (numbers, boards): (Vec<u64>, Vec<BoardRow>) = boards.into_iter().unzip();
        let began = Instant::now();
        let settings = &self.recipe.opcd;
        let sampling = |i: usize| Sampling {
            temperature: settings.temperature,
            top_p: settings.top_p,
            ..Sampling::policy(derive(self.recipe.seed, ROLLOUT, numbers[i]))
        };
        let responses = self.roller.responses(model, &boards, settings.max_new_tokens, sampling)?;
        let rollout_seconds = began.elapsed().as_secs_f64();
        let tokens: usize = responses.iter().map(|response| response.ids.len()).sum();
        let [tokens] = self.world.sum([tokens as f64]);
        let mut sums = Sums::default();
        let mut through = 0;
        let weight = (1.0 / tokens) as f32;
        let answers: Vec<(&BoardRow, &Response)> = boards.iter().zip(&responses).collect();
        for cut in self.cuts(&answers) {
            // What is replayed adds to the same gradients afterwards.
            let last = cut.end == boards.len() && self.replay.is_none();
            let told = if last { reduction.last() } else { Told::nobody() };
            self.micro_step(model, &answers[cut], weight, &mut sums, told)?;
            through += self.student_micro.batch.tokens();
        }
        if self.replay.is_none() {
            reduction.finish(model);
        }
        let mut scalars = Scalars::default();
        let all = [sums.loss, sums.sampled_kl, sums.entropy, through as f64];
        let [loss, sampled_kl, entropy, through_all] = self.world.sum(all);
        let sampled = sampled_kl / tokens;
        let exact = settings.loss == Loss::ReverseKl && settings.top_k.is_none();
        scalars.put("reverse_kl", if exact { loss } else { sampled });
        scalars.put("reverse_kl_sampled", sampled);
        scalars.put("entropy", entropy / tokens);
        scalars.put("sampler_gap", self.world.max(sums.sampler_gap));
        let answers = boards.iter().map(|board| board.task).zip(&responses);
        rollout::put_scores(&mut scalars, answers, &self.world);
        scalars.put("rollout_seconds", rollout_seconds);
        scalars.put("teacher_seconds", sums.teacher_seconds);
        scalars.put("update_seconds", sums.update_seconds);
        let mut samples: Vec<String> = boards.into_iter().map(|board| board.name).collect();
        let (mut loss, mut through) = (loss, through_all as usize);
        if let Some(replay) = &mut self.replay {
            let began = Instant::now();
            let extra = replay.gradients(model, step, reduction)?;
            // Without its factor, as it is measured.
            scalars.put("replay_loss", extra.loss / f64::from(settings.replay_weight));
            scalars.put("replay_seconds", began.elapsed().as_secs_f64());
            loss += extra.loss;
            through += extra.tokens;
            samples.extend(extra.samples);
        }
        Ok(Gradients { loss, tokens: through, samples, scalars })
    }

    fn updated(&mut self, model: &Qwen3Vl) {
        self.teacher.follow(model);
    }

    fn evaluate(&mut self, model: &mut Qwen3Vl) -> Result<Scalars> {
        let boards = match self.validation.take() {
            Some(boards) => boards,
            None => {
                let count = self.rows.validation_count(self.recipe.eval.samples);
                let mine = self.world.mine(0..count as u64);
                mine.map(|index| Ok((index, self.rows.row(Part::HeldOut, index)?))).collect::<Result<_>>()?
            }
        };
        let (numbers, boards): (Vec<u64>, Vec<BoardRow>) = boards.into_iter().unzip();
        let eval = &self.recipe.eval;
        let sampling = |i: usize| Sampling {
            temperature: eval.temperature,
            top_p: eval.top_p,
            ..Sampling::policy(derive(self.recipe.seed, VALIDATION, numbers[i]))
        };
        let responses = self.roller.responses(model, &boards, self.recipe.opcd.max_new_tokens, sampling)?;
        let mut scalars = Scalars::default();
        let answers = boards.iter().map(|board| board.task).zip(&responses);
        rollout::put_scores(&mut scalars, answers, &self.world);
        // Boards that training has too: the success on them is none of new boards.
        let known: Vec<bool> = boards.iter().filter_map(|board| self.rows.is_trained_on(board)).collect();
        let shared = known.iter().filter(|trained| **trained).count();
        let all = [boards.len(), known.len(), shared].map(|count| count as f64);
        let [samples, known, shared] = self.world.sum(all);
        scalars.put("samples", samples);
        if known > 0.0 {
            scalars.put("samples_trained_on", shared);
        }
        self.validation = Some(numbers.into_iter().zip(boards).collect());
        if let Some(replay) = &mut self.replay {
            let held_out = replay.evaluate(model)?;
            for (name, from) in [("replay_loss", "loss"), ("replay_exact", "exact")] {
                scalars.put(name, held_out.get(from).unwrap_or(f64::NAN));
            }
        }
        Ok(scalars)
    }

    fn merit(&self, scalars: &Scalars) -> f64 {
        let success = scalars.get("success").unwrap_or(f64::NEG_INFINITY);
        // What is replayed is to be kept, so it counts as much as what is learnt.
        scalars.get("replay_exact").map_or(success, |kept| 0.5 * (success + kept))
    }

    fn store(&self, arrays: &mut BTreeMap<String, Array>) {
        self.teacher.store(arrays);
    }

    fn restore(&mut self, path: &Path, arrays: &BTreeMap<String, Array>) -> Result<()> {
        self.teacher.restore(path, arrays)
    }
}
