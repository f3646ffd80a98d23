//! `y = alpha * x wᵀ + b`. `x: [tokens, in]`, `w: [out, in]` (F32 or Bf16), `b: [1, out]`, `y: [tokens, out]`.

use crate::{Tensor, Write, check, par};

pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod few;
pub mod layer;
pub mod thin;

/// A low-rank adapter beside a weight: `scale * (x aᵀ) bᵀ`.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rank, inputs]`
    pub a: &'a Tensor,
    /// `[outputs, rank]`
    pub b: &'a Tensor,
    /// Factor of the product.
    pub scale: f32,
}

/// `y = x wᵀ (+ bias) (+ scale * (x aᵀ) bᵀ)`
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `[outputs, inputs]`
    pub weight: &'a Tensor,
    /// `[1, outputs]`
    pub bias: Option<&'a Tensor>,
    /// What is added beside the weight.
    pub adapter: Option<LowRank<'a>>,
}

/// `out (=|+=) alpha * x wᵀ (+ bias)`; resizes `out` when `write` is `Set`.
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, alpha: f32, write: Write) {
    let op = "linear::forward";
    check::shape(op, "weight", weight, weight.rows(), x.cols());
    match write {
        Write::Set => out.place(x, x.rows(), weight.rows()),
        Write::Add => check::shape(op, "out", out, x.rows(), weight.rows()),
    }
    if let Some(bias) = bias {
        check::shape(op, "bias", bias, 1, weight.rows());
    }
    if let Some(gpu) = x.gpu() {
        return cuda::forward(gpu, out, x, weight, bias, alpha, write);
    }
    let size = cpu::Size { tokens: x.rows(), inputs: x.cols(), outputs: weight.rows() };
    cpu::forward(out.as_mut_slice(), x.as_slice(), weight.values(), size, alpha, write);
    if let Some(bias) = bias {
        let (rows, cols, bias) = (out.rows(), out.cols(), bias.as_slice());
        let out = par::Out::new(out.as_mut_slice());
        par::row_blocks(rows, cols, |first, count| {
            for row in first..first + count {
                // SAFETY: each row belongs to one task.
                let row = unsafe { out.slice(row * cols, cols) };
                crate::math::add_scaled(row, bias, 1.0);
            }
        });
    }
}

/// `out = base + x wᵀ (+ bias)`: a layer whose result is added to the stream. `base` and `out` have one shape.
pub fn forward_onto(out: &mut Tensor, base: &Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) {
    let op = "linear::forward_onto";
    check::shape(op, "base", base, x.rows(), weight.rows());
    if let Some(gpu) = x.gpu() {
        check::shape(op, "weight", weight, weight.rows(), x.cols());
        out.place(x, x.rows(), weight.rows());
        return cuda::forward_onto(gpu, out, base, x, weight, bias);
    }
    out.copy_from(base);
    forward(out, x, weight, bias, 1.0, Write::Add);
}

/// `dx (=|+=) alpha * dy w`
pub fn backward_input(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, alpha: f32, write: Write) {
    let op = "linear::backward_input";
    check::shape(op, "weight", weight, dy.cols(), weight.cols());
    match write {
        Write::Set => dx.place(dy, dy.rows(), weight.cols()),
        Write::Add => check::shape(op, "dx", dx, dy.rows(), weight.cols()),
    }
    if let Some(gpu) = dy.gpu() {
        return cuda::backward_input(gpu, dx, dy, weight, alpha, write);
    }
    let size = cpu::Size { tokens: dy.rows(), inputs: weight.cols(), outputs: weight.rows() };
    cpu::backward_input(dx.as_mut_slice(), dy.as_slice(), weight.values(), size, alpha, write);
}

/// `dw += alpha * dyᵀ x`
pub fn backward_weight(dweight: &mut Tensor, dy: &Tensor, x: &Tensor, alpha: f32) {
    let op = "linear::backward_weight";
    check::shape(op, "dweight", dweight, dy.cols(), x.cols());
    check::shape(op, "x", x, dy.rows(), x.cols());
    if let Some(gpu) = dy.gpu() {
        return cuda::backward_weight(gpu, dweight, dy, x, alpha);
    }
    let size = cpu::Size { tokens: x.rows(), inputs: x.cols(), outputs: dy.cols() };
    cpu::backward_weight(dweight.as_mut_slice(), dy.as_slice(), x.as_slice(), size, alpha);
}

/// `db += Σ_tokens dy`; `dbias: [1, out]`
pub fn backward_bias(dbias: &mut Tensor, dy: &Tensor) {
    check::shape("linear::backward_bias", "dbias", dbias, 1, dy.cols());
    if let Some(gpu) = dy.gpu() {
        return cuda::backward_bias(gpu, dbias, dy);
    }
    let (rows, cols, dy) = (dy.rows(), dy.cols(), dy.as_slice());
    par::row_blocks_summed(rows, cols, dbias.as_mut_slice(), |first, count, sums| {
        for row in first..first + count {
            crate::math::add_scaled(sums, &dy[row * cols..(row + 1) * cols], 1.0);
        }
    });
}
