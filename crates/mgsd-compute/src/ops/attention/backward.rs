//! The backward pass on the CPU: one task is one key-value head of one segment, so that nobody else adds to its `dk`, `dv`.

use std::ops::Range;

use super::{Layout, Mask};
use crate::math;
use crate::par::{self, Out};
use crate::product::{Into, Left, Panels, Size, pack_columns, pack_rows, packed_len, product};
use crate::simd::{kernel, panel_width, tile_rows};
use crate::tensor::Values;

/// Keys at a time.
const KEYS: usize = 252;
/// Register tiles of queries at a time.
const STRIPS: usize = 8;

pub(super) struct Given<'a> {
    pub(super) dout: &'a [f32],
    pub(super) out: &'a [f32],
    pub(super) log_sum_exp: &'a [f32],
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

pub(super) struct Wanted<'a> {
    pub(super) dq: Out<'a>,
    pub(super) dk: Out<'a>,
    pub(super) dv: Out<'a>,
}

pub(super) fn run(wanted: &Wanted, given: &Given, layout: &Layout) {
    par::tasks(layout.segments() * layout.kv_heads, |task| {
        let (segment, kv_head) = (task / layout.kv_heads, task % layout.kv_heads);
        let first = layout.bounds[segment];
        let part = Part { wanted, given, layout, first, tokens: layout.bounds[segment + 1] - first, kv_head };
        if part.tokens > 0 {
            part.run();
        }
    });
}

/// One key-value head of one segment.
struct Part<'a> {
    wanted: &'a Wanted<'a>,
    given: &'a Given<'a>,
    layout: &'a Layout<'a>,
    first: usize,
    tokens: usize,
    kv_head: usize,
}

/// Thread-owned memory: a tile's keys and values, a block's queries, and the matrices between them.
struct Scratch<'a> {
    keys_t: &'a mut [f32],
    values_t: &'a mut [f32],
    keys: &'a mut [f32],
    queries: &'a mut [f32],
    douts: &'a mut [f32],
    weights: &'a mut [f32],
    dscores: &'a mut [f32],
}

impl Part<'_> {
    fn run(&self) {
        let dim = self.layout.head_dim;
        let tile = self.tokens.min(KEYS);
        let block = tile_rows() * STRIPS;
        let ld = tile.next_multiple_of(panel_width());
        let sizes = [
            packed_len(dim, tile),
            packed_len(dim, tile),
            packed_len(tile, dim),
            packed_len(block, dim),
            packed_len(block, dim),
            block * ld,
            block * ld,
        ];
        par::with_scratch(sizes.iter().sum(), |mut rest| {
            let parts = sizes.map(|size| {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(size);
                rest = after;
                part
            });
            let [keys_t, values_t, keys, queries, douts, weights, dscores] = parts;
            let mut scratch = Scratch { keys_t, values_t, keys, queries, douts, weights, dscores };
            for start in (0..self.tokens).step_by(KEYS) {
                self.key_tile(&mut scratch, start..(start + KEYS).min(self.tokens));
            }
        });
    }

    fn key_tile(&self, scratch: &mut Scratch, tile: Range<usize>) {
        let layout = self.layout;
        let dim = layout.head_dim;
        let stride = layout.kv_heads * dim;
        let at = (self.first + tile.start) * stride + self.kv_head * dim;
        let (k, v) = (Values::F32(&self.given.k[at..]), Values::F32(&self.given.v[at..]));
        pack_columns(scratch.keys_t, k, stride, dim, tile.len());
        pack_columns(scratch.values_t, v, stride, dim, tile.len());
        pack_rows(scratch.keys, k, stride, tile.len(), dim);
        for row in 0..tile.len() {
            for to in [&self.wanted.dk, &self.wanted.dv] {
                // SAFETY: this key-value head of this segment belongs to this task.
                unsafe { to.slice(at + row * stride, dim) }.fill(0.0);
            }
        }
        let group = layout.heads / layout.kv_heads;
        let rows = tile_rows() * STRIPS;
        for member in 0..group {
            let head = self.kv_head * group + member;
            // A causal tile is seen by no query before it; blocks start where the tile starts, so that strips of queries and of
            // keys on the diagonal are the same.
            let from = match layout.mask {
                Mask::Causal => tile.start,
                Mask::Full => 0,
            };
            for start in (from..self.tokens).step_by(rows) {
                let block = start..(start + rows).min(self.tokens);
                self.block(scratch, tile.clone(), block, head);
            }
        }
    }

    /// One head's queries of `block` against the keys of `tile`.
    fn block(&self, scratch: &mut Scratch, tile: Range<usize>, block: Range<usize>, head: usize) {
        let layout = self.layout;
        let dim = layout.head_dim;
        let stride = layout.heads * dim;
        let at = (self.first + block.start) * stride + head * dim;
        let (q, dout) = (Values::F32(&self.given.q[at..]), Values::F32(&self.given.dout[at..]));
        pack_rows(scratch.queries, q, stride, block.len(), dim);
        pack_rows(scratch.douts, dout, stride, block.len(), dim);
        let ld = tile.len().next_multiple_of(panel_width());
        for strip in block.clone().step_by(tile_rows()) {
            let rows = tile_rows().min(block.end - strip);
            self.strip(scratch, tile.clone(), strip - block.start, strip..strip + rows, head, ld);
        }
        let kv_stride = layout.kv_heads * dim;
        let at = (self.first + tile.start) * kv_stride + self.kv_head * dim;
        let width = panel_width();
        // Keys before the block are seen by all of it; those inside only by the queries from their own strip on.
        let whole = match layout.mask {
            Mask::Full => tile.len(),
            Mask::Causal => (block.start - tile.start).min(tile.len()),
        };
        let seen = layout.visible(block.end, self.tokens).min(tile.end) - tile.start;
        let add = |keys: Range<usize>, skip: usize| {
            if keys.is_empty() {
                return;
            }
            let size = Size { rows: keys.len(), cols: dim, depth: block.len() - skip };
            let pairs = [
                (&self.wanted.dv, &*scratch.weights, &*scratch.douts),
                (&self.wanted.dk, &*scratch.dscores, &*scratch.queries),
            ];
            for (to, matrix, panels) in pairs {
                let left = Left::strided(matrix[skip * ld + keys.start..].as_ptr(), 1, ld);
                let right = Panels { at: panels[skip * width..].as_ptr(), stride: block.len() * width };
                let into = Into { at: to.pointer(at + keys.start * kv_stride), row_stride: kv_stride, add: true };
                // SAFETY: the matrix was written for these queries and keys, the panels for the block; the rows of this
                // key-value head belong to this task.
                unsafe { product(size, left, right, into, 1.0) };
            }
        };
        add(0..whole, 0);
        for start in (whole..seen).step_by(tile_rows()) {
            add(start..(start + tile_rows()).min(seen), start + tile.start - block.start);
        }
    }

    /// Weights, score gradients and `dq` of a few queries; `row` is their place in the block.
    fn strip(
        &self,
        scratch: &mut Scratch,
        tile: Range<usize>,
        row: usize,
        queries: Range<usize>,
        head: usize,
        ld: usize,
    ) {
        let layout = self.layout;
        let dim = layout.head_dim;
        let width = panel_width();
        let stride = layout.heads * dim;
        let at = (self.first + queries.start) * stride + head * dim;
        let seen = layout.visible(queries.end, self.tokens).min(tile.end) - tile.start;
        let size = Size { rows: queries.len(), cols: seen.next_multiple_of(width), depth: dim };
        let (weights, dscores) = (&mut scratch.weights[row * ld..], &mut scratch.dscores[row * ld..]);
        let pairs = [
            (self.given.q, &*scratch.keys_t, &mut *weights, layout.scale),
            (self.given.dout, &*scratch.values_t, &mut *dscores, 1.0),
        ];
        for (left, panels, to, alpha) in pairs {
            let left = Left::strided(left[at..].as_ptr(), stride, 1);
            let panels = Panels { at: panels.as_ptr(), stride: dim * width };
            let into = Into { at: to.as_mut_ptr(), row_stride: ld, add: false };
            assert!((size.rows - 1) * ld + size.cols <= to.len());
            // SAFETY: the queries lie in `q` and `dout`; the panels were packed for the tile, of which `seen` is a part rounded up to
            // whole panels; there is room (asserted).
            unsafe { product(size, left, panels, into, alpha) };
        }
        for (i, query) in queries.clone().enumerate() {
            let valid = match layout.mask {
                Mask::Full => seen,
                Mask::Causal => (query + 1 - tile.start).min(seen),
            };
            let place = at + i * stride..at + i * stride + dim;
            let delta = math::dot(&self.given.dout[place.clone()], &self.given.out[place]);
            let lse = self.given.log_sum_exp[(self.first + query) * layout.heads + head];
            let (p, ds) = (&mut weights[i * ld..][..seen], &mut dscores[i * ld..][..seen]);
            row_gradient(p, ds, valid, lse, delta, layout.scale);
        }
        let left = Left::strided(dscores.as_ptr(), ld, 1);
        let keys = Panels { at: scratch.keys.as_ptr(), stride: tile.len() * width };
        let into = Into { at: self.wanted.dq.pointer(at), row_stride: stride, add: tile.start > 0 };
        let size = Size { rows: queries.len(), cols: dim, depth: seen };
        // SAFETY: the score gradients were just written; the panels hold `tile.len() >= seen` rows; these rows and this head
        // of `dq` belong to this task.
        unsafe { product(size, left, keys, into, 1.0) };
    }
}

kernel! {
    /// Scores to weights and products `do·v` to score gradients, for the first `valid` keys; zero after.
    fn row_gradient<S>(p: &mut [f32], ds: &mut [f32], valid: usize, lse: f32, delta: f32, scale: f32) {
        assert!(valid <= p.len() && p.len() == ds.len());
        let (p_at, ds_at) = (p.as_mut_ptr(), ds.as_mut_ptr());
        let (lse, delta, scale) = (S::splat(lse), S::splat(delta), S::splat(scale));
        let mut i = 0;
        // Reads and writes stay below `valid`.
        while i + S::LANES <= valid {
            let w = math::exp::<S>(S::sub(S::load(p_at.add(i)), lse));
            let d = S::mul(S::mul(w, scale), S::sub(S::load(ds_at.add(i)), delta));
            S::store(p_at.add(i), w);
            S::store(ds_at.add(i), d);
            i += S::LANES;
        }
        if i < valid {
            let left = valid - i;
            let w = math::exp::<S>(S::sub(S::load_n(p_at.add(i), left), lse));
            let d = S::mul(S::mul(w, scale), S::sub(S::load_n(ds_at.add(i), left), delta));
            S::store_n(p_at.add(i), w, left);
            S::store_n(ds_at.add(i), d, left);
        }
        p[valid..].fill(0.0);
        ds[valid..].fill(0.0);
    }
}
