//! Writes models and adapters for `docs/` checks with transformers and PEFT: `roundtrip DATA OUT`, where `DATA` holds
//! `tiny-qwen3vl`, `tiny-qwen3vl-untied` and `training`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mgsd_compute::Tensor;
use mgsd_compute::ops::loss;
use mgsd_model::batch::Batch;
use mgsd_model::error::Result;
use mgsd_model::linear::Adapter;
use mgsd_model::lora::LoraConfig;
use mgsd_model::model::{Activations, Keep, Purpose, Qwen3Vl};
use mgsd_model::patches::{Grid, ImagePatches};
use mgsd_model::processor::Prompt;
use mgsd_model::weights::{Array, read_arrays, write_arrays};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let (Some(data), Some(out)) = (args.next(), args.next()) else {
        eprintln!("usage: roundtrip DATA OUT");
        std::process::exit(2);
    };
    let tiny = data.join("tiny-qwen3vl");
    for name in ["tiny-qwen3vl", "tiny-qwen3vl-untied"] {
        Qwen3Vl::load(&data.join(name), Purpose::Training)?.save(&out.join(name))?;
    }
    let mut model = Qwen3Vl::load(&tiny, Purpose::Training)?;
    let config = model.load_adapter(&data.join("training/lora_adapter"))?;
    model.save_adapter(&out.join("adapter"), "tiny-qwen3vl", &config)?;
    let report = mgsd_model::merge::merge(&tiny, &out.join("adapter"), &out.join("merged"))?;
    println!("{report:?}");
    mgsd_model::init::write_random(&tiny, &out.join("random"), 1, 300_000)?;

    // An adapter on vision blocks and mergers too, with a B that counts.
    let mut model = Qwen3Vl::load(&tiny, Purpose::Training)?;
    let targets = ["model.visual.*", "q_proj"].map(String::from).to_vec();
    let config = LoraConfig { targets, ..LoraConfig::default() };
    model.add_lora(&config, 1)?;
    model.visit_mut(&mut |p| {
        if p.name.contains("lora_B") {
            let values = (0..p.value.len()).map(|i| 0.05 * (i as f32).sin()).collect();
            p.value = Tensor::from_vec(p.value.rows(), p.value.cols(), values);
        }
    });
    model.save_adapter(&out.join("vision_adapter"), "tiny-qwen3vl", &config)?;
    let logits = batch_logits(&model, &read_arrays(&data.join("training/lora_sft.safetensors"))?)?;
    write_arrays(&out.join("vision_logits.safetensors"), &BTreeMap::from([("logits".into(), logits)]))
}

/// Logits of the attended tokens of a stored batch with one picture a row.
fn batch_logits(model: &Qwen3Vl, stored: &BTreeMap<String, Array>) -> Result<Array> {
    let integers = |name: &str| stored[name].as_i64().unwrap_or_default();
    let (ids, mask) = (integers("in.input_ids"), integers("in.attention_mask"));
    let mut pixels = stored["in.pixel_values"].as_f32().unwrap_or_default();
    let length = stored["in.input_ids"].shape[1];
    let mut batch = Batch::new(&model.config);
    for (row, grid) in integers("in.image_grid_thw").chunks_exact(3).enumerate() {
        let grid = Grid { t: grid[0] as usize, h: grid[1] as usize, w: grid[2] as usize };
        let (mine, rest) = pixels.split_at(grid.patches() * model.config.vision.patch_len());
        pixels = rest;
        let kept = (row * length..(row + 1) * length).filter(|&at| mask[at] == 1);
        let ids = kept.map(|at| ids[at] as u32).collect();
        batch.push(&Prompt { ids, images: vec![Arc::new(ImagePatches { pixel_values: mine.to_vec(), grid })] })?;
    }
    let mut acts = Activations::new(&model.config);
    model.forward(&batch, &mut acts, Adapter::On, Keep::Nothing);
    let mut logits = Tensor::empty();
    loss::logits(&mut logits, acts.hidden(), &model.head().value);
    Ok(Array::f32(&[logits.rows(), logits.cols()], logits.to_vec()))
}
