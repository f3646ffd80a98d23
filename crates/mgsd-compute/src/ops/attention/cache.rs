//! Keys and values of sequences that are being generated.

use super::cuda::{Cached, Fresh};
use super::forward::softmax_row;
use crate::ops::head_norm::{self, HeadNorm};
use crate::par::{self, Out};
use crate::product::{Into, Left, Panels, Size, product};
use crate::simd::panel_width;
use crate::{Dtype, Tensor, check};

/// Keys and values of many sequences for generation, one slot a sequence, up to `capacity` tokens each.
///
/// Memory is taken when the first keys are stored, on their device. On the CPU both are kept as the matrix kernel wants its
/// right side, per slot and head: keys in panels of positions (`[capacity / width][head_dim][width]`), values in panels of
/// columns (`[head_dim / width][capacity][width]`).
pub struct KvCache {
    keys: Tensor,
    values: Tensor,
    slots: usize,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvCache {
    /// Room for `slots` sequences of `capacity` tokens.
    pub fn new(slots: usize, capacity: usize, kv_heads: usize, head_dim: usize) -> Self {
        let capacity = capacity.next_multiple_of(panel_width());
        Self { keys: Tensor::empty(), values: Tensor::empty(), slots, capacity, kv_heads, head_dim }
    }

    /// Takes memory where the first keys come from.
    fn settle(&mut self, k: &Tensor) {
        if !self.keys.is_empty() {
            return;
        }
        let width = if k.gpu().is_some() { 1 } else { panel_width() };
        // Never-written keys must be finite: their scores are computed with their panel's, and dropped.
        let zeros = |cols| Tensor::zeros_on(k.device(), k.dtype(), self.slots * self.kv_heads, cols);
        let (keys, values) = (self.capacity * self.head_dim, self.capacity * self.head_dim.next_multiple_of(width));
        (self.keys, self.values) = (zeros(keys), zeros(values));
    }

    fn cached(&self) -> Cached<'_> {
        let Self { keys, values, capacity, kv_heads, head_dim, .. } = self;
        Cached { keys, values, capacity: *capacity, kv_heads: *kv_heads, head_dim: *head_dim }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens that a slot has room for (what was asked for, rounded up).
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Copies rows of `k`/`v` (`[tokens, kv_heads * head_dim]`): row `i` goes to `slots[i]` at `positions[i]`.
    pub fn store(&mut self, k: &Tensor, v: &Tensor, slots: &[u32], positions: &[u32]) {
        let op = "KvCache::store";
        let (tokens, dim, width) = (k.rows(), self.head_dim, panel_width());
        check::shape(op, "k", k, tokens, self.kv_heads * dim);
        check::shape(op, "v", v, tokens, self.kv_heads * dim);
        check::length(op, "slots", slots.len(), tokens);
        check::length(op, "positions", positions.len(), tokens);
        self.settle(k);
        if let Some(gpu) = k.gpu() {
            return self.cached().store(gpu, k, v, slots, positions);
        }
        let (k, v) = (k.as_slice(), v.as_slice());
        let (key_len, value_len) = (self.keys.cols(), self.values.cols());
        let (keys, values) = (self.keys.as_mut_slice(), self.values.as_mut_slice());
        for (token, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
            let (slot, position) = (slot as usize, position as usize);
            assert!(
                slot < self.slots && position < self.capacity,
                "{op}: row {token} goes to slot {slot}, position {position}; there are {} slots of {}",
                self.slots,
                self.capacity
            );
            for head in 0..self.kv_heads {
                let from = (token * self.kv_heads + head) * dim;
                let place = slot * self.kv_heads + head;
                let at = place * key_len + position / width * width * dim + position % width;
                for (d, x) in k[from..from + dim].iter().enumerate() {
                    keys[at + d * width] = *x;
                }
                let at = place * value_len + position * width;
                for (panel, x) in v[from..from + dim].chunks(width).enumerate() {
                    let at = at + panel * self.capacity * width;
                    values[at..at + x.len()].copy_from_slice(x);
                }
            }
        }
    }
}

/// One new token per row against its slot's cache: row `i` attends to positions `0..lengths[i]` of `slots[i]` (its own
/// key already stored). `q, out: [rows, heads * head_dim]`.
pub fn decode(out: &mut Tensor, q: &Tensor, cache: &KvCache, slots: &[u32], lengths: &[u32], heads: usize, scale: f32) {
    let op = "attention::decode";
    let rows = q.rows();
    check::shape(op, "q", q, rows, heads * cache.head_dim);
    check::length(op, "slots", slots.len(), rows);
    check::length(op, "lengths", lengths.len(), rows);
    assert!(
        heads.is_multiple_of(cache.kv_heads),
        "{op}: {heads} heads must be a multiple of {} key-value heads",
        cache.kv_heads
    );
    assert!(rows == 0 || !cache.keys.is_empty(), "{op}: nothing was stored in this cache yet");
    if let Some(gpu) = q.gpu() {
        out.place(q, rows, q.cols());
        return cache.cached().decode(gpu, out, q, None, slots, lengths, heads, scale);
    }
    for (row, (&slot, &length)) in slots.iter().zip(lengths).enumerate() {
        assert!(
            (slot as usize) < cache.slots && length > 0 && length as usize <= cache.capacity,
            "{op}: row {row} wants {length} positions of slot {slot}; there are {} slots of {}",
            cache.slots,
            cache.capacity
        );
    }
    out.resize(rows, q.cols());
    let out = Out::new(out.as_mut_slice());
    let q = q.as_slice();
    // About this many multiplications are worth a task of their own.
    const WORK: usize = 128 * 1024;
    let longest = lengths.iter().copied().max().unwrap_or(1) as usize;
    let work = longest * heads / cache.kv_heads * cache.head_dim * 2;
    let pairs = rows * cache.kv_heads;
    let together = (WORK / work.max(1)).clamp(1, pairs.max(1));
    par::tasks(pairs.div_ceil(together), |task| {
        for pair in task * together..((task + 1) * together).min(pairs) {
            let (row, kv_head) = (pair / cache.kv_heads, pair % cache.kv_heads);
            one(out, q, cache, row, kv_head, slots[row] as usize, lengths[row] as usize, heads, scale);
        }
    });
}

/// A decoding step from what the projections gave: row `i` of `q`, `k` (before norm and rotation) and `v` stands at position
/// `positions[i] = lengths[i] - 1` of `slots[i]`, no slot twice; its key and value are stored there, and its queries attend
/// to `0..lengths[i]`. `normed` is room for queries and keys on their way.
#[allow(clippy::too_many_arguments)] // Queries, keys and values, and where they go.
pub fn decode_step(
    out: &mut Tensor,
    normed: [&mut Tensor; 2],
    cache: &mut KvCache,
    [q, k, v]: [&Tensor; 3],
    norm: &HeadNorm,
    slots: &[u32],
    positions: &[u32],
    lengths: &[u32],
    scale: f32,
) {
    let op = "attention::decode_step";
    norm.check(op, q, k);
    check::shape(op, "k", k, q.rows(), cache.kv_heads * cache.head_dim);
    check::same(op, "v", v, "k", k);
    check::length(op, "slots", slots.len(), q.rows());
    check::length(op, "lengths", lengths.len(), q.rows());
    let heads = q.cols() / cache.head_dim;
    if let Some(gpu) = q.gpu().filter(|_| q.dtype() == Dtype::Bf16) {
        cache.settle(k);
        out.place(q, q.rows(), q.cols());
        return cache.cached().decode(gpu, out, q, Some(Fresh { k, v, norm }), slots, lengths, heads, scale);
    }
    let [q_normed, k_normed] = normed;
    head_norm::forward(q_normed, k_normed, q, k, norm);
    cache.store(k_normed, v, slots, positions);
    decode(out, q_normed, cache, slots, lengths, heads, scale);
}

/// The heads of one key-value head of one row.
#[allow(clippy::too_many_arguments)]
fn one(
    out: Out,
    q: &[f32],
    cache: &KvCache,
    row: usize,
    kv_head: usize,
    slot: usize,
    length: usize,
    heads: usize,
    scale: f32,
) {
    let (dim, width) = (cache.head_dim, panel_width());
    let group = heads / cache.kv_heads;
    let at = (row * heads + kv_head * group) * dim;
    let place = slot * cache.kv_heads + kv_head;
    let keys = &cache.keys.as_slice()[place * cache.keys.cols()..][..cache.keys.cols()];
    let values = &cache.values.as_slice()[place * cache.values.cols()..][..cache.values.cols()];
    let ld = length.next_multiple_of(width);
    par::with_scratch(group * ld, |scores| {
        let left = Left::strided(q[at..at + group * dim].as_ptr(), dim, 1);
        let right = Panels { at: keys.as_ptr(), stride: dim * width };
        let into = Into { at: scores.as_mut_ptr(), row_stride: ld, add: false };
        let size = Size { rows: group, cols: ld, depth: dim };
        // SAFETY: `group` heads of `dim` numbers lie at `at`; `ld <= capacity`, a whole number of panels; `scores` fits.
        unsafe { product(size, left, right, into, scale) };
        for scores in scores.chunks_exact_mut(ld) {
            let mut state = [f32::NEG_INFINITY, 0.0];
            softmax_row(scores, length, &mut state);
            let factor = 1.0 / state[1];
            scores[..length].iter_mut().for_each(|x| *x *= factor);
        }
        let left = Left::strided(scores.as_ptr(), ld, 1);
        let right = Panels { at: values.as_ptr(), stride: cache.capacity * width };
        let into = Into { at: out.pointer(at), row_stride: dim, add: false };
        let size = Size { rows: group, cols: dim, depth: length };
        // SAFETY: the scores were just written; `length <= capacity`; these heads of this row belong to this call.
        unsafe { product(size, left, right, into, 1.0) };
    });
}
