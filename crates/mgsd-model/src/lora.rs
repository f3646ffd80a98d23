//! Low-rank adapters (LoRA, arXiv 2106.09685): which layers get one, and with which first weights.

use mgsd_compute::Tensor;
use rand::RngExt as _;
use rand_pcg::Pcg64;

use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::model::Qwen3Vl;
use crate::param::Parameter;

/// The two thin matrices beside a linear layer.
pub struct Lora {
    /// `[rank, in]`
    pub a: Parameter,
    /// `[out, rank]`
    pub b: Parameter,
    /// `alpha / rank`
    pub scale: f32,
}

/// How adapters are made.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Which layers: `all-linear` (q, k, v, o, gate, up and down of the language model), a layer's last name such as
    /// `q_proj`, or a full name such as `model.visual.blocks.0.attn.qkv`; `*` stands for any text.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    /// The published settings of stage 1.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: vec![ALL_LINEAR.to_string()] }
    }
}

/// The target that stands for every linear layer of the language model but the head.
pub const ALL_LINEAR: &str = "all-linear";

impl LoraConfig {
    /// Whether the layer of this full name gets an adapter.
    pub fn selects(&self, layer: &str) -> bool {
        self.targets.iter().any(|target| match target.as_str() {
            ALL_LINEAR => layer.starts_with("model.language_model.layers."),
            pattern => {
                matches(pattern, layer)
                    || layer.rsplit('.').next().is_some_and(|leaf| matches(pattern, leaf))
                    || layer.strip_suffix(pattern).is_some_and(|front| front.ends_with('.'))
            }
        })
    }
}

/// `*` in `pattern` stands for any text, also none.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((front, rest)) => text.strip_prefix(front).is_some_and(|tail| {
            (0..=tail.len()).filter(|&cut| tail.is_char_boundary(cut)).any(|cut| matches(rest, &tail[cut..]))
        }),
    }
}

impl Lora {
    /// A is uniform in `±1/sqrt(in)` (Kaiming with slope √5, as PEFT makes it), B is zero: the first update is nil.
    fn new(layer: &Linear, config: &LoraConfig, rng: &mut Pcg64) -> Self {
        let (outputs, inputs) = (layer.weight.value.rows(), layer.weight.value.cols());
        let bound = 1.0 / (inputs as f32).sqrt();
        let a = (0..config.rank * inputs).map(|_| rng.random_range(-bound..bound)).collect();
        Self::from_tensors(
            layer.name(),
            Tensor::from_vec(config.rank, inputs, a),
            Tensor::zeros(outputs, config.rank),
            config.alpha / config.rank as f32,
        )
    }

    /// Adapter weights under the names that PEFT gives them.
    pub(crate) fn from_tensors(layer: &str, a: Tensor, b: Tensor, scale: f32) -> Self {
        let parameter = |part: &str, value: Tensor| {
            let shape = vec![value.rows(), value.cols()];
            Parameter::new(peft_name(layer, part), shape, value)
        };
        Self { a: parameter("lora_A", a), b: parameter("lora_B", b), scale }
    }
}

impl Lora {
    /// Goes where the layer's weight is, in its type.
    pub(crate) fn follow(&mut self, layer: &Linear) {
        let weight = &layer.weight.value;
        if !weight.device().is_cpu() {
            self.a.move_to(weight.device(), weight.dtype());
            self.b.move_to(weight.device(), weight.dtype());
        }
    }
}

/// PEFT's name of an adapter tensor (`part`: `lora_A` or `lora_B`).
pub(crate) fn peft_name(layer: &str, part: &str) -> String {
    format!("base_model.model.{layer}.{part}.weight")
}

impl Qwen3Vl {
    /// Adds a fresh, trainable adapter to every layer that `config` selects, replacing one that is there. The weights
    /// are a function of `seed` and the order of layers.
    pub fn add_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<usize> {
        if config.rank == 0 {
            return Err(Error::Model("rank 0: an adapter needs a rank of at least 1".into()));
        }
        let mut rng = Pcg64::new(seed.into(), 0x6c6f_7261);
        let mut count = 0;
        self.visit_linears_mut(&mut |layer| {
            if config.selects(layer.name()) {
                let mut lora = Lora::new(layer, config, &mut rng);
                lora.follow(layer);
                lora.a.set_trainable(true);
                lora.b.set_trainable(true);
                layer.lora = Some(lora);
                count += 1;
            }
        });
        if count == 0 {
            return Err(Error::Model(format!(
                "targets {:?} select no layer; use \"{ALL_LINEAR}\", a last name such as \"q_proj\" or a full layer name",
                config.targets
            )));
        }
        Ok(count)
    }

    /// Whether any layer has an adapter.
    pub fn has_lora(&self) -> bool {
        let mut any = false;
        self.visit_linears(&mut |layer| any |= layer.lora.is_some());
        any
    }

    /// Takes the adapters off; the base weights stay.
    pub fn remove_lora(&mut self) {
        self.visit_linears_mut(&mut |layer| layer.lora = None);
    }
}
