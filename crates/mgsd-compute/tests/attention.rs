//! Attention against a plain f64 formula and its differences.

mod common;

use common::{Numbers, dot, same, slope, tensor};
use mgsd_compute::Tensor;
use mgsd_compute::ops::attention::{self, KvCache, Layout, Mask};

/// `(out, log_sum_exp)`
fn plain(q: &[f64], k: &[f64], v: &[f64], layout: &Layout) -> (Vec<f64>, Vec<f64>) {
    let (heads, kv_heads, dim) = (layout.heads, layout.kv_heads, layout.head_dim);
    let tokens = q.len() / (heads * dim);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; tokens * heads]);
    for bounds in layout.bounds.windows(2) {
        for i in bounds[0]..bounds[1] {
            let end = if layout.mask == Mask::Causal { i + 1 } else { bounds[1] };
            for head in 0..heads {
                let at = |x: usize| (x * kv_heads + head * kv_heads / heads) * dim;
                let mine = (i * heads + head) * dim;
                let scores: Vec<f64> = (bounds[0]..end)
                    .map(|j| layout.scale as f64 * dot(&q[mine..mine + dim], &k[at(j)..at(j) + dim]))
                    .collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                lse[i * heads + head] = top + sum.ln();
                for (j, score) in scores.iter().enumerate() {
                    let p = (score - top).exp() / sum;
                    for d in 0..dim {
                        out[mine + d] += p * v[at(bounds[0] + j) + d];
                    }
                }
            }
        }
    }
    (out, lse)
}

fn compare(heads: usize, kv_heads: usize, dim: usize, mask: Mask, bounds: &[usize], gradients: bool) {
    let tokens = *bounds.last().unwrap();
    let layout = Layout { heads, kv_heads, head_dim: dim, scale: 0.4, mask, bounds };
    let name = format!("{layout:?}");
    let mut numbers = Numbers::new(tokens as u64);
    let (q, k) = (numbers.vec(tokens * heads * dim), numbers.vec(tokens * kv_heads * dim));
    let (v, d) = (numbers.vec(k.len()), numbers.vec(q.len()));
    let (qt, dt) = (tensor(tokens, heads * dim, &q), tensor(tokens, heads * dim, &d));
    let (kt, vt) = (tensor(tokens, kv_heads * dim, &k), tensor(tokens, kv_heads * dim, &v));
    let (mut out, mut lse) = (Tensor::empty(), Tensor::empty());
    attention::forward(&mut out, &mut lse, &qt, &kt, &vt, &layout);
    let (want, want_lse) = plain(&q, &k, &v, &layout);
    same(&name, &out, &want, 3e-6);
    same(&name, &lse, &want_lse, 3e-6);
    let (mut dq, mut dk, mut dv) = (Tensor::empty(), Tensor::empty(), Tensor::empty());
    attention::backward(&mut dq, &mut dk, &mut dv, &dt, &out, &lse, &qt, &kt, &vt, &layout);
    if gradients {
        same(&name, &dq, &slope(&q, |q| dot(&plain(q, &k, &v, &layout).0, &d)), 1e-5);
        same(&name, &dk, &slope(&k, |k| dot(&plain(&q, k, &v, &layout).0, &d)), 1e-5);
        same(&name, &dv, &slope(&v, |v| dot(&plain(&q, &k, v, &layout).0, &d)), 1e-5);
    } else {
        // Long ones: the formula itself instead of differences.
        let (wq, wk, wv) = formula(&q, &k, &v, &d, &layout);
        same(&name, &dq, &wq, 1e-5);
        same(&name, &dk, &wk, 1e-5);
        same(&name, &dv, &wv, 1e-5);
    }
}

fn formula(q: &[f64], k: &[f64], v: &[f64], d: &[f64], layout: &Layout) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (out, lse) = plain(q, k, v, layout);
    let (heads, kv_heads, dim) = (layout.heads, layout.kv_heads, layout.head_dim);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for bounds in layout.bounds.windows(2) {
        for i in bounds[0]..bounds[1] {
            let end = if layout.mask == Mask::Causal { i + 1 } else { bounds[1] };
            for head in 0..heads {
                let mine = (i * heads + head) * dim;
                let delta = dot(&d[mine..mine + dim], &out[mine..mine + dim]);
                for j in bounds[0]..end {
                    let at = (j * kv_heads + head * kv_heads / heads) * dim;
                    let score = layout.scale as f64 * dot(&q[mine..mine + dim], &k[at..at + dim]);
                    let p = (score - lse[i * heads + head]).exp();
                    let ds = layout.scale as f64 * p * (dot(&d[mine..mine + dim], &v[at..at + dim]) - delta);
                    for x in 0..dim {
                        dv[at + x] += p * d[mine + x];
                        dq[mine + x] += ds * k[at + x];
                        dk[at + x] += ds * q[mine + x];
                    }
                }
            }
        }
    }
    (dq, dk, dv)
}

#[test]
fn short_segments_match_f64_and_its_differences() {
    compare(2, 2, 8, Mask::Causal, &[0, 1, 6, 13], true);
    compare(4, 2, 5, Mask::Causal, &[0, 9, 9, 16], true);
    compare(3, 1, 18, Mask::Full, &[0, 7, 12], true);
}

#[test]
fn segments_over_many_tiles_match_the_formula_in_f64() {
    compare(2, 1, 32, Mask::Causal, &[0, 5, 150], false);
    compare(2, 1, 16, Mask::Full, &[0, 130], false);
    compare(1, 1, 7, Mask::Causal, &[0, 3, 800], false);
    compare(1, 1, 7, Mask::Full, &[0, 600], false);
}

#[test]
fn decoding_token_by_token_equals_the_causal_pass() {
    let (heads, kv_heads, dim) = (4, 2, 12);
    for tokens in [1usize, 17, 40] {
        let mut numbers = Numbers::new(tokens as u64);
        let q = numbers.vec(tokens * heads * dim);
        let (k, v) = (numbers.vec(tokens * kv_heads * dim), numbers.vec(tokens * kv_heads * dim));
        let bounds = [0, tokens];
        let layout = Layout { heads, kv_heads, head_dim: dim, scale: 0.3, mask: Mask::Causal, bounds: &bounds };
        let (want, _) = plain(&q, &k, &v, &layout);
        let mut cache = KvCache::new(3, 40, kv_heads, dim);
        let mut out = Tensor::empty();
        for i in 0..tokens {
            // Slot 2 goes forward, slot 0 holds another sequence that must not matter.
            let row = |x: &[f64], cols: usize| {
                let mut both = x[i * cols..(i + 1) * cols].to_vec();
                both.extend(x[i * cols..(i + 1) * cols].iter().map(|x| x + 1.0));
                tensor(2, cols, &both)
            };
            let position = [i as u32; 2];
            cache.store(&row(&k, kv_heads * dim), &row(&v, kv_heads * dim), &[2, 0], &position);
            let length = [i as u32 + 1; 2];
            attention::decode(&mut out, &row(&q, heads * dim), &cache, &[2, 0], &length, heads, 0.3);
            let mut got = vec![0.0; heads * dim];
            out.read_rows(0, 1, &mut got);
            common::close("row", &got, &want[i * heads * dim..][..heads * dim], 3e-6);
        }
    }
}

#[test]
#[should_panic(expected = "nothing was stored in this cache yet")]
fn a_cache_without_keys_is_not_read() {
    let cache = KvCache::new(1, 8, 1, 8);
    attention::decode(&mut Tensor::empty(), &Tensor::zeros(1, 8), &cache, &[0], &[1], 1, 1.0);
}
