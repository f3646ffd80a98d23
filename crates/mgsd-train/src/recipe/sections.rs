//! The sections of a recipe, one struct each, one documented field a key.

use mgsd_model::model::Recompute;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `[model]`: what is trained and where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Hugging Face model folder to start from (`mgsd train` also takes a name on the hub). For `pretrain`: the folder with the configuration and tokenizer files.
    pub base: PathBuf,
    /// What an adapter's files call the base. Default: `base`, or the name on the hub that it was given by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_name: Option<String>,
    /// Folder of the run: checkpoints, metrics, and the result in `model/` or `adapter/`.
    pub out: PathBuf,
    /// Start from random weights drawn with `seed` instead of the weights in `base`. Default: true for `pretrain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_weights: Option<bool>,
    /// Train low-rank adapters instead of the weights themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// Which parts are trained when there is no adapter.
    #[serde(default)]
    pub train: Parts,
    /// What of the decoder's activations is made again for the pass back instead of being kept: `"nothing"`, `"cheap"`
    /// (norms, rotations, the gated product) or `"layers"` (all but each layer's input: the least memory, the
    /// decoder's forward work twice). Default: nothing on the CPU, cheap on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
}

/// `[model.adapter]`: LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Rank of the two factors. Published: 8.
    pub rank: usize,
    /// The adapter's output is scaled by alpha / rank. Published: 16.
    pub alpha: f32,
    /// `all-linear` of the language model, or names of layers such as `["q_proj", "v_proj"]`. Not with `from`.
    #[serde(default)]
    pub targets: Targets,
    /// A PEFT adapter folder to go on from, instead of a fresh adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

/// Which linear layers carry an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// A named set; only `all-linear` is known.
    Set(String),
    /// Name endings of linear layers.
    Names(Vec<String>),
}

impl Default for Targets {
    fn default() -> Self {
        Self::Set("all-linear".to_string())
    }
}

/// `[model.train]`: which parts get gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parts {
    /// Vision tower.
    pub vision: bool,
    /// Mergers between vision tower and decoder, DeepStack's included.
    pub merger: bool,
    /// Decoder layers and the last norm.
    pub text: bool,
    /// Token embeddings and output projection.
    pub embeddings: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self { vision: true, merger: true, text: true, embeddings: true }
    }
}

/// `[data]`: where samples come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// What supervised training draws from; the weights are shares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<MixEntry>,
    /// OPCD rows: a JSON or parquet file, or a task folder. Without it boards are generated as `data.tasks` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// OPCD validation rows, the same forms. Without it held-out boards are generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Side of generated pictures in pixels. Default: 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// FrozenLake tiles folder; without it our own tiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiles: Option<PathBuf>,
    /// Generated boards: levels and options by task (`frozenlake`, `maze`, `minibehaviour`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, BoardOptions>,
}

/// `[[data.mix]]`: one kind of sample and its share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixEntry {
    /// What the samples are.
    pub kind: SampleKind,
    /// Share of the samples; shares need not add up to one.
    #[serde(default = "one")]
    pub weight: f64,
    /// `sharegpt` only: a LLaMA-Factory file with `messages` and `images`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Generated kinds: tasks to draw from; default: all of `data.tasks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// `shapes` only: fewest and most cells a side of the grids drawn. Default: 3 and 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sides: Option<[u32; 2]>,
}

fn one() -> f64 {
    1.0
}

/// What a sample asks and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleKind {
    /// Records of a LLaMA-Factory file.
    Sharegpt,
    /// The board as text -> plan.
    PlanText,
    /// The board as text with the reference plan, as the teacher sees it -> plan.
    PlanReference,
    /// The board as text -> what is on it.
    ReadText,
    /// The board's picture -> what is on it.
    ReadImage,
    /// A generic picture of shapes with a question about it.
    Shapes,
}

/// `[data.tasks.NAME]`: generated boards of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardOptions {
    /// Sides of the grids. Published: FrozenLake 3-8, Maze 3-6, MiniBehaviour 5-6.
    pub levels: Vec<usize>,
    /// Share of this task among the generated boards.
    #[serde(default = "one")]
    pub weight: f64,
    /// FrozenLake: probability that a cell is frozen. Published: 0.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_probability: Option<f64>,
    /// FrozenLake: start and goal anywhere instead of in opposite corners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_start_goal: Option<bool>,
    /// FrozenLake: shortest plan at least this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_path_length: Option<usize>,
    /// Maze and MiniBehaviour: difficulties, cycled over the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difficulty: Option<Vec<String>>,
}

/// `[prompts]`: which texts frame the boards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompts {
    /// `standard`, `compact`, or a folder with the same files. Files of rows or conversations bring their texts along.
    pub set: String,
}

impl Default for Prompts {
    fn default() -> Self {
        Self { set: "standard".to_string() }
    }
}

/// `[images]`: limits of the picture that reaches the vision tower; without them those of the model folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Smaller pictures are enlarged to this many pixels. Published: 65,536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
    /// Larger pictures are reduced to this many pixels. Published: 262,144.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<usize>,
}

/// `[optimiser]`: AdamW with decoupled weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimiser {
    /// Highest learning rate. Published: 1e-4 (SFT), 1e-6 (OPCD).
    pub lr: f64,
    /// Decay of the first and second moment. Published: 0.9, 0.999.
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Published: 1e-8.
    pub eps: f64,
    /// Weights shrink by lr * weight_decay a step. Published: 0 (SFT), 0.01 (OPCD).
    pub weight_decay: f64,
    /// Largest global gradient norm; larger gradients are scaled down. 0 switches it off. Published: 1.0.
    pub clip: f64,
    /// With several processes: each keeps the moments and masters of a share of the weights only. Published: true (FSDP).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shard: bool,
}

impl Default for Optimiser {
    fn default() -> Self {
        Self { lr: 1e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip: 1.0, shard: false }
    }
}

/// `[schedule]`: the learning rate's course.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// `cosine` or `constant` after the warm-up.
    pub shape: Shape,
    /// Steps of linear warm-up. Give this or `warmup_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps. Published: 0.1 (SFT), 0 (OPCD).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Cosine ends at this share of `optimiser.lr`. Published: 0.
    pub min_ratio: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { shape: Shape::Cosine, warmup_steps: None, warmup_ratio: None, min_ratio: 0.0 }
    }
}

/// Course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Half a cosine from the top to `min_ratio`.
    Cosine,
    /// Stays at the top.
    Constant,
}

/// `[batch]`: samples of a step and their packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// Samples (OPCD: boards) of one optimiser step. Published: 64 (SFT), 32 (OPCD).
    pub samples_per_step: usize,
    /// Tokens packed into one forward and backward pass; as many passes as needed are accumulated into a step.
    pub max_tokens_per_micro_batch: usize,
    /// Longest sample in tokens, picture included; longer ones are cut at the end of the answer. Published: 2,048.
    pub max_tokens_per_sample: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Self { samples_per_step: 64, max_tokens_per_micro_batch: 4096, max_tokens_per_sample: 2048 }
    }
}

/// `[opcd]`: rollouts, teacher and loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Opcd {
    /// What is minimised over the response tokens.
    pub loss: Loss,
    /// `jsd` only: weight of the teacher in the mixture, above 0 and below 1.
    pub beta: f32,
    /// Compare on the teacher's k likeliest tokens only, both sides renormalised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// `policy-gradient` only: the ratio is clipped below at 1 - clip_low. Published: 0.2.
    pub clip_low: f32,
    /// `policy-gradient` only: the ratio is clipped above at 1 + clip_high. Published: 0.3.
    pub clip_high: f32,
    /// `policy-gradient` only: bound of the loss for negative advantages. Published: 3.
    pub clip_dual: f32,
    /// Who scores the rollouts.
    pub teacher: TeacherKind,
    /// `folder` teacher only: its model folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_model: Option<PathBuf>,
    /// `ema` teacher only: share of the old average kept each step.
    pub ema_decay: f32,
    /// The teacher also sees a shortest plan. Published: true. Rows that bring the teacher's texts along have it or not.
    pub reference_plan: bool,
    /// Rollout temperature; `policy-gradient` wants 1. Published: 1.
    pub temperature: f32,
    /// Rollout nucleus; `policy-gradient` wants 1. Published: 1.
    pub top_p: f32,
    /// Longest response in tokens; a response cut there is scored all the same. Published: 2,048.
    pub max_new_tokens: usize,
    /// Rollouts generated side by side.
    pub rollout_batch: usize,
    /// Samples of `data.mix` trained on beside the rollouts of a step, by cross-entropy, against forgetting. Published: 0.
    pub replay_samples: usize,
    /// Factor on the replayed samples' mean loss.
    pub replay_weight: f32,
}

impl Default for Opcd {
    fn default() -> Self {
        Self {
            loss: Loss::ReverseKl,
            beta: 0.5,
            top_k: None,
            clip_low: 0.2,
            clip_high: 0.3,
            clip_dual: 3.0,
            teacher: TeacherKind::Base,
            teacher_model: None,
            ema_decay: 0.99,
            reference_plan: true,
            temperature: 1.0,
            top_p: 1.0,
            max_new_tokens: 2048,
            rollout_batch: 32,
            replay_samples: 0,
            replay_weight: 1.0,
        }
    }
}

/// Token losses of on-policy distillation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// KL(student || teacher), exact over the vocabulary.
    ReverseKl,
    /// KL(teacher || student), exact over the vocabulary.
    ForwardKl,
    /// Jensen-Shannon divergence with `beta`.
    Jsd,
    /// Clipped surrogate with the one-sample reverse KL as token reward: the published form.
    PolicyGradient,
}

/// Who scores the rollouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherKind {
    /// `model.base` as it was at the start; shares the weights when an adapter is trained.
    Base,
    /// Another model folder, `teacher_model`.
    Folder,
    /// The student as it is, without gradient.
    #[serde(rename = "self")]
    Student,
    /// An exponential average of the student.
    Ema,
}

/// `[eval]`: measuring while training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Steps between measurements; 0 switches them off. Published: 100 (SFT), 20 (OPCD).
    pub every: u64,
    /// Share of a data file's records kept for measuring. Published: 0.02.
    pub held_out: f64,
    /// Most samples (OPCD: boards) of one measurement.
    pub samples: usize,
    /// OPCD: sampling temperature of validation; 0 is greedy. Published: 0.6.
    pub temperature: f32,
    /// OPCD: nucleus of validation. Published: 0.95.
    pub top_p: f32,
}

impl Default for Eval {
    fn default() -> Self {
        Self { every: 0, held_out: 0.02, samples: 256, temperature: 0.6, top_p: 0.95 }
    }
}

/// `[checkpoint]`: what is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpointing {
    /// Steps between checkpoints; 0: only when stopped. Published: 200 (SFT), 20 (OPCD).
    pub every: u64,
    /// How many checkpoints stay; the best one is kept besides. Published: 5.
    pub keep: usize,
}

impl Default for Checkpointing {
    fn default() -> Self {
        Self { every: 0, keep: 5 }
    }
}

/// `[metrics]`: what is written about the run; `metrics.jsonl` always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Also write TensorBoard event files to `tensorboard/`.
    pub tensorboard: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}
