//! The thin products of low-rank adapters, which have as few columns as the rank: first halves, what comes back to them, and
//! the gradients of `a` and `b`. Each reads an activation of the layer; adapters that share one read it together.
//!
//! On a GPU of compute capability 9.0, in `Bf16`, for ranks that are multiples of 8 up to 24, by a kernel that is bound by
//! that reading; otherwise, and on the CPU, one product after another.

use super::{LowRank, backward_input, backward_weight, forward};
use crate::cuda::{Arg, Cuda, Kernel, THIN, Variant, sizes};
use crate::{Dtype, Tensor, Write, check};

/// Adapters that are read for together, at most.
const MOST_SETS: usize = 3;
/// Their columns, at most: as many as the kernel has registers for.
const MOST_COLUMNS: usize = 24;
/// Fewer rows are not worth it.
const LEAST_ROWS: usize = 512;
/// The kernel's tiles and threads.
const WIDE: usize = 256;
const TALL: usize = 64;
const STAGES: usize = 3;
const THREADS: u32 = 256;

/// `low = scale * x aᵀ` for adapters of layers with one input.
pub fn begin(parts: &mut [(&mut Tensor, LowRank)], x: &Tensor) {
    let op = "thin::begin";
    for (_, adapter) in parts.iter() {
        check::shape(op, "a", adapter.a, adapter.a.rows(), x.cols());
    }
    let rank = parts.first().map_or(0, |(_, adapter)| adapter.a.rows());
    let alike = parts.iter().all(|(_, adapter)| adapter.a.rows() == rank && adapter.a.dtype() == Dtype::Bf16);
    if parts.len() > 1 && !(alike && Thin::fits(parts.len(), rank)) {
        return parts.iter_mut().for_each(|part| begin(std::slice::from_mut(part), x));
    }
    if alike && let Some(thin) = Thin::of(x, parts.len(), rank) {
        let weights = each(parts, |(_, adapter)| adapter.a.pointer());
        let scales = each(parts, |(_, adapter)| adapter.scale);
        let lows = each(parts, |(low, _)| {
            low.place(x, x.rows(), rank);
            low.pointer()
        });
        return thin.run(Some(Along { weights, lows, scales, turned: false }), None);
    }
    for (low, LowRank { a, scale, .. }) in parts {
        forward(low, x, a, None, *scale, Write::Set);
    }
}

/// `dlow = scale * dy b` and, where `db` is there, `db += dyᵀ low`.
pub fn back(dlow: &mut Tensor, db: Option<&mut Tensor>, dy: &Tensor, low: &Tensor, adapter: LowRank) {
    let op = "thin::back";
    let LowRank { b, scale, .. } = adapter;
    let rank = b.cols();
    check::shape(op, "b", b, dy.cols(), rank);
    let Some(db) = db else { return backward_input(dlow, dy, b, scale, Write::Set) };
    check::shape(op, "low", low, dy.rows(), rank);
    check::shape(op, "db", db, dy.cols(), rank);
    let narrow = [b, low].iter().all(|tensor| tensor.dtype() == Dtype::Bf16);
    if narrow && let Some(thin) = Thin::of(dy, 1, rank) {
        dlow.place(dy, dy.rows(), rank);
        let one = |value| [value, value, value];
        let (lows, weights, scales) = (one(dlow.pointer()), one(b.pointer()), [scale; MOST_SETS]);
        let adds = !db.take_zero() as usize;
        let down = Down { lows: one(low.pointer()), grads: one(db.pointer_f32()), adds };
        return thin.run(Some(Along { weights, lows, scales, turned: true }), Some(down));
    }
    backward_input(dlow, dy, b, scale, Write::Set);
    backward_weight(db, dy, low, 1.0);
}

/// `da += dlowᵀ x` for adapters of layers with one input: pairs of `da` and `dlow`.
pub fn gradients(parts: &mut [(&mut Tensor, &Tensor)], x: &Tensor) {
    let op = "thin::gradients";
    for (da, dlow) in parts.iter() {
        check::shape(op, "dlow", dlow, x.rows(), dlow.cols());
        check::shape(op, "da", da, dlow.cols(), x.cols());
    }
    let rank = parts.first().map_or(0, |(_, dlow)| dlow.cols());
    let alike = parts.iter().all(|(_, dlow)| dlow.cols() == rank && dlow.dtype() == Dtype::Bf16);
    if parts.len() > 1 && !(alike && Thin::fits(parts.len(), rank)) {
        return parts.iter_mut().for_each(|part| gradients(std::slice::from_mut(part), x));
    }
    if alike && let Some(thin) = Thin::of(x, parts.len(), rank) {
        let lows = each(parts, |(_, dlow)| dlow.pointer());
        let adds = parts.iter_mut().enumerate().map(|(set, (da, _))| (!da.take_zero() as usize) << set).sum();
        let grads = each(parts, |(da, _)| da.pointer_f32());
        return thin.run(None, Some(Down { lows, grads, adds }));
    }
    for (da, dlow) in parts {
        backward_weight(da, dlow, x, 1.0);
    }
}

/// Of every part, the last again where there are fewer than there may be.
fn each<Part, Value>(parts: &mut [Part], mut of: impl FnMut(&mut Part) -> Value) -> [Value; MOST_SETS] {
    let last = parts.len() - 1;
    std::array::from_fn(|set| of(&mut parts[set.min(last)]))
}

/// Sums along the rows of the matrix.
struct Along {
    weights: [u64; MOST_SETS],
    lows: [u64; MOST_SETS],
    scales: [f32; MOST_SETS],
    /// Weights are `[width, rank]`.
    turned: bool,
}

/// Sums down its columns; as the weights are, if those are there, else `[rank, width]`.
struct Down {
    lows: [u64; MOST_SETS],
    grads: [u64; MOST_SETS],
    /// Bit by bit: whether a gradient is added to.
    adds: usize,
}

/// Products of one matrix that the kernel makes.
struct Thin<'a> {
    gpu: &'static Cuda,
    matrix: &'a Tensor,
    sets: usize,
    rank: usize,
}

impl<'a> Thin<'a> {
    fn fits(sets: usize, rank: usize) -> bool {
        sets <= MOST_SETS && rank.is_multiple_of(8) && (8..=MOST_COLUMNS).contains(&(sets * rank))
    }

    fn of(matrix: &'a Tensor, sets: usize, rank: usize) -> Option<Self> {
        let gpu = matrix.gpu().filter(|gpu| gpu.is_hopper())?;
        let fits = matrix.dtype() == Dtype::Bf16
            && matrix.cols().is_multiple_of(8)
            && matrix.rows() >= LEAST_ROWS
            && Self::fits(sets, rank);
        fits.then_some(Self { gpu, matrix, sets, rank })
    }

    fn run(&self, along: Option<Along>, down: Option<Down>) {
        let Self { gpu, matrix, sets, rank } = *self;
        let (tokens, width, columns) = (matrix.rows(), matrix.cols(), sets * rank);
        // Tiles of columns, and as many stretches of tokens as give every multiprocessor two blocks.
        let tiles = width.div_ceil(WIDE);
        let stretches = (2 * gpu.multiprocessors() as usize / tiles).max(1);
        let stretch = tokens.div_ceil(stretches).next_multiple_of(TALL);
        let stretches = tokens.div_ceil(stretch);
        let turned = along.as_ref().is_some_and(|along| along.turned);
        let parts = |there: bool, parts: usize, rows: usize| if there { parts * rows * columns * 4 } else { 0 };
        let along_bytes = parts(along.is_some(), tiles, tokens);
        let sums = gpu.scratch("thin sums", along_bytes + parts(down.is_some(), stretches, width));
        let (has_along, has_down) = (along.is_some() as usize, down.is_some() as usize);
        let compiled: [usize; THIN.len()] = [sets, rank, has_along, has_down, turned as usize];
        let kernel = |function| {
            let variant = Variant { bf16: true, sizes: sizes(compiled), ..Variant::default() };
            Kernel { operation: "thin", function, variant }
        };
        // What is not there is never looked at.
        let nothing = [matrix.pointer(); MOST_SETS];
        let Along { weights, lows: to, scales, .. } =
            along.unwrap_or(Along { weights: nothing, lows: nothing, scales: [0.0; MOST_SETS], turned });
        let Down { lows, grads, adds } = down.unwrap_or(Down { lows: nothing, grads: nothing, adds: 0 });

        let sums = [sums, sums + along_bytes as u64];
        let mut args: Vec<Arg> =
            sums.into_iter().chain([matrix.pointer()]).chain(weights).chain(lows).map(Arg::from).collect();
        args.extend([tokens, width, stretch].map(Arg::from));
        let stage = TALL * (WIDE + 8) + has_down * TALL * columns;
        let shared = 2 * STAGES * stage + has_along * TALL * columns * 4;
        gpu.launch(kernel("thin"), [tiles as u32, stretches as u32, 1], [THREADS, 1], shared as u32, &args);

        let mut args: Vec<Arg> = to.map(Arg::from).to_vec();
        args.extend(scales.map(Arg::from));
        args.extend(grads.into_iter().chain(sums).map(Arg::from));
        args.extend([tokens, width, tiles, stretches, adds].map(Arg::from));
        let numbers = (has_along * tokens + has_down * width) * columns;
        gpu.launch(kernel("sum"), [numbers.div_ceil(THREADS as usize) as u32, 1, 1], [THREADS, 1], 0, &args);
    }
}
