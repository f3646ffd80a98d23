//! The three matrix products of a linear layer on the CPU.
//!
//! The right side is packed once for all threads, some of its columns at a time; the rows of the result are then spread. Which
//! blocks there are depends on the shapes only, and each number is summed by one thread in one order.

use crate::Write;
use crate::par::{self, Out};
use crate::product::{
    Into, Left, Panels, Size as Product, pack_columns, pack_rows, pack_tiles, packed_len, product, tiles_len,
};
use crate::simd::{panel_width, tile_rows};
use crate::tensor::Values;

mod few;

/// `[tokens, inputs] x [outputs, inputs]ᵀ`
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) tokens: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// Depth of one pass: a panel of the right side that deep stays in the first cache.
const DEPTH: usize = 256;
/// Most rows of the result in one task: that many, [`DEPTH`] deep, stay in the second cache.
const ROWS: usize = 96;
/// Least rows of one task, and what their number is a multiple of: whole register tiles.
const LEAST_ROWS: usize = 24;
/// Columns of the result at a time: with [`ROWS`] they stay in the second cache while the passes add to them.
const COLS: usize = 256;
/// Packed numbers at a time (2 MiB): they stay in the last cache.
const PACKED: usize = 512 * 1024;
/// Up to this many tokens, packing the weights costs more than it brings.
const FEW: usize = 32;

pub(crate) fn forward(y: &mut [f32], x: &[f32], w: Values, size: Size, alpha: f32, write: Write) {
    let Size { tokens, inputs, outputs } = size;
    if tokens <= FEW {
        few::forward(y, x, w, size, alpha, write);
        return;
    }
    let problem = Problem { rows: tokens, cols: outputs, depth: inputs, left: x, alpha, add: write == Write::Add };
    problem.run(y, |to, k, depth, col, cols| {
        pack_columns(to, w.from(col * inputs + k), inputs, depth, cols);
    });
}

pub(crate) fn backward_input(dx: &mut [f32], dy: &[f32], w: Values, size: Size, alpha: f32, write: Write) {
    let Size { tokens, inputs, outputs } = size;
    let problem = Problem { rows: tokens, cols: inputs, depth: outputs, left: dy, alpha, add: write == Write::Add };
    problem.run(dx, |to, k, depth, col, cols| {
        pack_rows(to, w.from(k * inputs + col), inputs, depth, cols);
    });
}

pub(crate) fn backward_weight(dw: &mut [f32], dy: &[f32], x: &[f32], size: Size, alpha: f32) {
    let Size { tokens, inputs, outputs } = size;
    if inputs == 0 || outputs == 0 {
        return;
    }
    // Tokens at a time, so that both sides packed stay small.
    let deepest = (PACKED / (inputs + outputs) / DEPTH * DEPTH).max(DEPTH).min(tokens);
    let len = tiles_len(outputs, deepest);
    par::with_scratch(len + packed_len(deepest, inputs), |scratch| {
        let (tiles, panels) = scratch.split_at_mut(len);
        for first in (0..tokens).step_by(deepest.max(1)) {
            let part = first..(first + deepest).min(tokens);
            let dy = &dy[part.start * outputs..part.end * outputs];
            let x = &x[part.start * inputs..part.end * inputs];
            weight_part(dw, dy, x, Size { tokens: part.len(), ..size }, alpha, tiles, panels);
        }
    });
}

/// Some tokens' share, packed as passes of [`DEPTH`] tokens, each a left and a right side.
fn weight_part(dw: &mut [f32], dy: &[f32], x: &[f32], size: Size, alpha: f32, tiles: &mut [f32], panels: &mut [f32]) {
    let Size { tokens, inputs, outputs } = size;
    let (high, wide) = (tiles_len(outputs, 1), packed_len(1, inputs));
    let (left, right) = (Out::new(tiles), Out::new(panels));
    const PIECE: usize = 64;
    let passes = tokens.div_ceil(DEPTH);
    // Either side is packed in pieces of columns: whole tiles and whole panels.
    let (left_piece, right_piece) = (PIECE.next_multiple_of(tile_rows()), PIECE);
    let (lefts, rights) = (outputs.div_ceil(left_piece), inputs.div_ceil(right_piece));
    par::tasks(passes * (lefts + rights), |task| {
        let (pass, piece) = (task / (lefts + rights), task % (lefts + rights));
        let k = pass * DEPTH;
        let depth = DEPTH.min(tokens - k);
        if piece < lefts {
            let row = piece * left_piece;
            let rows = left_piece.min(outputs - row);
            // SAFETY: each piece has a place of its own.
            let to = unsafe { left.slice(k * high + row * depth, tiles_len(rows, depth)) };
            pack_tiles(to, &dy[k * outputs + row..], outputs, depth, rows);
        } else {
            let col = (piece - lefts) * right_piece;
            let cols = right_piece.min(inputs - col);
            // SAFETY: each piece has a place of its own.
            let to = unsafe { right.slice(k * wide + col * depth, packed_len(depth, cols)) };
            pack_rows(to, Values::F32(&x[k * inputs + col..]), inputs, depth, cols);
        }
    });
    let dw = Out::new(dw);
    let (tiles, panels): (&[f32], &[f32]) = (tiles, panels);
    let (across, down) = (inputs.div_ceil(PIECE), outputs.div_ceil(ROWS));
    par::tasks(across * down, |task| {
        let (row, col) = (task / across * ROWS, task % across * PIECE);
        for k in (0..tokens).step_by(DEPTH) {
            let depth = DEPTH.min(tokens - k);
            let size = Product { rows: ROWS.min(outputs - row), cols: PIECE.min(inputs - col), depth };
            let left = Left::tiles(tiles[k * high + row * depth..].as_ptr(), depth);
            let right = Panels { at: panels[k * wide + col * depth..].as_ptr(), stride: depth * panel_width() };
            let into = Into { at: dw.pointer(row * inputs + col), row_stride: inputs, add: true };
            // SAFETY: both sides were packed above; this block of `dw` belongs to this task.
            unsafe { product(size, left, right, into, alpha) };
        }
    });
}

/// `C (=|+=) alpha A B`: `[rows, depth] x [depth, cols]`.
struct Problem<'a> {
    rows: usize,
    cols: usize,
    depth: usize,
    left: &'a [f32],
    alpha: f32,
    add: bool,
}

impl Problem<'_> {
    /// `pack(to, k, depth, col, cols)` packs that part of `B`.
    fn run(&self, c: &mut [f32], pack: impl Fn(&mut [f32], usize, usize, usize, usize) + Sync) {
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        if self.depth == 0 {
            if !self.add {
                c.fill(0.0);
            }
            return;
        }
        let width = panel_width();
        let c = Out::new(c);
        let block = (PACKED / self.depth / width * width).max(8 * width);
        par::with_scratch(packed_len(self.depth, block.min(self.cols)), |packed| {
            for col in (0..self.cols).step_by(block) {
                let cols = block.min(self.cols - col);
                self.pack(packed, col, cols, &pack);
                let packed: &[f32] = packed;
                // A dozen tasks where there are rows enough, so that threads of any number end together.
                let rows = (self.rows / 12).next_multiple_of(LEAST_ROWS).clamp(LEAST_ROWS, ROWS);
                par::tasks(self.rows.div_ceil(rows), |task| {
                    let rows = task * rows..((task + 1) * rows).min(self.rows);
                    self.block(c, packed, rows, col, cols);
                });
            }
        });
    }

    /// Packs columns `col..col + cols`, a pass of depth after the other.
    fn pack(
        &self,
        packed: &mut [f32],
        col: usize,
        cols: usize,
        pack: &(impl Fn(&mut [f32], usize, usize, usize, usize) + Sync),
    ) {
        let width = panel_width();
        // About this many numbers are worth a task.
        let panels = (32 * 1024 / (DEPTH * width)).max(1);
        let strips = cols.div_ceil(panels * width);
        let padded = cols.next_multiple_of(width);
        let out = Out::new(packed);
        par::tasks(strips * self.depth.div_ceil(DEPTH), |task| {
            let (k, from) = (task / strips * DEPTH, task % strips * panels * width);
            let depth = DEPTH.min(self.depth - k);
            let here = (panels * width).min(cols - from);
            // SAFETY: each task has panels of its own.
            let to = unsafe { out.slice(k * padded + from * depth, packed_len(depth, here)) };
            pack(to, k, depth, col + from, here);
        });
    }

    /// Some rows of the result, [`COLS`] of their columns at a time.
    fn block(&self, c: Out, packed: &[f32], rows: std::ops::Range<usize>, first: usize, cols: usize) {
        let width = panel_width();
        let padded = cols.next_multiple_of(width);
        for col in (0..cols).step_by(COLS) {
            for k in (0..self.depth).step_by(DEPTH) {
                let size = Product { rows: rows.len(), cols: COLS.min(cols - col), depth: DEPTH.min(self.depth - k) };
                let left = self.left[rows.start * self.depth + k..].as_ptr();
                let left = Left::strided(left, self.depth, 1);
                let panels =
                    Panels { at: packed[k * padded + col * size.depth..].as_ptr(), stride: size.depth * width };
                let into = Into {
                    at: c.pointer(rows.start * self.cols + first + col),
                    row_stride: self.cols,
                    add: self.add || k > 0,
                };
                // SAFETY: these rows and this depth lie in the left side; the panels were packed for this depth and these
                // columns; these rows of the result belong to this task.
                unsafe { product(size, left, panels, into, self.alpha) };
            }
        }
    }
}
