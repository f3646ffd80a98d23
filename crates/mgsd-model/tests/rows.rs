//! A pass for some rows alone: the same states, the same gradients as a pass for all.

mod common;

use std::collections::BTreeMap;

use common::*;
use mgsd_compute::ops::rows as row_ops;
use mgsd_compute::{Dtype, Tensor, Write};
use mgsd_model::batch::Batch;
use mgsd_model::linear::Adapter;
use mgsd_model::lora::{ALL_LINEAR, LoraConfig};
use mgsd_model::model::{Activations, Keep, Parts, Qwen3Vl, Recompute};

/// The stored sequences with their pictures.
fn batch(model: &Qwen3Vl) -> Batch {
    let stored = arrays(roots()[0].join("training/lora_sft.safetensors"));
    let mut batch = Batch::new(&model.config);
    for prompt in &rows(&stored, "in.", model.config.vision_start_token_id).prompts {
        batch.push(prompt).expect("a stored row is a good prompt");
    }
    batch
}

/// A model whose DeepStack features reach the last layer, and one where they do not, everything trained; and an adapter.
fn models() -> Vec<Qwen3Vl> {
    let root = &roots()[0];
    let mut whole = model(root, "tiny-qwen3vl");
    let mut config = whole.config.clone();
    config.text.num_hidden_layers = config.vision.deepstack_visual_indexes.len();
    let mut short = Qwen3Vl::init_on(&config, device(), Dtype::F32, 1);
    whole.set_trainable(Parts::ALL);
    short.set_trainable(Parts::ALL);
    let mut adapted = model(root, "tiny-qwen3vl");
    let targets = vec![ALL_LINEAR.into()];
    adapted.add_lora(&LoraConfig { rank: 4, alpha: 8.0, targets }, 0).expect("an adapter");
    // As after some training: with B at zero A would have no gradient.
    for parameter in adapted.parameters_mut().into_iter().filter(|p| p.name.contains("lora_B")) {
        let values = (0..parameter.count()).map(|i| 0.1 * (i as f32 * 0.7).sin()).collect();
        let [rows, cols] = parameter.value.shape();
        parameter.value = Tensor::from_vec(rows, cols, values).to_device(device(), Dtype::F32);
    }
    adapted.set_trainable(Parts::LORA);
    vec![whole, short, adapted]
}

fn slope(rows: usize, cols: usize) -> Tensor {
    let values = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(rows, cols, values).to_device(device(), Dtype::F32)
}

fn grads(model: &Qwen3Vl) -> BTreeMap<String, Vec<f32>> {
    let trained = model.parameters().into_iter().filter_map(|p| Some((p.name.clone(), p.grad.as_ref()?.to_vec())));
    trained.collect()
}

#[test]
fn states_of_some_rows_are_those_of_all() {
    for model in models() {
        let batch = batch(&model);
        let last = batch.tokens() as u32 - 1;
        let (mut acts, mut expected) = (Activations::new(&model.config), Tensor::empty());
        // One twice, as when several answers share a prompt; the last pass is again for all.
        for rows in [vec![last], vec![3, 0, last, 3], (0..last).step_by(3).collect(), Vec::new()] {
            model.forward(&batch, &mut acts, Adapter::On, Keep::Nothing);
            assert_eq!(acts.hidden().rows(), batch.tokens());
            row_ops::gather(&mut expected, acts.hidden(), &rows);
            model.forward_rows(&batch, &rows, &mut acts, Adapter::On, Keep::Nothing);
            assert_eq!(acts.hidden().shape(), expected.shape());
            assert_near("hidden", &acts.hidden().to_vec(), &expected.to_vec(), 1e-5);
        }
    }
}

#[test]
fn gradients_of_some_rows_are_those_of_all_with_zeros_elsewhere() {
    for mut model in models() {
        let batch = batch(&model);
        let rows: Vec<u32> = (1..batch.tokens() as u32).step_by(3).collect();
        let mut acts = Activations::new(&model.config);
        model.zero_grad();
        model.forward(&batch, &mut acts, Adapter::On, Keep::ForBackward);
        let cols = acts.hidden().cols();
        let some = slope(rows.len(), cols);
        let mut all = Tensor::zeros_on(device(), Dtype::F32, batch.tokens(), cols);
        row_ops::scatter(&mut all, &some, &rows, Write::Set);
        model.backward(&batch, &mut acts, &all);
        let expected = grads(&model);
        let mut first: Option<BTreeMap<String, Vec<f32>>> = None;
        for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Layers] {
            acts.set_recompute(recompute);
            model.zero_grad();
            model.forward_rows(&batch, &rows, &mut acts, Adapter::On, Keep::ForBackward);
            model.backward(&batch, &mut acts, &some);
            let found = grads(&model);
            assert_eq!(found.len(), expected.len());
            for (name, grad) in &found {
                assert!(grad.iter().any(|value| *value != 0.0), "{name} has a gradient");
                assert_near(name, grad, &expected[name], 1e-5);
            }
            assert!(first.get_or_insert_with(|| found.clone()) == &found, "{recompute:?} changes gradients");
        }
    }
}
