//! Losses fused with the output projection: logits exist for one chunk of rows at a time, never for the batch.
//! `hidden: [n, width]` are the final-normed states at the positions that predict; `head: [vocab, width]` (F32 or Bf16).
use crate::Tensor;

/// Per-row results, natural logarithms. Vectors are cleared and refilled.
#[derive(Default)]
pub struct TokenStats { pub loss: Vec<f32>, pub log_prob: Vec<f32>, pub entropy: Vec<f32>, pub correct: Vec<bool> }

/// Where gradients go. `dhidden` is overwritten, `dhead` added to (`None` when frozen).
pub struct Grads<'a> { pub dhidden: &'a mut Tensor, pub dhead: Option<&'a mut Tensor> }

/// Log-probability of `targets`, and entropy; no gradient.
pub fn log_probs(stats: &mut TokenStats, hidden: &Tensor, head: &Tensor, targets: &[u32]) { todo!() }

/// `Σ weights[i] * -log p_i(targets[i])`; returns the sum in f64. `grads: None` evaluates only.
pub fn cross_entropy(stats: &mut TokenStats, hidden: &Tensor, head: &Tensor, targets: &[u32], weights: &[f32], grads: Option<Grads>) -> f64 { todo!() }

/// Divergence between student and teacher distributions at each position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence { /** KL(student ‖ teacher) */ ReverseKl, /** KL(teacher ‖ student) */ ForwardKl,
    /** beta KL(t‖m) + (1-beta) KL(s‖m), m = beta t + (1-beta) s */ Jsd { beta: f32 } }

/// The frozen teacher's side of a distillation loss.
pub struct Teacher<'a> { pub hidden: &'a Tensor, pub head: &'a Tensor, /** Only the teacher's k likeliest tokens, both sides renormalised. */ pub top_k: Option<usize> }

/// `Σ weights[i] * divergence_i`, exact over the vocabulary, gradient into the student only. Fills `stats` for the
/// student (loss = divergence, log_prob/entropy of `targets`) and `teacher_log_prob`.
pub fn distill(stats: &mut TokenStats, teacher_log_prob: &mut Vec<f32>, kind: Divergence, hidden: &Tensor, head: &Tensor, teacher: &Teacher, targets: &[u32], weights: &[f32], grads: Option<Grads>) -> f64 { todo!() }

/// Clipping of the surrogate objective: ratio in `1 - low ..= 1 + high`, dual clip `dual` for negative advantages.
#[derive(Clone, Copy, Debug)]
pub struct Clip { pub low: f32, pub high: f32, pub dual: f32 }

/// Clipped policy gradient: token loss `max(-Aρ, -A clip(ρ))`, and for `A < 0` the min of that and `-dual·A`, with
/// `ρ = exp(log_prob - old_log_prob)`. Sum of `weights[i] * loss_i`.
pub fn policy_gradient(stats: &mut TokenStats, clip: Clip, hidden: &Tensor, head: &Tensor, targets: &[u32], old_log_prob: &[f32], advantage: &[f32], weights: &[f32], grads: Option<Grads>) -> f64 { todo!() }

/// `logits: [n, vocab]` for sampling and for tracing; small n only.
pub fn logits(out: &mut Tensor, hidden: &Tensor, head: &Tensor) { todo!() }
