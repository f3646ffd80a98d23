//! RMSNorm of every head of queries and keys, then the rotary embedding: [`rms_norm`] and [`rope`] of both in one pass,
//! which a GPU does without writing what lies between.
//!
//! `q: [tokens, heads * head_dim]`, `k: [tokens, kv_heads * head_dim]`.

use super::{rms_norm, rope};
use crate::cuda::{Arg, Cuda, Kernel, Variant};
use crate::{Dtype, Tensor, Write, check};

/// What queries and keys are normed and turned with.
#[derive(Clone, Copy)]
pub struct HeadNorm<'a> {
    /// Scale of the queries' norm, `[1, head_dim]`.
    pub q_weight: &'a Tensor,
    /// Scale of the keys' norm, `[1, head_dim]`.
    pub k_weight: &'a Tensor,
    /// `[tokens, head_dim / 2]`
    pub cos: &'a Tensor,
    /// `[tokens, head_dim / 2]`
    pub sin: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

impl HeadNorm<'_> {
    pub(super) fn check(&self, op: &str, q: &Tensor, k: &Tensor) {
        check::shape(op, "k", k, q.rows(), k.cols());
        self.check_for(op, q.rows(), [q.cols(), k.cols()]);
    }

    /// For queries and keys of so many tokens and columns.
    pub(super) fn check_for(&self, op: &str, tokens: usize, columns: [usize; 2]) {
        let head_dim = self.q_weight.cols();
        check::shape(op, "q_weight", self.q_weight, 1, head_dim);
        check::shape(op, "k_weight", self.k_weight, 1, head_dim);
        check::shape(op, "cos", self.cos, tokens, head_dim / 2);
        check::shape(op, "sin", self.sin, tokens, head_dim / 2);
        for columns in columns {
            check::groups(op, columns, head_dim);
        }
    }

    fn kernel(&self, q: &Tensor, function: &'static str) -> Kernel {
        let bf16 = q.dtype() == Dtype::Bf16;
        let variant = Variant { bf16, head_dim: self.q_weight.cols() as u16, causal: true, ..Variant::default() };
        Kernel { operation: "head_norm_rope", function, variant }
    }

    pub(crate) fn pointers(&self) -> [Arg; 4] {
        [self.q_weight, self.k_weight, self.cos, self.sin].map(|tensor| tensor.pointer_f32().into())
    }

    /// Heads of queries and of keys.
    fn heads(&self, q: &Tensor, k: &Tensor) -> [usize; 2] {
        [q.cols() / self.q_weight.cols(), k.cols() / self.q_weight.cols()]
    }

    /// Blocks that share the heads of a row: few rows are cut finer, so that all multiprocessors have work.
    fn shares(&self, gpu: &Cuda, rows: usize, heads: usize) -> u32 {
        let rounds = (heads * self.q_weight.cols()).div_ceil(1024).max(1) as u32;
        if rows >= 8 * gpu.multiprocessors() as usize { 1 } else { rounds }
    }
}

/// `q_out = rope(norm(q))`, `k_out = rope(norm(k))`
pub fn forward(q_out: &mut Tensor, k_out: &mut Tensor, q: &Tensor, k: &Tensor, norm: &HeadNorm) {
    norm.check("head_norm::forward", q, k);
    let Some(gpu) = q.gpu() else {
        for (out, x, weight) in [(q_out, q, norm.q_weight), (k_out, k, norm.k_weight)] {
            rms_norm::forward(out, x, weight, norm.eps);
            rope::forward(out, norm.cos, norm.sin);
        }
        return;
    };
    q_out.place(q, q.rows(), q.cols());
    k_out.place(k, k.rows(), k.cols());
    let heads = norm.heads(q, k);
    let mut args: Vec<Arg> = [&*q_out, &*k_out, q, k].map(|tensor| tensor.pointer().into()).to_vec();
    args.extend(norm.pointers());
    args.extend([q_out.cols(), k_out.cols(), q.cols(), k.cols(), heads[0], heads[1]].map(Arg::from));
    args.push(norm.eps.into());
    let grid = [q.rows() as u32, norm.shares(gpu, q.rows(), heads[0] + heads[1]), 1];
    gpu.launch(norm.kernel(q, "head_norm_rope_forward"), grid, [128, 1], 0, &args);
}

/// Gradients of `q` and `k`, overwritten; those of the weights are added to (`None` when frozen). `dq_out` and `dk_out`
/// are used up.
#[allow(clippy::too_many_arguments)] // The inputs of the forward pass and as many gradients.
pub fn backward(
    dq: &mut Tensor,
    dk: &mut Tensor,
    [dq_weight, dk_weight]: [Option<&mut Tensor>; 2],
    dq_out: &mut Tensor,
    dk_out: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    norm: &HeadNorm,
) {
    let op = "head_norm::backward";
    norm.check(op, q, k);
    check::same(op, "dq_out", dq_out, "q", q);
    check::same(op, "dk_out", dk_out, "k", k);
    let Some(gpu) = q.gpu() else {
        rope::backward(dq_out, norm.cos, norm.sin);
        rope::backward(dk_out, norm.cos, norm.sin);
        rms_norm::backward(dq, dq_weight, dq_out, q, norm.q_weight, norm.eps, Write::Set);
        rms_norm::backward(dk, dk_weight, dk_out, k, norm.k_weight, norm.eps, Write::Set);
        return;
    };
    dq.place(q, q.rows(), q.cols());
    dk.place(k, k.rows(), k.cols());
    let head_dim = norm.q_weight.cols();
    let blocks = (6 * gpu.multiprocessors() as usize).min(q.rows());
    let trained = dq_weight.is_some() || dk_weight.is_some();
    // A weight that is frozen while the other is not gets its sum too, into memory that nobody reads.
    let partial = if trained { gpu.scratch("head norm partials", (blocks * 2 + 2) * head_dim * 4) } else { 0 };
    let mut args: Vec<Arg> = vec![dq.pointer().into(), dk.pointer().into(), partial.into()];
    args.extend([&*dq_out, &*dk_out, q, k].map(|tensor| Arg::from(tensor.pointer())));
    args.extend(norm.pointers());
    args.extend([dq.cols(), dk.cols(), dq_out.cols(), dk_out.cols(), q.cols(), k.cols(), q.rows()].map(Arg::from));
    args.extend(norm.heads(q, k).map(Arg::from));
    args.push(norm.eps.into());
    gpu.launch(norm.kernel(q, "head_norm_rope_backward"), [blocks as u32, 1, 1], [128, 1], 0, &args);
    if trained {
        let spare = partial + (blocks * 2 * head_dim * 4) as u64;
        let to = |weight: Option<&mut Tensor>, at: u64| weight.map_or(at, |weight| weight.pointer_f32());
        let to = [to(dq_weight, spare), to(dk_weight, spare + (head_dim * 4) as u64)];
        let args = [to[0].into(), to[1].into(), partial.into(), blocks.into()];
        let grid = [head_dim.div_ceil(4) as u32, 1, 1];
        gpu.launch(norm.kernel(q, "head_norm_weights"), grid, [8, 128], 0, &args);
    }
}
