//! Scaled dot-product attention with grouped heads over packed sequences.
//! `q, out: [tokens, heads * head_dim]`, `k, v: [tokens, kv_heads * head_dim]`.
//!
//! `out_i = Σ_j p_ij v_j`, `p_ij = exp(scale q_i·k_j - lse_i)`. No `tokens x tokens` matrix is kept: the backward pass
//! makes `p` again from `lse` (Dao et al., arXiv 2205.14135).

use crate::{Dtype, Tensor, check, par};

mod backward;
mod cache;
mod cuda;
mod forward;

pub use cache::{KvCache, decode, decode_step};

/// Which keys a query sees, within its own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Itself and what came before.
    Causal,
    /// The whole segment.
    Full,
}

/// Head counts, width, and where the packed sequences begin and end.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / √head_dim`.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// `[segments + 1]` offsets in tokens; segment `i` is `bounds[i]..bounds[i + 1]`.
    pub bounds: &'a [usize],
}

impl Layout<'_> {
    fn check(&self, op: &str, q: &Tensor, k: &Tensor, v: &Tensor) {
        let tokens = q.rows();
        check::shape(op, "q", q, tokens, self.heads * self.head_dim);
        check::shape(op, "k", k, tokens, self.kv_heads * self.head_dim);
        check::shape(op, "v", v, tokens, self.kv_heads * self.head_dim);
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{op}: {} heads must be a multiple of {} key-value heads",
            self.heads,
            self.kv_heads
        );
        assert!(
            self.bounds.first() == Some(&0) && self.bounds.last() == Some(&tokens) && self.bounds.is_sorted(),
            "{op}: bounds must rise from 0 to the {tokens} tokens, are {:?}",
            self.bounds
        );
    }

    fn segments(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Keys that the queries below `end` of a segment of `tokens` see.
    fn visible(&self, end: usize, tokens: usize) -> usize {
        match self.mask {
            Mask::Causal => end.min(tokens),
            Mask::Full => tokens,
        }
    }
}

/// `out` and its softmax's `log_sum_exp: [tokens, heads]`, which the backward pass needs.
pub fn forward(out: &mut Tensor, log_sum_exp: &mut Tensor, q: &Tensor, k: &Tensor, v: &Tensor, layout: &Layout) {
    layout.check("attention::forward", q, k, v);
    out.place(q, q.rows(), q.cols());
    log_sum_exp.place_on(q.device(), Dtype::F32, q.rows(), layout.heads);
    if let Some(gpu) = q.gpu() {
        return cuda::forward(gpu, out, log_sum_exp, q, k, v, layout);
    }
    forward::run(
        par::Out::new(out.as_mut_slice()),
        par::Out::new(log_sum_exp.as_mut_slice()),
        q.as_slice(),
        k.as_slice(),
        v.as_slice(),
        layout,
    );
}

/// Gradients of the three inputs, overwritten: `dv_j = Σ_i p_ij do_i`, `ds_ij = scale p_ij (do_i·v_j - do_i·o_i)`,
/// `dq_i = Σ_j ds_ij k_j`, `dk_j = Σ_i ds_ij q_i`.
#[allow(clippy::too_many_arguments)] // The inputs of the forward pass and as many gradients.
pub fn backward(
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dout: &Tensor,
    out: &Tensor,
    log_sum_exp: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
) {
    let op = "attention::backward";
    layout.check(op, q, k, v);
    check::same(op, "dout", dout, "q", q);
    check::same(op, "out", out, "q", q);
    check::shape(op, "log_sum_exp", log_sum_exp, q.rows(), layout.heads);
    dq.place(q, q.rows(), q.cols());
    dk.place(k, k.rows(), k.cols());
    dv.place(v, v.rows(), v.cols());
    if let Some(gpu) = q.gpu() {
        return cuda::backward(gpu, [dq, dk, dv], [dout, out, log_sum_exp, q, k, v], layout);
    }
    let given = backward::Given {
        dout: dout.as_slice(),
        out: out.as_slice(),
        log_sum_exp: log_sum_exp.as_slice(),
        q: q.as_slice(),
        k: k.as_slice(),
        v: v.as_slice(),
    };
    let wanted = backward::Wanted {
        dq: par::Out::new(dq.as_mut_slice()),
        dk: par::Out::new(dk.as_mut_slice()),
        dv: par::Out::new(dv.as_mut_slice()),
    };
    backward::run(&wanted, &given, layout);
}
