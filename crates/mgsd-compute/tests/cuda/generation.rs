//! What generation uses beside: a decoding step's layers and attention, recordings, the choice of tokens.

use super::{Case, Numbers, angles, gpu};
use mgsd_compute::ops::attention::{self, KvCache};
use mgsd_compute::ops::embedding;
use mgsd_compute::ops::head_norm::HeadNorm;
use mgsd_compute::ops::linear::{Layer, LowRank, few};
use mgsd_compute::ops::sample::{self, Answer, Choice};
use mgsd_compute::{Device, Dtype, Tensor};

#[test]
fn layers_of_few_rows() {
    let Some((device, _turn)) = gpu("layers_of_few_rows") else { return };
    // Rows that are whole and not, a cluster and a single block, more outputs than one round takes, and what is left to the
    // library: more than 32 rows, a width that is no multiple of 64.
    few_cases(
        device,
        &[
            (5, 2560, &[512, 128, 128]),
            (13, 9728, &[256]),
            (32, 2560, &[1024, 256, 256]),
            (32, 128, &[30_000]),
            (40, 256, &[64, 64, 64]),
            (7, 72, &[32, 16]),
        ],
    );
}

#[test]
fn small_layers_of_few_rows() {
    let Some((device, _turn)) = gpu("small_layers_of_few_rows") else { return };
    // A part of a tile, tiles of several layers.
    few_cases(device, &[(1, 64, &[8]), (8, 192, &[24, 40, 16])]);
}

/// Rows, columns and outputs of layers, without adapters and with.
fn few_cases(device: Device, shapes: &[(usize, usize, &[usize])]) {
    let mut n = Numbers(20);
    for case in Case::both(device) {
        for &(rows, width, outputs) in shapes {
            for rank in [0, 8, 24] {
                few_case(case, &mut n, (rows, width, rank), outputs);
            }
        }
    }
}

fn few_case(case: Case, n: &mut Numbers, (rows, width, rank): (usize, usize, usize), outputs: &[usize]) {
    let near = |what: &str, cpu: &Tensor, gpu: &Tensor| {
        // Input and norm are rounded together or apart, `low` is rounded, then the result.
        case.near(&format!("{what} [{rows}, {width}] rank {rank}"), cpu, gpu, 1e-5, 1e-2);
    };
    let (x, xg) = case.pair(n.tensor(rows, width, 2.0));
    let (scale, scale_g) = case.exact(n.tensor(1, width, 1.0));
    let size = (width as f32).powf(-0.5);
    let weights: Vec<_> = outputs.iter().map(|&outputs| case.pair(n.tensor(outputs, width, size))).collect();
    let a: Vec<_> = outputs.iter().map(|_| case.pair(n.tensor(rank.max(8), width, size))).collect();
    let b: Vec<_> = outputs.iter().map(|&outputs| case.pair(n.tensor(outputs, rank.max(8), 0.3))).collect();
    // With the highest rank one of the layers goes without.
    let adapted = |index| rank > 0 && (rank, index) != (24, 1);
    let adapter = |index, a, b| adapted(index).then_some(LowRank { a, b, scale: 2.0 });
    let layer = |index: usize| {
        let adapter = adapter(index, &a[index].0, &b[index].0);
        Layer { weight: &weights[index].0, bias: None, adapter }
    };
    let layer_g = |index: usize| {
        let adapter = adapter(index, &a[index].1, &b[index].1);
        Layer { weight: &weights[index].1, bias: None, adapter }
    };
    let (norm, norm_g) = (few::Norm { weight: &scale, eps: 1e-6 }, few::Norm { weight: &scale_g, eps: 1e-6 });
    let mut scratch = [few::Scratch::new(), few::Scratch::new()];
    let [on_cpu, on_gpu] = &mut scratch;
    let layers: Vec<_> = (0..outputs.len()).map(layer).collect();
    let layers_g: Vec<_> = (0..outputs.len()).map(layer_g).collect();
    let empty = || -> Vec<Tensor> { outputs.iter().map(|_| Tensor::empty()).collect() };
    let (mut y, mut yg, mut again) = (empty(), empty(), empty());
    for (norm, norm_g) in [(None, None), (Some(norm), Some(norm_g))] {
        few::project(&mut y.iter_mut().collect::<Vec<_>>(), &x, norm, &layers, on_cpu);
        few::project(&mut yg.iter_mut().collect::<Vec<_>>(), &xg, norm_g, &layers_g, on_gpu);
        few::project(&mut again.iter_mut().collect::<Vec<_>>(), &xg, norm_g, &layers_g, on_gpu);
        for ((y, yg), again) in y.iter().zip(&yg).zip(&again) {
            near("project", y, yg);
            assert_eq!(yg.to_vec(), again.to_vec(), "the same bits every time");
        }
        let (mut gated, mut gated_g) = (Tensor::empty(), Tensor::empty());
        few::gate_up(&mut gated, &x, norm, layer(0), layer(0), on_cpu);
        few::gate_up(&mut gated_g, &xg, norm_g, layer_g(0), layer_g(0), on_gpu);
        near("gate_up", &gated, &gated_g);
    }
    let (base, base_g) = case.pair(n.tensor(rows, outputs[0], 1.0));
    let (mut sum, mut sum_g) = (Tensor::empty(), Tensor::empty());
    few::project_add(&mut sum, &base, &x, layer(0), on_cpu);
    few::project_add(&mut sum_g, &base_g, &xg, layer_g(0), on_gpu);
    near("project_add", &sum, &sum_g);
}

#[test]
fn recorded_work_reads_its_lists_as_they_are_now() {
    let Some((device, _turn)) = gpu("recorded_work_reads_its_lists_as_they_are_now") else { return };
    let Device::Cuda(gpu) = device else { return };
    let mut n = Numbers(11);
    let (table, there) = Case { device, dtype: Dtype::F32 }.exact(n.tensor(40, 64, 1.0));
    let mut ids = n.below(40, 16);
    let (mut y, mut yg) = (Tensor::empty(), Tensor::empty());
    embedding::forward(&mut yg, &ids, &there);
    let graph = gpu.record(|| embedding::forward(&mut yg, &ids, &there));
    for _ in 0..3 {
        // As many other lists as training steps use in between.
        let others: Vec<Vec<u32>> = (0..300).map(|_| n.below(40, 16)).collect();
        let mut other = Tensor::empty();
        others.iter().for_each(|list| embedding::forward(&mut other, list, &there));
        ids.copy_from_slice(&n.below(40, 16));
        gpu.refresh(&ids);
        graph.launch();
        embedding::forward(&mut y, &ids, &table);
        assert_eq!(y.to_vec(), yg.to_vec());
    }
}

#[test]
fn attention_to_a_cache() {
    let Some((device, _turn)) = gpu("attention_to_a_cache") else { return };
    let mut n = Numbers(6);
    for case in Case::both(device) {
        for (heads, kv_heads, head_dim) in [(4, 2, 32), (8, 2, 128)] {
            let lengths = [1u32, 17, 64, 200];
            let slots = [2u32, 0, 3, 1];
            let total = lengths.iter().sum::<u32>() as usize;
            let (k, kg) = case.pair(n.tensor(total, kv_heads * head_dim, 1.0));
            let (v, vg) = case.pair(n.tensor(total, kv_heads * head_dim, 1.0));
            let (q, qg) = case.pair(n.tensor(4, heads * head_dim, 1.0));
            let pairs = slots.iter().zip(lengths).flat_map(|(slot, length)| (0..length).map(move |at| (*slot, at)));
            let (slot_of, place_of): (Vec<u32>, Vec<u32>) = pairs.unzip();
            let mut cpu = KvCache::new(4, 256, kv_heads, head_dim);
            let mut gpu = KvCache::new(4, 256, kv_heads, head_dim);
            cpu.store(&k, &v, &slot_of, &place_of);
            gpu.store(&kg, &vg, &slot_of, &place_of);
            let (mut y, mut yg) = (Tensor::empty(), Tensor::empty());
            attention::decode(&mut y, &q, &cpu, &slots, &lengths, heads, 0.2);
            attention::decode(&mut yg, &qg, &gpu, &slots, &lengths, heads, 0.2);
            case.near("decode", &y, &yg, 1e-5, 1e-2);
        }
    }
}

#[test]
fn decoding_steps() {
    let Some((device, _turn)) = gpu("decoding_steps") else { return };
    let mut n = Numbers(10);
    for case in Case::both(device) {
        // The last has so many rows that none is divided among blocks.
        for (rows, heads, kv_heads, head_dim) in [(9, 4, 2, 32), (9, 8, 2, 128), (9, 2, 1, 72), (150, 4, 2, 128)] {
            let slots: Vec<u32> = (0..rows).rev().map(|slot| slot as u32).collect();
            let mut lengths: Vec<u32> = [1, 2, 16, 17, 33, 64, 65, 200, 255].into_iter().cycle().take(rows).collect();
            let earlier = slots.iter().zip(&lengths).flat_map(|(slot, length)| (0..length - 1).map(|at| (*slot, at)));
            let (slot_of, place_of): (Vec<u32>, Vec<u32>) = earlier.unzip();
            let mut caches = [(); 2].map(|()| KvCache::new(rows, 256, kv_heads, head_dim));
            let [cache, cache_gpu] = &mut caches;
            let (k, kg) = case.pair(n.tensor(slot_of.len(), kv_heads * head_dim, 1.0));
            let (v, vg) = case.pair(n.tensor(slot_of.len(), kv_heads * head_dim, 1.0));
            cache.store(&k, &v, &slot_of, &place_of);
            cache_gpu.store(&kg, &vg, &slot_of, &place_of);
            let ((qw, qwg), (kw, kwg)) =
                (case.exact(n.tensor(1, head_dim, 1.0)), case.exact(n.tensor(1, head_dim, 1.0)));
            // The second step reads what the first has stored.
            for step in ["decoding step", "next decoding step"] {
                let (q, qg) = case.pair(n.tensor(rows, heads * head_dim, 1.0));
                let (k, kg) = case.pair(n.tensor(rows, kv_heads * head_dim, 1.0));
                let (v, vg) = case.pair(n.tensor(rows, kv_heads * head_dim, 1.0));
                let [(cos, cg), (sin, sg)] = angles(&mut n, &case, rows, head_dim / 2);
                let cpu = HeadNorm { q_weight: &qw, k_weight: &kw, cos: &cos, sin: &sin, eps: 1e-6 };
                let gpu = HeadNorm { q_weight: &qwg, k_weight: &kwg, cos: &cg, sin: &sg, eps: 1e-6 };
                let places: Vec<u32> = lengths.iter().map(|length| length - 1).collect();
                let mut room = [(); 4].map(|()| Tensor::empty());
                let [a, b, c, d] = &mut room;
                let [mut out, mut out_gpu] = [(); 2].map(|()| Tensor::empty());
                attention::decode_step(&mut out, [a, b], cache, [&q, &k, &v], &cpu, &slots, &places, &lengths, 0.2);
                let raw = [&qg, &kg, &vg];
                attention::decode_step(&mut out_gpu, [c, d], cache_gpu, raw, &gpu, &slots, &places, &lengths, 0.2);
                case.near(step, &out, &out_gpu, 1e-5, 1e-2);
                lengths.iter_mut().for_each(|length| *length += 1);
            }
        }
    }
}

/// The token in whose part of the distribution `choice.uniform` lies, and by how much of the whole it is inside.
fn chosen(logits: &[f32], choice: &Choice) -> (usize, f64) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - highest) / f64::from(choice.temperature)).exp();
    let mut order: Vec<f32> = logits.to_vec();
    order.sort_by(|a, b| b.total_cmp(a));
    let mut least = f32::NEG_INFINITY;
    if choice.top_k > 0.0 {
        least = order[choice.top_k as usize - 1];
    }
    if choice.top_p < 1.0 {
        let kept = || order.iter().copied().filter(|x| *x >= least);
        let wanted = f64::from(choice.top_p) * kept().map(weight).sum::<f64>();
        let mut sum = 0.0;
        least = kept()
            .find(|x| {
                sum += weight(*x);
                sum >= wanted
            })
            .unwrap_or(least);
    }
    if choice.min_p > 0.0 {
        least = least.max(highest + choice.min_p.ln() * choice.temperature);
    }
    let weights: Vec<f64> = logits.iter().map(|x| if *x >= least { weight(*x) } else { 0.0 }).collect();
    let total: f64 = weights.iter().sum();
    let wanted = f64::from(choice.uniform) * total;
    let mut sum = 0.0;
    for (token, weight) in weights.iter().enumerate() {
        if wanted < sum + weight {
            return (token, (wanted - sum).min(sum + weight - wanted) / total);
        }
        sum += weight;
    }
    (logits.len() - 1, 0.0)
}

#[test]
fn next_tokens() {
    let Some((device, _turn)) = gpu("next_tokens") else { return };
    let Device::Cuda(gpu) = device else { return };
    let mut n = Numbers(11);
    // One block a row and a cluster; rows whose ends are not those of their blocks, and blocks without room of their own.
    for (vocab, spread) in [(7, 1.0), (600, 3.0), (8195, 2.0), (151_936, 3.0), (400_003, 3.0)] {
        let settings = [
            (0.0, 0.0, 1.0, 0.0),
            (1.0, 0.0, 1.0, 0.0),
            (0.6, 0.0, 0.95, 0.0),
            (0.7, 5.0, 0.8, 0.0),
            (1.3, 0.0, 1.0, 0.05),
        ];
        let logits = n.tensor(25, vocab, spread);
        let there = logits.to_device(device, Dtype::F32);
        // Two answers under way, and the tokens as what goes in next.
        let (mut answer, next) = (Answer::new(gpu, 25), vec![0; 25]);
        let mut ask = |answer: &mut Answer| {
            let place = answer.place();
            let choice = |row: usize| {
                let (temperature, top_k, top_p, min_p) = settings[row % settings.len()];
                Choice { temperature, top_k, top_p, min_p, uniform: n.uniform(), place }
            };
            let choices: Vec<Choice> = (0..25).map(choice).collect();
            sample::sample(answer, &there, &choices, Some(&next));
            answer.expect();
            choices
        };
        let asked = [ask(&mut answer), ask(&mut answer)];
        for choices in &asked {
            check_tokens(&logits, choices, answer.read());
        }
        let numbers = Tensor::from_vec(vocab, 8, (0..vocab).flat_map(|id| [id as f32; 8]).collect());
        let (numbers, mut found) = (numbers.to_device(device, Dtype::F32), Tensor::empty());
        embedding::forward(&mut found, &next, &numbers);
        let again: Vec<Choice> = asked[1].iter().map(|choice| Choice { place: answer.place(), ..*choice }).collect();
        sample::sample(&answer, &there, &again, None);
        answer.expect();
        let chosen: Vec<f32> = answer.read().0.iter().map(|token| *token as f32).collect();
        assert_eq!(found.to_vec().iter().copied().step_by(8).collect::<Vec<_>>(), chosen);
        gpu.changed(&next);
        embedding::forward(&mut found, &next, &numbers);
        assert!(found.to_vec().iter().all(|number| *number == 0.0), "a changed list was not sent again");
    }
}

/// Whether `tokens` and `log_probs` are those that `choices` mean.
fn check_tokens(logits: &Tensor, choices: &[Choice], (tokens, log_probs): (&[u32], &[f32])) {
    let vocab = logits.cols();
    let mut near_an_edge = 0;
    for (row, choice) in choices.iter().enumerate() {
        let logits = &logits.as_slice()[row * vocab..][..vocab];
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = match choice.temperature {
            0.0 => logits.iter().position(|x| *x == highest).unwrap_or(0),
            _ => {
                let (token, inside) = chosen(logits, choice);
                // Sums of 32-bit floats may put an edge a little elsewhere.
                if inside < 1e-5 {
                    near_an_edge += 1;
                    continue;
                }
                token
            }
        };
        assert_eq!(tokens[row] as usize, expected, "row {row} of {vocab}: {choice:?}");
        let sum: f64 = logits.iter().map(|x| f64::from(x - highest).exp()).sum();
        let log_prob = f64::from(logits[expected] - highest) - sum.ln();
        assert!((f64::from(log_probs[row]) - log_prob).abs() < 1e-4, "row {row} of {vocab}: {log_prob}");
    }
    assert!(near_an_edge < 20, "{near_an_edge} of 20 rows of {vocab} tell nothing");
}
