//! `y = alpha * x wᵀ + b`. `x: [tokens, in]`, `w: [out, in]` (F32 or Bf16), `b: [1, out]`, `y: [tokens, out]`.
use crate::{Tensor, Write};
/// `out (=|+=) alpha * x wᵀ (+ bias)`; resizes `out` when `write` is `Set`.
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, alpha: f32, write: Write) { todo!() }
/// `dx (=|+=) alpha * dy w`
pub fn backward_input(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, alpha: f32, write: Write) { todo!() }
/// `dw += alpha * dyᵀ x`
pub fn backward_weight(dweight: &mut Tensor, dy: &Tensor, x: &Tensor, alpha: f32) { todo!() }
/// `db += Σ_tokens dy`
pub fn backward_bias(dbias: &mut Tensor, dy: &Tensor) { todo!() }
