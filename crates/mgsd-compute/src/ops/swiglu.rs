//! `out = silu(gate) * up`
use crate::Tensor;
pub fn forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) { todo!() }
pub fn backward(dgate: &mut Tensor, dup: &mut Tensor, dout: &Tensor, gate: &Tensor, up: &Tensor) { todo!() }
