//! AdamW (decoupled weight decay), PyTorch's formula.
use crate::Tensor;
#[derive(Clone, Copy, Debug)]
pub struct AdamW { pub learning_rate: f32, pub beta1: f32, pub beta2: f32, pub eps: f32, pub weight_decay: f32 }
/// One step on one parameter; `step` counts from 1; `grad_scale` multiplies the gradient first (clipping).
pub fn step(param: &mut Tensor, grad: &Tensor, first_moment: &mut Tensor, second_moment: &mut Tensor, settings: &AdamW, step: u64, grad_scale: f32) { todo!() }
/// Sum of squares in f64, for the global norm.
pub fn sum_of_squares(grad: &Tensor) -> f64 { todo!() }
