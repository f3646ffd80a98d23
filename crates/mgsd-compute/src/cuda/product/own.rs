//! Large products by our own kernel (`kernels/product.cu`), which takes in what stands around them: adapters, a matrix that
//! is added, several products with one sum or of one input, the gated product, norm and rotation of heads. A plain product
//! is cuBLASLt's work, which is about as fast (docs/h200.md).

use crate::cuda::{Arg, Cuda, Kernel, LARGE, Tiles, Variant, sizes};
use crate::ops::head_norm::HeadNorm;
use crate::{Dtype, Tensor};

/// One product of a sum, with the second half of its adapter: `x wᵀ + low bᵀ`, or `x w + low b`.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub low: Option<(&'a Tensor, &'a Tensor)>,
}

/// How weights lie, the second halves of adapters with them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weights {
    /// `[outputs, inputs]`
    ByOutputs,
    /// `[inputs, outputs]`
    ByInputs,
}

/// What becomes of the terms.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Their sum.
    Sum,
    /// Their sum and one more matrix.
    SumOnto,
    /// `silu(first) * second`
    Gated,
    /// The same, and the two themselves.
    GatedAndHalves,
    /// Each by itself; their input is one and the same, and all have adapters or none.
    Each,
    /// The same of three, the first two of which are normed and turned.
    Heads,
    /// The same, and those two as they were before.
    HeadsAndRaw,
}

impl Form {
    fn is_gated(self) -> bool {
        matches!(self, Self::Gated | Self::GatedAndHalves)
    }

    fn has_heads(self) -> bool {
        matches!(self, Self::Heads | Self::HeadsAndRaw)
    }

    /// Whether every term has a result of its own.
    fn is_each(self) -> bool {
        self == Self::Each || self.has_heads()
    }

    /// Widths of tiles that will do.
    fn allows(self, wide: usize) -> bool {
        (!self.is_gated() || wide == 256) && (!self.has_heads() || wide.is_multiple_of(HEAD_DIM))
    }
}

/// Numbers of a head that the kernel norms and turns.
pub(crate) const HEAD_DIM: usize = 128;

/// Terms of a sum at most.
const TERMS: usize = 3;
/// Rows of a tile of a cluster, which has two blocks.
const TALL: usize = 256;
const CLUSTER: usize = 2;
const THREADS: u32 = 384;
/// Columns of a tile, and how many pieces are on their way if weights lie by outputs and by inputs: as many as shared memory
/// has room for.
const WIDTHS: [(usize, usize, usize); 4] = [(256, 3, 3), (192, 4, 4), (160, 5, 4), (128, 5, 5)];
/// The kernel works in whole rounds of tiles. Where less than this part of them is used, cuBLASLt wins by more than is
/// saved around the product.
const LEAST_USED: f64 = 0.88;
/// Bytes of shared memory that a block may have.
const SHARED: usize = 232_448;

/// A product that the kernel can do.
pub(crate) struct Own<'a> {
    gpu: &'static Cuda,
    terms: &'a [Term<'a>],
    weights: Weights,
    form: Form,
    rows: usize,
    /// Of each result; of one where not every term has its own.
    columns: Vec<usize>,
    wide: usize,
    clusters: usize,
}

/// The width of tiles for results of `rows` by `columns` if it is worth while.
fn width(rows: usize, columns: &[usize], form: Form, clusters: usize) -> Option<usize> {
    let (down, halved) = (rows.div_ceil(TALL), form.is_gated());
    let widths = WIDTHS.iter().map(|(wide, ..)| *wide).filter(|wide| form.allows(*wide));
    let cost = |wide: usize| {
        let results = if halved { wide / 2 } else { wide };
        let along: usize = columns.iter().map(|columns| columns.div_ceil(results)).sum();
        (down * along).div_ceil(clusters) * wide
    };
    let wide = widths.min_by_key(|wide| cost(*wide))?;
    let columns: usize = columns.iter().sum();
    let all = rows as f64 / TALL as f64 * columns as f64 * if halved { 2.0 } else { 1.0 };
    (all >= LEAST_USED * (cost(wide) * clusters) as f64).then_some(wide)
}

impl<'a> Own<'a> {
    /// `None`: the kernel is not for this GPU, these types or these shapes. Heads must have [`HEAD_DIM`] numbers.
    pub(crate) fn of(terms: &'a [Term<'a>], weights: Weights, form: Form) -> Option<Self> {
        let first = terms.first()?;
        let gpu = first.x.gpu().filter(|gpu| gpu.is_hopper())?;
        let lows = terms.iter().filter(|term| term.low.is_some()).count();
        let outputs = |weight: &Tensor| if weights == Weights::ByOutputs { weight.rows() } else { weight.cols() };
        let rows = first.x.rows();
        let columns: Vec<usize> = match form.is_each() {
            true => terms.iter().map(|term| outputs(term.weight)).collect(),
            false => vec![outputs(first.weight)],
        };
        let fits = |tensor: &Tensor| tensor.dtype() == Dtype::Bf16 && tensor.cols().is_multiple_of(8);
        let good = terms.iter().all(|term| {
            let low = term.low.is_none_or(|(low, b)| fits(low) && fits(b) && low.cols() <= 64);
            // A piece of the sum has 64 columns; the kernel wants two of each.
            low && fits(term.x) && fits(term.weight) && term.x.cols() > 64
        });
        let alike = lows == 0 || lows == terms.len();
        let number = match form {
            Form::Sum | Form::SumOnto => terms.len() <= TERMS,
            Form::Gated | Form::GatedAndHalves => terms.len() == 2 && alike,
            Form::Each => terms.len() <= TERMS && alike && weights == Weights::ByOutputs,
            Form::Heads | Form::HeadsAndRaw => terms.len() == 3 && alike && weights == Weights::ByOutputs,
        };
        if !good || !number || !columns.iter().all(|columns| columns.is_multiple_of(8)) {
            return None;
        }
        let clusters = gpu.clusters()[CLUSTER - 1];
        let wide = width(rows, &columns, form, clusters.max(1)).filter(|_| clusters > 0)?;
        Some(Self { gpu, terms, weights, form, rows, columns, wide, clusters })
    }

    /// The results, with halves and what heads were behind what is made of them. `base` and `norm` are there if the form wants
    /// them; `base` may be where the result goes.
    pub(crate) fn run(&self, outs: &[u64], base: Option<u64>, norm: Option<&HeadNorm>) {
        let Self { terms, weights, form, rows, ref columns, wide, .. } = *self;
        let across = weights == Weights::ByInputs;
        let gated = form.is_gated();
        let results = if gated { wide / 2 } else { wide };
        let panel = if wide.is_multiple_of(64) { 64 } else { 32 };
        let share = if across { 64 / CLUSTER } else { results / CLUSTER };
        let tall = TALL / CLUSTER;
        let lows: Vec<_> = terms.iter().filter_map(|term| term.low).collect();
        let rank = lows.iter().map(|(low, _)| low.cols()).max().unwrap_or(0);

        let map = |tensor: &Tensor, height| Tiles::new(tensor.pointer(), tensor.rows(), tensor.cols(), height);
        let result = |index: usize| {
            let at = outs.get(index).copied().unwrap_or(outs[0]);
            let columns = columns.get(index % TERMS).copied().unwrap_or(columns[0]);
            Tiles::with_columns(at, rows, columns, panel, tall / 2)
        };
        // What is not there is described by something that is and never asked for.
        let term = |index: usize| terms.get(index).unwrap_or(&terms[0]);
        let low = |index: usize| lows.get(index).copied().unwrap_or((terms[0].x, terms[0].weight));
        let maps: [Tiles; 6 * TERMS] = std::array::from_fn(|index| match (index / TERMS, index % TERMS) {
            (0, at) => map(term(at).x, tall),
            (1, at) => map(term(at).weight, share),
            (2, at) => map(low(at).0, tall),
            (3, at) => map(low(at).1, share),
            (5, 2) => Tiles::with_columns(base.unwrap_or(outs[0]), rows, columns[0], panel, tall / 2),
            (group, at) => result((group - 4) * TERMS + at),
        });

        let (_, by_outputs, by_inputs) = WIDTHS.into_iter().find(|(width, ..)| *width == wide).unwrap_or(WIDTHS[0]);
        let stages = if across { by_inputs } else { by_outputs };
        let weight_bytes = if across { wide.div_ceil(64) * 8192 } else { wide * 128 };
        let shared = stages * (tall * 128 + weight_bytes) + tall * wide * 2 + (2 * stages + 6) * 8;
        debug_assert!(shared <= SHARED);
        let gates = if form == Form::GatedAndHalves { 2 } else { gated as usize };
        let heads = if form == Form::HeadsAndRaw { 2 } else { form.has_heads() as usize };
        let (onto, each) = ((form == Form::SumOnto) as usize, form.is_each() as usize);
        // A tile of one of several products has one adapter.
        let lows = if form.is_each() { lows.len().min(1) } else { lows.len() };
        let large: [usize; LARGE.len()] =
            [wide, stages, across as usize, gates, onto, each, heads, lows, rank.div_ceil(16)];
        let head_dim = if form.has_heads() { HEAD_DIM as u16 } else { 0 };
        let variant = Variant { bf16: true, head_dim, sizes: sizes(large), ..Variant::default() };

        let pieces = |index: usize| terms.get(index).map_or(0, |term| term.x.cols().div_ceil(64));
        // Where in a row of tiles those of a result begin.
        let begin = |index: usize| columns.iter().take(index).map(|columns| columns.div_ceil(results)).sum::<usize>();
        let (down, along) = (rows.div_ceil(TALL), begin(TERMS));
        let chunks = match form {
            Form::Sum | Form::SumOnto => [0, 1, 2].map(pieces),
            // The second term shares the first one's input.
            Form::Gated | Form::GatedAndHalves => [pieces(0), 0, 0],
            Form::Each | Form::Heads | Form::HeadsAndRaw => [pieces(0), begin(1), begin(2)],
        };
        // Tiles one below the other: fewer where a round has all columns anyway.
        let group: usize = if wide == 256 { 16 } else { 4 };
        let [first, second, third] = chunks.map(Arg::from);
        let mut args: Vec<Arg> = vec![first, second, third, down.into(), along.into(), group.into()];
        if let Some(norm) = norm {
            args.extend(norm.pointers());
            args.extend([Arg::from(rows), norm.eps.into()]);
        }
        let blocks = (self.clusters.min(down * along) * CLUSTER) as u32;
        let kernel = Kernel { operation: "product", function: "product", variant };
        self.gpu.launch_with_maps(kernel, [blocks, 1, 1], [THREADS, 1], shared as u32, &maps, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_is_taken_that_fills_whole_rounds() {
        assert_eq!(width(4096, &[2560], Form::Sum, 66), Some(160));
        assert_eq!(width(4096, &[4096], Form::Sum, 66), Some(256));
        assert_eq!(width(6144, &[1024], Form::Sum, 66), Some(128));
        assert_eq!(width(6144, &[9728], Form::Gated, 66), Some(256));
        assert_eq!(width(6144, &[4096, 1024, 1024], Form::Heads, 66), Some(256));
        assert_eq!(width(4096, &[4096, 1024, 1024], Form::Each, 66), Some(256));
    }

    #[test]
    fn small_products_are_left_to_others() {
        assert_eq!(width(33, &[2560], Form::Sum, 66), None);
        assert_eq!(width(512, &[1024], Form::Sum, 66), None);
        assert_eq!(width(300, &[9728], Form::Gated, 66), None);
    }

    #[test]
    fn shared_memory_has_room_for_all_widths() {
        for (wide, by_outputs, by_inputs) in WIDTHS {
            let rest = 128 * wide * 2 + (2 * by_outputs.max(by_inputs) + 6) * 8;
            assert!(by_outputs * (128 * 128 + wide * 128) + rest <= SHARED, "{wide}");
            assert!(by_inputs * (128 * 128 + wide.div_ceil(64) * 8192) + rest <= SHARED, "{wide}");
        }
    }
}
