//! Linear layers, norms, activations, rotary embedding and tables against plain f64 formulas and their differences.

mod common;

use common::{Numbers, bf16, close, dot, plus, same, slope, tensor};
use mgsd_compute::ops::gelu::Gelu;
use mgsd_compute::ops::{embedding, gelu, interpolate, layer_norm, linear, rms_norm, rope, rows, swiglu};
use mgsd_compute::{Tensor, Write};

const FINE: f64 = 3e-6;

fn matmul(x: &[f64], w: &[f64], inputs: usize) -> Vec<f64> {
    x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(move |w| dot(x, w))).collect()
}

fn transposed(x: &[f64], cols: usize) -> Vec<f64> {
    let rows = x.len() / cols;
    (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| x[r * cols + c]).collect()
}

#[test]
fn linear_products_match_f64_for_any_size_dtype_and_write() {
    let sizes = [
        (1, 1, 1),
        (1, 256, 768),
        (2, 24, 13),
        (7, 45, 20),
        (3, 8, 5),
        (16, 100, 33),
        (17, 160, 70),
        (33, 31, 600),
        (130, 96, 257),
        (600, 40, 8),
        (523, 8, 300),
        (1100, 70, 40),
    ];
    for (case, (tokens, inputs, outputs)) in sizes.into_iter().enumerate() {
        let mut numbers = Numbers::new(case as u64);
        let (x, w) = (numbers.vec(tokens * inputs), numbers.vec(outputs * inputs));
        let (dy, b) = (numbers.vec(tokens * outputs), numbers.vec(outputs));
        let (mapped, cut) = bf16(outputs, inputs, &w);
        let (xt, dyt) = (tensor(tokens, inputs, &x), tensor(tokens, outputs, &dy));
        let name = format!("{tokens} x {inputs} -> {outputs}");
        for (weight, w) in [(tensor(outputs, inputs, &w), &w), (mapped, &cut)] {
            let y: Vec<f64> = matmul(&x, w, inputs).iter().map(|y| 0.5 * y).collect();
            let biased: Vec<f64> = y.iter().enumerate().map(|(i, y)| y + b[i % outputs]).collect();
            let bias = tensor(1, outputs, &b);
            let mut out = Tensor::empty();
            linear::forward(&mut out, &xt, &weight, Some(&bias), 0.5, Write::Set);
            same(&name, &out, &biased, FINE);
            linear::forward(&mut out, &xt, &weight, None, 0.5, Write::Add);
            same(&name, &out, &plus(&biased, &y), FINE);
            let dx = matmul(&dy, &transposed(w, inputs), outputs);
            let mut got = Tensor::empty();
            linear::backward_input(&mut got, &dyt, &weight, 1.0, Write::Set);
            same(&name, &got, &dx, FINE);
            linear::backward_input(&mut got, &dyt, &weight, 1.0, Write::Add);
            same(&name, &got, &plus(&dx, &dx), FINE);
        }
        let dw = matmul(&transposed(&dy, outputs), &transposed(&x, inputs), tokens);
        let mut got = tensor(outputs, inputs, &w);
        linear::backward_weight(&mut got, &dyt, &xt, 1.0);
        same(&name, &got, &plus(&w, &dw), FINE);
        let mut got = tensor(1, outputs, &b);
        linear::backward_bias(&mut got, &dyt);
        let db = matmul(&vec![1.0; tokens], &transposed(&dy, outputs), tokens);
        same(&name, &got, &plus(&b, &db), FINE);
    }
}

#[test]
fn a_product_has_the_same_bits_on_one_thread_and_on_many() {
    let mut numbers = Numbers::new(5);
    let (tokens, inputs, outputs) = (700, 96, 300);
    let x = tensor(tokens, inputs, &numbers.vec(tokens * inputs));
    let dy = tensor(tokens, outputs, &numbers.vec(tokens * outputs));
    let w = tensor(outputs, inputs, &numbers.vec(outputs * inputs));
    let run = |threads| {
        mgsd_compute::set_threads(threads);
        let (mut y, mut dx) = (Tensor::empty(), Tensor::empty());
        let mut dw = Tensor::zeros(outputs, inputs);
        linear::forward(&mut y, &x, &w, None, 1.0, Write::Set);
        linear::backward_input(&mut dx, &dy, &w, 1.0, Write::Set);
        linear::backward_weight(&mut dw, &dy, &x, 1.0);
        [y.to_vec(), dx.to_vec(), dw.to_vec()]
    };
    assert_eq!(run(1), run(64));
}

fn rms(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let norm = |x: &[f64]| 1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt();
    x.chunks(w.len())
        .flat_map(|x| {
            let r = norm(x);
            x.iter().zip(w).map(move |(x, w)| x * r * w)
        })
        .collect()
}

#[test]
fn rms_norm_and_its_gradients_match_f64_per_row_and_per_head() {
    for (rows, heads, group) in [(3, 1, 40), (4, 3, 8), (2, 2, 13), (70, 1, 5)] {
        let mut numbers = Numbers::new(group as u64);
        let len = rows * heads * group;
        let (x, w, d) = (numbers.vec(len), numbers.vec(group), numbers.vec(len));
        let (xt, wt) = (tensor(rows, heads * group, &x), tensor(1, group, &w));
        let dt = tensor(rows, heads * group, &d);
        let mut out = Tensor::empty();
        rms_norm::forward(&mut out, &xt, &wt, 1e-5);
        same("out", &out, &rms(&x, &w, 1e-5), FINE);
        let dx = slope(&x, |x| dot(&rms(x, &w, 1e-5), &d));
        let dw = slope(&w, |w| dot(&rms(&x, w, 1e-5), &d));
        let (mut got, mut got_w) = (Tensor::empty(), tensor(1, group, &w));
        rms_norm::backward(&mut got, Some(&mut got_w), &dt, &xt, &wt, 1e-5, Write::Set);
        same("dx", &got, &dx, FINE);
        same("dw", &got_w, &plus(&w, &dw), FINE);
        rms_norm::backward(&mut got, None, &dt, &xt, &wt, 1e-5, Write::Add);
        same("dx twice", &got, &plus(&dx, &dx), FINE);
    }
}

fn layer(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let n = w.len() as f64;
    x.chunks(w.len())
        .flat_map(|x| {
            let mean = x.iter().sum::<f64>() / n;
            let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let r = 1.0 / (var + eps).sqrt();
            x.iter().zip(w).zip(b).map(move |((x, w), b)| (x - mean) * r * w + b)
        })
        .collect()
}

#[test]
fn layer_norm_and_its_gradients_match_f64() {
    for (rows, group) in [(3, 40), (5, 8), (2, 13), (90, 3)] {
        let mut numbers = Numbers::new(group as u64);
        let (x, d) = (numbers.vec(rows * group), numbers.vec(rows * group));
        let (w, b) = (numbers.vec(group), numbers.vec(group));
        let (xt, dt) = (tensor(rows, group, &x), tensor(rows, group, &d));
        let (wt, bt) = (tensor(1, group, &w), tensor(1, group, &b));
        let mut out = Tensor::empty();
        layer_norm::forward(&mut out, &xt, &wt, &bt, 1e-6);
        same("out", &out, &layer(&x, &w, &b, 1e-6), FINE);
        let dx = slope(&x, |x| dot(&layer(x, &w, &b, 1e-6), &d));
        let dw = slope(&w, |w| dot(&layer(&x, w, &b, 1e-6), &d));
        let db = slope(&b, |b| dot(&layer(&x, &w, b, 1e-6), &d));
        let mut got = Tensor::empty();
        let (mut got_w, mut got_b) = (tensor(1, group, &w), tensor(1, group, &b));
        let params = Some((&mut got_w, &mut got_b));
        layer_norm::backward(&mut got, params, &dt, &xt, &wt, 1e-6, Write::Set);
        same("dx", &got, &dx, 1e-5);
        same("dw", &got_w, &plus(&w, &dw), FINE);
        same("db", &got_b, &plus(&b, &db), FINE);
        layer_norm::backward(&mut got, None, &dt, &xt, &wt, 1e-6, Write::Add);
        same("dx twice", &got, &plus(&dx, &dx), 1e-5);
    }
}

#[test]
fn swiglu_and_its_gradients_match_f64_far_into_both_tails() {
    let mut numbers = Numbers::new(9);
    let mut gate = numbers.vec(77);
    gate.extend([-100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 100.0]);
    let n = gate.len();
    let (up, d) = (numbers.vec(n), numbers.vec(n));
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let out = |gate: &[f64], up: &[f64]| -> Vec<f64> { gate.iter().zip(up).map(|(g, u)| silu(*g) * u).collect() };
    let (gt, ut, dt) = (tensor(1, n, &gate), tensor(1, n, &up), tensor(1, n, &d));
    let (mut got, mut dg, mut du) = (Tensor::empty(), Tensor::empty(), Tensor::empty());
    swiglu::forward(&mut got, &gt, &ut);
    same("out", &got, &out(&gate, &up), 3e-7);
    swiglu::backward(&mut dg, &mut du, None, &dt, &gt, &ut);
    same("dgate", &dg, &slope(&gate, |g| dot(&out(g, &up), &d)), 1e-6);
    same("dup", &du, &slope(&up, |u| dot(&out(&gate, u), &d)), 1e-6);
}

/// `erf` by its series, or by the continued fraction of its complement.
fn erf(x: f64) -> f64 {
    if x.abs() < 2.5 {
        let mut term = x;
        let mut sum = x;
        for n in 1..60 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let t = x.abs();
    let fraction = (1..80).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (t + f));
    x.signum() * (1.0 - (-t * t).exp() / std::f64::consts::PI.sqrt() / (t + fraction))
}

#[test]
fn both_gelus_are_within_2e_7_of_f64_and_their_slopes_within_1e_6() {
    let x: Vec<f64> = (-1200..=1200).map(|i| f64::from(f64::from(i) as f32 / 100.0)).collect();
    let exact = |x: f64| 0.5 * x * (1.0 + erf(x / 2.0f64.sqrt()));
    let tanh = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    let d = vec![1.0; x.len()];
    for (kind, f) in [(Gelu::Erf, &exact as &dyn Fn(f64) -> f64), (Gelu::Tanh, &tanh)] {
        let (xt, dt) = (tensor(1, x.len(), &x), tensor(1, x.len(), &d));
        let (mut out, mut dx) = (Tensor::empty(), Tensor::empty());
        gelu::forward(&mut out, &xt, kind);
        for (i, got) in out.to_vec().into_iter().enumerate() {
            let want = f(x[i]);
            let off = (f64::from(got) - want).abs();
            assert!(off <= 2e-7 * want.abs().max(1.0), "{kind:?}({}) = {got}, want {want}", x[i]);
        }
        gelu::backward(&mut dx, &dt, &xt, kind);
        let want: Vec<f64> = x.iter().map(|x| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5).collect();
        same("slope", &dx, &want, 1e-6);
    }
}

#[test]
fn rope_rotates_each_head_and_backward_undoes_it() {
    for half in [1, 5, 8, 16, 18] {
        let (tokens, heads) = (3, 2);
        let mut numbers = Numbers::new(half as u64);
        let x = numbers.vec(tokens * heads * 2 * half);
        let angles = numbers.vec(tokens * half);
        let cos: Vec<f64> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f64> = angles.iter().map(|a| a.sin()).collect();
        let want: Vec<f64> = (0..x.len())
            .map(|i| {
                let (token, at) = (i / (heads * 2 * half), i % (2 * half));
                let angle = token * half + at % half;
                let (c, s) = (cos[angle], sin[angle]);
                if at < half { x[i] * c - x[i + half] * s } else { x[i] * c + x[i - half] * s }
            })
            .collect();
        let (ct, st) = (tensor(tokens, half, &cos), tensor(tokens, half, &sin));
        let mut got = tensor(tokens, heads * 2 * half, &x);
        rope::forward(&mut got, &ct, &st);
        same("rotated", &got, &want, 1e-6);
        rope::backward(&mut got, &ct, &st);
        same("back", &got, &x, 1e-6);
    }
}

#[test]
fn embedding_looks_up_and_sums_gradients_of_repeated_ids_but_skips_placeholders() {
    let (vocab, width) = (7, 19);
    let mut numbers = Numbers::new(1);
    let table = numbers.vec(vocab * width);
    let ids = [3u32, 6, 3, 0, 5, 3, 6];
    let d = numbers.vec(ids.len() * width);
    let (mapped, cut) = bf16(vocab, width, &table);
    for (tensor, table) in [(tensor(vocab, width, &table), &table), (mapped, &cut)] {
        let want: Vec<f64> = ids.iter().flat_map(|id| table[*id as usize * width..][..width].to_vec()).collect();
        let mut out = Tensor::empty();
        embedding::forward(&mut out, &ids, &tensor);
        same("rows", &out, &want, 0.0);
    }
    let mut dtable = tensor(vocab, width, &table);
    embedding::backward(&mut dtable, &ids, &tensor(ids.len(), width, &d), Some(6));
    let mut want = table.clone();
    for (row, id) in ids.iter().enumerate().filter(|(_, id)| **id != 6) {
        for col in 0..width {
            want[*id as usize * width + col] += d[row * width + col];
        }
    }
    same("dtable", &dtable, &want, 1e-6);
}

#[test]
fn interpolation_and_its_gradient_match_f64() {
    let (positions, width, count) = (9, 21, 40);
    let mut numbers = Numbers::new(2);
    let table = numbers.vec(positions * width);
    let d = numbers.vec(count * width);
    let taps: Vec<interpolate::Taps> =
        (0..count).map(|_| std::array::from_fn(|_| (numbers.below(positions) as u32, numbers.next() as f32))).collect();
    let out = |table: &[f64]| -> Vec<f64> {
        let row = |taps: &interpolate::Taps, col: usize| -> f64 {
            taps.iter().map(|(row, w)| f64::from(*w) * table[*row as usize * width + col]).sum()
        };
        taps.iter().flat_map(|taps| (0..width).map(move |col| row(taps, col))).collect()
    };
    let mut got = Tensor::empty();
    interpolate::forward(&mut got, &tensor(positions, width, &table), &taps, Write::Set);
    same("out", &got, &out(&table), FINE);
    interpolate::forward(&mut got, &tensor(positions, width, &table), &taps, Write::Add);
    same("twice", &got, &plus(&out(&table), &out(&table)), FINE);
    let mut dtable = tensor(positions, width, &table);
    interpolate::backward(&mut dtable, &tensor(count, width, &d), &taps);
    let want = slope(&table, |t| dot(&out(t), &d));
    same("dtable", &dtable, &plus(&table, &want), 1e-5);
}

#[test]
fn rows_are_gathered_and_scattered() {
    let x = tensor(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut out = Tensor::empty();
    rows::gather(&mut out, &x, &[2, 0, 2]);
    close("gather", &out.to_vec(), &[5.0, 6.0, 1.0, 2.0, 5.0, 6.0], 0.0);
    let mut to = tensor(4, 2, &[1.0; 8]);
    rows::scatter(&mut to, &x, &[3, 0, 1], Write::Add);
    close("add", &to.to_vec(), &[4.0, 5.0, 6.0, 7.0, 1.0, 1.0, 2.0, 3.0], 0.0);
    rows::scatter(&mut to, &x, &[3, 0, 1], Write::Set);
    close("set", &to.to_vec(), &[3.0, 4.0, 5.0, 6.0, 1.0, 1.0, 1.0, 2.0], 0.0);
}

#[test]
#[should_panic(expected = "weight must be [4, 3], is [4, 5]")]
fn a_shape_that_does_not_fit_names_both_shapes() {
    let mut out = Tensor::empty();
    linear::forward(&mut out, &Tensor::zeros(2, 3), &Tensor::zeros(4, 5), None, 1.0, Write::Set);
}

#[test]
fn a_bf16_matrix_at_an_odd_address_reads_the_same() {
    let bits: Vec<u16> = (0..12).map(|i| 0x3f80 + i * 7).collect();
    let plain: Vec<u8> = bits.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let mut shifted = vec![0u8];
    shifted.extend(&plain);
    let at = |bytes: Vec<u8>, offset| Tensor::from_mapped_bf16(std::sync::Arc::new(bytes), offset, 3, 4).to_vec();
    assert_eq!(at(plain, 0), at(shifted, 1));
}
