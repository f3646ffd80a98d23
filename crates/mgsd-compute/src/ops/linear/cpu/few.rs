//! Few tokens, as in decoding: every weight is read once, straight from where it lies, and multiplied with all tokens.

use super::Size;
use crate::Write;
use crate::par::{self, Out};
use crate::simd::{Simd, kernel};
use crate::tensor::Values;

/// Numbers in a cache line.
const LINE: usize = 16;
/// Outputs at a time.
const STRIP: usize = 6;
/// Weights of one task.
const WEIGHTS: usize = 24 * 1024;

/// Dot products of the rows of `x` and the rows of `w`.
pub(super) fn forward(y: &mut [f32], x: &[f32], w: Values, size: Size, alpha: f32, write: Write) {
    let Size { inputs, outputs, .. } = size;
    let rows = (WEIGHTS / inputs.max(1)).next_multiple_of(STRIP).max(STRIP);
    let y = Out::new(y);
    let add = write == Write::Add;
    par::tasks(outputs.div_ceil(rows), |task| {
        let first = task * rows;
        let count = rows.min(outputs - first);
        match w {
            Values::F32(w) => {
                dots(y, x, &w[first * inputs..][..count * inputs], size, first, alpha, add);
            }
            Values::Bf16(w) => par::with_scratch(STRIP * inputs, |wide| {
                // A strip of rows is widened and stays in the first or second cache for all tokens.
                for row in (first..first + count).step_by(STRIP) {
                    let strip = STRIP.min(first + count - row);
                    let wide = &mut wide[..strip * inputs];
                    crate::math::widen(wide, &w[row * inputs..][..strip * inputs]);
                    dots(y, x, wide, size, row, alpha, add);
                }
            }),
        }
    });
}

kernel! {
    fn dots<S>(y: Out, x: &[f32], w: &[f32], size: Size, first: usize, alpha: f32, add: bool) {
        let Size { tokens, inputs, outputs } = size;
        if inputs == 0 || tokens == 0 {
            if !add {
                for token in 0..tokens {
                    y.slice(token * outputs + first, w.len()).fill(0.0);
                }
            }
            return;
        }
        let count = w.len() / inputs;
        assert!(x.len() == tokens * inputs && first + count <= outputs);
        let y = y.pointer((tokens - 1) * outputs + first + count).sub((tokens - 1) * outputs + count);
        let mut out = 0;
        // `y` is at column `first`; rows of `x`, `w` and columns of `y` stay below their counts.
        macro_rules! tiles {
            ($token:ident, $each:ident of $next:ident, $($t:literal x $o:literal),*) => {
                $(while tokens - $token >= $t {
                    let (x, y) = (x.as_ptr().add($token * inputs), y.add($token * outputs + out));
                    let mut part = 0;
                    while part < STRIP {
                        for _ in 0..$each {
                            S::prefetch($next);
                            $next = $next.wrapping_add(LINE);
                        }
                        let w = w.as_ptr().add((out + part) * inputs);
                        tile::<S, $t, $o>(inputs, x, w, y.add(part), outputs, alpha, add);
                        part += $o;
                    }
                    $token += $t;
                })*
            };
        }
        let strip_lines = (STRIP * inputs).div_ceil(LINE);
        let each = strip_lines.div_ceil(tokens.div_ceil(4) * 2);
        while out + STRIP <= count {
            let mut token = 0;
            // The next strip is fetched piece by piece while this one is at work: its rows are too short for the CPU to
            // guess them.
            let mut next = w.as_ptr().wrapping_add((out + STRIP) * inputs);
            tiles!(token, each of next, 4 x 3, 2 x 6, 1 x 6);
            out += STRIP;
        }
        while out < count {
            for token in 0..tokens {
                let (x, y) = (x.as_ptr().add(token * inputs), y.add(token * outputs + out));
                tile::<S, 1, 1>(inputs, x, w.as_ptr().add(out * inputs), y, outputs, alpha, add);
            }
            out += 1;
        }
    }
}

/// `T` tokens by `O` outputs.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Plain loops over constants unroll into registers.
unsafe fn tile<S: Simd, const T: usize, const O: usize>(
    inputs: usize,
    x: *const f32,
    w: *const f32,
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
                weights[o] = S::load(w.add(o * inputs + k));
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
                    sums[t][o] = S::fma(x, S::load_n(w.add(o * inputs + k), left), sums[t][o]);
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
