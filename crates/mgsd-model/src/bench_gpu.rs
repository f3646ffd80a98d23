//! Speed on a GPU at the published sizes, with random weights, for `mgsd bench gpu`: the same work as the programs that
//! it is compared with (batches of equal length, one picture of 256 x 256 each where there are pictures).

use std::sync::Arc;
use std::time::Instant;

use mgsd_compute::Group;
use mgsd_compute::ops::adamw::{self, AdamW, Update};
use mgsd_compute::ops::loss::{self, Divergence, Grads, Teacher, TokenStats};
use mgsd_compute::{Device, Dtype, Tensor, Write};

use crate::batch::Batch;
use crate::config::{Config, TextConfig, VisionConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::generate::{Generator, Request};
use crate::linear::Adapter;
use crate::lora::LoraConfig;
use crate::model::{Activations, Keep, Parts, Qwen3Vl, Recompute};
use crate::param::Parameter;
use crate::patches::{Grid, ImagePatches};
use crate::processor::Prompt;
use crate::reduction::{self, Owners, Reduction, Told};
use crate::sampling::Sampling;

/// One figure: name, value, unit.
pub type Figure = (String, f64, &'static str);

/// The published sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Qwen3-VL 4B.
    B4,
    /// Qwen3-VL 8B.
    B8,
}

impl Size {
    /// The published configuration.
    pub fn config(self) -> Config {
        let small = self == Size::B4;
        let pick = |four: usize, eight: usize| if small { four } else { eight };
        Config {
            text: TextConfig {
                vocab_size: 151936,
                hidden_size: pick(2560, 4096),
                intermediate_size: pick(9728, 12288),
                num_hidden_layers: 36,
                num_attention_heads: 32,
                num_key_value_heads: 8,
                head_dim: 128,
                rms_norm_eps: 1e-6,
                rope_theta: 5e6,
                mrope_section: [24, 20, 20],
                max_position_embeddings: 262_144,
                initializer_range: 0.02,
            },
            vision: VisionConfig {
                hidden_size: pick(1024, 1152),
                depth: pick(24, 27),
                num_heads: 16,
                intermediate_size: pick(4096, 4304),
                out_hidden_size: pick(2560, 4096),
                num_position_embeddings: 2304,
                patch_size: 16,
                temporal_patch_size: 2,
                spatial_merge_size: 2,
                in_channels: 3,
                deepstack_visual_indexes: if small { vec![5, 11, 17] } else { vec![8, 16, 24] },
                rope_theta: 1e4,
                initializer_range: 0.02,
            },
            tie_word_embeddings: small,
            image_token_id: 151655,
            vision_start_token_id: 151652,
            vision_end_token_id: 151653,
            eos_token_ids: Vec::new(),
            dtype: WeightDtype::Bf16,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Size::B4 => "4b",
            Size::B8 => "8b",
        }
    }
}

/// The first four layers of the 4B decoder over a small vocabulary.
fn stack_config() -> Config {
    let mut config = Size::B4.config();
    config.text.num_hidden_layers = 4;
    config.text.vocab_size = 1024;
    config.vision.depth = 1;
    config.vision.deepstack_visual_indexes = vec![0];
    config.image_token_id = 1000;
    config
}

/// `batch` prompts of `length` tokens, the same numbers in each run; with a picture of 16 x 16 patches (64 tokens) each.
fn prompts(config: &Config, batch: usize, length: usize, pictures: bool) -> Vec<Arc<Prompt>> {
    let grid = Grid { t: 1, h: 16, w: 16 };
    let (vocab, width) = (config.text.vocab_size as u64, config.vision.patch_len());
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    };
    let prompts = (0..batch).map(|_| {
        let mut ids: Vec<u32> = (0..length).map(|_| (next() % (vocab * 9 / 10)) as u32).collect();
        let mut images = Vec::new();
        if pictures {
            ids[10] = config.vision_start_token_id;
            ids[11..75].fill(config.image_token_id);
            ids[75] = config.vision_end_token_id;
            let pixel_values = (0..grid.patches() * width).map(|_| (next() % 2000) as f32 / 1000.0 - 1.0).collect();
            images.push(Arc::new(ImagePatches { pixel_values, grid }));
        }
        Arc::new(Prompt { ids, images })
    });
    prompts.collect()
}

/// A step to be timed: everything is kept from call to call.
struct Work {
    model: Qwen3Vl,
    batch: Batch,
    acts: Activations,
    rows: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    d_rows: Tensor,
    stats: TokenStats,
    moments: Vec<(Tensor, Tensor, Option<Tensor>)>,
    steps: u64,
    /// Owner of each trained parameter's moments, with several processes that share them out.
    owners: Owners,
}

/// What the figures are measured with.
pub struct Setting<'a> {
    /// The GPU.
    pub device: Device,
    /// The published size.
    pub size: Size,
    /// Timed runs.
    pub runs: usize,
    /// The processes that train together, each on a batch of its own.
    pub group: Option<&'a Group>,
    /// Whether they share out the optimiser's state.
    pub shard: bool,
    /// Whether they add up gradients while the pass back goes on.
    pub overlap: bool,
    /// What training makes again instead of keeping it; `None`: as usual on a GPU.
    pub recompute: Option<Recompute>,
}

impl Setting<'_> {
    fn processes(&self) -> usize {
        self.group.map_or(1, Group::size)
    }

    /// Gradients of all processes: each its own batch, or its last one, by `pass`, and their sum.
    fn gradients(&self, work: &mut Work, pass: impl FnOnce(&mut Work, Told)) {
        let Some(group) = self.group else { return pass(work, Told::nobody()) };
        let owners = std::mem::take(&mut work.owners);
        let mut start = |piece: &mut [&mut Parameter]| reduction::start(group, piece, self.shard.then_some(&owners));
        let mut reduction = Reduction::new(&mut start);
        pass(work, if self.overlap { reduction.last() } else { Told::nobody() });
        reduction.finish(&mut work.model);
        group.finish();
        work.owners = owners;
    }

    /// Adds up gradients that are there already.
    fn add_up(&self, work: &mut Work) {
        Setting { overlap: false, ..*self }.gradients(work, |_, _| {});
    }

    /// With the sum of all gradients: one update.
    fn update(&self, work: &mut Work) {
        let Some(group) = self.group.filter(|_| self.shard) else { return work.update(None) };
        let owners = std::mem::take(&mut work.owners);
        work.update(Some((&owners, group.rank())));
        let values = work.model.parameters_mut().into_iter().filter(|p| p.is_trainable());
        group.broadcast(values.map(|p| (&mut p.value, owners[&p.name])));
        work.owners = owners;
    }

    /// Whole steps, and their parts one after another: tokens a second over all processes, milliseconds.
    fn steps(&self, work: &mut Work, [name, shape]: [&str; 2], say: &mut dyn FnMut(Figure)) {
        let &Setting { device, runs, .. } = self;
        let gradients = median(device, runs, || work.gradients(Told::nobody()));
        let update = median(device, runs, || self.update(work));
        let sum = self.group.map(|_| median(device, runs, || self.add_up(work)));
        let step = median(device, runs, || {
            self.gradients(work, Work::gradients);
            self.update(work);
        });
        let tokens = (self.processes() * work.batch.tokens()) as f64;
        say((format!("{name}.{shape}"), tokens / step, "tokens/s"));
        say((format!("{name}.gradients"), gradients * 1e3, "ms"));
        if let Some(sum) = sum {
            say((format!("{name}.sum"), sum * 1e3, "ms"));
        }
        say((format!("{name}.update"), update * 1e3, "ms"));
        if self.group.is_some() {
            say((format!("{name}.step"), step * 1e3, "ms"));
        }
        say((format!("{name}.memory"), used(device), "GiB"));
    }
}

impl Work {
    /// Loss on the tokens of each sequence from `from` on.
    fn new(model: Qwen3Vl, prompts: &[Arc<Prompt>], from: usize) -> Result<Self> {
        let mut batch = Batch::new(&model.config);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let start = batch.push(prompt)?;
            for at in from..prompt.ids.len() {
                rows.push((start + at - 1) as u32);
                targets.push(prompt.ids[at]);
            }
        }
        let weights = vec![1.0 / rows.len() as f32; rows.len()];
        let acts = Activations::new(&model.config);
        let d_rows = Tensor::empty();
        let (stats, moments) = (TokenStats::default(), Vec::new());
        Ok(Self { model, batch, acts, rows, targets, weights, d_rows, stats, moments, steps: 0, owners: Owners::new() })
    }

    fn train(&mut self, parts: Parts, setting: &Setting) {
        self.model.set_trainable(parts);
        if let Some(recompute) = setting.recompute {
            self.acts.set_recompute(recompute);
        }
        let trained = self.model.parameters().into_iter().filter(|p| p.is_trainable());
        let processes = setting.processes();
        let mut loads = vec![0; processes];
        let zeros = |v: &Tensor| Tensor::zeros_on(v.device(), Dtype::F32, v.rows(), v.cols());
        for parameter in trained {
            let owner = (0..processes).min_by_key(|&rank| loads[rank]).unwrap_or(0);
            loads[owner] += parameter.count();
            self.owners.insert(parameter.name.clone(), owner);
            let mine = !setting.shard || setting.group.is_none_or(|group| group.rank() == owner);
            let value = &parameter.value;
            self.moments.push(match mine {
                true => (zeros(value), zeros(value), adamw::rest_of(value)),
                false => (Tensor::empty(), Tensor::empty(), None),
            });
        }
    }

    /// Log-probabilities of the targets.
    fn score(&mut self) {
        self.model.forward_rows(&self.batch, &self.rows, &mut self.acts, Adapter::Off, Keep::Nothing);
        loss::log_probs(&mut self.stats, self.acts.hidden(), &self.model.head().value, &self.targets);
    }

    /// Forward, loss and backward.
    fn gradients(&mut self, told: Told) {
        self.model.forward_rows(&self.batch, &self.rows, &mut self.acts, Adapter::On, Keep::ForBackward);
        let (head, dhead) = self.model.head_mut();
        let grads = Some(Grads { dhidden: &mut self.d_rows, dhead });
        loss::cross_entropy(&mut self.stats, self.acts.hidden(), head, &self.targets, &self.weights, grads);
        self.model.backward_telling(&self.batch, &mut self.acts, &self.d_rows, told);
    }

    /// AdamW on all trained parameters, or on those that this process owns.
    fn update(&mut self, owned: Option<(&Owners, usize)>) {
        self.steps += 1;
        let mine = |p: &Parameter| owned.is_none_or(|(owners, rank)| owners.get(&p.name) == Some(&rank));
        let grads = self.model.parameters().into_iter().filter(|p| mine(p)).filter_map(|p| p.grad.as_ref());
        let norm = adamw::sum_of_squares(grads).sqrt();
        let scale = (1.0 / (norm + 1e-6)).min(1.0) as f32;
        let settings = AdamW { learning_rate: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let trained = self.model.parameters_mut().into_iter().filter(|p| p.is_trainable());
        let mut updates: Vec<Update> = trained
            .zip(&mut self.moments)
            .filter(|(parameter, _)| mine(parameter))
            .filter_map(|(parameter, (first_moment, second_moment, rest))| {
                let (grad, param) = (parameter.grad.as_ref()?, &mut parameter.value);
                Some(Update { param, rest: rest.as_mut(), grad, first_moment, second_moment })
            })
            .collect();
        adamw::step_all(&mut updates, &settings, self.steps, scale);
        self.model.zero_grad();
    }
}

/// Median seconds of `runs` calls after two that do not count.
fn median(device: Device, runs: usize, mut work: impl FnMut()) -> f64 {
    (0..2).for_each(|_| work());
    device.synchronize();
    let times = (0..runs.max(1)).map(|_| {
        let start = Instant::now();
        work();
        device.synchronize();
        start.elapsed().as_secs_f64()
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// GiB of the GPU in use by everything.
fn used(device: Device) -> f64 {
    match device {
        Device::Cpu => 0.0,
        Device::Cuda(gpu) => {
            let (free, total) = gpu.memory();
            (total - free) as f64 / f64::from(1 << 30)
        }
    }
}

const ADAPTER: LoraConfig = LoraConfig { rank: 8, alpha: 16.0, targets: Vec::new() };

fn lora() -> LoraConfig {
    LoraConfig { targets: vec![crate::lora::ALL_LINEAR.into()], ..ADAPTER }
}

/// Every figure asked for; `what` as in `mgsd bench gpu --what`.
pub fn run(setting: &Setting, what: &[String], say: &mut dyn FnMut(Figure)) -> Result<()> {
    let &Setting { device, size, runs, .. } = setting;
    if device.is_cpu() {
        return Err(Error::Model("bench gpu needs a GPU; use --device cuda".into()));
    }
    let name = size.name();
    for what in what {
        match what.as_str() {
            "matmul" => matmul(device, runs, say),
            "stack" => stack(setting, say)?,
            "logp" => {
                let model = Qwen3Vl::init_on(&size.config(), device, Dtype::Bf16, 0);
                let prompts = prompts(&model.config, 8, 768, true);
                let mut work = Work::new(model, &prompts, 513)?;
                let seconds = median(device, runs, || work.score());
                say((format!("{name}.logp.b8x768"), 8.0 * 768.0 / seconds, "tokens/s"));
                say((format!("{name}.logp.memory"), used(device), "GiB"));
            }
            "sft" => {
                let mut model = Qwen3Vl::init_on(&size.config(), device, Dtype::Bf16, 0);
                model.add_lora(&lora(), 0)?;
                let prompts = prompts(&model.config, 8, 512, true);
                let mut work = Work::new(model, &prompts, 256)?;
                work.train(Parts::LORA, setting);
                setting.steps(&mut work, [&format!("{name}.sft_lora"), "b8x512"], say);
            }
            "full" => {
                let model = Qwen3Vl::init_on(&size.config(), device, Dtype::Bf16, 0);
                let prompts = prompts(&model.config, 8, 768, true);
                let mut work = Work::new(model, &prompts, 257)?;
                work.train(Parts::ALL, setting);
                setting.steps(&mut work, [&format!("{name}.full"), "b8x768"], say);
            }
            "gen" => generation(device, size, runs, say)?,
            "opcd" => opcd(setting, say)?,
            other => {
                let known = "matmul, stack, logp, sft, full, gen, opcd";
                return Err(Error::Model(format!("bench gpu: unknown part {other:?}; expected one of {known}")));
            }
        }
    }
    Ok(())
}

/// What cuBLASLt reaches on products of the 4B decoder.
fn matmul(device: Device, runs: usize, say: &mut dyn FnMut(Figure)) {
    for (tokens, inputs, outputs) in [(8192, 4096, 4096), (4096, 2560, 9728), (4096, 9728, 2560), (32, 2560, 9728)] {
        let x = Tensor::random_on(device, Dtype::Bf16, tokens, inputs, 1.0, 1);
        let w = Tensor::random_on(device, Dtype::Bf16, outputs, inputs, 0.02, 2);
        let mut y = Tensor::empty();
        let seconds = median(device, runs, || {
            for _ in 0..20 {
                mgsd_compute::ops::linear::forward(&mut y, &x, &w, None, 1.0, Write::Set);
            }
        });
        let rate = 20.0 * 2.0 * (tokens * inputs * outputs) as f64 / seconds / 1e12;
        say((format!("matmul.{tokens}x{inputs}x{outputs}"), rate, "TFLOP/s"));
    }
}

/// Four layers of the 4B decoder on 4 x 1,024 tokens, forward and backward; the loss is the peer's (mean square).
fn stack(setting: &Setting, say: &mut dyn FnMut(Figure)) -> Result<()> {
    let &Setting { device, runs, .. } = setting;
    for adapter in [false, true] {
        let mut model = Qwen3Vl::init_on(&stack_config(), device, Dtype::Bf16, 0);
        let parts = match adapter {
            true => {
                model.add_lora(&lora(), 0)?;
                // The embeddings are trained for the sake of the work: the peer's inputs want gradients too.
                Parts { lora: true, embeddings: true, ..Parts::NONE }
            }
            false => Parts { text: true, embeddings: true, ..Parts::NONE },
        };
        let prompts = prompts(&model.config, 4, 1024, false);
        let mut work = Work::new(model, &prompts, 1024)?;
        work.train(parts, setting);
        // As PyTorch does.
        work.acts.set_recompute(setting.recompute.unwrap_or(Recompute::Nothing));
        let slope = Tensor::random_on(device, Dtype::Bf16, 4096, 2560, 1e-6, 3);
        let seconds = median(device, runs, || {
            work.model.zero_grad();
            work.model.forward(&work.batch, &mut work.acts, Adapter::On, Keep::ForBackward);
            work.model.backward(&work.batch, &mut work.acts, &slope);
        });
        let name = if adapter { "stack4.lora8" } else { "stack4.full" };
        say((name.into(), 4096.0 / seconds, "tokens/s"));
    }
    Ok(())
}

/// 32 prompts of 512 tokens with a picture each, 128 new tokens each, sampled.
fn generation(device: Device, size: Size, runs: usize, say: &mut dyn FnMut(Figure)) -> Result<()> {
    let name = size.name();
    let model = Qwen3Vl::init_on(&size.config(), device, Dtype::Bf16, 0);
    let prompts = prompts(&model.config, 32, 512, true);
    let mut generator = Generator::new(&model.config, 32);
    let requests = requests(&prompts, 128);
    let (mut decoding, mut steps) = (Vec::new(), 0);
    let mut failed = None;
    let seconds = median(device, runs, || {
        let mut last = Instant::now();
        let answered = generator.generate(&model, &requests, Adapter::Off, &mut |event| {
            if event.request == 31 {
                steps += 1;
                decoding.push(last.elapsed().as_secs_f64());
                last = Instant::now();
            }
        });
        failed = answered.err();
    });
    if let Some(error) = failed {
        return Err(error);
    }
    decoding.sort_by(f64::total_cmp);
    say((format!("{name}.generate.b32.p512.n128"), 32.0 * 128.0 / seconds, "tokens/s"));
    say((format!("{name}.generate.step"), decoding[decoding.len() / 2] * 1e3, "ms"));
    say((format!("{name}.generate.memory"), used(device), "GiB"));
    Ok(())
}

fn requests(prompts: &[Arc<Prompt>], new_tokens: usize) -> Vec<Request> {
    let request = |(index, prompt): (usize, &Arc<Prompt>)| Request {
        prompt: prompt.clone(),
        sampling: Sampling::policy(index as u64),
        max_new_tokens: new_tokens,
        stop: Vec::new(),
    };
    prompts.iter().enumerate().map(request).collect()
}

/// One step of on-policy distillation with an adapter: 32 boards, one rollout of 128 tokens each, the base scores them,
/// one update. Student prompts have 512 tokens with a picture, teacher prompts 512 of text.
fn opcd(setting: &Setting, say: &mut dyn FnMut(Figure)) -> Result<()> {
    let &Setting { device, size, runs, .. } = setting;
    const BOARDS: usize = 32;
    const NEW: usize = 128;
    const MICRO: usize = 8;
    let name = size.name();
    let mut model = Qwen3Vl::init_on(&size.config(), device, Dtype::Bf16, 0);
    model.add_lora(&lora(), 0)?;
    let student = prompts(&model.config, BOARDS, 512, true);
    let teacher = prompts(&model.config, BOARDS, 512, false);
    let mut generator = Generator::new(&model.config, BOARDS);
    let requests = requests(&student, NEW);
    let mut work = Work::new(model, &student[..1], 511)?;
    work.train(Parts::LORA, setting);
    let mut their_hidden = Tensor::empty();
    let mut their_log_probs = Vec::new();
    let mut parts = [0.0; 3];
    let mut failed = None;
    let seconds = median(device, runs, || {
        let started = Instant::now();
        let answers = match generator.generate(&work.model, &requests, Adapter::On, &mut |_| {}) {
            Ok(answers) => answers,
            Err(error) => {
                failed = Some(error);
                return;
            }
        };
        let rolled = Instant::now();
        let mut scoring = 0.0;
        setting.gradients(&mut work, |work, told| {
            let mut told = Some(told);
            for first in (0..BOARDS).step_by(MICRO) {
                let pack = |work: &mut Work, prompts: &[Arc<Prompt>]| {
                    work.batch.clear();
                    work.rows.clear();
                    work.targets.clear();
                    for (prompt, answer) in prompts.iter().zip(&answers[first..]) {
                        let start = work.batch.push_with(prompt, &answer.ids)? + prompt.ids.len();
                        work.rows.extend((0..answer.ids.len()).map(|at| (start + at - 1) as u32));
                        work.targets.extend(&answer.ids);
                    }
                    Ok::<_, Error>(())
                };
                let began = Instant::now();
                failed = pack(work, &teacher[first..first + MICRO]).err();
                work.model.forward_rows(&work.batch, &work.rows, &mut work.acts, Adapter::Off, Keep::Nothing);
                work.acts.swap_hidden(&mut their_hidden);
                device.synchronize();
                scoring += began.elapsed().as_secs_f64();
                failed = failed.take().or(pack(work, &student[first..first + MICRO]).err());
                work.model.forward_rows(&work.batch, &work.rows, &mut work.acts, Adapter::On, Keep::ForBackward);
                work.weights.clear();
                work.weights.resize(work.rows.len(), 1.0 / (BOARDS * NEW) as f32);
                let head = &work.model.head().value;
                let teacher = Teacher { hidden: &their_hidden, head, top_k: None };
                let grads = Some(Grads { dhidden: &mut work.d_rows, dhead: None });
                let (kind, stats) = (Divergence::ReverseKl, &mut work.stats);
                let (targets, weights) = (&work.targets, &work.weights);
                let hidden = work.acts.hidden();
                loss::distill(stats, &mut their_log_probs, kind, hidden, head, &teacher, targets, weights, grads);
                let told = told.take_if(|_| first + MICRO >= BOARDS).unwrap_or_else(Told::nobody);
                work.model.backward_telling(&work.batch, &mut work.acts, &work.d_rows, told);
            }
        });
        setting.update(&mut work);
        device.synchronize();
        parts = [(rolled - started).as_secs_f64(), scoring, rolled.elapsed().as_secs_f64() - scoring];
    });
    if let Some(error) = failed {
        return Err(error);
    }
    say((format!("{name}.opcd.b32"), seconds * 1e3, "ms"));
    for (part, seconds) in ["rollout", "teacher", "update"].into_iter().zip(parts) {
        say((format!("{name}.opcd.{part}"), seconds * 1e3, "ms"));
    }
    say((format!("{name}.opcd.memory"), used(device), "GiB"));
    Ok(())
}
