//! Figures of the operations on this machine, for `mgsd bench compute`.

use std::time::Instant;

use crate::ops::attention::{self, KvCache, Layout, Mask};
use crate::ops::gelu::Gelu;
use crate::ops::loss::{self, Divergence, Grads, Teacher, TokenStats};
use crate::ops::{adamw, gelu, linear, rms_norm, rope, swiglu};
use crate::{Tensor, Write};

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured, with its shape.
    pub name: String,
    /// The median of several runs.
    pub value: f64,
    /// Of `value`.
    pub unit: &'static str,
}

/// Measures everything; a few seconds.
pub fn all() -> Vec<Figure> {
    let mut figures = products();
    figures.extend(attentions());
    figures.extend(rest());
    figures
}

/// Numbers between -1 and 1 that follow no order.
fn filled(rows: usize, cols: usize) -> Tensor {
    let mut state = (rows * 31 + cols) as u32 | 1;
    let data = (0..rows * cols).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    });
    Tensor::from_vec(rows, cols, data.collect())
}

fn filled_bf16(rows: usize, cols: usize) -> Tensor {
    let halves = filled(rows, cols).to_vec();
    let bytes: Vec<u8> = halves.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_ne_bytes()).collect();
    Tensor::from_mapped_bf16(std::sync::Arc::new(bytes), 0, rows, cols)
}

/// Median seconds of one call: a tenth of a second of calls in eleven groups, after a first call unmeasured.
fn seconds(mut call: impl FnMut()) -> f64 {
    call();
    let start = Instant::now();
    call();
    let once = start.elapsed().as_secs_f64().max(1e-7);
    let repeat = (0.01 / once).ceil() as usize;
    let mut groups: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            (0..repeat).for_each(|_| call());
            start.elapsed().as_secs_f64() / repeat as f64
        })
        .collect();
    groups.sort_by(f64::total_cmp);
    groups[groups.len() / 2]
}

fn rate(name: String, work: f64, unit: &'static str, call: impl FnMut()) -> Figure {
    Figure { name, value: work / seconds(call) / 1e9, unit }
}

/// Linear layers, forward and both gradients, training and decoding, F32 and Bf16.
pub fn products() -> Vec<Figure> {
    let mut figures = Vec::new();
    let shapes =
        [(2048, 256, 256), (2048, 256, 768), (2048, 768, 256), (2048, 256, 1024), (4096, 160, 416), (512, 2560, 4096)];
    for (tokens, inputs, outputs) in shapes {
        let (x, w) = (filled(tokens, inputs), filled(outputs, inputs));
        let dy = filled(tokens, outputs);
        let (mut y, mut dx) = (Tensor::empty(), Tensor::empty());
        let mut dw = Tensor::zeros(outputs, inputs);
        let work = 2.0 * (tokens * inputs * outputs) as f64;
        let name = |what| format!("linear.{what} {tokens}x{inputs}->{outputs}");
        figures.push(rate(name("forward"), work, "GFLOP/s", || {
            linear::forward(&mut y, &x, &w, None, 1.0, Write::Set);
        }));
        figures.push(rate(name("backward_input"), work, "GFLOP/s", || {
            linear::backward_input(&mut dx, &dy, &w, 1.0, Write::Set);
        }));
        figures.push(rate(name("backward_weight"), work, "GFLOP/s", || {
            linear::backward_weight(&mut dw, &dy, &x, 1.0);
        }));
    }
    let few = [(1, 256, 768), (16, 256, 256), (16, 256, 768), (16, 768, 256), (1, 2560, 9728), (8, 2560, 9728)];
    for (tokens, inputs, outputs) in few {
        let (x, mut y) = (filled(tokens, inputs), Tensor::empty());
        for (kind, w) in [("f32", filled(outputs, inputs)), ("bf16", filled_bf16(outputs, inputs))] {
            let name = format!("linear.forward {tokens}x{inputs}->{outputs} {kind}");
            let work = 2.0 * (tokens * inputs * outputs) as f64;
            figures.push(rate(name, work, "GFLOP/s", || {
                linear::forward(&mut y, &x, &w, None, 1.0, Write::Set);
            }));
        }
    }
    figures
}

/// Attention of short and long segments and of decoding. The work counted is that of the keys that are seen.
pub fn attentions() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (segments, length, heads, kv_heads, head_dim) in [(32, 100, 8, 4, 32), (8, 256, 8, 4, 32), (1, 2048, 8, 2, 128)]
    {
        let tokens = segments * length;
        let bounds: Vec<usize> = (0..=segments).map(|i| i * length).collect();
        let layout = Layout { heads, kv_heads, head_dim, scale: 0.2, mask: Mask::Causal, bounds: &bounds };
        let (q, dout) = (filled(tokens, heads * head_dim), filled(tokens, heads * head_dim));
        let (k, v) = (filled(tokens, kv_heads * head_dim), filled(tokens + 1, kv_heads * head_dim));
        let v = Tensor::from_vec(tokens, v.cols(), v.to_vec()[..tokens * v.cols()].to_vec());
        let (mut out, mut lse) = (Tensor::empty(), Tensor::empty());
        let (mut dq, mut dk, mut dv) = (Tensor::empty(), Tensor::empty(), Tensor::empty());
        let pairs = (segments * length * (length + 1) / 2 * heads * head_dim) as f64;
        let name = |what| format!("attention.{what} {segments}x{length} heads {heads}/{kv_heads}x{head_dim}");
        figures.push(rate(name("forward"), 4.0 * pairs, "GFLOP/s", || {
            attention::forward(&mut out, &mut lse, &q, &k, &v, &layout);
        }));
        figures.push(rate(name("backward"), 10.0 * pairs, "GFLOP/s", || {
            attention::backward(&mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &layout);
        }));
    }
    let (rows, length, heads, kv_heads, dim) = (16, 160, 8, 4, 32);
    let mut cache = KvCache::new(rows, 256, kv_heads, dim);
    let (slot_of, place_of): (Vec<u32>, Vec<u32>) =
        (0..rows as u32).flat_map(|slot| (0..length).map(move |place| (slot, place))).unzip();
    let k = filled(slot_of.len(), kv_heads * dim);
    cache.store(&k, &k, &slot_of, &place_of);
    let (q, mut out) = (filled(rows, heads * dim), Tensor::empty());
    let (slots, lengths): (Vec<u32>, Vec<u32>) = (0..rows as u32).map(|i| (i, length)).unzip();
    let call = || attention::decode(&mut out, &q, &cache, &slots, &lengths, heads, 0.2);
    figures.push(Figure {
        name: format!("attention.decode {rows} rows of {length}"),
        value: seconds(call) * 1e6,
        unit: "us",
    });
    figures
}

/// What is bound by memory or by exponentials: GB/s of the tensors named by the formula, and losses in tokens/s.
pub fn rest() -> Vec<Figure> {
    let mut figures = Vec::new();
    let (tokens, width) = (2048, 768);
    let bytes = (tokens * width * 4) as f64;
    let (a, b, d) = (filled(tokens, width), filled(tokens, width), filled(tokens, width));
    let (mut out, mut out2) = (Tensor::empty(), Tensor::empty());
    let mut figure = |name: &str, passes: f64, call: &mut dyn FnMut()| {
        figures.push(rate(format!("{name} {tokens}x{width}"), passes * bytes, "GB/s", call));
    };
    figure("swiglu.forward", 3.0, &mut || swiglu::forward(&mut out, &a, &b));
    figure("swiglu.backward", 5.0, &mut || swiglu::backward(&mut out, &mut out2, None, &d, &a, &b));
    figure("gelu.forward erf", 2.0, &mut || gelu::forward(&mut out, &a, Gelu::Erf));
    figure("gelu.backward tanh", 3.0, &mut || gelu::backward(&mut out, &d, &a, Gelu::Tanh));
    for group in [width, 32] {
        let (w, mut dw) = (filled(1, group), Tensor::zeros(1, group));
        figure(&format!("rms_norm.forward /{group}"), 2.0, &mut || rms_norm::forward(&mut out, &a, &w, 1e-6));
        figure(&format!("rms_norm.backward /{group}"), 3.0, &mut || {
            rms_norm::backward(&mut out, Some(&mut dw), &d, &a, &w, 1e-6, Write::Set);
        });
    }
    // Rotations by no angle: repeated in place, others would leave the range of normal numbers.
    let (mut cos, sin) = (Tensor::zeros(tokens, 16), Tensor::zeros(tokens, 16));
    cos.fill(1.0);
    out.copy_from(&a);
    figure("rope.forward", 2.0, &mut || rope::forward(&mut out, &cos, &sin));
    let settings = adamw::AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let (mut m, mut v, mut p) = (Tensor::zeros(tokens, width), Tensor::zeros(tokens, width), filled(tokens, width));
    figure("adamw.step", 7.0, &mut || adamw::step(&mut p, None, &d, &mut m, &mut v, &settings, 10, 1.0));
    figure("adamw.sum_of_squares", 1.0, &mut || {
        std::hint::black_box(adamw::sum_of_squares([&d]));
    });
    figures.extend(losses());
    figures
}

fn losses() -> Vec<Figure> {
    let (tokens, width, vocab) = (2048, 256, 1024);
    let (hidden, head) = (filled(tokens, width), filled(vocab, width));
    let targets: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % vocab as u32).collect();
    let weights = vec![1.0 / tokens as f32; tokens];
    let (mut stats, mut log_prob) = (TokenStats::default(), Vec::new());
    let (mut dhidden, mut dhead) = (Tensor::empty(), Tensor::zeros(vocab, width));
    let mut figures = Vec::new();
    let mut figure = |name: &str, call: &mut dyn FnMut()| {
        figures.push(Figure {
            name: format!("loss.{name} {tokens}x{width}->{vocab}"),
            value: tokens as f64 / seconds(call),
            unit: "tokens/s",
        });
    };
    figure("cross_entropy", &mut || {
        let grads = Grads { dhidden: &mut dhidden, dhead: Some(&mut dhead) };
        loss::cross_entropy(&mut stats, &hidden, &head, &targets, &weights, Some(grads));
    });
    for kind in [Divergence::ReverseKl, Divergence::Jsd { beta: 0.5 }] {
        let teacher = Teacher { hidden: &hidden, head: &head, top_k: None };
        figure(&format!("distill {kind:?}"), &mut || {
            let grads = Grads { dhidden: &mut dhidden, dhead: Some(&mut dhead) };
            loss::distill(&mut stats, &mut log_prob, kind, &hidden, &head, &teacher, &targets, &weights, Some(grads));
        });
    }
    figures
}
