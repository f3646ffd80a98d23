//! Row-major matrices are the transposes of what cuBLASLt calls column-major, so that the operands change places.

use crate::cuda::{Cuda, Operand, Product};
use crate::{Dtype, Tensor, Write};

fn plain(dtype: Dtype, stride: usize) -> Operand {
    Operand { dtype, stride, transposed: false }
}

fn transposed(dtype: Dtype, stride: usize) -> Operand {
    Operand { dtype, stride, transposed: true }
}

/// `out [tokens, outputs] = alpha x wᵀ + base + bias`, by pointers; `bias` is of the type of `out`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn project(
    gpu: &'static Cuda,
    (out, out_dtype): (u64, Dtype),
    base: Option<u64>,
    (x, x_dtype): (u64, Dtype),
    tokens: usize,
    weight: &Tensor,
    bias: Option<&Tensor>,
    alpha: f32,
) {
    let (inputs, outputs) = (weight.cols(), weight.rows());
    let product = Product {
        m: outputs,
        n: tokens,
        k: inputs,
        a: transposed(weight.dtype(), inputs),
        b: plain(x_dtype, inputs),
        out: plain(out_dtype, outputs),
        adds: base.is_some(),
        bias: bias.is_some(),
    };
    let bias = bias.map_or(0, Tensor::pointer);
    gpu.product(product, alpha, [weight.pointer(), x, base.unwrap_or(out), out], bias);
}

/// `dx [tokens, inputs] = alpha dy w (+ dx)`, by pointers.
pub(crate) fn unproject(
    gpu: &'static Cuda,
    (dx, dx_dtype): (u64, Dtype),
    (dy, dy_dtype): (u64, Dtype),
    tokens: usize,
    weight: &Tensor,
    alpha: f32,
    write: Write,
) {
    let (inputs, outputs) = (weight.cols(), weight.rows());
    let product = Product {
        m: inputs,
        n: tokens,
        k: outputs,
        a: plain(weight.dtype(), inputs),
        b: plain(dy_dtype, outputs),
        out: plain(dx_dtype, inputs),
        adds: write == Write::Add,
        bias: false,
    };
    gpu.product(product, alpha, [weight.pointer(), dy, dx, dx], 0);
}

/// `dw [outputs, inputs] += alpha dyᵀ x`, by pointers to `dy` and `x`; `dw` is `F32`.
pub(crate) fn accumulate(
    gpu: &'static Cuda,
    dweight: &mut Tensor,
    (dy, dy_dtype): (u64, Dtype),
    (x, x_dtype): (u64, Dtype),
    tokens: usize,
    alpha: f32,
) {
    let (inputs, outputs) = (dweight.cols(), dweight.rows());
    let product = Product {
        m: inputs,
        n: outputs,
        k: tokens,
        a: plain(x_dtype, inputs),
        b: transposed(dy_dtype, outputs),
        out: plain(Dtype::F32, inputs),
        // A gradient that was just set to zero is written instead of added to.
        adds: !dweight.take_zero(),
        bias: false,
    };
    let to = dweight.pointer_f32();
    gpu.product(product, alpha, [x, dy, to, to], 0);
}

fn at(tensor: &Tensor) -> (u64, Dtype) {
    (tensor.pointer(), tensor.dtype())
}

pub(super) fn forward(
    gpu: &'static Cuda,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    alpha: f32,
    write: Write,
) {
    let base = (write == Write::Add).then(|| out.pointer());
    with_bias(gpu, out, base, x, weight, bias, alpha);
}

pub(super) fn forward_onto(
    gpu: &'static Cuda,
    out: &mut Tensor,
    base: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) {
    with_bias(gpu, out, Some(base.pointer()), x, weight, bias, 1.0);
}

/// The product with the bias in its kernel where both are of one type that this is fast for, else in a pass of its own.
fn with_bias(
    gpu: &'static Cuda,
    out: &mut Tensor,
    base: Option<u64>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    alpha: f32,
) {
    let inside = bias.filter(|bias| [out.dtype(), bias.dtype()] == [Dtype::Bf16; 2]);
    project(gpu, at(out), base, at(x), x.rows(), weight, inside, alpha);
    let Some(bias) = bias.filter(|_| inside.is_none()) else { return };
    let args = [out.pointer().into(), bias.pointer_f32().into(), out.rows().into(), out.cols().into()];
    gpu.flat(out.kernel("linear", "add_bias"), out.len(), 8, &args);
}

pub(super) fn backward_input(
    gpu: &'static Cuda,
    dx: &mut Tensor,
    dy: &Tensor,
    weight: &Tensor,
    alpha: f32,
    write: Write,
) {
    unproject(gpu, at(dx), at(dy), dy.rows(), weight, alpha, write);
}

pub(super) fn backward_weight(gpu: &'static Cuda, dweight: &mut Tensor, dy: &Tensor, x: &Tensor, alpha: f32) {
    accumulate(gpu, dweight, at(dy), at(x), x.rows(), alpha);
}

pub(super) fn backward_bias(gpu: &'static Cuda, dbias: &mut Tensor, dy: &Tensor) {
    let (rows, width) = (dy.rows(), dy.cols());
    let slices = rows.div_ceil(64).clamp(1, 64);
    let partials = gpu.scratch("partials", slices * width * 4);
    let grid = [width.div_ceil(256) as u32, slices as u32, 1];
    let args = [partials.into(), dy.pointer().into(), rows.into(), width.into(), slices.into()];
    gpu.launch(dy.kernel("linear", "column_sums"), grid, [32, 8], 0, &args);
    add_partials(gpu, dbias.pointer_f32(), partials, slices, width);
}

/// `to[i] += Σ partials[row, i]`
pub(crate) fn add_partials(gpu: &'static Cuda, to: u64, partials: u64, rows: usize, width: usize) {
    let args = [to.into(), partials.into(), rows.into(), width.into()];
    let grid = [width.div_ceil(32) as u32, 1, 1];
    gpu.launch(crate::cuda::Kernel::plain("linear", "add_partials"), grid, [32, 32], 0, &args);
}
