//! RMSNorm over groups of `weight.cols()` columns (so per head when `x` is `[tokens, heads * head_dim]`).
use crate::{Tensor, Write};
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) { todo!() }
/// Recomputes the reciprocal root from `x`. `dweight`: `None` when frozen.
pub fn backward(dx: &mut Tensor, dweight: Option<&mut Tensor>, dout: &Tensor, x: &Tensor, weight: &Tensor, eps: f32, write: Write) { todo!() }
