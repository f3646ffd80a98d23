//! Which gradients a pass back hands on to be added up over processes, in which order, and that they are finished.

mod common;

use common::*;
use mgsd_compute::{Dtype, Tensor};
use mgsd_model::batch::Batch;
use mgsd_model::linear::Adapter;
use mgsd_model::lora::{ALL_LINEAR, LoraConfig};
use mgsd_model::model::{Activations, Keep, Parts, Qwen3Vl};
use mgsd_model::param::Parameter;
use mgsd_model::reduction::{Reduction, Told};

/// Names and gradients, piece by piece, as they were when they were told.
type Pieces = Vec<Vec<(String, Vec<f32>)>>;

fn note(pieces: &mut Pieces, piece: &[&mut Parameter]) {
    let grad = |p: &Parameter| p.grad.as_ref().expect("only what is trained is told").to_vec();
    pieces.push(piece.iter().map(|p| (p.name.clone(), grad(p))).collect());
}

fn names(pieces: &Pieces) -> Vec<Vec<&str>> {
    pieces.iter().map(|piece| piece.iter().map(|(name, _)| name.as_str()).collect()).collect()
}

/// Name and gradient of everything trained.
fn trained(model: &Qwen3Vl) -> Vec<(String, Vec<f32>)> {
    let trained = model.parameters().into_iter().filter_map(|p| Some((p.name.clone(), p.grad.as_ref()?.to_vec())));
    trained.collect()
}

/// What is told without any pass.
fn order(model: &mut Qwen3Vl) -> Pieces {
    let mut pieces = Pieces::new();
    let mut take = |piece: &mut [&mut Parameter]| note(&mut pieces, piece);
    Reduction::new(&mut take).finish(model);
    pieces
}

/// The stored sequences with their pictures, and a batch of text alone.
fn batches(model: &Qwen3Vl) -> [Batch; 2] {
    let stored = arrays(roots()[0].join("training/lora_sft.safetensors"));
    let mut with = Batch::new(&model.config);
    for prompt in &rows(&stored, "in.", model.config.vision_start_token_id).prompts {
        with.push(prompt).expect("a stored row is a good prompt");
    }
    let mut without = Batch::new(&model.config);
    let prompt = mgsd_model::processor::Prompt { ids: (3..12).collect(), images: Vec::new() };
    without.push(&prompt).expect("text is a good prompt");
    [with, without]
}

fn pass(model: &mut Qwen3Vl, acts: &mut Activations, batch: &Batch, told: Option<Told>) {
    model.forward(batch, acts, Adapter::On, Keep::ForBackward);
    let (rows, cols) = (batch.tokens(), acts.hidden().cols());
    let slope = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let slope = Tensor::from_vec(rows, cols, slope).to_device(device(), Dtype::F32);
    match told {
        Some(told) => model.backward_telling(batch, acts, &slope, told),
        None => model.backward(batch, acts, &slope),
    }
}

/// As after the loss, which adds to the gradient of the output projection first.
fn start(model: &mut Qwen3Vl) {
    model.zero_grad();
    if let (_, Some(grad)) = model.head_mut() {
        grad.fill(0.25);
    }
}

/// Every choice of trained parts, in a tied and an untied model.
fn each_choice(mut check: impl FnMut(&str, &mut Qwen3Vl)) {
    let none = Parts::NONE;
    let choices = [
        ("everything", Parts::ALL),
        ("vision", Parts { vision: true, ..none }),
        ("mergers", Parts { merger: true, ..none }),
        ("text", Parts { text: true, ..none }),
        ("embeddings", Parts { embeddings: true, ..none }),
        ("mergers and text", Parts { merger: true, text: true, ..none }),
        ("vision and embeddings", Parts { vision: true, embeddings: true, ..none }),
        ("nothing", none),
    ];
    for folder in ["tiny-qwen3vl", "tiny-qwen3vl-untied"] {
        for (name, parts) in choices {
            let mut model = model(&roots()[0], folder);
            model.set_trainable(parts);
            check(&format!("{folder}, {name}"), &mut model);
        }
        for target in [ALL_LINEAR, "model.visual.*", "model.visual.deepstack_merger_list.*", "o_proj"] {
            let mut model = model(&roots()[0], folder);
            let config = LoraConfig { rank: 2, alpha: 4.0, targets: vec![target.into()] };
            model.add_lora(&config, 1).expect("selects");
            check(&format!("{folder}, adapters on {target}"), &mut model);
        }
        let mut single = model(&roots()[0], folder);
        single.set_trainable(none);
        single.text.head.iter_mut().for_each(|head| head.set_trainable(true));
        check(&format!("{folder}, the head"), &mut single);
    }
}

#[test]
fn a_pass_back_tells_of_everything_trained_once_and_with_its_last_bits() {
    each_choice(|label, model| {
        let expected = order(model);
        let mut told: Vec<&str> = names(&expected).concat();
        told.sort_unstable();
        let mut all: Vec<String> = trained(model).into_iter().map(|(name, _)| name).collect();
        all.sort_unstable();
        assert_eq!(told, all, "{label}: everything trained, nothing frozen, each once");
        let mut acts = Activations::new(&model.config);
        for (batch, what) in batches(model).iter().zip(["with pictures", "without pictures"]) {
            start(model);
            pass(model, &mut acts, batch, None);
            let plain = trained(model);
            start(model);
            let mut pieces = Pieces::new();
            let mut take = |piece: &mut [&mut Parameter]| note(&mut pieces, piece);
            pass(model, &mut acts, batch, Some(Told::someone(&mut take)));
            assert_eq!(names(&pieces), names(&expected), "{label}, {what}: the order is that without a pass");
            assert_eq!(trained(model), plain, "{label}, {what}: the same bits as a pass that tells nobody");
            for (name, grad) in pieces.iter().flatten() {
                let last = plain.iter().find(|(other, _)| other == name).expect("trained");
                assert_eq!(*grad, last.1, "{label}, {what}: {name} was finished when it was told");
            }
            if label.ends_with("everything") && what == "with pictures" {
                assert!(pieces.iter().flatten().all(|(_, grad)| grad.iter().any(|v| *v != 0.0)), "{label}");
            }
        }
    });
}

#[test]
fn layers_are_told_from_the_top_and_the_tied_embedding_after_them() {
    let mut model = model(&roots()[0], "tiny-qwen3vl");
    model.set_trainable(Parts::ALL);
    let pieces = order(&mut model);
    let at = |part: &str| pieces.iter().position(|piece| piece[0].0.contains(part)).expect(part);
    let layers = model.text.layers.len();
    assert_eq!(at("language_model.norm"), 0);
    for index in 0..layers {
        assert_eq!(at(&format!("language_model.layers.{index}.")), layers - index);
    }
    assert_eq!(at("embed_tokens"), layers + 1);
    assert_eq!(at("visual.merger"), layers + 2);
    let blocks: Vec<usize> =
        (0..model.vision.blocks.len()).map(|index| at(&format!("visual.blocks.{index}."))).collect();
    assert!(blocks.is_sorted_by(|lower, upper| lower > upper), "{blocks:?}");
    for (k, &block) in model.config.vision.deepstack_visual_indexes.iter().enumerate() {
        assert_eq!(at(&format!("deepstack_merger_list.{k}.")) + 1, blocks[block]);
    }
    assert_eq!(at("patch_embed"), pieces.len() - 1);
}

#[test]
fn processes_with_more_fewer_or_no_micro_batches_take_the_same_pieces() {
    let mut model = model(&roots()[0], "tiny-qwen3vl");
    model.set_trainable(Parts::ALL);
    let [with, without] = batches(&model);
    let mut acts = Activations::new(&model.config);
    let mut step = |micro_batches: &[&Batch]| {
        start(&mut model);
        let mut pieces = Pieces::new();
        let mut take = |piece: &mut [&mut Parameter]| note(&mut pieces, piece);
        let mut reduction = Reduction::new(&mut take);
        for (batch, left) in micro_batches.iter().zip((0..micro_batches.len()).rev()) {
            let told = if left == 0 { reduction.last() } else { Told::nobody() };
            pass(&mut model, &mut acts, batch, Some(told));
        }
        reduction.finish(&mut model);
        assert!(reduction.is_finished());
        // What was taken are the sums over all micro-batches.
        let sums = trained(&model);
        for taken in pieces.iter().flatten() {
            assert!(sums.contains(taken), "{}", taken.0);
        }
        names(&pieces).into_iter().map(|piece| piece.join(" ")).collect::<Vec<_>>()
    };
    let nothing = step(&[]);
    assert!(nothing.len() > 5);
    for micro_batches in [vec![&with], vec![&without], vec![&with, &without], vec![&without, &with, &with]] {
        assert_eq!(step(&micro_batches), nothing);
    }
}
