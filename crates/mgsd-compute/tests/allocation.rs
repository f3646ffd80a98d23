//! Once warm, operations allocate nothing.

mod common;

use std::alloc::{GlobalAlloc, Layout as Size, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Numbers, bf16, tensor};
use mgsd_compute::ops::attention::{self, KvCache, Layout, Mask};
use mgsd_compute::ops::loss::{self, Divergence, Grads, Teacher, TokenStats};
use mgsd_compute::ops::{adamw, embedding, gelu, interpolate, layer_norm, linear, rms_norm, rope, rows, swiglu};
use mgsd_compute::{Tensor, Write};

/// Counts what is larger than a job's bookkeeping.
struct Counting;

static LARGE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, size: Size) -> *mut u8 {
        if size.size() > 256 {
            LARGE.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, size: Size) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_operation_allocates_nothing() {
    // With several threads, who gets which task, and so whose scratch grows when, is chance.
    mgsd_compute::set_threads(1);
    let mut numbers = Numbers::new(1);
    let (tokens, width, inner, vocab) = (90, 64, 96, 300);
    let (x, dy) = (numbers.vec(tokens * width), numbers.vec(tokens * inner));
    let (x, dy) = (tensor(tokens, width, &x), tensor(tokens, inner, &dy));
    let head = tensor(vocab, width, &numbers.vec(vocab * width));
    let data = numbers.vec(inner * width);
    let weights = [tensor(inner, width, &data), bf16(inner, width, &data).0];
    let (mut y, mut dx, mut dw) = (Tensor::empty(), Tensor::empty(), Tensor::zeros(inner, width));
    let (mut out, mut lse, mut few) = (Tensor::empty(), Tensor::empty(), Tensor::empty());
    let (mut dq, mut dk, mut dv) = (Tensor::empty(), Tensor::empty(), Tensor::empty());
    let (norm, mut dnorm, mut dbias) = (Tensor::zeros(1, width), Tensor::zeros(1, width), Tensor::zeros(1, width));
    let mut dinner = Tensor::zeros(1, inner);
    let layout = Layout { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.25, mask: Mask::Causal, bounds: &[0, 30, 90] };
    let kv = tensor(tokens, 32, &numbers.vec(tokens * 32));
    let mut cache = KvCache::new(2, 64, 2, 16);
    let (one_q, one_kv) = (tensor(2, 64, &numbers.vec(128)), tensor(2, 32, &numbers.vec(64)));
    let (cos, sin) = (Tensor::zeros(tokens, 8), Tensor::zeros(tokens, 8));
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let taps: Vec<interpolate::Taps> = ids.iter().map(|i| [(*i, 0.25); 4]).collect();
    let (mut stats, mut log_prob, scale) = (TokenStats::default(), Vec::new(), vec![0.1; tokens]);
    let (mut dhead, mut m, mut v) =
        (Tensor::zeros(vocab, width), Tensor::zeros(vocab, width), Tensor::zeros(vocab, width));
    let mut param = tensor(vocab, width, &numbers.vec(vocab * width));
    let settings = adamw::AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut round = || {
        for weight in &weights {
            linear::forward(&mut y, &x, weight, None, 1.0, Write::Set);
            linear::backward_input(&mut dx, &dy, weight, 1.0, Write::Set);
            linear::forward(&mut few, &one_q, weight, None, 1.0, Write::Set);
        }
        linear::backward_weight(&mut dw, &dy, &x, 1.0);
        linear::backward_bias(&mut dinner, &dy);
        rms_norm::forward(&mut out, &x, &norm, 1e-6);
        rms_norm::backward(&mut dx, Some(&mut dnorm), &x, &x, &norm, 1e-6, Write::Set);
        layer_norm::forward(&mut out, &x, &norm, &norm, 1e-6);
        let params = Some((&mut dnorm, &mut dbias));
        layer_norm::backward(&mut dx, params, &x, &x, &norm, 1e-6, Write::Set);
        swiglu::forward(&mut out, &x, &x);
        swiglu::backward(&mut dx, &mut dq, None, &x, &x, &x);
        gelu::forward(&mut out, &x, gelu::Gelu::Erf);
        gelu::backward(&mut dx, &x, &x, gelu::Gelu::Tanh);
        embedding::forward(&mut out, &ids, &head);
        embedding::backward(&mut dhead, &ids, &x, None);
        rows::gather(&mut out, &x, &ids);
        rows::scatter(&mut out, &x, &ids, Write::Add);
        interpolate::forward(&mut out, &head, &taps, Write::Set);
        interpolate::backward(&mut dhead, &x, &taps);
        attention::forward(&mut out, &mut lse, &x, &kv, &kv, &layout);
        attention::backward(&mut dq, &mut dk, &mut dv, &x, &out, &lse, &x, &kv, &kv, &layout);
        cache.store(&one_kv, &one_kv, &[0, 1], &[3, 4]);
        attention::decode(&mut few, &one_q, &cache, &[0, 1], &[4, 5], 4, 0.25);
        rope::forward(&mut dq, &cos, &sin);
        let grads = Grads { dhidden: &mut dx, dhead: Some(&mut dhead) };
        loss::cross_entropy(&mut stats, &x, &head, &ids, &scale, Some(grads));
        for top_k in [None, Some(5)] {
            let teacher = Teacher { hidden: &x, head: &head, top_k };
            let grads = Grads { dhidden: &mut dx, dhead: Some(&mut dhead) };
            let kind = Divergence::Jsd { beta: 0.5 };
            loss::distill(&mut stats, &mut log_prob, kind, &x, &head, &teacher, &ids, &scale, Some(grads));
        }
        adamw::step(&mut param, None, &dhead, &mut m, &mut v, &settings, 1, 1.0);
        adamw::sum_of_squares([&dhead]);
    };
    round();
    round();
    let before = LARGE.load(Ordering::Relaxed);
    round();
    assert_eq!(LARGE.load(Ordering::Relaxed) - before, 0, "large allocations");
}
