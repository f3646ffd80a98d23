//! The pass forward and generation against numbers from transformers.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::*;
use mgsd_compute::Tensor;
use mgsd_compute::ops::loss;
use mgsd_model::batch::Batch;
use mgsd_model::generate::{Finish, Generator, Request};
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Activations, Keep, Qwen3Vl};
use mgsd_model::sampling::Sampling;

const CASES: [&str; 8] = [
    "case1_text",
    "case1_text_untied",
    "case2_image",
    "case2_image_untied",
    "case3_two_images",
    "case4_leftpad",
    "case4_rightpad",
    "case5_mixed",
];

/// Runs `test` on every stored case.
fn each_case(test: impl Fn(&str, &Qwen3Vl, &Arrays, &Rows)) {
    let mut seen = 0;
    for root in roots() {
        for case in CASES {
            let path = root.join(format!("fixtures/{case}.safetensors"));
            if path.is_file() {
                let stored = arrays(path);
                let model = checkpoint(&root, case);
                let rows = rows(&stored, "in.", model.config.vision_start_token_id);
                test(case, &model, &stored, &rows);
                seen += 1;
            }
        }
    }
    assert!(seen >= 7, "only {seen} cases were found");
}

fn checkpoint(root: &Path, case: &str) -> Qwen3Vl {
    model(root, if case.ends_with("untied") { "tiny-qwen3vl-untied" } else { "tiny-qwen3vl" })
}

fn packed(model: &Qwen3Vl, rows: &Rows) -> Batch {
    let mut batch = Batch::new(&model.config);
    for prompt in &rows.prompts {
        batch.push(prompt).expect("a stored case is a good prompt");
    }
    batch
}

#[test]
fn positions_and_rope_deltas_are_those_of_transformers() {
    each_case(|case, model, stored, rows| {
        let batch = packed(model, rows);
        let expected = integers(stored, "position_ids");
        let plane = expected.len() / 3;
        for (token, &at) in rows.places.iter().enumerate() {
            let place = [0, 1, 2].map(|axis| expected[axis * plane + at] as u32);
            assert_eq!(batch.positions[token], place, "{case}, token {token}");
        }
        assert_eq!(batch.rope_deltas, integers(stored, "rope_deltas"), "{case}");
    });
}

#[test]
fn every_intermediate_tensor_agrees_with_transformers() {
    each_case(|case, model, stored, rows| {
        let batch = packed(model, rows);
        let mut acts = Activations::new(&model.config);
        let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        model.forward_observed(&batch, &mut acts, Adapter::On, &mut |tap, tensor| {
            found.insert(tap.name(), tensor.to_vec());
        });
        let minus = |found: &BTreeMap<String, Vec<f32>>, left: &str, right: &str| -> Vec<f32> {
            found[left].iter().zip(&found[right]).map(|(l, r)| l - r).collect()
        };
        for (name, left, right) in [
            ("vision.pos_embed", "vision.block0.in", "vision.patch_embed"),
            ("vision.block0.attn.out", "vision.block0.mid", "vision.block0.in"),
            ("text.layer0.self_attn.out", "text.layer0.mid", "text.layer0.in"),
            ("text.layer0.mlp.out", "text.layer0.out", "text.layer0.mid"),
        ] {
            if found.contains_key(left) {
                found.insert(name.into(), minus(&found, left, right));
            }
        }
        let mut compared = 0;
        for (name, array) in stored.iter().filter(|(n, _)| n.starts_with("vision.") || n.starts_with("text.")) {
            let expected = if name.starts_with("text.") { rows.packed(array) } else { floats(stored, name).to_vec() };
            let label = format!("{case} {name}");
            if name.ends_with(".cos") || name.ends_with(".sin") {
                let width = array.shape[array.shape.len() - 1];
                assert_near(&label, &found[name], &left_half(&expected, width), 5e-6);
            } else {
                assert_relative(&label, &found[name], &expected, 1e-5);
            }
            compared += 1;
        }
        assert!(compared >= 6, "{case}: {compared} tensors compared");
    });
}

#[test]
fn logits_agree_with_transformers_kept_or_not() {
    each_case(|case, model, stored, rows| {
        let batch = packed(model, rows);
        let mut acts = Activations::new(&model.config);
        let expected = rows.packed(&stored["logits"]);
        for keep in [Keep::Nothing, Keep::ForBackward] {
            model.forward(&batch, &mut acts, Adapter::Off, keep);
            let mut logits = Tensor::empty();
            loss::logits(&mut logits, acts.hidden(), &model.head().value);
            assert_near(&format!("{case} logits"), &logits.to_vec(), &expected, 1.5e-4);
        }
    });
}

#[test]
fn greedy_generation_gives_the_ids_of_transformers_however_requests_share_the_slots() {
    each_case(|case, model, stored, rows| {
        let Some(generated) = stored.get("generated") else { return };
        let steps = generated.shape[1];
        let requests: Vec<Request> =
            rows.prompts.iter().map(|prompt| request(prompt.clone(), Sampling::greedy(), steps)).collect();
        // The same requests twice over, so that slots are filled again.
        let twice = [requests.clone(), requests].concat();
        for slots in [1, 3, 8] {
            let answers =
                Generator::new(&model.config, slots).generate(model, &twice, Adapter::On, &mut |_| {}).expect(case);
            for (index, answer) in answers.iter().enumerate() {
                let row = index % rows.prompts.len();
                let expected = &integers(stored, "generated")[row * steps..(row + 1) * steps];
                let found: Vec<i64> = answer.ids.iter().map(|&id| i64::from(id)).collect();
                assert_eq!(found, expected, "{case}, row {row}, {slots} slots");
                assert_eq!(answer.finish, Finish::Length);
                if let Some(logits) = stored.get("generated_logits") {
                    let vocab = logits.shape[2];
                    let logits = &logits.as_f32().expect("floats")[row * steps * vocab..(row + 1) * steps * vocab];
                    for (step, logits) in logits.chunks_exact(vocab).enumerate() {
                        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
                        let expected = f64::from(logits[answer.ids[step] as usize]) - sum.ln();
                        assert!((f64::from(answer.log_probs[step]) - expected).abs() < 1e-4, "{case} step {step}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_generator_gives_the_same_answers_again_after_its_rows_became_few() {
    each_case(|case, model, _, rows| {
        // Of different lengths, so that the rows of a step become few before they are many again.
        let requests: Vec<Request> = (0..5)
            .map(|i| request(rows.prompts[i % rows.prompts.len()].clone(), Sampling::greedy(), 2 + 3 * i))
            .collect();
        let mut generator = Generator::new(&model.config, 5);
        let first = generator.generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        let again = generator.generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        for (first, again) in first.iter().zip(&again) {
            assert_eq!(first.ids, again.ids, "{case}");
        }
    });
}

#[test]
fn answers_that_end_or_are_withdrawn_leave_the_others_as_they_are() {
    each_case(|case, model, _, rows| {
        let prompt = |i: usize| rows.prompts[i % rows.prompts.len()].clone();
        let mut requests: Vec<Request> =
            (0..7).map(|i| request(prompt(i), Sampling::policy(i as u64), 8 + 3 * (i % 4))).collect();
        let mut generator = Generator::new(&model.config, 1);
        let alone = generator.generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        let mut expected: Vec<Vec<u32>> = alone.into_iter().map(|answer| answer.ids).collect();
        for (i, (request, ids)) in requests.iter_mut().zip(&mut expected).enumerate() {
            if i % 2 == 1 {
                request.stop = vec![ids[2 + i]];
                let end = ids.iter().position(|id| *id == request.stop[0]).expect("it is there");
                ids.truncate(end + 1);
            }
        }
        let mut generator = Generator::new(&model.config, 3);
        generator.make_room(requests.iter().map(|r| r.prompt.ids.len() + r.max_new_tokens).max().unwrap_or(0));
        let numbers: Vec<usize> = requests.iter().map(|r| generator.submit(r.clone()).expect(case)).collect();
        // Two that would go on for longer.
        let withdrawn = [(0, 3), (2, 5)];
        let mut found = vec![Vec::new(); requests.len()];
        while !generator.is_idle() {
            generator.step(model, Adapter::On, &mut |event| found[event.request].push(event.token)).expect(case);
            for (index, after) in withdrawn {
                if found[index].len() == after {
                    generator.cancel(numbers[index]);
                }
            }
        }
        withdrawn.iter().for_each(|&(index, after)| expected[index].truncate(after));
        assert_eq!(found, expected, "{case}");
    });
}

fn request(prompt: mgsd_model::processor::Prompt, sampling: Sampling, max_new_tokens: usize) -> Request {
    Request { prompt: Arc::new(prompt), sampling, max_new_tokens, stop: Vec::new() }
}

#[test]
fn cached_generation_scores_as_a_whole_pass_does() {
    each_case(|case, model, _, rows| {
        let requests: Vec<Request> =
            rows.prompts.iter().enumerate().map(|(i, p)| request(p.clone(), Sampling::policy(i as u64), 20)).collect();
        let answers =
            Generator::new(&model.config, 4).generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        let mut batch = Batch::new(&model.config);
        let (mut targets, mut index) = (Vec::new(), Vec::new());
        for (prompt, answer) in rows.prompts.iter().zip(&answers) {
            let start = batch.push_with(prompt, &answer.ids).expect(case);
            let first = start + prompt.ids.len() - 1;
            index.extend((first..first + answer.ids.len()).map(|at| at as u32));
            targets.extend_from_slice(&answer.ids);
        }
        let mut acts = Activations::new(&model.config);
        model.forward(&batch, &mut acts, Adapter::On, Keep::Nothing);
        let mut hidden = Tensor::empty();
        mgsd_compute::ops::rows::gather(&mut hidden, acts.hidden(), &index);
        let mut stats = loss::TokenStats::default();
        loss::log_probs(&mut stats, &hidden, &model.head().value, &targets);
        let cached: Vec<f32> = answers.iter().flat_map(|a| a.log_probs.iter().copied()).collect();
        assert_near(case, &cached, &stats.log_prob, 1e-4);
    });
}

#[test]
fn a_seed_gives_the_same_response_alone_and_in_company() {
    each_case(|case, model, _, rows| {
        let sampling = |seed| Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::policy(seed) };
        let requests: Vec<Request> =
            (0..6).map(|i| request(rows.prompts[0].clone(), sampling(i), 8 + i as usize)).collect();
        let mut generator = Generator::new(&model.config, 4);
        let together = generator.generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        for (request, together) in requests.iter().zip(&together) {
            let alone = generator.generate(model, std::slice::from_ref(request), Adapter::On, &mut |_| {}).expect(case);
            assert_eq!(alone[0].ids, together.ids, "{case}");
        }
        assert!(together.iter().any(|answer| answer.ids[..8] != together[0].ids[..8]), "{case}: seeds must matter");
    });
}

#[test]
fn a_prompt_that_several_requests_share_is_run_once_and_answered_as_if_it_were_run_for_each() {
    each_case(|case, model, _, rows| {
        let sampling = |seed| Sampling { temperature: 0.9, ..Sampling::policy(seed) };
        let shared: Vec<Arc<_>> = rows.prompts.iter().cloned().map(Arc::new).collect();
        // Of each prompt two that are the same object and one that is only equal to it, mixed.
        let requests: Vec<Request> = (0..3 * shared.len())
            .map(|i| {
                let prompt = &shared[i % shared.len()];
                let prompt = if i < shared.len() { Arc::new(prompt.as_ref().clone()) } else { Arc::clone(prompt) };
                Request { prompt, sampling: sampling(i as u64), max_new_tokens: 12, stop: Vec::new() }
            })
            .collect();
        let tokens = |requests: &[Request]| requests.iter().map(|r| r.prompt.ids.len() as u64).sum::<u64>();
        let distinct = shared.iter().enumerate().filter(|(i, p)| shared[..*i].iter().all(|other| other != *p));
        let once = distinct.map(|(_, prompt)| prompt.ids.len() as u64).sum::<u64>();
        let mut together = Generator::new(&model.config, requests.len());
        let answers = together.generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        assert_eq!(together.prefilled_tokens(), once, "{case}");
        let mut alone = Generator::new(&model.config, 1);
        let each = alone.generate(model, &requests, Adapter::On, &mut |_| {}).expect(case);
        assert_eq!(alone.prefilled_tokens(), tokens(&requests), "{case}");
        for (answer, each) in answers.iter().zip(&each) {
            assert_eq!(answer.ids, each.ids, "{case}");
            assert_near(case, &answer.log_probs, &each.log_probs, 1e-4);
        }
    });
}

#[test]
fn a_stop_token_ends_the_response_and_is_its_last_token() {
    let root = &roots()[0];
    let model = checkpoint(root, "case1_text");
    let stored = arrays(root.join("fixtures/case1_text.safetensors"));
    let rows = rows(&stored, "in.", model.config.vision_start_token_id);
    let expected: Vec<u32> = integers(&stored, "generated").iter().map(|&id| id as u32).collect();
    let stop = expected[5];
    let first = expected.iter().position(|&id| id == stop).expect("it is there");
    let request = Request { stop: vec![stop], ..request(rows.prompts[0].clone(), Sampling::greedy(), 24) };
    let mut events = Vec::new();
    let answers = Generator::new(&model.config, 2)
        .generate(&model, &[request], Adapter::On, &mut |e| events.push(e))
        .expect("generates");
    assert_eq!(answers[0].ids, expected[..=first]);
    assert_eq!(answers[0].content(), &expected[..first]);
    assert_eq!(answers[0].finish, Finish::Stop);
    assert_eq!(events.iter().map(|e| e.token).collect::<Vec<_>>(), answers[0].ids);
    assert_eq!(events.last().map(|e| e.finish), Some(Some(Finish::Stop)));
}

#[test]
fn a_trace_holds_what_the_reference_holds_under_the_same_names() {
    let root = &roots()[0];
    let case = "case3_two_images";
    let model = checkpoint(root, case);
    let stored = arrays(root.join(format!("fixtures/{case}.safetensors")));
    let rows = rows(&stored, "in.", model.config.vision_start_token_id);
    let trace = mgsd_model::trace::trace(&model, &rows.prompts[0], 24).expect("traces");
    for name in ["input_ids", "pixel_values", "image_grid_thw"] {
        assert_eq!(trace[name], stored[&format!("in.{name}")], "{name}");
    }
    for name in ["position_ids", "rope_deltas", "generated"] {
        assert_eq!(trace[name], stored[name], "{name}");
    }
    for (name, array) in &trace {
        let Some(expected) = stored.get(name) else { continue };
        assert_eq!(array.shape, expected.shape, "{name}");
        if let (Some(found), Some(expected)) = (array.as_f32(), expected.as_f32()) {
            assert_relative(name, found, expected, 1e-5);
        }
    }
    for name in ["logits", "vision.merger", "vision.deepstack2", "text.layer3.out", "text.final_norm", "text.cos"] {
        assert!(trace.contains_key(name), "{name}");
    }
}

#[test]
fn wrong_prompts_are_refused_in_words() {
    let root = &roots()[0];
    let model = checkpoint(root, "case1_text");
    let mut batch = Batch::new(&model.config);
    let prompt = |ids: Vec<u32>| mgsd_model::processor::Prompt { ids, images: Vec::new() };
    let said = |result: mgsd_model::error::Result<usize>| result.expect_err("must fail").to_string();
    assert!(said(batch.push(&prompt(vec![1, 600]))).contains("600"));
    assert!(said(batch.push(&prompt(vec![]))).contains("empty"));
    assert!(said(batch.push(&prompt(vec![1, 552, 2]))).contains("image"));
    assert_eq!((batch.tokens(), batch.sequences()), (0, 0), "a refused sequence leaves nothing behind");
    let mut generator = Generator::new(&model.config, 2);
    let bad = Request {
        sampling: Sampling { top_p: 0.0, ..Sampling::policy(0) },
        ..request(prompt(vec![1, 2]), Sampling::greedy(), 4)
    };
    let error = generator.generate(&model, &[bad], Adapter::On, &mut |_| {}).expect_err("must fail");
    assert!(error.to_string().contains("top_p"), "{error}");
    let good = request(prompt(vec![1, 2]), Sampling::greedy(), 4);
    assert_eq!(generator.generate(&model, &[good], Adapter::On, &mut |_| {}).expect("still works")[0].ids.len(), 4);
}
