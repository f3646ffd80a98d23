//! Vectors of the width that the CPU has, chosen at run time.
//!
//! A function body is written once over [`Simd`]; [`kernel!`] compiles it for AVX-512, for AVX2 with FMA and for
//! anything else, and the finished function picks one when it is called. `Simd` has just what the operations need,
//! among it loads that widen Bf16, which is why it is not `pulp`'s.

use std::sync::atomic::{AtomicU8, Ordering};

mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::{Plain, Wide};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// One vector of `f32` on some instruction set.
///
/// # Safety
/// Every function wants a CPU with the instruction set, and pointers that are valid for [`Simd::LANES`] numbers
/// (`n` numbers for the `_n` functions). No alignment is needed.
pub(crate) trait Simd: Copy {
    /// Numbers in a vector.
    const LANES: usize;
    /// Rows of the matrix kernel's register tile, which is two vectors wide.
    const TILE_ROWS: usize;
    /// The vector.
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    unsafe fn store(to: *mut f32, x: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { x } else { y }` in each lane.
    unsafe fn if_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `x * 2^n`, where the lowest bits of `n_bits`, read as an integer, hold `n`; the result must be a normal number.
    unsafe fn scale_by_power(x: Self::V, n_bits: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn highest(a: Self::V) -> f32;

    /// Transposes the square that the first [`Simd::LANES`] vectors make.
    #[inline(always)]
    unsafe fn transpose(square: &mut [Self::V; 16]) {
        let mut from = [0.0f32; 256];
        let mut to = [0.0f32; 256];
        // SAFETY: both hold `LANES * LANES` numbers.
        unsafe {
            for (row, x) in square.iter().enumerate().take(Self::LANES) {
                Self::store(from.as_mut_ptr().add(row * Self::LANES), *x);
            }
            for row in 0..Self::LANES {
                for col in 0..Self::LANES {
                    to[col * Self::LANES + row] = from[row * Self::LANES + col];
                }
            }
            for (row, x) in square.iter_mut().enumerate().take(Self::LANES) {
                *x = Self::load(to.as_ptr().add(row * Self::LANES));
            }
        }
    }

    /// Asks for the cache line at `at`, which need not be valid.
    #[inline(always)]
    fn prefetch(at: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint that never faults; SSE is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// The first `n` numbers, the rest zero.
    #[inline(always)]
    unsafe fn load_n(from: *const f32, n: usize) -> Self::V {
        let mut buffer = [0.0f32; 16];
        // SAFETY: `n <= LANES <= 16` numbers are readable (caller).
        unsafe {
            std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), n);
            Self::load(buffer.as_ptr())
        }
    }

    /// Writes the first `n` numbers.
    #[inline(always)]
    unsafe fn store_n(to: *mut f32, x: Self::V, n: usize) {
        let mut buffer = [0.0f32; 16];
        // SAFETY: `n <= LANES <= 16` numbers are writable (caller).
        unsafe {
            Self::store(buffer.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), to, n);
        }
    }
}

/// The instruction sets told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    /// Portable code in AVX-512's shapes.
    Wide,
    Avx2,
    Avx512,
}

/// What this CPU has. `MGSD_SIMD=portable|wide|avx2` holds it down, for tests and measurements.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: AtomicU8 = AtomicU8::new(0);
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        4 => Level::Wide,
        _ => {
            let found = detect();
            let code = match found {
                Level::Portable => 1,
                Level::Avx2 => 2,
                Level::Avx512 => 3,
                Level::Wide => 4,
            };
            LEVEL.store(code, Ordering::Relaxed);
            found
        }
    }
}

#[cold]
fn detect() -> Level {
    let wish = std::env::var("MGSD_SIMD").unwrap_or_default();
    match wish.as_str() {
        "portable" => return Level::Portable,
        "wide" => return Level::Wide,
        _ => {}
    }
    #[cfg(target_arch = "x86_64")]
    {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if avx512 && avx2 && wish != "avx2" {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Columns of a panel, the width of the matrix kernel's register tile: two vectors.
pub(crate) fn panel_width() -> usize {
    match level() {
        Level::Avx512 | Level::Wide => 2 * Wide::LANES,
        _ => 2 * Plain::LANES,
    }
}

/// Rows of the matrix kernel's register tile.
pub(crate) fn tile_rows() -> usize {
    match level() {
        Level::Avx512 | Level::Wide => Wide::TILE_ROWS,
        _ => Plain::TILE_ROWS,
    }
}

/// Compiles a function body, generic over a [`Simd`] type, for each instruction set and picks one at each call.
/// The body is an `unsafe` context: pointers inside must be valid as the operation around it has checked.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            unsafe fn generic<$S: $crate::simd::Simd>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the instruction set is there (below); pointers: see the comment in the body.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the features are enabled.
                unsafe { generic::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the features are enabled.
                unsafe { generic::<$crate::simd::Avx2>($($arg),*) }
            }
            // SAFETY: `level` has found the features of the version that is called.
            unsafe {
                match $crate::simd::level() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Level::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Level::Avx2 => avx2($($arg),*),
                    $crate::simd::Level::Wide => generic::<$crate::simd::Wide>($($arg),*),
                    _ => generic::<$crate::simd::Plain>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use kernel;
