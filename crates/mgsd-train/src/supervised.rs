//! Supervised training: pretraining from random weights and supervised fine-tuning share everything but their start.

use crate::error::{Result, TrainError};
use crate::metrics::Scalars;
use crate::packing::{MicroBatch, Sample, extremes, filler, runs};
use crate::passes::Passes;
use crate::prefetch::{Pool, Prefetch, worker_count};
use crate::recipe::Recipe;
use crate::session::{self, Gradients, Stage};
use crate::source::{Part, Source};
use crate::student;
use crate::world::World;
use crate::{Control, Summary};
use mgsd_compute::ops::loss::{self, Grads};
use mgsd_model::config::Config;
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Keep, Qwen3Vl};
use mgsd_model::reduction::{Reduction, Told};
use mgsd_model::weights::Array;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Runs a `pretrain` or `sft` recipe.
pub(crate) fn run(recipe: &Recipe, control: &Control) -> Result<Summary> {
    let source = Arc::new(Source::open(recipe)?);
    let steps = step_count(recipe, &source);
    let (session, from) = session::open(recipe, control, steps)?;
    let student = student::load(recipe, control.device)?;
    let count = recipe.batch.samples_per_step;
    let mut stage = Supervised::new(recipe, source, &student.model, count, 1.0, &control.world);
    session.run(student, &mut stage, from)
}

/// Steps as given, or as many as the epochs over the data files need.
fn step_count(recipe: &Recipe, source: &Source) -> u64 {
    recipe.steps.unwrap_or_else(|| {
        let samples = recipe.epochs.unwrap_or(1.0) * source.samples_per_epoch();
        (samples / recipe.batch.samples_per_step as f64).ceil().max(1.0) as u64
    })
}

/// Everything of one step, prepared ahead.
struct StepData {
    micro_batches: Vec<MicroBatch>,
    names: Vec<String>,
    labelled: usize,
    tokens: usize,
}

/// Packs samples into micro-batches.
fn pack(samples: &[Sample], limit: usize, config: &Config, pool: &Pool<MicroBatch>) -> Result<StepData> {
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.prompt.ids.len()).collect();
    let mut micro_batches = Vec::new();
    for run in runs(&lengths, limit) {
        let mut micro = pool.take(|| MicroBatch::new(config));
        micro.clear();
        for sample in &samples[run] {
            micro.push(sample)?;
        }
        micro_batches.push(micro);
    }
    Ok(StepData {
        labelled: micro_batches.iter().map(|micro| micro.targets.len()).sum(),
        tokens: lengths.iter().sum(),
        names: samples.iter().map(|sample| sample.name.clone()).collect(),
        micro_batches,
    })
}

/// Cross-entropy on the samples of `data.mix`: a whole loop, or the replay beside another loss.
pub(crate) struct Supervised<'a> {
    recipe: &'a Recipe,
    samples_per_step: usize,
    /// Factor on the loss.
    scale: f32,
    source: Arc<Source>,
    config: Config,
    pool: Arc<Pool<MicroBatch>>,
    workers: usize,
    prefetch: Option<Prefetch<StepData>>,
    held_out: Option<StepData>,
    passes: Passes,
    world: World,
}

impl<'a> Supervised<'a> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        source: Arc<Source>,
        model: &Qwen3Vl,
        samples_per_step: usize,
        scale: f32,
        world: &World,
    ) -> Self {
        let passes = Passes::new(&model.config, recipe.model.recompute);
        let config = model.config.clone();
        let (pool, world, workers) = (Arc::default(), world.clone(), worker_count(model.device()));
        let (prefetch, held_out) = (None, None);
        Self { recipe, samples_per_step, scale, source, config, pool, workers, prefetch, held_out, passes, world }
    }

    fn held_out(&mut self) -> Result<&StepData> {
        if self.held_out.is_none() {
            let count = self.source.held_out_count(self.recipe.eval.samples);
            let numbers = self.world.mine(0..count as u64);
            let samples: Vec<Sample> =
                numbers.map(|index| self.source.sample(Part::HeldOut, index)).collect::<Result<_>>()?;
            let limit = self.recipe.batch.max_tokens_per_micro_batch;
            self.held_out = Some(pack(&samples, limit, &self.config, &Pool::default())?);
        }
        self.held_out.as_ref().ok_or_else(|| TrainError::other("evaluation")("no held-out samples"))
    }
}

/// Loss of a micro-batch, `weight` a token; with somebody to tell of them also the gradients.
fn pass(passes: &mut Passes, model: &mut Qwen3Vl, micro: &MicroBatch, weight: f32, back: Option<Told>) -> f64 {
    let keep = if back.is_some() { Keep::ForBackward } else { Keep::Nothing };
    passes.forward(model, micro, Adapter::On, keep);
    let weights = passes.weights(micro.rows.len(), weight);
    let (head, dhead) = model.head_mut();
    let Passes { hidden, d_hidden, stats, .. } = passes;
    let grads = back.is_some().then_some(Grads { dhidden: d_hidden, dhead });
    let sum = loss::cross_entropy(stats, hidden, head, &micro.targets, &weights, grads);
    passes.return_weights(weights);
    if let Some(told) = back {
        passes.backward(model, micro, told);
    }
    sum
}

impl Stage for Supervised<'_> {
    fn start(&mut self, step: u64, steps: u64) -> Result<()> {
        let (source, pool, config) = (Arc::clone(&self.source), Arc::clone(&self.pool), self.config.clone());
        let world = self.world.clone();
        let limit = self.recipe.batch.max_tokens_per_micro_batch;
        let count = self.samples_per_step as u64;
        self.prefetch = Some(Prefetch::new(step, steps, self.workers, move |step| {
            let numbers = world.mine(step * count..(step + 1) * count);
            let samples: Vec<Sample> = numbers.map(|index| source.sample(Part::Train, index)).collect::<Result<_>>()?;
            pack(&samples, limit, &config, &pool)
        }));
        Ok(())
    }

    fn rehearse(&mut self, model: &mut Qwen3Vl, step: u64) -> Result<()> {
        let count = self.samples_per_step as u64;
        let numbers = self.world.mine(step * count..(step + 1) * count);
        let samples: Vec<Sample> = numbers.map(|at| self.source.sample(Part::Train, at)).collect::<Result<_>>()?;
        let patches = |at: usize| samples[at].prompt.patches();
        let labels = |at: usize| samples[at].labelled.iter().filter(|labelled| **labelled).count();
        let limit = self.recipe.batch.max_tokens_per_micro_batch;
        let mut micro = self.pool.take(|| MicroBatch::new(&self.config));
        for (at, times) in extremes(samples.len(), |at| samples[at].prompt.ids.len(), &[&patches, &labels], limit) {
            micro.clear();
            (0..times).try_for_each(|_| micro.push(&samples[at]))?;
            let rest = limit.saturating_sub(micro.batch.tokens());
            if times < samples.len() && rest > 1 {
                let name = samples[at].name.clone();
                micro.push(&Sample { name, prompt: filler(rest), labelled: vec![true; rest] })?;
            }
            pass(&mut self.passes, model, &micro, 0.0, Some(Told::nobody()));
        }
        self.pool.give(micro);
        Ok(())
    }

    fn gradients(&mut self, model: &mut Qwen3Vl, _step: u64, reduction: &mut Reduction) -> Result<Gradients> {
        let next = self.prefetch.as_mut().and_then(Prefetch::next);
        let data = next.unwrap_or_else(|| Err(TrainError::other("training data")("ended before the run")))?;
        let [labelled] = self.world.sum([data.labelled as f64]);
        let weight = self.scale / labelled as f32;
        let (mut sum, mut correct) = (0.0, 0);
        for (micro, left) in data.micro_batches.iter().zip((0..data.micro_batches.len()).rev()) {
            let told = if left == 0 { reduction.last() } else { Told::nobody() };
            sum += pass(&mut self.passes, model, micro, weight, Some(told));
            correct += self.passes.stats.correct.iter().filter(|correct| **correct).count();
        }
        reduction.finish(model);
        data.micro_batches.into_iter().for_each(|micro| self.pool.give(micro));
        let [sum, correct, tokens] = self.world.sum([sum, correct as f64, data.tokens as f64]);
        let mut scalars = Scalars::default();
        scalars.put("accuracy", correct / labelled);
        Ok(Gradients { loss: sum, tokens: tokens as usize, samples: data.names, scalars })
    }

    fn updated(&mut self, _model: &Qwen3Vl) {}

    fn evaluate(&mut self, model: &mut Qwen3Vl) -> Result<Scalars> {
        self.held_out()?;
        let Some(data) = self.held_out.take() else { return Ok(Scalars::default()) };
        let [labelled, samples] = self.world.sum([data.labelled as f64, data.names.len() as f64]);
        let weight = 1.0 / labelled as f32;
        let (mut sum, mut correct, mut exact) = (0.0, 0, 0);
        for micro in &data.micro_batches {
            sum += pass(&mut self.passes, model, micro, weight, None);
            let right = &self.passes.stats.correct;
            correct += right.iter().filter(|correct| **correct).count();
            // When each token of the answer is the likeliest after the right ones, greedy decoding gives that answer.
            exact += micro.answers().filter(|answer| right[answer.clone()].iter().all(|correct| *correct)).count();
        }
        let [sum, correct, exact] = self.world.sum([sum, correct as f64, exact as f64]);
        let mut scalars = Scalars::default();
        scalars.put("loss", sum);
        scalars.put("accuracy", correct / labelled);
        scalars.put("exact", exact / samples);
        scalars.put("samples", samples);
        self.held_out = Some(data);
        Ok(scalars)
    }

    fn merit(&self, scalars: &Scalars) -> f64 {
        -scalars.get("loss").unwrap_or(f64::INFINITY)
    }

    fn store(&self, _arrays: &mut BTreeMap<String, Array>) {}

    fn restore(&mut self, _path: &Path, _arrays: &BTreeMap<String, Array>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgsd_model::model::Parts;
    use mgsd_model::param::Parameter;

    const RECIPE: &str = r#"
kind = "sft"
steps = 2
[model]
out = "never-written"
[data]
image_size = 64
[data.tasks.frozenlake]
levels = [3]
[[data.mix]]
kind = "read_image"
[[data.mix]]
kind = "plan_text"
[prompts]
set = "compact"
[images]
min_pixels = 1024
max_pixels = 4096
"#;

    /// Tokens of a step of `samples`, and what was taken in it to be added up over processes.
    fn step(samples: usize, limit: usize) -> (usize, Vec<(String, Vec<f32>)>) {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgsd-model/tests/data/tiny-qwen3vl");
        let changes = [format!("model.base={base:?}"), format!("batch.max_tokens_per_micro_batch={limit}")];
        let recipe = Recipe::parse("test.toml", RECIPE, &changes).unwrap();
        let mut model = student::load(&recipe, mgsd_compute::Device::Cpu).unwrap().model;
        model.set_trainable(Parts { text: true, embeddings: true, merger: true, ..Parts::NONE });
        let source = Arc::new(Source::open(&recipe).unwrap());
        let mut stage = Supervised::new(&recipe, source, &model, samples, 1.0, &World::alone());
        stage.start(0, 2).unwrap();
        let mut taken = Vec::new();
        let mut take = |piece: &mut [&mut Parameter]| {
            taken.extend(piece.iter().map(|p| (p.name.clone(), p.grad.as_ref().unwrap().to_vec())));
        };
        let mut reduction = Reduction::new(&mut take);
        let tokens = stage.gradients(&mut model, 0, &mut reduction).unwrap().tokens;
        assert!(reduction.is_finished());
        for parameter in model.parameters() {
            let found = taken.iter().filter(|(name, _)| *name == parameter.name);
            let found: Vec<Vec<f32>> = found.map(|(_, grad)| grad.clone()).collect();
            let whole: Vec<Vec<f32>> = parameter.grad.iter().map(|grad| grad.to_vec()).collect();
            assert_eq!(found, whole, "{}: taken once, with all micro-batches in it, if trained", parameter.name);
        }
        (tokens, taken)
    }

    #[test]
    fn a_step_hands_on_the_same_gradients_in_the_same_order_with_any_number_of_micro_batches() {
        let names = |taken: &[(String, Vec<f32>)]| taken.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let (none, nothing) = step(0, 256);
        let (one, whole) = step(4, 1 << 20);
        // No two sequences fit together.
        let (many, parts) = step(4, 1);
        assert!(none == 0 && one > 4 && one == many, "{none} {one} {many}");
        assert!(names(&nothing).len() > 10 && whole.iter().any(|(_, grad)| grad.iter().any(|v| *v != 0.0)));
        assert_eq!(names(&whole), names(&nothing));
        assert_eq!(names(&parts), names(&nothing));
    }
}
