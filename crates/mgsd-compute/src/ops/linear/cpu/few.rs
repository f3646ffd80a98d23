//! Few tokens, as in decoding: every weight is read once, straight from where it lies, and multiplied with all tokens.

use super::Size;
use crate::Write;
use crate::par::{self, Out};
use crate::simd::{Simd, kernel};
use crate::tensor::Values;

/// Up to this many tokens, Bf16 weights are widened in the registers, again for every four tokens.
const DIRECT: usize = 4;
/// Outputs at a time.
const STRIP: usize = 6;
/// Weights of one task.
const WEIGHTS: usize = 24 * 1024;

/// Dot products of the rows of `x` and the rows of `w`.
pub(super) fn forward(y: &mut [f32], x: &[f32], w: Values, size: Size, alpha: f32, write: Write) {
    let Size { tokens, inputs, outputs } = size;
    if inputs == 0 {
        if write == Write::Set {
            y.fill(0.0);
        }
        return;
    }
    let rows = (WEIGHTS / inputs).next_multiple_of(STRIP).max(STRIP);
    let y = Out::new(y);
    let add = write == Write::Add;
    par::tasks(outputs.div_ceil(rows), |task| {
        let first = task * rows;
        let count = rows.min(outputs - first);
        let part = first * inputs..(first + count) * inputs;
        match w {
            Values::F32(w) => dots_f32(y, x, &w[part], size, first, alpha, add),
            Values::Bf16(w) if tokens <= DIRECT => dots_bf16(y, x, &w[part], size, first, alpha, add),
            Values::Bf16(w) => par::with_scratch(STRIP * inputs, |wide| {
                // A strip of rows is widened once and stays in the first or second cache for all tokens.
                for row in (first..first + count).step_by(STRIP) {
                    let strip = STRIP.min(first + count - row);
                    let wide = &mut wide[..strip * inputs];
                    crate::math::widen(wide, &w[row * inputs..][..strip * inputs]);
                    dots_f32(y, x, wide, size, row, alpha, add);
                }
            }),
        }
    });
}

/// A weight as it lies in memory.
trait Weight: Copy {
    /// A vector of them, widened.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// The first `n`, the rest zero.
    ///
    /// # Safety
    /// As [`Simd::load_n`].
    unsafe fn load_n<S: Simd>(from: *const Self, n: usize) -> S::V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: as the caller promises.
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn load_n<S: Simd>(from: *const Self, n: usize) -> S::V {
        // SAFETY: as the caller promises.
        unsafe { S::load_n(from, n) }
    }
}

impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: as the caller promises.
        unsafe { S::load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn load_n<S: Simd>(from: *const Self, n: usize) -> S::V {
        let mut buffer = [0u16; 16];
        // SAFETY: `n <= LANES <= 16` weights are readable (caller).
        unsafe {
            std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), n);
            S::load_bf16(buffer.as_ptr())
        }
    }
}

kernel! {
    fn dots_f32<S>(y: Out, x: &[f32], w: &[f32], size: Size, first: usize, alpha: f32, add: bool) {
        dots::<S, f32>(y, x, w, size, first, alpha, add);
    }
}

kernel! {
    fn dots_bf16<S>(y: Out, x: &[f32], w: &[u16], size: Size, first: usize, alpha: f32, add: bool) {
        dots::<S, u16>(y, x, w, size, first, alpha, add);
    }
}

/// The rows of `w` are the weights of outputs `first..`.
#[inline(always)]
unsafe fn dots<S: Simd, W: Weight>(y: Out, x: &[f32], w: &[W], size: Size, first: usize, alpha: f32, add: bool) {
    let Size { tokens, inputs, outputs } = size;
    let count = w.len() / inputs;
    assert!(x.len() == tokens * inputs && first + count <= outputs);
    // The tiles of a strip share the fetching of the next one, whose rows are too short for the CPU to guess them.
    let tiles = tokens / 4 * 2 + tokens % 4 / 2 + tokens % 2;
    let line = 64 / size_of::<W>();
    let lines_each = (STRIP * inputs).div_ceil(line * tiles.max(1));
    // SAFETY: rows of `x` and `w` and columns of `y` stay below their counts (asserted); what is only prefetched need not
    // exist; the instruction set is there (caller).
    unsafe {
        let (x, w) = (x.as_ptr(), w.as_ptr());
        let y = y.pointer(first);
        let mut out = 0;
        while out + STRIP <= count {
            let mut token = 0;
            let mut next = w.wrapping_add((out + STRIP) * inputs);
            macro_rules! tiles {
                ($($t:literal x $o:literal),*) => {
                    $(while tokens - token >= $t {
                        let mut part = 0;
                        while part < STRIP {
                            for _ in 0..lines_each {
                                S::prefetch(next.cast());
                                next = next.wrapping_add(line);
                            }
                            let (x, w) = (x.add(token * inputs), w.add((out + part) * inputs));
                            let y = y.add(token * outputs + out + part);
                            tile::<S, W, $t, $o>(inputs, x, w, y, outputs, alpha, add);
                            part += $o;
                        }
                        token += $t;
                    })*
                };
            }
            tiles!(4 x 3, 2 x 6, 1 x 6);
            out += STRIP;
        }
        while out < count {
            for token in 0..tokens {
                let y = y.add(token * outputs + out);
                tile::<S, W, 1, 1>(inputs, x.add(token * inputs), w.add(out * inputs), y, outputs, alpha, add);
            }
            out += 1;
        }
    }
}

/// `T` tokens by `O` outputs.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Plain loops over constants unroll into registers.
unsafe fn tile<S: Simd, W: Weight, const T: usize, const O: usize>(
    inputs: usize,
    x: *const f32,
    w: *const W,
    y: *mut f32,
    row_stride: usize,
    alpha: f32,
    add: bool,
) {
    // SAFETY: `T` rows of `x`, `O` rows of `w` and as many numbers of `y` are there; so is the instruction set (caller).
    unsafe {
        let mut sums = [[S::splat(0.0); O]; T];
        let mut k = 0;
        while k + S::LANES <= inputs {
            let mut weights = [S::splat(0.0); O];
            for o in 0..O {
                weights[o] = W::load::<S>(w.add(o * inputs + k));
            }
            for t in 0..T {
                let x = S::load(x.add(t * inputs + k));
                for o in 0..O {
                    sums[t][o] = S::fma(x, weights[o], sums[t][o]);
                }
            }
            k += S::LANES;
        }
        if k < inputs {
            let left = inputs - k;
            for t in 0..T {
                let x = S::load_n(x.add(t * inputs + k), left);
                for o in 0..O {
                    sums[t][o] = S::fma(x, W::load_n::<S>(w.add(o * inputs + k), left), sums[t][o]);
                }
            }
        }
        for t in 0..T {
            for o in 0..O {
                let to = y.add(t * row_stride + o);
                let sum = alpha * S::sum(sums[t][o]);
                *to = if add { *to + sum } else { sum };
            }
        }
    }
}
