//! An adapter folded into its base model, and the proof that the result computes the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mgsd_compute::Tensor;
use mgsd_compute::ops::loss;

use crate::batch::Batch;
use crate::config::{Config, WeightDtype};
use crate::error::{Error, Result};
use crate::linear::Adapter;
use crate::model::{Activations, Keep, Purpose, Qwen3Vl};
use crate::patches::{Grid, ImagePatches};
use crate::processor::Prompt;

/// What a merge did, and how far its result is from the adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// Layers that took in an adapter.
    pub layers: usize,
    /// Tokens on which logits were compared, picture included.
    pub tokens: usize,
    /// Largest difference between the logits of base plus adapter and those of the merged model as read back.
    pub max_difference: f32,
    /// What was allowed: a small part of the largest logit, more in bfloat16.
    pub allowed: f32,
    /// Largest difference that the adapter makes to the base model's logits.
    pub adapter_effect: f32,
}

/// Merges the PEFT adapter in `adapter` into the model folder `base` and writes `out` (which must not exist, or be an
/// empty folder): weights in the base's type, and all of the base's other files. Before it says done it reads the result
/// back and compares logits on a sample with text and a picture; if they differ, nothing is left in `out`.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<MergeReport> {
    let taken = out.exists() && std::fs::read_dir(out).map_or(true, |mut items| items.next().is_some());
    if taken {
        return Err(Error::Folder { path: out.into(), problem: "exists already; name a new folder".into() });
    }
    let mut model = Qwen3Vl::load(base, Purpose::Inference)?;
    model.load_adapter(adapter)?;
    let sample = sample(&model.config);
    let plain = logits(&model, &sample, Adapter::Off)?;
    let adapted = logits(&model, &sample, Adapter::On)?;

    let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = out.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let report = write_and_compare(&model, &temporary, &sample, &plain, &adapted);
    let report = report.and_then(|report| {
        if out.exists() {
            std::fs::remove_dir(out).map_err(|source| Error::Write { path: out.into(), source })?;
        }
        std::fs::rename(&temporary, out).map_err(|source| Error::Write { path: out.into(), source })?;
        Ok(report)
    });
    if report.is_err() {
        // What was written proves nothing; if it cannot be removed it still has no name that a user would take.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    report
}

fn write_and_compare(
    model: &Qwen3Vl,
    out: &Path,
    sample: &Prompt,
    plain: &[f32],
    adapted: &[f32],
) -> Result<MergeReport> {
    let mut adapters = BTreeMap::new();
    model.visit_linears(&mut |layer| {
        if let Some(lora) = &layer.lora {
            adapters.insert(layer.weight.name.as_str(), lora);
        }
    });
    let layers = adapters.len();
    model.write_weights(out, &mut |name, mut values| {
        if let Some(lora) = adapters.remove(name) {
            lora.add_to(&mut values);
        }
        values
    })?;
    let merged = Qwen3Vl::load(out, Purpose::Inference)?;
    let result = logits(&merged, sample, Adapter::Off)?;
    let largest = adapted.iter().fold(0.0f32, |most, l| most.max(l.abs()));
    let part = match model.config.dtype {
        WeightDtype::F32 => 1e-4,
        // Merged weights are rounded to 8 bits; each of many layers adds its share.
        WeightDtype::Bf16 => 5e-2,
    };
    let report = MergeReport {
        layers,
        tokens: sample.ids.len(),
        max_difference: farthest(adapted, &result),
        allowed: part * largest,
        adapter_effect: farthest(adapted, plain),
    };
    if report.max_difference.is_nan() || report.max_difference > report.allowed {
        return Err(Error::Model(format!(
            "the merged model does not compute what base and adapter compute: its logits differ by {}, allowed were {}; nothing was written",
            report.max_difference, report.allowed
        )));
    }
    Ok(report)
}

fn farthest(left: &[f32], right: &[f32]) -> f32 {
    let mut most = 0.0f32;
    for (left, right) in left.iter().zip(right) {
        let difference = (left - right).abs();
        if difference.is_nan() || difference > most {
            most = difference;
        }
        if most.is_nan() {
            break;
        }
    }
    most
}

/// Scattered token ids around a small picture of made-up colours.
fn sample(config: &Config) -> Prompt {
    let vision = &config.vision;
    let side = 2 * vision.spatial_merge_size;
    let grid = Grid { t: 1, h: side, w: side };
    let vocab = config.text.vocab_size as u64;
    let text = (0..48u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % vocab);
    let mut ids: Vec<u32> = text.map(|id| id as u32).filter(|&id| id != config.image_token_id).collect();
    let mut picture = vec![config.vision_start_token_id];
    picture.extend(std::iter::repeat_n(config.image_token_id, grid.tokens(vision.spatial_merge_size)));
    picture.push(config.vision_end_token_id);
    ids.splice(8..8, picture);
    let numbers = grid.patches() * vision.patch_len();
    let pixel_values = (0..numbers).map(|i| (i as f32 * 0.37).sin()).collect();
    Prompt { ids, images: vec![Arc::new(ImagePatches { pixel_values, grid })] }
}

fn logits(model: &Qwen3Vl, prompt: &Prompt, adapter: Adapter) -> Result<Vec<f32>> {
    let mut batch = Batch::new(&model.config);
    batch.push(prompt)?;
    let mut acts = Activations::new(&model.config);
    model.forward(&batch, &mut acts, adapter, Keep::Nothing);
    let mut logits = Tensor::empty();
    loss::logits(&mut logits, acts.hidden(), &model.head().value);
    Ok(logits.to_vec())
}
