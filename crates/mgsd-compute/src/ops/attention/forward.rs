//! The forward pass on the CPU.

use super::{Layout, Mask};
use crate::math;
use crate::par::{self, Out};
use crate::product::{Into, Left, Panels, Size, pack_columns, pack_rows, packed_len, product};
use crate::simd::{kernel, panel_width, tile_rows};
use crate::tensor::Values;

/// Keys at a time: their packed halves stay in the second cache.
const KEYS: usize = 512;
/// Queries of one task.
const QUERIES: usize = 252;
/// More rows than a register tile has.
pub(super) const STRIP: usize = 16;

pub(super) fn run(out: Out, lse: Out, q: &[f32], k: &[f32], v: &[f32], layout: &Layout) {
    let longest = layout.bounds.windows(2).map(|b| b[1] - b[0]).max();
    let blocks = longest.unwrap_or(0).div_ceil(QUERIES);
    par::tasks(layout.segments() * layout.kv_heads * blocks, |task| {
        // The long blocks of a causal segment come first.
        let (block, rest) = (blocks - 1 - task % blocks, task / blocks);
        let (segment, kv_head) = (rest / layout.kv_heads, rest % layout.kv_heads);
        let first = layout.bounds[segment];
        let tokens = layout.bounds[segment + 1] - first;
        if block * QUERIES < tokens {
            let part = Part { first, tokens, kv_head, queries: block * QUERIES..((block + 1) * QUERIES).min(tokens) };
            part.run(out, lse, q, k, v, layout);
        }
    });
}

/// A block of queries of one segment, for the heads of one key-value head.
struct Part {
    first: usize,
    tokens: usize,
    kv_head: usize,
    queries: std::ops::Range<usize>,
}

impl Part {
    fn run(&self, out: Out, lse: Out, q: &[f32], k: &[f32], v: &[f32], layout: &Layout) {
        let dim = layout.head_dim;
        let group = layout.heads / layout.kv_heads;
        let keys = layout.visible(self.queries.end, self.tokens);
        let tile = keys.min(KEYS);
        let ld = tile.next_multiple_of(panel_width());
        let (len_k, len_v) = (packed_len(dim, tile), packed_len(tile, dim));
        let rows = group * self.queries.len();
        par::with_scratch(len_k + len_v + STRIP * ld + 2 * rows, |scratch| {
            let (packed_k, rest) = scratch.split_at_mut(len_k);
            let (packed_v, rest) = rest.split_at_mut(len_v);
            let (scores, running) = rest.split_at_mut(STRIP * ld);
            for start in (0..keys).step_by(KEYS) {
                let tile = start..(start + KEYS).min(keys);
                let at = (self.first + start) * layout.kv_heads * dim + self.kv_head * dim;
                let stride = layout.kv_heads * dim;
                pack_columns(packed_k, Values::F32(&k[at..]), stride, dim, tile.len());
                pack_rows(packed_v, Values::F32(&v[at..]), stride, tile.len(), dim);
                for member in 0..group {
                    let head = self.kv_head * group + member;
                    let running = &mut running[2 * member * self.queries.len()..];
                    self.head(out, q, packed_k, packed_v, scores, running, layout, head, tile.clone());
                }
            }
            for member in 0..group {
                let head = self.kv_head * group + member;
                for (i, query) in self.queries.clone().enumerate() {
                    let at = 2 * (member * self.queries.len() + i);
                    // SAFETY: this token and head belong to this task.
                    let lse = unsafe { lse.slice((self.first + query) * layout.heads + head, 1) };
                    lse[0] = running[at] + running[at + 1].ln();
                }
            }
        });
    }

    /// One head against one tile of keys. `running` holds (highest score, sum) of each query.
    #[allow(clippy::too_many_arguments)]
    fn head(
        &self,
        out: Out,
        q: &[f32],
        packed_k: &[f32],
        packed_v: &[f32],
        scores: &mut [f32],
        running: &mut [f32],
        layout: &Layout,
        head: usize,
        tile: std::ops::Range<usize>,
    ) {
        let dim = layout.head_dim;
        let width = panel_width();
        let stride = layout.heads * dim;
        let (first_tile, last_tile) = (tile.start == 0, tile.end == layout.visible(self.queries.end, self.tokens));
        for strip in self.queries.clone().step_by(tile_rows()) {
            let rows = tile_rows().min(self.queries.end - strip);
            let seen = layout.visible(strip + rows, self.tokens).min(tile.end);
            let depth = seen.saturating_sub(tile.start);
            let ld = depth.next_multiple_of(width);
            let at = (self.first + strip) * stride + head * dim;
            if depth > 0 {
                let queries = Left::strided(q[at..].as_ptr(), stride, 1);
                let into = Into { at: scores.as_mut_ptr(), row_stride: ld, add: false };
                assert!(rows * ld <= scores.len());
                let size = Size { rows, cols: ld, depth: dim };
                let keys = Panels { at: packed_k.as_ptr(), stride: dim * width };
                // SAFETY: `rows` queries from `strip` on lie in `q`; the panels were packed for `tile`, of which `ld` is
                // a part rounded up to whole panels; `scores` has room (asserted).
                unsafe { product(size, queries, keys, into, layout.scale) };
            }
            for row in 0..rows {
                let query = strip + row;
                let valid = match layout.mask {
                    Mask::Full => depth,
                    Mask::Causal => (query + 1).saturating_sub(tile.start).min(depth),
                };
                let state = &mut running[2 * (query - self.queries.start)..][..2];
                if first_tile {
                    state.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
                }
                let old = state[0];
                softmax_row(&mut scores[row * ld..][..depth], valid, state);
                if !first_tile && state[0] > old {
                    // SAFETY: this row and head belong to this task.
                    let out = unsafe { out.slice(at + row * stride, dim) };
                    let factor = (old - state[0]).exp();
                    out.iter_mut().for_each(|x| *x *= factor);
                }
            }
            if depth > 0 {
                let weights = Left::strided(scores.as_ptr(), ld, 1);
                let values = Panels { at: packed_v.as_ptr(), stride: tile.len() * width };
                let into = Into { at: out.pointer(at), row_stride: stride, add: !first_tile };
                let size = Size { rows, cols: dim, depth };
                // SAFETY: the weights were just written; the panels hold `tile.len() >= depth` rows; these rows and this
                // head of `out` belong to this task.
                unsafe { product(size, weights, values, into, 1.0) };
            }
            if last_tile {
                for row in 0..rows {
                    let query = strip + row - self.queries.start;
                    // SAFETY: this row and head belong to this task.
                    let out = unsafe { out.slice(at + row * stride, dim) };
                    let factor = 1.0 / running[2 * query + 1];
                    out.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
    }
}

kernel! {
    /// Scores to unnormalised weights: `x = exp(x - highest)` for the first `valid`, zero after; `state` holds the highest
    /// score and the sum of weights so far.
    pub(super) fn softmax_row<S>(x: &mut [f32], valid: usize, state: &mut [f32]) {
        let n = valid;
        assert!(n <= x.len());
        let p = x.as_mut_ptr();
        // Reads and writes stay below `n`.
        let mut top = S::splat(state[0]);
        let mut i = 0;
        while i + S::LANES <= n {
            top = S::max(top, S::load(p.add(i)));
            i += S::LANES;
        }
        let mut highest = S::highest(top);
        while i < n {
            highest = highest.max(*p.add(i));
            i += 1;
        }
        let shift = S::splat(highest);
        let mut sums = S::splat(0.0);
        let mut i = 0;
        while i + S::LANES <= n {
            let e = math::exp::<S>(S::sub(S::load(p.add(i)), shift));
            S::store(p.add(i), e);
            sums = S::add(sums, e);
            i += S::LANES;
        }
        let mut sum = S::sum(sums);
        if i < n {
            let left = n - i;
            S::store_n(p.add(i), math::exp::<S>(S::sub(S::load_n(p.add(i), left), shift)), left);
            while i < n {
                sum += *p.add(i);
                i += 1;
            }
        }
        x[n..].fill(0.0);
        if n > 0 {
            state[1] = sum + state[1] * (state[0] - highest).exp();
            state[0] = highest;
        }
    }
}
