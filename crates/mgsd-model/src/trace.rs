//! The tensors of a pass forward by name, to be compared with another implementation.

use std::collections::BTreeMap;
use std::sync::Arc;

use mgsd_compute::Tensor;
use mgsd_compute::ops::loss;

use crate::batch::Batch;
use crate::error::Result;
use crate::generate::{Generator, Request};
use crate::linear::Adapter;
use crate::model::{Activations, Qwen3Vl};
use crate::processor::Prompt;
use crate::sampling::Sampling;
use crate::weights::{Array, Values};

/// A point of the pass at which a tensor can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Cosines of the patches, `[patches, head_dim / 2]`.
    VisionCos,
    /// Sines of the patches.
    VisionSin,
    /// Projected patches.
    PatchEmbed,
    /// The patches with their position embedding.
    VisionIn,
    /// The stream of a block between attention and feed-forward.
    VisionMid(usize),
    /// Output of a block.
    VisionBlock(usize),
    /// The image tokens.
    Merger,
    /// The features that go to a decoder layer.
    Deepstack(usize),
    /// Cosines of the tokens, `[tokens, head_dim / 2]`.
    TextCos,
    /// Sines of the tokens.
    TextSin,
    /// Embeddings after image features took their places.
    Embedded,
    /// Queries after their norm, before the rotation.
    QueryNorm(usize),
    /// Keys after their norm, before the rotation.
    KeyNorm(usize),
    /// Input of a layer.
    LayerIn(usize),
    /// The stream of a layer between attention and feed-forward.
    LayerMid(usize),
    /// Output of a layer, before the DeepStack addition.
    LayerOut(usize),
    /// The last layer's output.
    BeforeFinalNorm,
    /// After the final norm.
    FinalNorm,
}

/// Called with each tensor as it is made.
pub type Observer<'a> = &'a mut dyn FnMut(Tap, &Tensor);

impl Tap {
    /// The name in a trace file.
    pub fn name(self) -> String {
        match self {
            Tap::VisionCos => "vision.cos".into(),
            Tap::VisionSin => "vision.sin".into(),
            Tap::PatchEmbed => "vision.patch_embed".into(),
            Tap::VisionIn => "vision.block0.in".into(),
            Tap::VisionMid(i) => format!("vision.block{i}.mid"),
            Tap::VisionBlock(i) => format!("vision.block{i}.out"),
            Tap::Merger => "vision.merger".into(),
            Tap::Deepstack(i) => format!("vision.deepstack{i}"),
            Tap::TextCos => "text.cos".into(),
            Tap::TextSin => "text.sin".into(),
            Tap::Embedded => "text.inputs_embeds".into(),
            Tap::QueryNorm(i) => format!("text.layer{i}.q_norm.out"),
            Tap::KeyNorm(i) => format!("text.layer{i}.k_norm.out"),
            Tap::LayerIn(i) => format!("text.layer{i}.in"),
            Tap::LayerMid(i) => format!("text.layer{i}.mid"),
            Tap::LayerOut(i) => format!("text.layer{i}.out"),
            Tap::BeforeFinalNorm => "text.before_final_norm".into(),
            Tap::FinalNorm => "text.final_norm".into(),
        }
    }
}

/// Named arrays, ready to be written as safetensors.
pub type Trace = BTreeMap<String, Array>;

/// Runs `prompt` alone and returns its inputs (`input_ids`, `pixel_values`, `image_grid_thw`, `position_ids`,
/// `rope_deltas`), the tensors of [`Tap`] and `logits`; with `generate > 0` also `generated`, that many greedy tokens,
/// end tokens ignored. A batch dimension of 1 leads where transformers has one.
pub fn trace(model: &Qwen3Vl, prompt: &Prompt, generate: usize) -> Result<Trace> {
    let mut batch = Batch::new(&model.config);
    batch.push(prompt)?;
    let mut out = inputs(model, &batch);
    let tokens = batch.tokens();
    let mut acts = Activations::new(&model.config);
    model.forward_observed(&batch, &mut acts, Adapter::On, &mut |tap, tensor| {
        let (name, values) = (tap.name(), tensor.to_vec());
        let shape = match tap {
            _ if name.starts_with("vision.") => vec![tensor.rows(), tensor.cols()],
            Tap::QueryNorm(_) | Tap::KeyNorm(_) => {
                let width = model.config.text.head_dim;
                vec![1, tokens, tensor.cols() / width, width]
            }
            _ => vec![1, tensor.rows(), tensor.cols()],
        };
        let array = match tap {
            // Published tables repeat the half that is kept here.
            Tap::VisionCos | Tap::VisionSin | Tap::TextCos | Tap::TextSin => twice(shape, values),
            _ => floats(shape, values),
        };
        out.insert(name, array);
    });
    let mut logits = Tensor::empty();
    loss::logits(&mut logits, acts.hidden(), &model.head().value);
    out.insert("logits".into(), floats(vec![1, tokens, logits.cols()], logits.to_vec()));
    if generate > 0 {
        let request = Request {
            prompt: Arc::new(prompt.clone()),
            sampling: Sampling::greedy(),
            max_new_tokens: generate,
            stop: Vec::new(),
        };
        let answers = Generator::new(&model.config, 1).generate(model, &[request], Adapter::On, &mut |_| {})?;
        let ids = answers[0].ids.iter().map(|&id| i64::from(id)).collect();
        out.insert("generated".into(), integers(vec![1, answers[0].ids.len()], ids));
    }
    Ok(out)
}

fn inputs(model: &Qwen3Vl, batch: &Batch) -> Trace {
    let tokens = batch.tokens();
    let mut out = Trace::new();
    let ids = batch.ids.iter().map(|&id| i64::from(id)).collect();
    out.insert("input_ids".into(), integers(vec![1, tokens], ids));
    let positions = (0..3).flat_map(|axis| batch.positions.iter().map(move |p| i64::from(p[axis])));
    out.insert("position_ids".into(), integers(vec![3, 1, tokens], positions.collect()));
    out.insert("rope_deltas".into(), integers(vec![1, 1], batch.rope_deltas.clone()));
    if !batch.images.is_empty() {
        let pixels = batch.images.iter().flat_map(|i| i.pixel_values.iter().copied()).collect();
        out.insert("pixel_values".into(), floats(vec![batch.patches(), model.config.vision.patch_len()], pixels));
        let grids = batch.images.iter().flat_map(|i| [i.grid.t, i.grid.h, i.grid.w]);
        out.insert("image_grid_thw".into(), integers(vec![batch.images.len(), 3], grids.map(|n| n as i64).collect()));
    }
    out
}

fn floats(shape: Vec<usize>, values: Vec<f32>) -> Array {
    Array { shape, values: Values::F32(values) }
}

fn integers(shape: Vec<usize>, values: Vec<i64>) -> Array {
    Array { shape, values: Values::I64(values) }
}

/// Each row of the last dimension followed by itself.
fn twice(mut shape: Vec<usize>, values: Vec<f32>) -> Array {
    let width = shape[shape.len() - 1];
    let last = shape.len() - 1;
    shape[last] = 2 * width;
    floats(shape, values.chunks_exact(width).flat_map(|row| [row, row].concat()).collect())
}
