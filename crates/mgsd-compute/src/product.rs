//! The matrix product in registers: `C (=|+=) alpha A B`, with `B` packed in panels.
//!
//! A panel holds [`panel_width`](crate::simd::panel_width) columns of `B`, one row of `B` after the other, padded with zeros.
//! `A` is read one number at a time, so its rows and its depth may have any stride (a transposed matrix costs nothing).

use crate::simd::{Simd, kernel, panel_width, tile_rows};
use crate::tensor::Values;

/// Left side: `a[row, k] = at[row * row_stride + k * depth_stride]`, the rows of a register tile at a time: from one tile to the
/// next it is `tile_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) at: *const f32,
    pub(crate) row_stride: usize,
    pub(crate) depth_stride: usize,
    pub(crate) tile_stride: usize,
}

impl Left {
    /// A matrix with two strides.
    pub(crate) fn strided(at: *const f32, row_stride: usize, depth_stride: usize) -> Self {
        Self { at, row_stride, depth_stride, tile_stride: tile_rows() * row_stride }
    }

    /// A matrix packed by [`pack_tiles`].
    pub(crate) fn tiles(at: *const f32, depth: usize) -> Self {
        Self { at, row_stride: 1, depth_stride: tile_rows(), tile_stride: tile_rows() * depth }
    }
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
                    $(while $r <= S::TILE_ROWS && size.rows - row >= $r {
                        let (whole, part) = (row / S::TILE_ROWS, row % S::TILE_ROWS);
                        let a = Left { at: a.at.add(whole * a.tile_stride + part * a.row_stride), ..a };
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
pub(crate) fn pack_rows(to: &mut [f32], from: Values, stride: usize, depth: usize, cols: usize) {
    check_sizes(to, from, packed_len(depth, cols), depth, cols, stride);
    match from {
        Values::F32(from) => pack_rows_f32(to, from, stride, depth, cols),
        Values::Bf16(from) => pack_rows_bf16(to, from, stride, depth, cols),
    }
}

/// Packs `B[k, col] = from[col * stride + k]`: the transpose of `cols` rows of `depth` numbers.
pub(crate) fn pack_columns(to: &mut [f32], from: Values, stride: usize, depth: usize, cols: usize) {
    check_sizes(to, from, packed_len(depth, cols), cols, depth, stride);
    match from {
        Values::F32(from) => pack_columns_f32(to, from, stride, depth, cols),
        Values::Bf16(from) => pack_columns_bf16(to, from, stride, depth, cols),
    }
}

/// Numbers that `rows` rows of `depth` columns take when packed as a left side.
pub(crate) fn tiles_len(rows: usize, depth: usize) -> usize {
    rows.next_multiple_of(tile_rows()) * depth
}

/// Packs the left side `A[row, k] = from[k * stride + row]` in tiles of rows: the transpose of `depth` rows of `rows` numbers.
pub(crate) fn pack_tiles(to: &mut [f32], from: &[f32], stride: usize, depth: usize, rows: usize) {
    check_sizes(to, Values::F32(from), tiles_len(rows, depth), depth, rows, stride);
    pack_tiles_in(to, from, stride, depth, rows);
}

/// `from` holds `lines` lines of `length` numbers, `stride` apart.
fn check_sizes(to: &[f32], from: Values, wanted: usize, lines: usize, length: usize, stride: usize) {
    let needed = if lines == 0 { 0 } else { (lines - 1) * stride + length };
    assert!(to.len() >= wanted && from.len() >= needed, "packing {lines} lines of {length} at stride {stride}");
}

macro_rules! pack_kernels {
    ($rows:ident, $columns:ident, $from:ty, $load:ident, $widen:expr) => {
        kernel! {
            fn $rows<S>(to: &mut [f32], from: &[$from], stride: usize, depth: usize, cols: usize) {
                // Sizes: `check_sizes`.
                let width = 2 * S::LANES;
                for panel in 0..cols.div_ceil(width) {
                    let here = (cols - panel * width).min(width);
                    let to = to.as_mut_ptr().add(panel * depth * width);
                    let from = from.as_ptr().add(panel * width);
                    if here == width {
                        for k in 0..depth {
                            S::store(to.add(k * width), S::$load(from.add(k * stride)));
                            S::store(to.add(k * width + S::LANES), S::$load(from.add(k * stride + S::LANES)));
                        }
                    } else {
                        for k in 0..depth {
                            for col in 0..width {
                                *to.add(k * width + col) =
                                    if col < here { $widen(*from.add(k * stride + col)) } else { 0.0 };
                            }
                        }
                    }
                }
            }
        }

        kernel! {
            fn $columns<S>(to: &mut [f32], from: &[$from], stride: usize, depth: usize, cols: usize) {
                // Sizes: `check_sizes`.
                let width = 2 * S::LANES;
                for panel in 0..cols.div_ceil(width) {
                    let here = (cols - panel * width).min(width);
                    let to = to.as_mut_ptr().add(panel * depth * width);
                    let from = from.as_ptr().add(panel * width * stride);
                    let mut k = 0;
                    if here == width {
                        // Squares of a vector's width, transposed in registers.
                        while k + S::LANES <= depth {
                            for half in 0..2 {
                                let mut square = [S::splat(0.0); 16];
                                for row in 0..S::LANES {
                                    square[row] = S::$load(from.add((half * S::LANES + row) * stride + k));
                                }
                                S::transpose(&mut square);
                                for row in 0..S::LANES {
                                    S::store(to.add((k + row) * width + half * S::LANES), square[row]);
                                }
                            }
                            k += S::LANES;
                        }
                    }
                    while k < depth {
                        for col in 0..width {
                            *to.add(k * width + col) =
                                if col < here { $widen(*from.add(col * stride + k)) } else { 0.0 };
                        }
                        k += 1;
                    }
                }
            }
        }
    };
}

pack_kernels!(pack_rows_f32, pack_columns_f32, f32, load, std::convert::identity);
pack_kernels!(pack_rows_bf16, pack_columns_bf16, u16, load_bf16, crate::tensor::widen);

kernel! {
    fn pack_tiles_in<S>(to: &mut [f32], from: &[f32], stride: usize, depth: usize, rows: usize) {
        // Sizes: `check_sizes`. Row by row of `from`, as it lies.
        let height = S::TILE_ROWS;
        let whole = rows / height;
        for k in 0..depth {
            let from = from.as_ptr().add(k * stride);
            let to = to.as_mut_ptr().add(k * height);
            for tile in 0..whole {
                std::ptr::copy_nonoverlapping(from.add(tile * height), to.add(tile * height * depth), S::TILE_ROWS);
            }
            for row in whole * height..rows.next_multiple_of(height) {
                let x = if row < rows { *from.add(row) } else { 0.0 };
                *to.add(whole * height * depth + row - whole * height) = x;
            }
        }
    }
}
