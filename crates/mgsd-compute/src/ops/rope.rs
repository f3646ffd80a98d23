//! Rotary embedding in place, rotate-half form, on every head of `x: [tokens, heads * head_dim]`.
//! `cos`, `sin`: `[tokens, head_dim / 2]` (the second half of the usual table repeats the first).
use crate::Tensor;
pub fn forward(x: &mut Tensor, cos: &Tensor, sin: &Tensor) { todo!() }
/// The inverse rotation, in place on the gradient.
pub fn backward(dx: &mut Tensor, cos: &Tensor, sin: &Tensor) { todo!() }
