//! LayerNorm with bias over groups of `weight.cols()` columns.
use crate::{Tensor, Write};
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) { todo!() }
/// `dparams`: (dweight, dbias), `None` when frozen.
pub fn backward(dx: &mut Tensor, dparams: Option<(&mut Tensor, &mut Tensor)>, dout: &Tensor, x: &Tensor, weight: &Tensor, eps: f32, write: Write) { todo!() }
