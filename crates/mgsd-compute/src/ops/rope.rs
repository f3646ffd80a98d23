//! Rotary embedding in place, rotate-half form, on every head of `x: [tokens, heads * head_dim]`.
//! `cos`, `sin`: `[tokens, head_dim / 2]` (the second half of the usual table repeats the first).
//!
//! With `a`, `b` the first and second half of a head: `a' = a cos - b sin`, `b' = b cos + a sin`.

use crate::{Tensor, check, par};

/// Rotates by the angles of the tables.
pub fn forward(x: &mut Tensor, cos: &Tensor, sin: &Tensor) {
    rotate("rope::forward", x, cos, sin, 1.0);
}

/// The inverse rotation, in place on the gradient.
pub fn backward(dx: &mut Tensor, cos: &Tensor, sin: &Tensor) {
    rotate("rope::backward", dx, cos, sin, -1.0);
}

fn rotate(op: &str, x: &mut Tensor, cos: &Tensor, sin: &Tensor, sign: f32) {
    check::groups(op, x.cols(), 2 * cos.cols());
    check::shape(op, "cos", cos, x.rows(), cos.cols());
    check::same(op, "sin", sin, "cos", cos);
    let (rows, cols, half) = (x.rows(), x.cols(), cos.cols());
    if let Some(gpu) = x.gpu() {
        assert!(half.is_multiple_of(4), "{op} on a GPU: heads of {} numbers; a multiple of 8 is expected", 2 * half);
        let heads = cols / (2 * half);
        let args = [
            x.pointer().into(),
            cos.pointer_f32().into(),
            sin.pointer_f32().into(),
            rows.into(),
            heads.into(),
            half.into(),
            sign.into(),
        ];
        return gpu.flat(x.kernel("rope", "rotate"), rows * heads * half, 4, &args);
    }
    let (cos, sin) = (cos.as_slice(), sin.as_slice());
    let x = par::Out::new(x.as_mut_slice());
    par::row_blocks(rows, cols, |first, count| {
        // SAFETY: blocks of rows do not overlap.
        let x = unsafe { x.slice(first * cols, count * cols) };
        let table = first * half..(first + count) * half;
        cpu::rotate(x, cols, &cos[table.clone()], &sin[table], half, sign);
    });
}

mod cpu {
    use crate::simd::kernel;

    kernel! {
        pub(super) fn rotate<S>(x: &mut [f32], cols: usize, cos: &[f32], sin: &[f32], half: usize, sign: f32) {
            assert!(cos.len() == sin.len() && cos.len() * cols == x.len() * half);
            let sign = S::splat(sign);
            for (row, (cos, sin)) in x.chunks_exact_mut(cols).zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
                for head in row.chunks_exact_mut(2 * half) {
                    let (a, b) = head.split_at_mut(half);
                    let mut i = 0;
                    // Reads and writes stay below `half` in each of the four.
                    while i + S::LANES <= half {
                        let (pa, pb) = (a.as_mut_ptr().add(i), b.as_mut_ptr().add(i));
                        let (c, s) = (S::load(cos.as_ptr().add(i)), S::mul(sign, S::load(sin.as_ptr().add(i))));
                        let (va, vb) = (S::load(pa), S::load(pb));
                        S::store(pa, S::fnma(vb, s, S::mul(va, c)));
                        S::store(pb, S::fma(va, s, S::mul(vb, c)));
                        i += S::LANES;
                    }
                    if i < half {
                        let left = half - i;
                        let (pa, pb) = (a.as_mut_ptr().add(i), b.as_mut_ptr().add(i));
                        let (c, s) = (S::load_n(cos.as_ptr().add(i), left), S::mul(sign, S::load_n(sin.as_ptr().add(i), left)));
                        let (va, vb) = (S::load_n(pa, left), S::load_n(pb, left));
                        S::store_n(pa, S::fnma(vb, s, S::mul(va, c)), left);
                        S::store_n(pb, S::fma(va, s, S::mul(vb, c)), left);
                    }
                }
            }
        }
    }
}
