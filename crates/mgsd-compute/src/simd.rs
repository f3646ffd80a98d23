//! Vectors of the width that the CPU has, chosen at run time.
//!
//! A function body is written once over [`Simd`]; [`kernel!`] compiles it for AVX-512, for AVX2 with FMA and for
//! anything else, and the finished function picks one when it is called. `Simd` has just what the operations need,
//! among it loads that widen Bf16, which is why it is not `pulp`'s.

use std::sync::atomic::{AtomicU8, Ordering};

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
            for row in 0..Self::LANES {
                Self::store(from.as_mut_ptr().add(row * Self::LANES), square[row]);
            }
            for row in 0..Self::LANES {
                for col in 0..Self::LANES {
                    to[col * Self::LANES + row] = from[row * Self::LANES + col];
                }
            }
            for row in 0..Self::LANES {
                square[row] = Self::load(to.as_ptr().add(row * Self::LANES));
            }
        }
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
    Avx2,
    Avx512,
}

/// What this CPU has. `MGSD_SIMD=portable|avx2` holds it down, for tests and measurements.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: AtomicU8 = AtomicU8::new(0);
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => {
            let found = detect();
            let code = match found {
                Level::Portable => 1,
                Level::Avx2 => 2,
                Level::Avx512 => 3,
            };
            LEVEL.store(code, Ordering::Relaxed);
            found
        }
    }
}

#[cold]
fn detect() -> Level {
    let wish = std::env::var("MGSD_SIMD").unwrap_or_default();
    if wish == "portable" {
        return Level::Portable;
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
        Level::Avx512 => 32,
        _ => 16,
    }
}

/// Rows of the matrix kernel's register tile.
pub(crate) fn tile_rows() -> usize {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Avx512::TILE_ROWS,
        _ => Portable::TILE_ROWS,
    }
}

/// Eight numbers in an array: whatever the compiler makes of it.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    type V = [f32; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: eight numbers are readable (caller).
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: eight numbers are readable (caller).
        let halves = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        halves.map(crate::tensor::widen)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        // SAFETY: eight numbers are writable (caller).
        unsafe { to.cast::<[f32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn if_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, n_bits: Self::V) -> Self::V {
        map2(x, n_bits, |x, n| {
            f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23))
        })
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    unsafe fn highest(a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)] // Each block is one instruction whose conditions are the trait's.
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// Eight numbers; AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// Sixteen numbers; AVX-512 F, VL, BW, DQ.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    /// All bits set in the first `n` of eight lanes.
    #[inline(always)]
    unsafe fn first_lanes(n: usize) -> __m256i {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane)
        }
    }

    impl Simd for Avx2 {
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6;
        type V = __m256;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self::V {
            unsafe {
                let halves = _mm_loadu_si128(from.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: Self::V) {
            unsafe { _mm256_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: Self::V) -> Self::V {
            unsafe { _mm256_sqrt_ps(a) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm256_fnmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn if_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
            unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
        }
        #[inline(always)]
        unsafe fn scale_by_power(x: Self::V, n_bits: Self::V) -> Self::V {
            unsafe {
                let shift = _mm256_slli_epi32::<23>(_mm256_castps_si256(n_bits));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift))
            }
        }
        #[inline(always)]
        unsafe fn load_n(from: *const f32, n: usize) -> Self::V {
            unsafe { _mm256_maskload_ps(from, first_lanes(n)) }
        }
        #[inline(always)]
        unsafe fn store_n(to: *mut f32, x: Self::V, n: usize) {
            unsafe { _mm256_maskstore_ps(to, first_lanes(n), x) }
        }
        #[inline(always)]
        unsafe fn transpose(x: &mut [Self::V; 16]) {
            unsafe {
                let mut pairs = [_mm256_setzero_ps(); 8];
                for i in 0..4 {
                    pairs[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                    pairs[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
                }
                let mut fours = [_mm256_setzero_ps(); 8];
                for i in 0..2 {
                    let p = &pairs[4 * i..];
                    fours[4 * i] = _mm256_shuffle_ps::<0x44>(p[0], p[2]);
                    fours[4 * i + 1] = _mm256_shuffle_ps::<0xee>(p[0], p[2]);
                    fours[4 * i + 2] = _mm256_shuffle_ps::<0x44>(p[1], p[3]);
                    fours[4 * i + 3] = _mm256_shuffle_ps::<0xee>(p[1], p[3]);
                }
                for i in 0..4 {
                    x[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
                    x[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
                }
            }
        }
        #[inline(always)]
        unsafe fn sum(a: Self::V) -> f32 {
            unsafe {
                let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
            }
        }
        #[inline(always)]
        unsafe fn highest(a: Self::V) -> f32 {
            unsafe {
                let half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)))
            }
        }
    }

    impl Simd for Avx512 {
        const LANES: usize = 16;
        const TILE_ROWS: usize = 12;
        type V = __m512;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self::V {
            unsafe {
                let halves = _mm256_loadu_si256(from.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: Self::V) {
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: Self::V) -> Self::V {
            unsafe { _mm512_sqrt_ps(a) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm512_fnmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn if_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
        }
        #[inline(always)]
        unsafe fn scale_by_power(x: Self::V, n_bits: Self::V) -> Self::V {
            unsafe {
                let shift = _mm512_slli_epi32::<23>(_mm512_castps_si512(n_bits));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), shift))
            }
        }
        #[inline(always)]
        unsafe fn load_n(from: *const f32, n: usize) -> Self::V {
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, from) }
        }
        #[inline(always)]
        unsafe fn store_n(to: *mut f32, x: Self::V, n: usize) {
            unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as u16, x) }
        }
        #[inline(always)]
        unsafe fn sum(a: Self::V) -> f32 {
            unsafe { _mm512_reduce_add_ps(a) }
        }
        #[inline(always)]
        unsafe fn highest(a: Self::V) -> f32 {
            unsafe { _mm512_reduce_max_ps(a) }
        }
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
                    _ => generic::<$crate::simd::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use kernel;
