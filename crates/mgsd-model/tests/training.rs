//! Losses, gradients and optimiser steps against numbers from PyTorch, transformers and PEFT.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::*;
use mgsd_compute::ops::adamw::{self, AdamW};
use mgsd_compute::ops::loss::{self, Clip, Divergence, Grads, Teacher, TokenStats};
use mgsd_compute::{Dtype, Tensor};
use mgsd_model::batch::Batch;
use mgsd_model::linear::Adapter;
use mgsd_model::lora::LoraConfig;
use mgsd_model::model::{Activations, Keep, Parts, Qwen3Vl, Recompute};

/// The stored supervised batch: packed, with the rows that predict a labelled token.
struct Supervised {
    batch: Batch,
    index: Vec<u32>,
    targets: Vec<u32>,
    /// Where each target lies in the padded `[rows, length - 1]` grid of predictions.
    places: Vec<usize>,
}

fn supervised(model: &Qwen3Vl, stored: &Arrays) -> Supervised {
    let rows = rows(stored, "in.", model.config.vision_start_token_id);
    let labels = integers(stored, "in.labels");
    let mut batch = Batch::new(&model.config);
    rows.prompts.iter().for_each(|prompt| {
        batch.push(prompt).expect("a stored row is a good prompt");
    });
    let (mut index, mut targets, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for (token, &at) in rows.places.iter().enumerate() {
        let first = batch.bounds.contains(&token);
        if labels[at] >= 0 && !first {
            index.push(token as u32 - 1);
            targets.push(labels[at] as u32);
            let (row, column) = (at / rows.length, at % rows.length);
            places.push(row * (rows.length - 1) + column - 1);
        }
    }
    Supervised { batch, index, targets, places }
}

/// Buffers of a step, and the step.
struct Pass {
    acts: Activations,
    d_rows: Tensor,
    stats: TokenStats,
}

impl Pass {
    fn new(model: &Qwen3Vl) -> Self {
        Self { acts: Activations::new(&model.config), d_rows: Tensor::empty(), stats: TokenStats::default() }
    }

    /// Mean cross-entropy and its gradients.
    fn run(&mut self, model: &mut Qwen3Vl, data: &Supervised, adapter: Adapter) -> f64 {
        model.zero_grad();
        model.forward_rows(&data.batch, &data.index, &mut self.acts, adapter, Keep::ForBackward);
        let weights = vec![1.0 / data.targets.len() as f32; data.targets.len()];
        let (head, dhead) = model.head_mut();
        let grads = Grads { dhidden: &mut self.d_rows, dhead };
        let (stats, hidden) = (&mut self.stats, self.acts.hidden());
        let loss = loss::cross_entropy(stats, hidden, head, &data.targets, &weights, Some(grads));
        model.backward(&data.batch, &mut self.acts, &self.d_rows);
        loss
    }
}

fn grads(model: &Qwen3Vl) -> BTreeMap<String, Vec<f32>> {
    let trained = model.parameters().into_iter().filter_map(|p| Some((p.name.clone(), p.grad.as_ref()?.to_vec())));
    trained.collect()
}

fn tied_with_adapter(root: &Path) -> Qwen3Vl {
    let mut model = model(root, "tiny-qwen3vl");
    model.load_adapter(&root.join("training/lora_adapter")).expect("the stored adapter loads");
    model.set_trainable(Parts::LORA);
    model
}

/// Compares every stored gradient; returns how many there were.
fn compare_grads(model: &Qwen3Vl, stored: &Arrays, prefix: &str) -> usize {
    let found = grads(model);
    let mut count = 0;
    for (name, expected) in stored.iter().filter_map(|(n, a)| Some((n.strip_prefix(prefix)?, a))) {
        assert_relative(&format!("{prefix}{name}"), &found[name], expected.as_f32().expect("floats"), 5e-5);
        count += 1;
    }
    count
}

#[test]
fn lora_loss_log_probabilities_and_gradients_agree_with_peft() {
    for root in roots() {
        let stored = arrays(root.join("training/lora_sft.safetensors"));
        let mut model = tied_with_adapter(&root);
        let data = supervised(&model, &stored);
        assert_eq!(data.targets.len(), 35);
        let mut pass = Pass::new(&model);
        let loss = pass.run(&mut model, &data, Adapter::On);
        assert!((loss - f64::from(floats(&stored, "loss")[0])).abs() < 1e-5, "{loss}");
        let expected: Vec<f32> = data.places.iter().map(|&at| floats(&stored, "label_logp")[at]).collect();
        assert_near("label_logp", &pass.stats.log_prob, &expected, 1e-4);
        assert_eq!(compare_grads(&model, &stored, "grad."), 56);
        assert_eq!(grads(&model).len(), 56, "nothing but the adapter is trained");
    }
}

#[test]
fn full_gradients_agree_with_pytorch_tied_and_untied() {
    for root in roots() {
        let batch = arrays(root.join("training/lora_sft.safetensors"));
        for (name, file) in [("tiny-qwen3vl", "full_grads_tied"), ("tiny-qwen3vl-untied", "full_grads_untied")] {
            let stored = arrays(root.join(format!("training/{file}.safetensors")));
            let mut model = model(&root, name);
            model.set_trainable(Parts::ALL);
            let data = supervised(&model, &batch);
            let loss = Pass::new(&model).run(&mut model, &data, Adapter::On);
            assert!((loss - f64::from(floats(&stored, "loss")[0])).abs() < 1e-5, "{loss}");
            assert!(compare_grads(&model, &stored, "grad.") >= 19);
        }
    }
}

#[test]
fn what_is_made_again_for_the_pass_back_changes_no_gradient() {
    let root = &roots()[0];
    let batch = arrays(root.join("training/lora_sft.safetensors"));
    let mut with_adapter = tied_with_adapter(root);
    let mut whole = model(root, "tiny-qwen3vl");
    whole.set_trainable(Parts::ALL);
    for model in [&mut with_adapter, &mut whole] {
        let data = supervised(model, &batch);
        let mut run = |recompute| {
            let mut pass = Pass::new(model);
            pass.acts.set_recompute(recompute);
            let loss = pass.run(model, &data, Adapter::On);
            (loss, grads(model))
        };
        let kept = run(Recompute::Nothing);
        assert!(!kept.1.is_empty());
        assert_eq!(run(Recompute::Cheap), kept);
        assert_eq!(run(Recompute::Layers), kept);
    }
}

#[test]
fn training_a_part_gives_the_gradients_that_training_all_gives_it() {
    let root = &roots()[0];
    let batch = arrays(root.join("training/lora_sft.safetensors"));
    for name in ["tiny-qwen3vl", "tiny-qwen3vl-untied"] {
        let mut model = model(root, name);
        let data = supervised(&model, &batch);
        let mut pass = Pass::new(&model);
        model.set_trainable(Parts::ALL);
        pass.run(&mut model, &data, Adapter::On);
        let all = grads(&model);
        let mut compare = |model: &mut Qwen3Vl, label: &str| {
            pass.run(model, &data, Adapter::On);
            let part = grads(model);
            assert!(!part.is_empty(), "{label}");
            for (name, found) in &part {
                assert_eq!(found, &all[name], "{label}: {name}");
            }
            part.len()
        };
        for parts in [
            Parts { vision: true, ..Parts::NONE },
            Parts { merger: true, ..Parts::NONE },
            Parts { text: true, ..Parts::NONE },
            Parts { embeddings: true, ..Parts::NONE },
            Parts { vision: true, text: true, ..Parts::NONE },
        ] {
            model.set_trainable(parts);
            compare(&mut model, &format!("{parts:?}"));
        }
        // Each parameter for itself: the pass back stops at the right place whatever is the lowest.
        for single in all.keys() {
            model.set_trainable(Parts::NONE);
            let (weight, bias) = (single.replace(".bias", ".weight"), single.replace(".weight", ".bias"));
            let norm = single.contains("norm");
            model.visit_mut(&mut |p| {
                p.set_trainable(p.name == *single || (norm && (p.name == weight || p.name == bias)))
            });
            compare(&mut model, single);
        }
    }
}

#[test]
fn an_adapter_on_the_vision_tower_gets_the_gradient_that_the_chain_rule_says() {
    let root = &roots()[0];
    let stored = arrays(root.join("training/lora_sft.safetensors"));
    let config = LoraConfig { rank: 3, alpha: 6.0, targets: vec!["model.visual.*".into()] };
    let mut model = model(root, "tiny-qwen3vl");
    assert_eq!(model.add_lora(&config, 5).expect("selects"), 4 * 4 + 4 * 2);
    // B is zero at first; let it count.
    model.visit_mut(&mut |p| {
        if p.name.contains("lora_B") {
            let values = (0..p.value.len()).map(|i| 0.05 * (i as f32 * 0.7).sin()).collect();
            p.value = Tensor::from_vec(p.value.rows(), p.value.cols(), values).to_device(device(), Dtype::F32);
        }
    });
    model.set_trainable(Parts::LORA);
    let data = supervised(&model, &stored);
    let mut pass = Pass::new(&model);
    let loss = pass.run(&mut model, &data, Adapter::On);
    let found = grads(&model);
    let adapter: BTreeMap<String, Vec<f32>> =
        model.parameters().iter().map(|p| (p.name.clone(), p.value.to_vec())).collect();

    model.merge_adapters();
    model.set_trainable(Parts::ALL);
    let merged_loss = pass.run(&mut model, &data, Adapter::On);
    assert!((loss - merged_loss).abs() < 1e-5, "{loss} {merged_loss}");
    let whole = grads(&model);
    for (name, found) in &found {
        let layer = name.strip_prefix("base_model.model.").expect("PEFT's prefix");
        let (layer, part) = layer.split_once(".lora_").expect("PEFT's name");
        let weight = &whole[&format!("{layer}.weight")];
        let other = |p: &str| &adapter[&format!("base_model.model.{layer}.lora_{p}.weight")];
        let (outputs, inputs) = (weight.len() * 3 / other("A").len(), other("A").len() / 3);
        let expected: Vec<f32> = if part.starts_with('A') {
            // dA = scale Bᵀ dW
            let b = other("B");
            let entry = |r: usize, i: usize| (0..outputs).map(|o| 2.0 * b[o * 3 + r] * weight[o * inputs + i]).sum();
            (0..3 * inputs).map(|at| entry(at / inputs, at % inputs)).collect()
        } else {
            // dB = scale dW Aᵀ
            let a = other("A");
            let entry =
                |o: usize, r: usize| (0..inputs).map(|i| 2.0 * weight[o * inputs + i] * a[r * inputs + i]).sum();
            (0..outputs * 3).map(|at| entry(at / 3, at % 3)).collect()
        };
        assert_relative(name, found, &expected, 2e-4);
    }
    assert_eq!(found.len(), 2 * 24);
}

const ADAMW: AdamW = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

fn clip_factor(norm: f64) -> f32 {
    (1.0 / (norm + 1e-6)).min(1.0) as f32
}

#[test]
fn one_adamw_step_on_the_stored_gradient_gives_the_stored_parameters() {
    for root in roots() {
        let stored = arrays(root.join("training/lora_sft.safetensors"));
        let steps = arrays(root.join("training/lora_sft_steps.safetensors"));
        let model = tied_with_adapter(&root);
        let norm = f64::from(floats(&stored, "step_grad_norms")[0]);
        let mut compared = 0;
        for parameter in model.parameters() {
            let Some(expected) = steps.get(&format!("step1.{}", parameter.name)) else { continue };
            let cols = parameter.value.cols();
            let mut value = tensor(&parameter.value.to_vec(), cols);
            let grad = tensor(floats(&stored, &format!("grad.{}", parameter.name)), cols);
            let zeros = || Tensor::zeros_on(device(), Dtype::F32, value.rows(), cols);
            let (mut first, mut second) = (zeros(), zeros());
            adamw::step(&mut value, None, &grad, &mut first, &mut second, &ADAMW, 1, clip_factor(norm));
            assert_near(&parameter.name, &value.to_vec(), expected.as_f32().expect("floats"), 1e-6);
            compared += 1;
        }
        assert!(compared >= 28);
    }
}

#[test]
fn five_lora_steps_follow_pytorch() {
    for root in roots() {
        let stored = arrays(root.join("training/lora_sft.safetensors"));
        let steps = arrays(root.join("training/lora_sft_steps.safetensors"));
        let mut model = tied_with_adapter(&root);
        let data = supervised(&model, &stored);
        let mut pass = Pass::new(&model);
        let zeros =
            |p: &&mgsd_model::param::Parameter| Tensor::zeros_on(device(), Dtype::F32, p.value.rows(), p.value.cols());
        let mut moments: Vec<(Tensor, Tensor)> = model.parameters().iter().map(|p| (zeros(p), zeros(p))).collect();
        for step in 1..=5u64 {
            let loss = pass.run(&mut model, &data, Adapter::On);
            let squares: f64 = adamw::sum_of_squares(model.parameters().iter().filter_map(|p| p.grad.as_ref()));
            let norm = squares.sqrt();
            assert!((loss - f64::from(floats(&stored, "step_losses")[step as usize - 1])).abs() < 1e-4, "loss {step}");
            assert!(
                (norm - f64::from(floats(&stored, "step_grad_norms")[step as usize - 1])).abs() < 1e-4,
                "norm {step}"
            );
            for (parameter, (first, second)) in model.parameters_mut().into_iter().zip(&mut moments) {
                if let Some(grad) = &parameter.grad {
                    adamw::step(&mut parameter.value, None, grad, first, second, &ADAMW, step, clip_factor(norm));
                }
            }
            compare_parameters(&model, &steps, step);
        }
        let loss = pass.run(&mut model, &data, Adapter::On);
        assert!((loss - f64::from(floats(&stored, "step_losses")[5])).abs() < 1e-4, "last loss {loss}");
    }
}

fn compare_parameters(model: &Qwen3Vl, steps: &Arrays, step: u64) {
    let (mut total, mut close) = (0, 0);
    for parameter in model.parameters() {
        let Some(expected) = steps.get(&format!("step{step}.{}", parameter.name)) else { continue };
        for (found, expected) in parameter.value.to_vec().iter().zip(expected.as_f32().expect("floats")) {
            let far = (found - expected).abs();
            assert!(far <= 2e-3 * step as f32, "{} after step {step}: {far}", parameter.name);
            total += 1;
            close += usize::from(far <= 5e-6);
        }
    }
    assert!(close as f64 >= 0.995 * f64::from(total), "step {step}: only {close} of {total} are close");
}

#[test]
fn merged_weights_and_logits_agree_with_peft() {
    for root in roots() {
        let stored = arrays(root.join("training/lora_merged.safetensors"));
        let batch = arrays(root.join("training/lora_sft.safetensors"));
        let mut model = tied_with_adapter(&root);
        assert_eq!(model.merge_adapters(), 28);
        assert!(!model.has_lora());
        let mut compared = 0;
        for parameter in model.parameters() {
            if let Some(expected) = stored.get(&parameter.name) {
                assert_near(&parameter.name, &parameter.value.to_vec(), expected.as_f32().expect("floats"), 1e-6);
                compared += 1;
            }
        }
        assert!(compared >= 4, "{compared}");
        let rows = rows(&batch, "in.", model.config.vision_start_token_id);
        let data = supervised(&model, &batch);
        let mut acts = Activations::new(&model.config);
        model.forward(&data.batch, &mut acts, Adapter::On, Keep::Nothing);
        let mut logits = Tensor::empty();
        loss::logits(&mut logits, acts.hidden(), &model.head().value);
        let expected = rows.packed(&stored["merged_logits_on_lora_sft_batch"]);
        assert_near("merged logits", &logits.to_vec(), &expected, 1.5e-4);
    }
}

/// The stored distillation batch: student and teacher prompts with the same responses.
struct Distillation {
    student: Batch,
    teacher: Batch,
    student_index: Vec<u32>,
    teacher_index: Vec<u32>,
    targets: Vec<u32>,
    /// Where each token lies in the padded `[rows, 16]` grid.
    places: Vec<usize>,
}

fn distillation(model: &Qwen3Vl, stored: &Arrays) -> Distillation {
    let width = stored["response_tokens"].shape[1];
    let (tokens, mask) = (integers(stored, "response_tokens"), integers(stored, "response_mask"));
    let side = |prefix: &str| {
        let rows = rows(stored, &format!("in.{prefix}."), model.config.vision_start_token_id);
        let lengths = integers(stored, &format!("{prefix}_prompt_len"));
        let mut batch = Batch::new(&model.config);
        let mut index = Vec::new();
        for (row, mut prompt) in rows.prompts.into_iter().enumerate() {
            let response = prompt.ids.split_off(lengths[row] as usize);
            let start = batch.push_with(&prompt, &response).expect("a stored row");
            let first = start + prompt.ids.len() - 1;
            index.extend((first..first + response.len()).map(|at| at as u32));
        }
        (batch, index)
    };
    let (student, student_index) = side("student");
    let (teacher, teacher_index) = side("teacher");
    let places: Vec<usize> = (0..mask.len()).filter(|&at| mask[at] == 1).collect();
    assert_eq!((places.len(), student_index.len(), teacher_index.len(), width), (27, 27, 27, 16));
    let targets = places.iter().map(|&at| tokens[at] as u32).collect();
    Distillation { student, teacher, student_index, teacher_index, targets, places }
}

#[test]
fn distillation_losses_and_gradients_agree_with_pytorch() {
    for root in roots() {
        let stored = arrays(root.join("training/distill.safetensors"));
        let expected_grads = arrays(root.join("training/distill_grads.safetensors"));
        let mut model = tied_with_adapter(&root);
        let data = distillation(&model, &stored);
        let at = |name: &str| -> Vec<f32> { data.places.iter().map(|&at| floats(&stored, name)[at]).collect() };
        let mut pass = Pass::new(&model);

        let mut teacher_hidden = Tensor::empty();
        model.forward_rows(&data.teacher, &data.teacher_index, &mut pass.acts, Adapter::Off, Keep::Nothing);
        pass.acts.swap_hidden(&mut teacher_hidden);
        let teacher_head = tensor(&model.head().value.to_vec(), model.head().value.cols());
        let teacher = Teacher { hidden: &teacher_hidden, head: &teacher_head, top_k: None };
        loss::log_probs(&mut pass.stats, &teacher_hidden, &teacher_head, &data.targets);
        assert_near("teacher_logp", &pass.stats.log_prob, &at("teacher_logp"), 1e-4);

        let weights = vec![1.0 / 27.0; 27];
        let clip = Clip { low: 0.2, high: 0.3, dual: 3.0 };
        for (number, name) in ["pg_clipped", "pg_onpolicy", "reverse_kl", "forward_kl", "jsd"].into_iter().enumerate() {
            model.zero_grad();
            model.forward_rows(&data.student, &data.student_index, &mut pass.acts, Adapter::On, Keep::ForBackward);
            let (head, dhead) = model.head_mut();
            let grads = Some(Grads { dhidden: &mut pass.d_rows, dhead });
            let (stats, hidden, targets) = (&mut pass.stats, pass.acts.hidden(), &data.targets);
            let divergence = |kind, part: &str, absolute: f32, stats: &mut TokenStats, grads| {
                let mut teacher_log_prob = Vec::new();
                let loss =
                    loss::distill(stats, &mut teacher_log_prob, kind, hidden, head, &teacher, targets, &weights, grads);
                assert_near(part, &stats.loss, &at(part), absolute);
                assert_near("teacher_logp", &teacher_log_prob, &at("teacher_logp"), 1e-4);
                loss
            };
            let loss = match name {
                "pg_clipped" | "pg_onpolicy" => {
                    let old = if name == "pg_clipped" { at("logp_old") } else { at("student_logp") };
                    let advantage: Vec<f32> = at("teacher_logp").iter().zip(&old).map(|(t, o)| t - o).collect();
                    let loss =
                        loss::policy_gradient(stats, clip, hidden, head, targets, &old, &advantage, &weights, grads);
                    if name == "pg_clipped" {
                        assert_near("pg_token_loss", &stats.loss, &at("pg_token_loss"), 2e-4);
                    }
                    loss
                }
                "reverse_kl" => divergence(Divergence::ReverseKl, "full_reverse_kl", 1e-4, stats, grads),
                "forward_kl" => divergence(Divergence::ForwardKl, "full_forward_kl", 1e-4, stats, grads),
                _ => divergence(Divergence::Jsd { beta: 0.5 }, "jsd", 1e-5, stats, grads),
            };
            assert_near("student_logp", &stats.log_prob, &at("student_logp"), 1e-4);
            assert_near("student_entropy", &stats.entropy, &at("student_entropy"), 1e-4);
            let expected = f64::from(floats(&stored, "losses")[number]);
            assert!((loss - expected).abs() < 2e-5, "{name}: {loss}, expected {expected}");
            model.backward(&data.student, &mut pass.acts, &pass.d_rows);
            assert!(compare_grads(&model, &expected_grads, &format!("{name}.")) >= 14, "{name}");
        }
    }
}
