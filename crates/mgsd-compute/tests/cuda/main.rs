//! Every operation on a GPU against its twin on the CPU, on random numbers of odd sizes. Without a GPU nothing is
//! tested, and each test says so.
//!
//! Bounds are on `‖gpu - cpu‖ / ‖cpu‖`. With 32-bit floats the two differ by the order of their sums: 2e-6 for single
//! passes, 1e-5 where several are chained. With bfloat16 the inputs are rounded before both, so that what remains is the
//! rounding of results, relative 2⁻⁸ = 4e-3 at most: 4e-3 for one rounding, 8e-3 for two (a bias added to a rounded
//! product, the gradient of logits before that of states), and 1e-2 to 1.5e-2 for attention, which rounds probabilities
//! too.

mod generation;
mod layers;
mod thin;

use std::sync::{Mutex, MutexGuard};

use mgsd_compute::ops::attention::{self, Layout, Mask};
use mgsd_compute::ops::gelu::{self, Gelu};
use mgsd_compute::ops::head_norm::{self, HeadNorm};
use mgsd_compute::ops::loss::{self, Clip, Divergence, Grads, Teacher, TokenStats};
use mgsd_compute::ops::{adamw, embedding, interpolate, layer_norm, linear, rms_norm, rope, rows, swiglu};
use mgsd_compute::{Device, Dtype, Tensor, Write};

/// One thread at a time asks a GPU for work.
static TURN: Mutex<()> = Mutex::new(());

/// The GPU for as long as the guard lives, or a word that there is none.
fn gpu(test: &str) -> Option<(Device, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match Device::parse("cuda") {
        Ok(device) => Some((device, turn)),
        Err(why) => {
            eprintln!("skipped {test}: {why}");
            None
        }
    }
}

/// Numbers of a simple generator, about normal.
struct Numbers(u64);

impl Numbers {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn tensor(&mut self, rows: usize, cols: usize, scale: f32) -> Tensor {
        let one = |n: &mut Self| (0..6).map(|_| n.uniform()).sum::<f32>() - 3.0;
        Tensor::from_vec(rows, cols, (0..rows * cols).map(|_| one(self) * scale * 1.4).collect())
    }

    fn below(&mut self, bound: usize, count: usize) -> Vec<u32> {
        (0..count).map(|_| (self.uniform() * bound as f32) as u32 % bound as u32).collect()
    }
}

/// One test's device and type.
#[derive(Clone, Copy)]
struct Case {
    device: Device,
    dtype: Dtype,
}

impl Case {
    fn both(device: Device) -> [Case; 2] {
        [Dtype::F32, Dtype::Bf16].map(|dtype| Case { device, dtype })
    }

    /// The tensor rounded to the type under test, on the CPU and on the GPU.
    fn pair(self, x: Tensor) -> (Tensor, Tensor) {
        let there = x.to_device(self.device, self.dtype);
        (Tensor::from_vec(x.rows(), x.cols(), there.to_vec()), there)
    }

    /// A tensor that is F32 everywhere.
    fn exact(self, x: Tensor) -> (Tensor, Tensor) {
        let there = x.to_device(self.device, Dtype::F32);
        (x, there)
    }

    fn bound(self, f32: f64, bf16: f64) -> f64 {
        if self.dtype == Dtype::F32 { f32 } else { bf16 }
    }

    #[track_caller]
    fn near(self, what: &str, cpu: &Tensor, gpu: &Tensor, f32: f64, bf16: f64) {
        assert_eq!(cpu.shape(), gpu.shape(), "{what}");
        self.near_lists(what, &cpu.to_vec(), &gpu.to_vec(), self.bound(f32, bf16));
    }

    #[track_caller]
    fn near_lists(self, what: &str, cpu: &[f32], gpu: &[f32], bound: f64) {
        let square = |x: f64| x * x;
        let difference: f64 = cpu.iter().zip(gpu).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let size: f64 = cpu.iter().map(|a| square(f64::from(*a))).sum();
        let relative = (difference / size.max(1e-30)).sqrt();
        assert!(relative <= bound, "{what} in {:?}: relative error {relative:.2e}, bound {bound:.2e}", self.dtype);
    }
}

const SIZES: [(usize, usize); 4] = [(1, 8), (3, 128), (77, 64), (130, 2560)];

#[test]
fn norms() {
    let Some((device, _turn)) = gpu("norms") else { return };
    let mut n = Numbers(1);
    for case in Case::both(device) {
        // The latter: more groups than blocks, and threads that keep two and four pieces of a group.
        for (rows, cols) in SIZES.into_iter().chain([(1500, 520), (530, 5120), (300, 12288)]) {
            for group in [cols, cols.min(64)] {
                if cols % group != 0 || group % 8 != 0 {
                    continue;
                }
                let (x, xg) = case.pair(n.tensor(rows, cols, 1.0));
                let (dy, dyg) = case.pair(n.tensor(rows, cols, 1.0));
                let (w, wg) = case.exact(n.tensor(1, group, 1.0));
                let (b, bg) = case.exact(n.tensor(1, group, 1.0));
                let (mut y, mut yg) = (Tensor::empty(), Tensor::empty());
                rms_norm::forward(&mut y, &x, &w, 1e-6);
                rms_norm::forward(&mut yg, &xg, &wg, 1e-6);
                case.near("rms_norm", &y, &yg, 2e-6, 4e-3);
                let (mut dx, mut dxg) = case.pair(n.tensor(rows, cols, 1.0));
                let (mut dw, mut dwg) = case.exact(n.tensor(1, group, 1.0));
                rms_norm::backward(&mut dx, Some(&mut dw), &dy, &x, &w, 1e-6, Write::Add);
                rms_norm::backward(&mut dxg, Some(&mut dwg), &dyg, &xg, &wg, 1e-6, Write::Add);
                case.near("rms_norm dx", &dx, &dxg, 2e-6, 4e-3);
                case.near("rms_norm dweight", &dw, &dwg, 1e-5, 1e-5);
                layer_norm::forward(&mut y, &x, &w, &b, 1e-6);
                layer_norm::forward(&mut yg, &xg, &wg, &bg, 1e-6);
                case.near("layer_norm", &y, &yg, 4e-6, 4e-3);
                let (mut db, mut dbg) = case.exact(n.tensor(1, group, 1.0));
                layer_norm::backward(&mut dx, Some((&mut dw, &mut db)), &dy, &x, &w, 1e-6, Write::Set);
                layer_norm::backward(&mut dxg, Some((&mut dwg, &mut dbg)), &dyg, &xg, &wg, 1e-6, Write::Set);
                case.near("layer_norm dx", &dx, &dxg, 1e-5, 4e-3);
                case.near("layer_norm dweight", &dw, &dwg, 1e-5, 1e-5);
                case.near("layer_norm dbias", &db, &dbg, 1e-5, 1e-5);
            }
        }
    }
}

#[test]
fn linear_layers() {
    let Some((device, _turn)) = gpu("linear_layers") else { return };
    let mut n = Numbers(2);
    for case in Case::both(device) {
        for (tokens, inputs, outputs) in [(1, 8, 16), (5, 64, 24), (33, 2560, 96), (130, 192, 640)] {
            let (x, xg) = case.pair(n.tensor(tokens, inputs, 1.0));
            let (w, wg) = case.pair(n.tensor(outputs, inputs, 0.1));
            let (dy, dyg) = case.pair(n.tensor(tokens, outputs, 1.0));
            let (mut y, mut yg) = case.pair(n.tensor(tokens, outputs, 1.0));
            linear::forward(&mut y, &x, &w, None, 0.5, Write::Add);
            linear::forward(&mut yg, &xg, &wg, None, 0.5, Write::Add);
            case.near("linear added", &y, &yg, 2e-6, 4e-3);
            let (base, base_gpu) = case.pair(n.tensor(tokens, outputs, 1.0));
            // Of the type of the result a bias is part of the product, else it is added to what was rounded.
            for (b, bg) in [case.exact(n.tensor(1, outputs, 1.0)), case.pair(n.tensor(1, outputs, 1.0))] {
                let (mut y, mut yg) = (Tensor::empty(), Tensor::empty());
                linear::forward(&mut y, &x, &w, Some(&b), 1.0, Write::Set);
                linear::forward(&mut yg, &xg, &wg, Some(&bg), 1.0, Write::Set);
                case.near("linear", &y, &yg, 2e-6, 8e-3);
                linear::forward_onto(&mut y, &base, &x, &w, Some(&b));
                linear::forward_onto(&mut yg, &base_gpu, &xg, &wg, Some(&bg));
                case.near("linear onto", &y, &yg, 2e-6, 8e-3);
            }
            let (mut dx, mut dxg) = case.pair(n.tensor(tokens, inputs, 1.0));
            linear::backward_input(&mut dx, &dy, &w, 2.0, Write::Add);
            linear::backward_input(&mut dxg, &dyg, &wg, 2.0, Write::Add);
            case.near("linear dx", &dx, &dxg, 2e-6, 4e-3);
            let (mut dw, mut dwg) = case.exact(n.tensor(outputs, inputs, 1.0));
            linear::backward_weight(&mut dw, &dy, &x, 0.7);
            linear::backward_weight(&mut dwg, &dyg, &xg, 0.7);
            case.near("linear dweight", &dw, &dwg, 5e-6, 5e-6);
            let (mut db, mut dbg) = case.exact(n.tensor(1, outputs, 1.0));
            linear::backward_bias(&mut db, &dy);
            linear::backward_bias(&mut dbg, &dyg);
            case.near("linear dbias", &db, &dbg, 5e-6, 5e-6);
        }
    }
}

#[test]
fn pointwise() {
    let Some((device, _turn)) = gpu("pointwise") else { return };
    let mut n = Numbers(3);
    for case in Case::both(device) {
        for (rows, cols) in SIZES {
            let (a, ag) = case.pair(n.tensor(rows, cols, 2.0));
            let (b, bg) = case.pair(n.tensor(rows, cols, 2.0));
            let (d, dg) = case.pair(n.tensor(rows, cols, 1.0));
            let (mut y, mut yg) = (Tensor::empty(), Tensor::empty());
            swiglu::forward(&mut y, &a, &b);
            swiglu::forward(&mut yg, &ag, &bg);
            case.near("swiglu", &y, &yg, 2e-6, 4e-3);
            let (mut z, mut zg) = (Tensor::empty(), Tensor::empty());
            let (mut again, mut again_gpu) = (Tensor::empty(), Tensor::empty());
            swiglu::backward(&mut y, &mut z, Some(&mut again), &d, &a, &b);
            swiglu::backward(&mut yg, &mut zg, Some(&mut again_gpu), &dg, &ag, &bg);
            case.near("swiglu again", &again, &again_gpu, 2e-6, 4e-3);
            case.near("swiglu dgate", &y, &yg, 2e-6, 4e-3);
            case.near("swiglu dup", &z, &zg, 2e-6, 4e-3);
            for kind in [Gelu::Erf, Gelu::Tanh] {
                gelu::forward(&mut y, &a, kind);
                gelu::forward(&mut yg, &ag, kind);
                case.near("gelu", &y, &yg, 2e-6, 4e-3);
                gelu::backward(&mut y, &d, &a, kind);
                gelu::backward(&mut yg, &dg, &ag, kind);
                case.near("gelu dx", &y, &yg, 4e-6, 4e-3);
            }
            let (mut y, mut yg) = case.pair(n.tensor(rows, cols, 1.0));
            y.add_scaled(&a, -0.3);
            yg.add_scaled(&ag, -0.3);
            case.near("add_scaled", &y, &yg, 2e-6, 4e-3);
            y.fill(0.5);
            yg.fill(0.5);
            case.near("fill", &y, &yg, 0.0, 0.0);
        }
        for (tokens, heads, half) in [(1, 1, 4), (9, 4, 16), (65, 3, 64), (7, 2, 36)] {
            let (mut x, mut xg) = case.pair(n.tensor(tokens, heads * 2 * half, 1.0));
            let angles = n.tensor(tokens, half, 3.0).to_vec();
            let table = |f: fn(f32) -> f32| Tensor::from_vec(tokens, half, angles.iter().map(|a| f(*a)).collect());
            let ((cos, cg), (sin, sg)) = (case.exact(table(f32::cos)), case.exact(table(f32::sin)));
            rope::forward(&mut x, &cos, &sin);
            rope::forward(&mut xg, &cg, &sg);
            case.near("rope", &x, &xg, 2e-6, 4e-3);
            let (mut x, mut xg) = case.pair(x);
            rope::backward(&mut x, &cos, &sin);
            rope::backward(&mut xg, &cg, &sg);
            case.near("rope back", &x, &xg, 2e-6, 4e-3);
        }
    }
}

#[test]
fn tables_and_rows() {
    let Some((device, _turn)) = gpu("tables_and_rows") else { return };
    let mut n = Numbers(4);
    for case in Case::both(device) {
        for (count, width) in [(1, 8), (50, 64), (300, 264)] {
            let (table, there) = case.pair(n.tensor(40, width, 1.0));
            let ids = n.below(40, count);
            let (mut y, mut yg) = (Tensor::empty(), Tensor::empty());
            embedding::forward(&mut y, &ids, &table);
            embedding::forward(&mut yg, &ids, &there);
            case.near("embedding", &y, &yg, 0.0, 0.0);
            let (d, dg) = case.pair(n.tensor(count, width, 1.0));
            let (mut dt, mut dtg) = case.exact(n.tensor(40, width, 1.0));
            embedding::backward(&mut dt, &ids, &d, Some(ids[0]));
            embedding::backward(&mut dtg, &ids, &dg, Some(ids[0]));
            case.near("embedding back", &dt, &dtg, 2e-6, 2e-6);
            rows::gather(&mut y, &table, &ids);
            rows::gather(&mut yg, &there, &ids);
            case.near("gather", &y, &yg, 0.0, 0.0);
            let distinct: Vec<u32> = (0..40).rev().step_by(3).collect();
            let (x, xg) = case.pair(n.tensor(distinct.len(), width, 1.0));
            for write in [Write::Set, Write::Add] {
                let (mut y, mut yg) = case.pair(n.tensor(40, width, 1.0));
                rows::scatter(&mut y, &x, &distinct, write);
                rows::scatter(&mut yg, &xg, &distinct, write);
                case.near("scatter", &y, &yg, 1e-7, 4e-3);
            }
            let (wide, wide_gpu) = case.pair(n.tensor(count, 3 * width, 1.0));
            let (mut parts, mut parts_gpu) = ([(); 3].map(|_| Tensor::empty()), [(); 3].map(|_| Tensor::empty()));
            rows::split_columns(parts.each_mut(), &wide);
            rows::split_columns(parts_gpu.each_mut(), &wide_gpu);
            case.near("split", &parts[1], &parts_gpu[1], 0.0, 0.0);
            rows::join_columns(&mut yg, parts_gpu.each_ref());
            case.near("join", &wide, &yg, 0.0, 0.0);
            let (position, position_gpu) = case.exact(n.tensor(40, width, 1.0));
            let taps: Vec<_> = (0..count).map(|_| [(); 4].map(|()| (n.below(40, 1)[0], n.uniform()))).collect();
            let (mut y, mut yg) = case.pair(n.tensor(count, width, 1.0));
            interpolate::forward(&mut y, &position, &taps, Write::Add);
            interpolate::forward(&mut yg, &position_gpu, &taps, Write::Add);
            case.near("interpolate", &y, &yg, 2e-6, 4e-3);
            interpolate::backward(&mut dt, &d, &taps);
            interpolate::backward(&mut dtg, &dg, &taps);
            case.near("interpolate back", &dt, &dtg, 2e-6, 2e-6);
        }
    }
}

#[test]
fn attention_of_packed_sequences() {
    let Some((device, _turn)) = gpu("attention_of_packed_sequences") else { return };
    let mut n = Numbers(5);
    for case in Case::both(device) {
        for (heads, kv_heads, head_dim) in [(4, 2, 32), (2, 2, 64), (8, 2, 128), (3, 3, 72), (2, 1, 16)] {
            for bounds in [vec![0, 1], vec![0, 3, 20, 20, 149, 150], vec![0, 300]] {
                for mask in [Mask::Causal, Mask::Full] {
                    let tokens = bounds[bounds.len() - 1];
                    let scale = (head_dim as f32).powf(-0.5);
                    let layout = Layout { heads, kv_heads, head_dim, scale, mask, bounds: &bounds };
                    let (q, qg) = case.pair(n.tensor(tokens, heads * head_dim, 1.0));
                    let (k, kg) = case.pair(n.tensor(tokens, kv_heads * head_dim, 1.0));
                    let (v, vg) = case.pair(n.tensor(tokens, kv_heads * head_dim, 1.0));
                    let (d, dg) = case.pair(n.tensor(tokens, heads * head_dim, 1.0));
                    let [mut y, mut lse, mut dq, mut dk, mut dv] = [(); 5].map(|_| Tensor::empty());
                    attention::forward(&mut y, &mut lse, &q, &k, &v, &layout);
                    let [mut yg, mut lse_gpu, mut dqg, mut dkg, mut dvg] = [(); 5].map(|_| Tensor::empty());
                    attention::forward(&mut yg, &mut lse_gpu, &qg, &kg, &vg, &layout);
                    case.near("attention", &y, &yg, 1e-5, 1e-2);
                    case.near("attention lse", &lse, &lse_gpu, 1e-5, 1e-4);
                    attention::backward(&mut dq, &mut dk, &mut dv, &d, &y, &lse, &q, &k, &v, &layout);
                    attention::backward(&mut dqg, &mut dkg, &mut dvg, &dg, &yg, &lse_gpu, &qg, &kg, &vg, &layout);
                    // With one token the gradients of q and k vanish; what remains is rounding.
                    if tokens > 1 {
                        case.near("attention dq", &dq, &dqg, 1e-5, 1.5e-2);
                        case.near("attention dk", &dk, &dkg, 1e-5, 1.5e-2);
                    }
                    case.near("attention dv", &dv, &dvg, 1e-5, 1e-2);
                }
            }
        }
    }
}

/// Angles of `tokens` positions as tables of cosines and sines, `[tokens, half]`.
fn angles(n: &mut Numbers, case: &Case, tokens: usize, half: usize) -> [(Tensor, Tensor); 2] {
    let angles = n.tensor(tokens, half, 3.0).to_vec();
    let table = |f: fn(f32) -> f32| Tensor::from_vec(tokens, half, angles.iter().map(|a| f(*a)).collect());
    [case.exact(table(f32::cos)), case.exact(table(f32::sin))]
}

#[test]
fn head_norms_and_rotation() {
    let Some((device, _turn)) = gpu("head_norms_and_rotation") else { return };
    let mut n = Numbers(9);
    for case in Case::both(device) {
        for (tokens, heads, kv_heads, head_dim) in [(1, 4, 2, 32), (50, 8, 2, 128), (1500, 3, 3, 64), (9, 2, 1, 72)] {
            let (q, qg) = case.pair(n.tensor(tokens, heads * head_dim, 1.0));
            let (k, kg) = case.pair(n.tensor(tokens, kv_heads * head_dim, 1.0));
            let (mut dq, mut dqg) = case.pair(n.tensor(tokens, heads * head_dim, 1.0));
            let (mut dk, mut dkg) = case.pair(n.tensor(tokens, kv_heads * head_dim, 1.0));
            let ((qw, qwg), (kw, kwg)) =
                (case.exact(n.tensor(1, head_dim, 1.0)), case.exact(n.tensor(1, head_dim, 1.0)));
            let [(cos, cg), (sin, sg)] = angles(&mut n, &case, tokens, head_dim / 2);
            let cpu = HeadNorm { q_weight: &qw, k_weight: &kw, cos: &cos, sin: &sin, eps: 1e-6 };
            let gpu = HeadNorm { q_weight: &qwg, k_weight: &kwg, cos: &cg, sin: &sg, eps: 1e-6 };
            let [mut y, mut z, mut yg, mut zg] = [(); 4].map(|()| Tensor::empty());
            head_norm::forward(&mut y, &mut z, &q, &k, &cpu);
            head_norm::forward(&mut yg, &mut zg, &qg, &kg, &gpu);
            case.near("head norm q", &y, &yg, 2e-6, 4e-3);
            case.near("head norm k", &z, &zg, 2e-6, 4e-3);
            let [mut eq, mut ek, mut eqg, mut ekg] = [(); 4].map(|()| Tensor::empty());
            let (mut dw, mut dwg) = case.exact(n.tensor(1, head_dim, 1.0));
            head_norm::backward(&mut eq, &mut ek, [Some(&mut dw), None], &mut dq, &mut dk, &q, &k, &cpu);
            head_norm::backward(&mut eqg, &mut ekg, [Some(&mut dwg), None], &mut dqg, &mut dkg, &qg, &kg, &gpu);
            case.near("head norm dq", &eq, &eqg, 2e-6, 4e-3);
            case.near("head norm dk", &ek, &ekg, 2e-6, 4e-3);
            case.near("head norm dweight", &dw, &dwg, 1e-5, 1e-5);
        }
    }
}

/// What a loss gives, list by list.
type Results = Vec<Vec<f32>>;

#[test]
fn losses() {
    let Some((device, _turn)) = gpu("losses") else { return };
    let mut n = Numbers(7);
    for case in Case::both(device) {
        for (count, width, vocab) in [(1, 8, 16), (37, 64, 600), (70, 32, 1304)] {
            let (h, hg) = case.pair(n.tensor(count, width, 1.0));
            let (w, wg) = case.pair(n.tensor(vocab, width, 0.3));
            let (th, thg) = case.pair(n.tensor(count, width, 1.0));
            let (tw, twg) = case.pair(n.tensor(vocab, width, 0.3));
            let targets = n.below(vocab, count);
            let weights: Vec<f32> = (0..count).map(|_| n.uniform()).collect();
            let old: Vec<f32> = (0..count).map(|_| -3.0 * n.uniform()).collect();
            let advantage: Vec<f32> = (0..count).map(|_| n.uniform() - 0.5).collect();
            let teacher =
                |top_k| (Teacher { hidden: &th, head: &tw, top_k }, Teacher { hidden: &thg, head: &twg, top_k });
            let clip = Clip { low: 0.2, high: 0.3, dual: 3.0 };
            let mut runs: Vec<(String, Results, Results)> = Vec::new();
            let kinds = [Divergence::ReverseKl, Divergence::ForwardKl, Divergence::Jsd { beta: 0.3 }];
            let variants = kinds.iter().flat_map(|kind| [None, Some(5)].map(|top_k| Some((*kind, top_k))));
            for variant in [None, None].into_iter().enumerate().chain(variants.map(|v| (2, v))) {
                let mut sides = Vec::new();
                for (side, (h, w)) in [(&h, &w), (&hg, &wg)].into_iter().enumerate() {
                    let mut dh = Tensor::empty();
                    let mut dw = Tensor::zeros_on(h.device(), Dtype::F32, vocab, width);
                    let grads = Some(Grads { dhidden: &mut dh, dhead: Some(&mut dw) });
                    let (mut stats, mut theirs) = (TokenStats::default(), Vec::new());
                    match variant {
                        (0, _) => {
                            loss::cross_entropy(&mut stats, h, w, &targets, &weights, grads);
                        }
                        (1, _) => {
                            loss::policy_gradient(&mut stats, clip, h, w, &targets, &old, &advantage, &weights, grads);
                        }
                        (_, Some((kind, top_k))) => {
                            let both = teacher(top_k);
                            let teacher = if side == 0 { both.0 } else { both.1 };
                            let stats = &mut stats;
                            loss::distill(stats, &mut theirs, kind, h, w, &teacher, &targets, &weights, grads);
                        }
                        _ => unreachable!(),
                    }
                    sides.push(vec![stats.loss, stats.log_prob, stats.entropy, theirs, dh.to_vec(), dw.to_vec()]);
                }
                let gpu = sides.remove(1);
                runs.push((format!("{variant:?} of {count}x{width}x{vocab}"), sides.remove(0), gpu));
            }
            for (name, cpu, gpu) in runs {
                for (index, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
                    // Logits are 32-bit floats in both types; their gradients are rounded.
                    let bound = if index < 4 { 2e-5 } else { case.bound(2e-5, 8e-3) };
                    case.near_lists(&format!("{name}, result {index}"), cpu, gpu, bound);
                }
            }
        }
    }
}

#[test]
fn optimiser() {
    let Some((device, _turn)) = gpu("optimiser") else { return };
    let mut n = Numbers(8);
    let settings = adamw::AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    for case in Case::both(device) {
        for (rows, cols) in [(1, 5), (7, 33), (130, 640)] {
            let (mut p, mut pg) = case.pair(n.tensor(rows, cols, 1.0));
            let mut rest = adamw::rest_of(&pg);
            let ((mut m, mut mg), (mut v, mut vg)) =
                (case.exact(Tensor::zeros(rows, cols)), case.exact(Tensor::zeros(rows, cols)));
            for step in 1..=5 {
                let (g, gg) = case.exact(n.tensor(rows, cols, 0.1));
                let (cpu, gpu) = (adamw::sum_of_squares([&g, &m]), adamw::sum_of_squares([&gg, &mg]));
                assert!((cpu - gpu).abs() <= 1e-6 * cpu, "sum of squares {cpu} and {gpu}");
                adamw::step(&mut p, None, &g, &mut m, &mut v, &settings, step, 0.5);
                adamw::step(&mut pg, rest.as_mut(), &gg, &mut mg, &mut vg, &settings, step, 0.5);
            }
            case.near("adamw first moment", &m, &mg, 1e-6, 1e-6);
            case.near("adamw second moment", &v, &vg, 1e-6, 1e-6);
            // A bfloat16 parameter and its rest together are the master of 32 bits.
            let master: Vec<f32> = match &rest {
                None => pg.to_vec(),
                Some(rest) => {
                    let halves = pg.to_vec().into_iter().zip(rest.to_vec());
                    let bits = |x: f32| x.to_bits() >> 16;
                    halves
                        .map(|(high, low)| {
                            let low = i32::from(bits(low) as u16 as i16);
                            f32::from_bits((bits(high) << 16).wrapping_add_signed(low))
                        })
                        .collect()
                }
            };
            case.near_lists("adamw", &p.to_vec(), &master, 1e-6);
        }
    }
}
