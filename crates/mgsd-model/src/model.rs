//! The whole network: vision tower and decoder, their weights in and out, a pass forward and a pass back.

use std::path::{Path, PathBuf};

pub use mgsd_compute::Device;
use mgsd_compute::{Dtype, Tensor};

use crate::batch::Batch;
use crate::config::{Config, TextConfig, VisionConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::linear::{Adapter, Linear};
use crate::param::Parameter;
use crate::reduction::Told;
pub use crate::text::Recompute;
use crate::text::{Input, Pass, TextActivations, TextDecoder, TextLayer};
use crate::trace::Observer;
use crate::vision::{Merger, Norm, VisionActivations, VisionBlock, VisionTower};
use crate::weights::{Checkpoint, CheckpointWriter, LoadAs, SHARD_BYTES, TensorSpec, copy_folder_files, matrix_shape};

/// A Qwen3-VL model.
pub struct Qwen3Vl {
    /// Sizes and settings.
    pub config: Config,
    /// Pictures to image tokens.
    pub vision: VisionTower,
    /// Tokens to hidden states.
    pub text: TextDecoder,
    /// The folder it came from, whose other files [`save`](Self::save) carries along.
    pub origin: Option<PathBuf>,
}

/// What the weights are loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// 32-bit floats, ready to be trained.
    Training,
    /// Matrices stored as bfloat16 are read from the mapped file, without a second copy. Adapters can still be trained
    /// on top of them.
    Inference,
}

/// Whether a pass forward holds on to what a pass back needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Only the result.
    Nothing,
    /// All that [`Qwen3Vl::backward`] reads.
    ForBackward,
}

/// Which parts of a model are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Patch embedding, position table and blocks of the vision tower.
    pub vision: bool,
    /// The main merger and those of DeepStack.
    pub merger: bool,
    /// Layers and norms of the decoder.
    pub text: bool,
    /// Token embedding and output projection.
    pub embeddings: bool,
    /// Adapters, wherever they are.
    pub lora: bool,
}

impl Parts {
    /// Every weight.
    pub const ALL: Parts = Parts { vision: true, merger: true, text: true, embeddings: true, lora: true };
    /// Nothing: inference.
    pub const NONE: Parts = Parts { vision: false, merger: false, text: false, embeddings: false, lora: false };
    /// Adapters only.
    pub const LORA: Parts = Parts { lora: true, ..Parts::NONE };
}

/// All buffers of a pass, resized for each batch and kept: a training step in its steady state allocates nothing.
pub struct Activations {
    pub(crate) text: TextActivations,
    pub(crate) vision: VisionActivations,
    /// Through which weights the last pass went, if it was kept for a pass back.
    kept: Option<Adapter>,
}

impl Activations {
    /// Empty buffers for models of this configuration.
    pub fn new(config: &Config) -> Self {
        Self { text: TextActivations::new(&config.text), vision: VisionActivations::new(&config.vision), kept: None }
    }

    /// What is made again for the pass back instead of being kept; without this call what is
    /// [usual](Recompute::usual) for the device.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.text.chosen = Some(recompute);
    }

    /// The states after the final norm, `[tokens or rows asked for, hidden]`: what the output projection reads.
    pub fn hidden(&self) -> &Tensor {
        &self.text.normed
    }

    /// The states go to `out`, whose memory the next pass uses.
    pub fn swap_hidden(&mut self, out: &mut Tensor) {
        std::mem::swap(&mut self.text.normed, out);
    }
}

/// First values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fill {
    /// Normal with mean zero.
    Normal {
        deviation: f32,
    },
    One,
    Zero,
}

/// Where parameters come from when a model is put together: name, shape, first value to tensor.
type Source<'a> = &'a mut dyn FnMut(&str, &[usize], Fill) -> Result<Tensor>;

impl Qwen3Vl {
    /// Loads a model folder; all parameters are frozen.
    pub fn load(dir: &Path, purpose: Purpose) -> Result<Self> {
        let config = Config::open(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let mut used = std::collections::BTreeSet::new();
        let mut model = Self::build(config, &mut |name, shape, _| {
            let (rows, cols) = matrix_shape(shape);
            // Vectors and the position table are small, and on the CPU always computed with as 32-bit floats.
            let mapped = purpose == Purpose::Inference && shape.len() > 1 && !name.ends_with("pos_embed.weight");
            let load_as = if mapped { LoadAs::MappedBf16IfPossible } else { LoadAs::F32 };
            used.insert(name.to_string());
            checkpoint.load_matrix(name, rows, cols, load_as)
        })?;
        // A tied checkpoint may repeat the head; another head, or anything else unknown, means that weights and configuration
        // disagree.
        let (head, embeddings) = ("lm_head.weight", "model.language_model.embed_tokens.weight");
        if model.config.tie_word_embeddings && checkpoint.contains(head) && !checkpoint.same(head, embeddings)? {
            return Err(Error::Tensor {
                path: dir.into(),
                name: head.into(),
                problem:
                    "differs from the token embeddings although config.json ties the two; set tie_word_embeddings to \
                          false there, also in text_config, if the head of the file is meant"
                        .into(),
            });
        }
        if let Some(name) = checkpoint.names().find(|n| n.starts_with("model.") && !used.contains(*n)) {
            return Err(Error::Tensor {
                path: dir.into(),
                name: name.into(),
                problem: "has no place in the network that config.json describes; check the numbers of layers there"
                    .into(),
            });
        }
        model.origin = Some(dir.into());
        Ok(model)
    }

    /// Random weights, a function of the configuration and `seed`: matrices normal with the configured deviation, norms
    /// one, biases zero.
    pub fn init(config: &Config, seed: u64) -> Self {
        let built = Self::build(config.clone(), &mut |name, shape, fill| {
            let (rows, cols) = matrix_shape(shape);
            Ok(Tensor::from_vec(rows, cols, crate::init::values(name, rows * cols, fill, seed)))
        });
        built.unwrap_or_else(|_| unreachable!("random weights cannot fail"))
    }

    /// Random weights of the same distributions, made on `device` itself in `dtype`: quick at any size, not the numbers
    /// of [`init`](Self::init).
    pub fn init_on(config: &Config, device: Device, dtype: Dtype, seed: u64) -> Self {
        let mut number = 0;
        let built = Self::build(config.clone(), &mut |_, shape, fill| {
            let (rows, cols) = matrix_shape(shape);
            number += 1;
            Ok(match fill {
                Fill::Normal { deviation } => Tensor::random_on(device, dtype, rows, cols, deviation, seed + number),
                Fill::One | Fill::Zero => {
                    let mut tensor = Tensor::zeros_on(device, Dtype::F32, rows, cols);
                    tensor.fill(if fill == Fill::One { 1.0 } else { 0.0 });
                    tensor
                }
            })
        });
        let mut model = built.unwrap_or_else(|_| unreachable!("random weights cannot fail"));
        let table = &mut model.vision.pos_embed;
        table.move_to(device, Dtype::F32);
        model
    }

    /// Name, shape and first value of every parameter, without making any.
    pub(crate) fn specs(config: &Config) -> Vec<(TensorSpec, Fill)> {
        let mut specs = Vec::new();
        let built = Self::build(config.clone(), &mut |name, shape, fill| {
            specs.push((TensorSpec { name: name.into(), shape: shape.to_vec() }, fill));
            Ok(Tensor::empty())
        });
        drop(built);
        specs
    }

    fn build(config: Config, source: Source) -> Result<Self> {
        let vision = build_vision(&config.vision, &mut Maker { source, deviation: config.vision.initializer_range })?;
        let mut maker = Maker { source, deviation: config.text.initializer_range };
        let text = build_text(&config.text, config.tie_word_embeddings, &mut maker)?;
        Ok(Self { config, vision, text, origin: None })
    }

    /// Writes the weights in the configured type and the other files of [`origin`](Self::origin) to a folder that
    /// transformers loads. Adapters are refused: save them as adapters, or merge them first.
    pub fn save(&self, dir: &Path) -> Result<()> {
        if self.has_lora() {
            return Err(Error::Model(format!(
                "cannot write the whole model to {}: it has adapters; save the adapter, or merge it first",
                dir.display()
            )));
        }
        self.write_weights(dir, &mut |_, values| values)
    }

    /// Writes every base parameter, each passed through `change` first, and the folder's other files.
    pub(crate) fn write_weights(&self, dir: &Path, change: &mut dyn FnMut(&str, Vec<f32>) -> Vec<f32>) -> Result<()> {
        if let Some(origin) = self.origin.as_deref().filter(|origin| *origin != dir) {
            copy_folder_files(origin, dir)?;
        }
        let base = self.parameters().into_iter().filter(|p| !is_adapter(p));
        let base: Vec<&Parameter> = base.collect();
        let specs = base.iter().map(|p| TensorSpec { name: p.name.clone(), shape: p.shape.clone() });
        let mut writer = CheckpointWriter::create(dir, specs.collect(), self.config.dtype, SHARD_BYTES)?;
        for parameter in base {
            let values = change(&parameter.name, parameter.value.to_vec());
            writer.write(&parameter.name, &values)?;
        }
        writer.finish()
    }

    /// The final-normed states of all tokens, in [`Activations::hidden`].
    pub fn forward(&self, batch: &Batch, acts: &mut Activations, adapter: Adapter, keep: Keep) {
        self.run(batch, acts, Pass::Packed { bounds: &batch.bounds }, None, adapter, keep, None);
    }

    /// The same of some rows alone, for which the last layer does less. A pass back wants them distinct, and takes the
    /// gradients of these states.
    pub fn forward_rows(&self, batch: &Batch, rows: &[u32], acts: &mut Activations, adapter: Adapter, keep: Keep) {
        self.run(batch, acts, Pass::Packed { bounds: &batch.bounds }, Some(rows), adapter, keep, None);
    }

    /// A pass forward that shows every intermediate tensor to `observer`.
    pub fn forward_observed(&self, batch: &Batch, acts: &mut Activations, adapter: Adapter, observer: Observer<'_>) {
        let pass = Pass::Packed { bounds: &batch.bounds };
        self.run(batch, acts, pass, None, adapter, Keep::Nothing, Some(observer));
    }

    #[allow(clippy::too_many_arguments)] // What there is to choose of a pass.
    pub(crate) fn run(
        &self,
        batch: &Batch,
        acts: &mut Activations,
        pass: Pass,
        rows: Option<&[u32]>,
        adapter: Adapter,
        keep: Keep,
        mut observer: Option<Observer<'_>>,
    ) {
        let keep_all = keep == Keep::ForBackward;
        let features = (batch.patches() > 0).then(|| {
            let keep = keep_all && self.vision.is_trainable();
            let observer = observer.as_mut().map(|o| &mut **o as Observer);
            self.vision.forward(&mut acts.vision, batch, adapter, keep, observer);
            (batch.image_rows.as_slice(), &acts.vision.features)
        });
        let input = Input { ids: &batch.ids, positions: Some(&batch.positions), features, rows };
        self.text.forward(&mut acts.text, input, pass, adapter, keep, observer);
        acts.kept = keep_all.then_some(adapter);
    }

    /// A pass of new tokens for [`Decoder`](crate::decode::Decoder), whose rotary tables are filled already.
    pub(crate) fn decode(&self, ids: &[u32], acts: &mut Activations, pass: Pass, adapter: Adapter) {
        let input = Input { ids, positions: None, features: None, rows: None };
        self.text.forward(&mut acts.text, input, pass, adapter, Keep::Nothing, None);
        acts.kept = None;
    }

    /// Adds the gradients of all trained parameters but the output projection's use of its own, given the gradient of
    /// [`Activations::hidden`]. Goes no deeper than the lowest trained parameter. Must follow a pass forward over the
    /// same batch with [`Keep::ForBackward`].
    pub fn backward(&mut self, batch: &Batch, acts: &mut Activations, d_hidden: &Tensor) {
        self.backward_telling(batch, acts, d_hidden, Told::nobody());
    }

    /// The same, and tells of every trained parameter once, when its gradient is finished. What the output projection's
    /// use adds to its gradient must be there before.
    pub fn backward_telling(&mut self, batch: &Batch, acts: &mut Activations, d_hidden: &Tensor, mut told: Told) {
        let Some(adapter) = acts.kept else {
            panic!("backward needs a forward pass with Keep::ForBackward before it");
        };
        let vision = batch.patches() > 0 && self.vision.is_trainable();
        let d_features = vision.then_some(&mut acts.vision.d_features);
        self.text.backward(&mut acts.text, batch, d_hidden, d_features, adapter, &mut told);
        match vision {
            true => self.vision.backward(&mut acts.vision, batch, adapter, &mut told),
            false => self.vision.tell(&mut told),
        }
    }

    /// Tells of all trained parameters as [`backward_telling`](Self::backward_telling) does, without a pass.
    pub(crate) fn tell(&mut self, mut told: Told) {
        self.text.tell(&mut told);
        self.vision.tell(&mut told);
    }

    /// The output projection, `[vocab, hidden]`; the token embedding when they are tied.
    pub fn head(&self) -> &Parameter {
        self.text.head()
    }

    /// Output projection and, if it is trained, its gradient: what the losses of `mgsd_compute` take.
    pub fn head_mut(&mut self) -> (&Tensor, Option<&mut Tensor>) {
        let head = self.text.head.as_mut().unwrap_or(&mut self.text.embeddings);
        (&head.value, head.grad.as_mut())
    }

    /// Trains these parts and freezes the others.
    pub fn set_trainable(&mut self, parts: Parts) {
        let set = |p: &mut Parameter, part: bool| {
            let trainable = if is_adapter(p) { parts.lora } else { part };
            p.set_trainable(trainable);
        };
        self.vision.visit_tower_mut(&mut |p| set(p, parts.vision));
        self.vision.visit_mergers_mut(&mut |p| set(p, parts.merger));
        self.text.layers.iter_mut().for_each(|layer| layer.visit_mut(&mut |p| set(p, parts.text)));
        set(&mut self.text.norm, parts.text);
        set(&mut self.text.embeddings, parts.embeddings);
        self.text.head.iter_mut().for_each(|p| set(p, parts.embeddings));
    }

    /// Moves all weights to `device`, where matrices become `dtype` (on the CPU they become 32-bit floats). Call it
    /// before parts are set trainable: gradients are lost.
    pub fn move_to(&mut self, device: Device, dtype: Dtype) {
        self.visit_mut(&mut |p| p.move_to(device, dtype));
    }

    /// Moves all weights to `device`; on a GPU in the type that the configuration names. On the CPU they stay as they
    /// are.
    pub fn settle(&mut self, device: Device) {
        if !device.is_cpu() {
            let dtype = match self.config.dtype {
                WeightDtype::F32 => Dtype::F32,
                WeightDtype::Bf16 => Dtype::Bf16,
            };
            self.move_to(device, dtype);
        }
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.text.embeddings.value.device()
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        self.visit_mut(&mut |p| p.zero_grad());
    }

    /// Calls `f` with every parameter, adapters included, always in the same order.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.vision.visit(f);
        self.text.visit(f);
    }

    /// The same, mutable.
    pub fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.vision.visit_mut(f);
        self.text.visit_mut(f);
    }

    /// All parameters in the order of [`visit`](Self::visit).
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all = Vec::new();
        self.visit(&mut |p| all.push(p));
        all
    }

    /// The same, mutable.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = Vec::new();
        self.visit_mut(&mut |p| all.push(p));
        all
    }

    /// How many numbers the base weights hold.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().filter(|p| !is_adapter(p)).map(|p| p.count()).sum()
    }

    /// Calls `f` with every linear layer that can take an adapter: those of the decoder, the vision blocks and the
    /// mergers.
    pub fn visit_linears<'a>(&'a self, f: &mut dyn FnMut(&'a Linear)) {
        let vision = &self.vision;
        vision.blocks.iter().flat_map(|b| b.linears()).for_each(&mut *f);
        let mergers = std::iter::once(&vision.merger).chain(&vision.deepstack);
        mergers.flat_map(|m| [&m.fc1, &m.fc2]).for_each(&mut *f);
        self.text.layers.iter().flat_map(|l| l.linears()).for_each(f);
    }

    /// The same, mutable.
    pub fn visit_linears_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Linear)) {
        let vision = &mut self.vision;
        vision.blocks.iter_mut().flat_map(|b| b.linears_mut()).for_each(&mut *f);
        let mergers = std::iter::once(&mut vision.merger).chain(&mut vision.deepstack);
        mergers.flat_map(|m| [&mut m.fc1, &mut m.fc2]).for_each(&mut *f);
        self.text.layers.iter_mut().flat_map(|l| l.linears_mut()).for_each(f);
    }
}

/// Whether a parameter belongs to an adapter.
pub(crate) fn is_adapter(parameter: &Parameter) -> bool {
    parameter.name.starts_with("base_model.")
}

/// Makes parameters from a source.
struct Maker<'a> {
    source: Source<'a>,
    deviation: f32,
}

impl Maker<'_> {
    fn parameter(&mut self, name: String, shape: &[usize], fill: Fill) -> Result<Parameter> {
        let value = (self.source)(&name, shape, fill)?;
        Ok(Parameter::new(name, shape.to_vec(), value))
    }

    fn matrix(&mut self, name: String, shape: &[usize]) -> Result<Parameter> {
        let deviation = self.deviation;
        self.parameter(name, shape, Fill::Normal { deviation })
    }

    fn scale(&mut self, name: String, width: usize) -> Result<Parameter> {
        self.parameter(name, &[width], Fill::One)
    }

    fn linear(&mut self, name: String, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear::new(self.matrix(format!("{name}.weight"), &[outputs, inputs])?, None))
    }

    fn linear_with_bias(&mut self, name: String, shape: &[usize]) -> Result<Linear> {
        let weight = self.matrix(format!("{name}.weight"), shape)?;
        let bias = self.parameter(format!("{name}.bias"), &shape[..1], Fill::Zero)?;
        Ok(Linear::new(weight, Some(bias)))
    }

    fn norm(&mut self, name: String, width: usize) -> Result<Norm> {
        Ok(Norm {
            weight: self.scale(format!("{name}.weight"), width)?,
            bias: self.parameter(format!("{name}.bias"), &[width], Fill::Zero)?,
        })
    }
}

fn build_vision(config: &VisionConfig, make: &mut Maker) -> Result<VisionTower> {
    let c = config;
    let hidden = c.hidden_size;
    let root = "model.visual";
    let patch = [hidden, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size];
    let patch_embed = make.linear_with_bias(format!("{root}.patch_embed.proj"), &patch)?;
    let pos_embed = make.matrix(format!("{root}.pos_embed.weight"), &[c.num_position_embeddings, hidden])?;
    let blocks = (0..c.depth).map(|index| {
        let name = format!("{root}.blocks.{index}");
        Ok(VisionBlock {
            norm1: make.norm(format!("{name}.norm1"), hidden)?,
            qkv: make.linear_with_bias(format!("{name}.attn.qkv"), &[3 * hidden, hidden])?,
            proj: make.linear_with_bias(format!("{name}.attn.proj"), &[hidden, hidden])?,
            norm2: make.norm(format!("{name}.norm2"), hidden)?,
            fc1: make.linear_with_bias(format!("{name}.mlp.linear_fc1"), &[c.intermediate_size, hidden])?,
            fc2: make.linear_with_bias(format!("{name}.mlp.linear_fc2"), &[hidden, c.intermediate_size])?,
        })
    });
    let blocks = blocks.collect::<Result<_>>()?;
    let wide = hidden * c.merge_unit();
    let mut merger = |name: String, normed: usize| {
        Ok::<_, Error>(Merger {
            norm: make.norm(format!("{name}.norm"), normed)?,
            fc1: make.linear_with_bias(format!("{name}.linear_fc1"), &[wide, wide])?,
            fc2: make.linear_with_bias(format!("{name}.linear_fc2"), &[c.out_hidden_size, wide])?,
        })
    };
    let main = merger(format!("{root}.merger"), hidden)?;
    let deepstack =
        (0..c.deepstack_visual_indexes.len()).map(|k| merger(format!("{root}.deepstack_merger_list.{k}"), wide));
    let deepstack = deepstack.collect::<Result<_>>()?;
    Ok(VisionTower { patch_embed, pos_embed, blocks, merger: main, deepstack, config: config.clone() })
}

fn build_text(config: &TextConfig, tied: bool, make: &mut Maker) -> Result<TextDecoder> {
    let c = config;
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let root = "model.language_model";
    let embeddings = make.matrix(format!("{root}.embed_tokens.weight"), &[c.vocab_size, hidden])?;
    let layers = (0..c.num_hidden_layers).map(|index| {
        let name = format!("{root}.layers.{index}");
        Ok(TextLayer {
            input_norm: make.scale(format!("{name}.input_layernorm.weight"), hidden)?,
            q: make.linear(format!("{name}.self_attn.q_proj"), c.query_size(), hidden)?,
            k: make.linear(format!("{name}.self_attn.k_proj"), c.key_value_size(), hidden)?,
            v: make.linear(format!("{name}.self_attn.v_proj"), c.key_value_size(), hidden)?,
            q_norm: make.scale(format!("{name}.self_attn.q_norm.weight"), c.head_dim)?,
            k_norm: make.scale(format!("{name}.self_attn.k_norm.weight"), c.head_dim)?,
            o: make.linear(format!("{name}.self_attn.o_proj"), hidden, c.query_size())?,
            post_norm: make.scale(format!("{name}.post_attention_layernorm.weight"), hidden)?,
            gate: make.linear(format!("{name}.mlp.gate_proj"), inner, hidden)?,
            up: make.linear(format!("{name}.mlp.up_proj"), inner, hidden)?,
            down: make.linear(format!("{name}.mlp.down_proj"), hidden, inner)?,
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    let norm = make.scale(format!("{root}.norm.weight"), hidden)?;
    let head = match tied {
        true => None,
        false => Some(make.matrix("lm_head.weight".into(), &[c.vocab_size, hidden])?),
    };
    Ok(TextDecoder { embeddings, layers, norm, head, config: config.clone() })
}
