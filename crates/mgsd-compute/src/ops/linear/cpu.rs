//! The three matrix products of a linear layer on the CPU.

use crate::Write;
use crate::math;
use crate::par::{self, Out};
use crate::tensor::Values;

/// `[tokens, inputs] x [outputs, inputs]ᵀ`
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) tokens: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// Rows of a result that one task computes.
const BLOCK: usize = 256;

/// A matrix and its two strides.
#[derive(Clone, Copy)]
struct Matrix {
    at: *const f32,
    row: usize,
    col: usize,
}

/// `C = beta C + alpha A B` on one thread.
///
/// # Safety
/// All three are valid for their sizes; `c` overlaps none.
unsafe fn gemm(m: usize, n: usize, k: usize, c: *mut f32, c_row: usize, add: bool, a: Matrix, b: Matrix, alpha: f32) {
    // SAFETY: as the caller promises.
    unsafe {
        gemm::gemm(
            m, n, k, c, 1, c_row as isize, add, a.at, a.col as isize, a.row as isize, b.at, b.col as isize, b.row as isize,
            1.0, alpha, false, false, false, gemm::Parallelism::None,
        );
    }
}

pub(crate) fn forward(y: &mut [f32], x: &[f32], w: Values, size: Size, alpha: f32, write: Write) {
    let Size { tokens, inputs, outputs } = size;
    let add = write == Write::Add;
    let y = Out::new(y);
    let part = |first: usize, rows: usize, out: usize, outs: usize, w: &[f32]| {
        let a = Matrix { at: x[first * inputs..].as_ptr(), row: inputs, col: 1 };
        let b = Matrix { at: w.as_ptr(), row: 1, col: inputs };
        // SAFETY: these rows and columns of `y` belong to this task.
        unsafe { gemm(rows, outs, inputs, y.pointer(first * outputs + out), outputs, add, a, b, alpha) };
    };
    match w {
        Values::F32(w) => {
            let outs_block = outputs.div_ceil(outputs.div_ceil(BLOCK).max(1));
            let rows_block = BLOCK;
            let (nr, no) = (tokens.div_ceil(rows_block), outputs.div_ceil(outs_block.max(1)));
            par::tasks(nr * no, |task| {
                let (first, out) = (task / no * rows_block, task % no * outs_block);
                let (rows, outs) = (rows_block.min(tokens - first), outs_block.min(outputs - out));
                part(first, rows, out, outs, &w[out * inputs..]);
            });
        }
        Values::Bf16(w) => widened(w, outputs, inputs, |out, outs, w| part(0, tokens, out, outs, w)),
    }
}

/// Hands out blocks of rows of `w` as `f32`.
fn widened(w: &[u16], outputs: usize, inputs: usize, work: impl Fn(usize, usize, &[f32]) + Sync) {
    const ROWS: usize = 64;
    par::tasks(outputs.div_ceil(ROWS), |task| {
        let out = task * ROWS;
        let outs = ROWS.min(outputs - out);
        par::with_scratch(outs * inputs, |wide| {
            math::widen(wide, &w[out * inputs..][..outs * inputs]);
            work(out, outs, wide);
        });
    });
}

pub(crate) fn backward_input(dx: &mut [f32], dy: &[f32], w: Values, size: Size, alpha: f32, write: Write) {
    let Size { tokens, inputs, outputs } = size;
    let add = write == Write::Add;
    let dx = Out::new(dx);
    let part = |first: usize, rows: usize, out: usize, outs: usize, w: &[f32], add: bool| {
        let a = Matrix { at: dy[first * outputs + out..].as_ptr(), row: outputs, col: 1 };
        let b = Matrix { at: w.as_ptr(), row: inputs, col: 1 };
        // SAFETY: these rows of `dx` belong to this task.
        unsafe { gemm(rows, inputs, outs, dx.pointer(first * inputs), inputs, add, a, b, alpha) };
    };
    match w {
        Values::F32(w) => par::tasks(tokens.div_ceil(BLOCK), |task| {
            let first = task * BLOCK;
            part(first, BLOCK.min(tokens - first), 0, outputs, w, add);
        }),
        Values::Bf16(w) => par::tasks(tokens.div_ceil(BLOCK), |task| {
            let first = task * BLOCK;
            let rows = BLOCK.min(tokens - first);
            const ROWS: usize = 64;
            par::with_scratch(ROWS * inputs, |wide| {
                for out in (0..outputs).step_by(ROWS) {
                    let outs = ROWS.min(outputs - out);
                    math::widen(&mut wide[..outs * inputs], &w[out * inputs..][..outs * inputs]);
                    part(first, rows, out, outs, wide, add || out > 0);
                }
            });
        }),
    }
}

pub(crate) fn backward_weight(dw: &mut [f32], dy: &[f32], x: &[f32], size: Size, alpha: f32) {
    let Size { tokens, inputs, outputs } = size;
    let dw = Out::new(dw);
    par::tasks(outputs.div_ceil(BLOCK), |task| {
        let out = task * BLOCK;
        let a = Matrix { at: dy[out.min(dy.len())..].as_ptr(), row: 1, col: outputs };
        let b = Matrix { at: x.as_ptr(), row: inputs, col: 1 };
        // SAFETY: these rows of `dw` belong to this task.
        unsafe { gemm(BLOCK.min(outputs - out), inputs, tokens, dw.pointer(out * inputs), inputs, true, a, b, alpha) };
    });
}
