//! Losses fused with the output projection: logits exist for one chunk of rows at a time, never for the batch.
//! `hidden: [n, width]` are the final-normed states at the positions that predict; `head: [vocab, width]` (F32 or Bf16).

use crate::{Tensor, Write, check};

mod chunks;
mod cuda;
mod row;

use chunks::{Results, for_each_row};

/// Per-row results, natural logarithms. Vectors are cleared and refilled.
#[derive(Clone, Debug, Default)]
pub struct TokenStats {
    /// Unweighted loss of the row.
    pub loss: Vec<f32>,
    /// Log-probability of the row's target.
    pub log_prob: Vec<f32>,
    /// Entropy of the row's distribution.
    pub entropy: Vec<f32>,
    /// Whether the target is the likeliest token.
    pub correct: Vec<bool>,
}

/// Where gradients go. `dhidden` is overwritten, `dhead` added to (`None` when frozen).
pub struct Grads<'a> {
    /// `[n, width]`, resized.
    pub dhidden: &'a mut Tensor,
    /// `[vocab, width]`
    pub dhead: Option<&'a mut Tensor>,
}

/// Log-probability of `targets`, and entropy; no gradient. `stats.loss` is `-log_prob`.
pub fn log_probs(stats: &mut TokenStats, hidden: &Tensor, head: &Tensor, targets: &[u32]) {
    check_inputs("loss::log_probs", hidden, head, targets);
    if let Some(gpu) = hidden.gpu() {
        return cuda::run(gpu, stats, hidden, head, None, targets, None, cuda::Loss::LogProbs, None);
    }
    for_each_row(stats, hidden, head, None, None, |i, logits, _, out| {
        let target = targets[i] as usize;
        *out = row::stats(logits, target);
        out.loss = -out.log_prob;
    });
}

/// `Σ weights[i] * -log p_i(targets[i])`; returns the sum in f64. `grads: None` evaluates only.
pub fn cross_entropy(
    stats: &mut TokenStats,
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    weights: &[f32],
    grads: Option<Grads>,
) -> f64 {
    let op = "loss::cross_entropy";
    check_inputs(op, hidden, head, targets);
    check::length(op, "weights", weights.len(), targets.len());
    if let Some(gpu) = hidden.gpu() {
        let loss = cuda::Loss::CrossEntropy;
        cuda::run(gpu, stats, hidden, head, None, targets, Some(weights), loss, grads);
        return weighted_sum(weights, &stats.loss);
    }
    let slope = grads.is_some();
    for_each_row(stats, hidden, head, None, grads, |i, logits, _, out| {
        let target = targets[i] as usize;
        *out = row::stats(logits, target);
        out.loss = -out.log_prob;
        if slope {
            row::log_prob_gradient(logits, target, -weights[i], out);
        }
    });
    weighted_sum(weights, &stats.loss)
}

/// Divergence between student and teacher distributions at each position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(student ‖ teacher)
    ReverseKl,
    /// KL(teacher ‖ student)
    ForwardKl,
    /// beta KL(t‖m) + (1-beta) KL(s‖m), m = beta t + (1-beta) s; Agarwal et al., arXiv 2306.13649
    Jsd {
        /// The teacher's share of the mixture, between 0 and 1.
        beta: f32,
    },
}

/// The frozen teacher's side of a distillation loss.
pub struct Teacher<'a> {
    /// `[n, width]`, the teacher's own width.
    pub hidden: &'a Tensor,
    /// `[vocab, width]`
    pub head: &'a Tensor,
    /// Only the teacher's k likeliest tokens, both sides renormalised.
    pub top_k: Option<usize>,
}

/// `Σ weights[i] * divergence_i`, exact over the vocabulary, gradient into the student only. Fills `stats` for the
/// student (loss = divergence, log_prob/entropy of `targets`) and `teacher_log_prob`.
#[allow(clippy::too_many_arguments)] // Two models and one loss.
pub fn distill(
    stats: &mut TokenStats,
    teacher_log_prob: &mut Vec<f32>,
    kind: Divergence,
    hidden: &Tensor,
    head: &Tensor,
    teacher: &Teacher,
    targets: &[u32],
    weights: &[f32],
    grads: Option<Grads>,
) -> f64 {
    let op = "loss::distill";
    check_inputs(op, hidden, head, targets);
    check_inputs(op, teacher.hidden, teacher.head, targets);
    check::length(op, "weights", weights.len(), targets.len());
    let vocab = head.rows();
    assert!(
        teacher.head.rows() == vocab,
        "{op}: student and teacher must share a vocabulary, have {vocab} and {} tokens",
        teacher.head.rows()
    );
    if let Divergence::Jsd { beta } = kind {
        assert!(beta > 0.0 && beta < 1.0, "{op}: beta must lie between 0 and 1, is {beta}");
    }
    let top_k = teacher.top_k.map(|k| k.clamp(1, vocab)).filter(|k| *k < vocab);
    if let Some(gpu) = hidden.gpu() {
        let loss = cuda::Loss::Distill { kind, top_k, teacher_log_prob };
        let other = Some((teacher.hidden, teacher.head));
        cuda::run(gpu, stats, hidden, head, other, targets, Some(weights), loss, grads);
        return weighted_sum(weights, &stats.loss);
    }
    let slope = grads.is_some();
    teacher_log_prob.clear();
    teacher_log_prob.resize(targets.len(), 0.0);
    let other = Some((teacher.hidden, teacher.head));
    let teachers = crate::par::Out::new(teacher_log_prob);
    for_each_row(stats, hidden, head, other, grads, |i, logits, theirs, out| {
        let target = targets[i] as usize;
        *out = row::stats(logits, target);
        let their_stats = row::stats(theirs, target);
        // SAFETY: each row belongs to one task.
        let place = unsafe { teachers.slice(i, 1) };
        place[0] = their_stats.log_prob;
        let weight = slope.then_some(weights[i]);
        out.loss = match top_k {
            None => row::divergence(kind, logits, theirs, out.lse, their_stats.lse, weight),
            Some(k) => row::divergence_top(kind, logits, theirs, k, weight),
        };
    });
    weighted_sum(weights, &stats.loss)
}

/// Clipping of the surrogate objective: ratio in `1 - low ..= 1 + high`, dual clip `dual` for negative advantages.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    /// How far below 1 the ratio counts.
    pub low: f32,
    /// How far above 1 the ratio counts.
    pub high: f32,
    /// Bound of the loss in units of `-advantage`, for negative advantages.
    pub dual: f32,
}

/// Clipped policy gradient: token loss `max(-Aρ, -A clip(ρ))`, and for `A < 0` the min of that and `-dual·A`, with
/// `ρ = exp(log_prob - old_log_prob)`. Sum of `weights[i] * loss_i`.
#[allow(clippy::too_many_arguments)] // What a rollout left, and one loss.
pub fn policy_gradient(
    stats: &mut TokenStats,
    clip: Clip,
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    old_log_prob: &[f32],
    advantage: &[f32],
    weights: &[f32],
    grads: Option<Grads>,
) -> f64 {
    let op = "loss::policy_gradient";
    check_inputs(op, hidden, head, targets);
    check::length(op, "old_log_prob", old_log_prob.len(), targets.len());
    check::length(op, "advantage", advantage.len(), targets.len());
    check::length(op, "weights", weights.len(), targets.len());
    if let Some(gpu) = hidden.gpu() {
        let loss = cuda::Loss::PolicyGradient { clip, old_log_prob, advantage };
        cuda::run(gpu, stats, hidden, head, None, targets, Some(weights), loss, grads);
        return weighted_sum(weights, &stats.loss);
    }
    let slope = grads.is_some();
    for_each_row(stats, hidden, head, None, grads, |i, logits, _, out| {
        let target = targets[i] as usize;
        *out = row::stats(logits, target);
        let ratio = (out.log_prob - old_log_prob[i]).exp();
        let (loss, dlog_prob) = clipped(clip, advantage[i], ratio);
        out.loss = loss;
        if slope {
            row::log_prob_gradient(logits, target, weights[i] * dlog_prob, out);
        }
    });
    weighted_sum(weights, &stats.loss)
}

/// Token loss of the clipped surrogate and its derivative by the log-probability, which is zero where a clip holds.
fn clipped(clip: Clip, advantage: f32, ratio: f32) -> (f32, f32) {
    let free = -advantage * ratio;
    let bounded = -advantage * ratio.clamp(1.0 - clip.low, 1.0 + clip.high);
    let dual = -clip.dual * advantage;
    let surrogate = free.max(bounded);
    if advantage < 0.0 && dual < surrogate {
        (dual, 0.0)
    } else if bounded > free {
        (bounded, 0.0)
    } else {
        (free, free)
    }
}

/// `logits: [n, vocab]` for sampling and for tracing; small n only.
pub fn logits(out: &mut Tensor, hidden: &Tensor, head: &Tensor) {
    if let Some(gpu) = hidden.gpu() {
        return cuda::logits(gpu, out, hidden, head);
    }
    super::linear::forward(out, hidden, head, None, 1.0, Write::Set);
}

fn check_inputs(op: &str, hidden: &Tensor, head: &Tensor, targets: &[u32]) {
    check::shape(op, "head", head, head.rows(), hidden.cols());
    check::length(op, "targets", targets.len(), hidden.rows());
    let vocab = head.rows();
    if let Some((i, id)) = targets.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        panic!("{op}: targets[{i}] = {id} is outside the vocabulary of {vocab}");
    }
}

fn weighted_sum(weights: &[f32], losses: &[f32]) -> f64 {
    let pairs = weights.iter().zip(losses);
    pairs.map(|(w, l)| f64::from(*w) * f64::from(*l)).sum()
}

impl TokenStats {
    fn start(&mut self, rows: usize) -> Results<'_> {
        for list in [&mut self.loss, &mut self.log_prob, &mut self.entropy] {
            list.clear();
            list.reserve(rows);
        }
        self.correct.clear();
        self.correct.reserve(rows);
        Results { stats: self }
    }
}
