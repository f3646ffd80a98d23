//! Scaled dot-product attention with grouped heads over packed sequences.
//! `q, out: [tokens, heads * head_dim]`, `k, v: [tokens, kv_heads * head_dim]`.
use crate::Tensor;

/// Which keys a query sees, within its own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask { /** Itself and what came before. */ Causal, /** The whole segment. */ Full }

/// Head counts, width, and where the packed sequences begin and end.
pub struct Layout<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub mask: Mask,
    /// `[segments + 1]` offsets in tokens; segment `i` is `bounds[i]..bounds[i + 1]`.
    pub bounds: &'a [usize],
}
/// `log_sum_exp: [tokens, heads]` is kept for the backward pass.
pub fn forward(out: &mut Tensor, log_sum_exp: &mut Tensor, q: &Tensor, k: &Tensor, v: &Tensor, layout: &Layout) { todo!() }
pub fn backward(dq: &mut Tensor, dk: &mut Tensor, dv: &mut Tensor, dout: &Tensor, out: &Tensor, log_sum_exp: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, layout: &Layout) { todo!() }

/// Keys and values of many sequences for generation, one slot a sequence: `[slots, capacity, kv_heads * head_dim]` each.
pub struct KvCache { /* … */ }
impl KvCache {
    pub fn new(slots: usize, capacity: usize, kv_heads: usize, head_dim: usize) -> Self { todo!() }
    /// Copies rows of `k`/`v` (`[tokens, kv_heads * head_dim]`): row `i` goes to `slots[i]` at `positions[i]`.
    pub fn store(&mut self, k: &Tensor, v: &Tensor, slots: &[u32], positions: &[u32]) { todo!() }
}
/// One new token per row against its slot's cache: row `i` attends to positions `0..lengths[i]` of `slots[i]` (its own key already stored).
pub fn decode(out: &mut Tensor, q: &Tensor, cache: &KvCache, slots: &[u32], lengths: &[u32], heads: usize, scale: f32) { todo!() }
