//! Elementary functions on vectors, and the loops that many operations share.

use crate::simd::{Simd, kernel};

/// `e^x`; relative error about 1e-7, exactly zero below -87.33.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial of degree 6 for `e^r` (near-minimax, fitted on that interval), and `n` added to
/// the exponent.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -87.33;
    // SAFETY: the instruction set is there (caller).
    unsafe {
        let bounded = S::min(S::max(x, S::splat(LOWEST)), S::splat(88.7));
        let n_bits = S::fma(bounded, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(n_bits, S::splat(ROUND));
        let r = S::fnma(n, S::splat(LN2_HIGH), bounded);
        let r = S::fnma(n, S::splat(LN2_LOW), r);
        let mut p = S::splat(EXP[0]);
        for c in &EXP[1..] {
            p = S::fma(p, r, S::splat(*c));
        }
        let p = S::fma(S::mul(r, r), p, S::add(r, S::splat(1.0)));
        let y = S::scale_by_power(p, n_bits);
        S::if_less(x, S::splat(LOWEST), S::splat(0.0), y)
    }
}

/// `(e^r - 1 - r) / r^2`, highest power first.
const EXP: [f32; 5] = [1.392_626_8e-3, 8.363_247e-3, 4.166_655_4e-2, 1.666_657_7e-1, 0.5];

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instruction set is there (caller).
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// `tanh(x)`, absolute error about 1e-7.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instruction set is there (caller).
    unsafe {
        let twice = sigmoid::<S>(S::add(x, x));
        S::sub(S::add(twice, twice), S::splat(1.0))
    }
}

/// `-ln(erfc(t)) / t` on `0..=4`, highest power first (interpolated at the Chebyshev points).
const ERF: [f32; 10] = [
    5.200_045e-7,
    -1.131_297_2e-5,
    1.055_406_2e-4,
    -5.354_748_6e-4,
    1.403_759_6e-3,
    1.948_209_5e-4,
    -1.940_262_4e-2,
    1.028_620_5e-1,
    6.366_087e-1,
    1.128_379_4,
];

/// `erf(x)`, absolute error about 1e-7.
#[inline(always)]
pub(crate) unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instruction set is there (caller).
    unsafe {
        let zero = S::splat(0.0);
        let t = S::min(S::max(x, S::sub(zero, x)), S::splat(4.0));
        let mut p = S::splat(ERF[0]);
        for c in &ERF[1..] {
            p = S::fma(p, t, S::splat(*c));
        }
        let y = S::sub(S::splat(1.0), exp::<S>(S::fnma(p, t, zero)));
        S::if_less(x, zero, S::sub(zero, y), y)
    }
}

kernel! {
    /// Sum of squares of a short row.
    pub(crate) fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        dot_in::<S>(a, b)
    }
}

/// `a · b`
#[inline(always)]
pub(crate) unsafe fn dot_in<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let (n, a, b) = (a.len(), a.as_ptr(), b.as_ptr());
    // SAFETY: all reads are below `n`; the instruction set is there (caller).
    unsafe {
        let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
        let mut i = 0;
        while i + 2 * S::LANES <= n {
            even = S::fma(S::load(a.add(i)), S::load(b.add(i)), even);
            let j = i + S::LANES;
            odd = S::fma(S::load(a.add(j)), S::load(b.add(j)), odd);
            i += 2 * S::LANES;
        }
        while i < n {
            let left = (n - i).min(S::LANES);
            let (x, y) = if left == S::LANES {
                (S::load(a.add(i)), S::load(b.add(i)))
            } else {
                (S::load_n(a.add(i), left), S::load_n(b.add(i), left))
            };
            even = S::fma(x, y, even);
            i += left;
        }
        S::sum(S::add(even, odd))
    }
}

/// `a_i b_i c_i` summed.
#[inline(always)]
pub(crate) unsafe fn dot3_in<S: Simd>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    assert!(a.len() == b.len() && a.len() == c.len());
    let (n, a, b, c) = (a.len(), a.as_ptr(), b.as_ptr(), c.as_ptr());
    // SAFETY: all reads are below `n`; the instruction set is there (caller).
    unsafe {
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < n {
            let left = (n - i).min(S::LANES);
            let (x, y, z) = if left == S::LANES {
                (S::load(a.add(i)), S::load(b.add(i)), S::load(c.add(i)))
            } else {
                (S::load_n(a.add(i), left), S::load_n(b.add(i), left), S::load_n(c.add(i), left))
            };
            sum = S::fma(S::mul(x, y), z, sum);
            i += left;
        }
        S::sum(sum)
    }
}

/// `to[i] = f(i, a vector of each source at i)` over whole rows; the tail goes through zero-filled vectors.
macro_rules! each_lane {
    ($S:ident, $n:expr, |$($x:ident = $from:ident),* $(,)?| $value:expr => $to:expr) => {{
        let n = $n;
        let to: *mut f32 = $to;
        let mut i = 0;
        while i + $S::LANES <= n {
            $(let $x = $S::load($from.add(i));)*
            $S::store(to.add(i), $value);
            i += $S::LANES;
        }
        if i < n {
            let left = n - i;
            $(let $x = $S::load_n($from.add(i), left);)*
            $S::store_n(to.add(i), $value, left);
        }
    }};
}
pub(crate) use each_lane;

kernel! {
    /// `to += scale * from`
    pub(crate) fn add_scaled<S>(to: &mut [f32], from: &[f32], scale: f32) {
        assert_eq!(to.len(), from.len());
        let (n, to, from) = (to.len(), to.as_mut_ptr(), from.as_ptr());
        let scale = S::splat(scale);
        each_lane!(S, n, |x = from, y = to| S::fma(x, scale, y) => to);
    }
}

kernel! {
    /// `to = from` widened.
    pub(crate) fn widen<S>(to: &mut [f32], from: &[u16]) {
        assert_eq!(to.len(), from.len());
        let n = to.len();
        let mut i = 0;
        while i + S::LANES <= n {
            S::store(to.as_mut_ptr().add(i), S::load_bf16(from.as_ptr().add(i)));
            i += S::LANES;
        }
        for j in i..n {
            to[j] = crate::tensor::widen(from[j]);
        }
    }
}

/// `Σ a_i`
#[inline(always)]
pub(crate) unsafe fn sum_in<S: Simd>(a: &[f32]) -> f32 {
    let (n, a) = (a.len(), a.as_ptr());
    // SAFETY: all reads are below `n`; the instruction set is there (caller).
    unsafe {
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i + S::LANES <= n {
            sum = S::add(sum, S::load(a.add(i)));
            i += S::LANES;
        }
        if i < n {
            sum = S::add(sum, S::load_n(a.add(i), n - i));
        }
        S::sum(sum)
    }
}
