//! The matrix product in registers: `C (=|+=) alpha A B`, with `B` packed in panels.
//!
//! A panel holds [`panel_width`](crate::simd::panel_width) columns of `B`, one row of `B` after the other, padded with zeros.
//! `A` is read one number at a time, so its rows and its depth may have any stride (a transposed matrix costs nothing).

use crate::simd::{Simd, kernel, panel_width};

/// Left side: `a[row, k] = at[row * row_stride + k * depth_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) at: *const f32,
    pub(crate) row_stride: usize,
    pub(crate) depth_stride: usize,
}

/// Right side: the panels of a packed matrix, `stride` numbers from one to the next.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) at: *const f32,
    pub(crate) stride: usize,
}

/// The result: row `r` begins at `at + r * row_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Into {
    pub(crate) at: *mut f32,
    pub(crate) row_stride: usize,
    /// Add to what stands there.
    pub(crate) add: bool,
}

/// Numbers that `depth` rows of `cols` columns take when packed.
pub(crate) fn packed_len(depth: usize, cols: usize) -> usize {
    depth * cols.next_multiple_of(panel_width())
}

/// Sizes of a product: `[rows, depth] x [depth, cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) depth: usize,
}

/// `C (=|+=) alpha A B`
///
/// # Safety
/// `a` is readable for `size.rows x size.depth`, `b` holds the panels of `size.depth x size.cols`, `c` is writable for
/// `size.rows x size.cols`, and overlaps neither.
pub(crate) unsafe fn product(size: Size, a: Left, b: Panels, c: Into, alpha: f32) {
    run(size, a, b, c, alpha);
}

kernel! {
    fn run<S>(size: Size, a: Left, b: Panels, c: Into, alpha: f32) {
        // Reads and writes stay within what the caller of `product` promises.
        let width = 2 * S::LANES;
        for panel in 0..size.cols.div_ceil(width) {
            let cols = (size.cols - panel * width).min(width);
            let b = b.at.add(panel * b.stride);
            let mut row = 0;
            macro_rules! strips {
                ($($r:literal x $u:literal),*) => {
                    $(while $r <= S::TILE_ROWS && row + $r <= size.rows {
                        let a = Left { at: a.at.add(row * a.row_stride), ..a };
                        let c = Into { at: c.at.add(row * c.row_stride + panel * width), ..c };
                        tile::<S, $r, $u>(size.depth, cols, a, b, c, alpha);
                        row += $r;
                    })*
                };
            }
            strips!(12 x 1, 6 x 1, 4 x 1, 2 x 2, 1 x 4);
        }
    }
}

/// `R` rows by two vectors; `U` sets of accumulators, so that few rows do not wait for the adder.
#[allow(clippy::needless_range_loop)] // Plain loops over constants unroll into registers.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const U: usize>(
    depth: usize,
    cols: usize,
    a: Left,
    b: *const f32,
    c: Into,
    alpha: f32,
) {
    // SAFETY: reads and writes are those of `product`; the instruction set is there (caller).
    unsafe {
        let mut sums = [[[S::splat(0.0); 2]; R]; U];
        let width = 2 * S::LANES;
        // A macro, because a closure would not be compiled for the instruction set unless it is inlined, which it need not be.
        macro_rules! step {
            ($sums:expr, $k:expr) => {
                let left = S::load(b.add($k * width));
                let right = S::load(b.add($k * width + S::LANES));
                for r in 0..R {
                    let x = S::splat(*a.at.add(r * a.row_stride + $k * a.depth_stride));
                    $sums[r][0] = S::fma(x, left, $sums[r][0]);
                    $sums[r][1] = S::fma(x, right, $sums[r][1]);
                }
            };
        }
        let mut k = 0;
        while k + 4 <= depth {
            for i in 0..4 {
                step!(sums[i % U], k + i);
            }
            k += 4;
        }
        while k < depth {
            step!(sums[0], k);
            k += 1;
        }
        for u in 1..U {
            for r in 0..R {
                sums[0][r][0] = S::add(sums[0][r][0], sums[u][r][0]);
                sums[0][r][1] = S::add(sums[0][r][1], sums[u][r][1]);
            }
        }
        let alpha = S::splat(alpha);
        for r in 0..R {
            for half in 0..2 {
                let sum = sums[0][r][half];
                let to = c.at.add(r * c.row_stride + half * S::LANES);
                let here = cols.saturating_sub(half * S::LANES).min(S::LANES);
                if here == S::LANES {
                    let old = if c.add { S::load(to) } else { S::splat(0.0) };
                    S::store(to, S::fma(sum, alpha, old));
                } else if here > 0 {
                    let old = if c.add { S::load_n(to, here) } else { S::splat(0.0) };
                    S::store_n(to, S::fma(sum, alpha, old), here);
                }
            }
        }
    }
}

/// Packs `B[k, col] = from[k * stride + col]` (`depth` rows of `cols` numbers).
///
/// # Safety
/// `from` is readable for those, `to` holds [`packed_len`] numbers.
pub(crate) unsafe fn pack_rows(to: &mut [f32], from: *const f32, stride: usize, depth: usize, cols: usize) {
    assert!(to.len() >= packed_len(depth, cols));
    let width = panel_width();
    for panel in 0..cols.div_ceil(width) {
        let here = (cols - panel * width).min(width);
        let to = &mut to[panel * depth * width..(panel + 1) * depth * width];
        for (k, to) in to.chunks_exact_mut(width).enumerate() {
            // SAFETY: `here` columns of row `k` from column `panel * width` on are readable (caller).
            let from = unsafe { std::slice::from_raw_parts(from.add(k * stride + panel * width), here) };
            to[..here].copy_from_slice(from);
            to[here..].fill(0.0);
        }
    }
}

/// Packs `B[k, col] = from[col * stride + k]`: the transpose of `cols` rows of `depth` numbers.
///
/// # Safety
/// `from` is readable for those, `to` holds [`packed_len`] numbers.
pub(crate) unsafe fn pack_columns(to: &mut [f32], from: *const f32, stride: usize, depth: usize, cols: usize) {
    assert!(to.len() >= packed_len(depth, cols));
    let width = panel_width();
    for panel in 0..cols.div_ceil(width) {
        let here = (cols - panel * width).min(width);
        let to = &mut to[panel * depth * width..(panel + 1) * depth * width];
        if here < width {
            to.fill(0.0);
        }
        // Four by eight at a time: a line read serves several rows written.
        for col in 0..here {
            // SAFETY: `depth` numbers of that row are readable (caller).
            let from = unsafe { std::slice::from_raw_parts(from.add((panel * width + col) * stride), depth) };
            for (to, from) in to[col..].iter_mut().step_by(width).zip(from) {
                *to = *from;
            }
        }
    }
}
