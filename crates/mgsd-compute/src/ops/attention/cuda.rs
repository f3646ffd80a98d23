//! Attention on a GPU: one block of threads a tile of queries (or keys) and head.

use std::sync::Mutex;

use super::{Layout, Mask};
use crate::cuda::{Arg, Cuda, Kernel, Variant};
use crate::ops::head_norm::HeadNorm;
use crate::{Dtype, Tensor};

/// First and last row of a segment, first row of the tile, nothing.
type Tile = [i32; 4];

/// Tiles of packed sequences. All layers of a pass want the same ones, so the last few are kept.
struct Tiles {
    bounds: Vec<usize>,
    rows: usize,
    mask: Mask,
    /// The longest work first, for blocks that own queries and for those that own keys.
    by_query: Vec<Tile>,
    by_key: Vec<Tile>,
}

static KEPT: Mutex<Vec<Tiles>> = Mutex::new(Vec::new());

/// Sets of tiles that are kept: the batches of a decoder and of a vision tower, and some to spare.
const SETS: usize = 8;

fn make(layout: &Layout, rows: usize) -> Tiles {
    let mut tiles = Vec::new();
    for pair in layout.bounds.windows(2) {
        for first in (pair[0]..pair[1]).step_by(rows) {
            tiles.push([pair[0] as i32, pair[1] as i32, first as i32, 0]);
        }
    }
    let (mut by_query, mut by_key) = (tiles.clone(), tiles);
    match layout.mask {
        Mask::Causal => {
            by_query.sort_by_key(|[start, end, first, _]| -((first + rows as i32).min(*end) - start));
            by_key.sort_by_key(|[_, end, first, _]| -(end - first));
        }
        Mask::Full => {
            by_query.sort_by_key(|[start, end, ..]| -(end - start));
            by_key.clone_from(&by_query);
        }
    }
    Tiles { bounds: layout.bounds.to_vec(), rows, mask: layout.mask, by_query, by_key }
}

/// Number of tiles, and the two lists on the device.
fn tiles(gpu: &'static Cuda, layout: &Layout, rows: usize) -> (usize, u64, u64) {
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let same = |tiles: &Tiles| tiles.rows == rows && tiles.mask == layout.mask && tiles.bounds == layout.bounds;
    let at = kept.iter().position(same).unwrap_or_else(|| {
        if kept.len() == SETS {
            kept.remove(0);
        }
        kept.push(make(layout, rows));
        kept.len() - 1
    });
    let tiles = &kept[at];
    (tiles.by_query.len(), gpu.list(&tiles.by_query), gpu.list(&tiles.by_key))
}

/// What the sizes of blocks depend on.
struct Geometry {
    bf16: bool,
    head_dim: usize,
    causal: bool,
    /// Kernels for the matrix instructions of compute capability 9.0.
    hopper: bool,
}

impl Geometry {
    fn of(gpu: &Cuda, q: &Tensor, layout: &Layout) -> Self {
        let head_dim = layout.head_dim;
        assert!(
            head_dim.is_multiple_of(8) && head_dim <= 128,
            "attention on a GPU: heads of {head_dim} numbers; a multiple of 8 up to 128 is expected"
        );
        let bf16 = q.dtype() == Dtype::Bf16;
        let hopper = bf16 && gpu.is_hopper() && matches!(head_dim, 64 | 128);
        Self { bf16, head_dim, causal: layout.mask == Mask::Causal, hopper }
    }

    fn kernel(&self, operation: &'static str, function: &'static str) -> Kernel {
        let variant =
            Variant { bf16: self.bf16, head_dim: self.head_dim as u16, causal: self.causal, ..Variant::default() };
        Kernel { operation, function, variant }
    }

    /// Rows of a tile.
    fn tile(&self) -> usize {
        if self.bf16 { 128 } else { 32 }
    }

    /// Numbers from row to row in shared memory.
    fn row(&self) -> u32 {
        match self.bf16 {
            true => self.head_dim.next_multiple_of(16) as u32 + 8,
            false => self.head_dim as u32 + 2,
        }
    }

    /// Kernels, threads of a block and shared memory of the pass forward.
    fn forward(&self) -> (Kernel, [u32; 2], u32) {
        match (self.hopper, self.bf16) {
            (true, _) => {
                let kernel = self.kernel("attention_forward_hopper", "attention_forward");
                (kernel, [256, 1], 768 * self.head_dim as u32)
            }
            (_, true) => (self.kernel("attention_forward", "attention_forward"), [128, 1], 768 * self.row()),
            _ => (self.kernel("attention_forward", "attention_forward"), [128, 1], 4 * (96 * self.row() + 1056)),
        }
    }

    /// The same for the gradients of keys and values, and how many blocks share a head.
    fn keys(&self) -> (Kernel, [u32; 2], u32, u32) {
        let plain = self.kernel("attention_backward", "attention_backward_keys");
        match (self.hopper, self.bf16) {
            (true, _) => {
                let kernel = self.kernel("attention_backward_hopper", "attention_backward_keys");
                (kernel, [128, 1], 768 * self.head_dim as u32 + 1024, 2)
            }
            (_, true) => (plain, [256, 1], 1024 * self.row() + 1024, 1),
            _ => (plain, [128, 1], 4 * (128 * self.row() + 2112), 1),
        }
    }

    /// The same for the gradient of queries.
    fn queries(&self) -> (Kernel, [u32; 2], u32) {
        let plain = self.kernel("attention_backward", "attention_backward_queries");
        match (self.hopper, self.bf16) {
            (true, _) => {
                let kernel = self.kernel("attention_backward_hopper", "attention_backward_queries");
                (kernel, [256, 1], 1536 * self.head_dim as u32)
            }
            (_, true) => (plain, [256, 1], 1024 * self.row()),
            _ => (plain, [128, 1], 4 * (128 * self.row() + 1056)),
        }
    }

    /// Threads that share one row and head in `attention_delta`.
    fn delta_lanes(&self) -> usize {
        match (self.bf16, self.head_dim / 8) {
            (false, _) => 32,
            (true, ..=2) => 2,
            (true, ..=4) => 4,
            (true, ..=8) => 8,
            (true, _) => 16,
        }
    }
}

pub(super) fn forward(
    gpu: &'static Cuda,
    out: &mut Tensor,
    log_sum_exp: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
) {
    let geometry = Geometry::of(gpu, q, layout);
    let (count, by_query, _) = tiles(gpu, layout, geometry.tile());
    let mut args = pointers(&[out, log_sum_exp, q, k, v]);
    args.push(by_query.into());
    args.extend([out.cols(), q.cols(), k.cols(), v.cols(), layout.heads / layout.kv_heads].map(Arg::from));
    args.push(layout.scale.into());
    let (kernel, block, shared) = geometry.forward();
    gpu.launch(kernel, [layout.heads as u32, count as u32, 1], block, shared, &args);
}

pub(super) fn backward(
    gpu: &'static Cuda,
    [dq, dk, dv]: [&mut Tensor; 3],
    [dout, out, log_sum_exp, q, k, v]: [&Tensor; 6],
    layout: &Layout,
) {
    let geometry = Geometry::of(gpu, q, layout);
    let (count, by_query, by_key) = tiles(gpu, layout, geometry.tile());
    let (rows, heads, group) = (q.rows(), layout.heads, layout.heads / layout.kv_heads);
    let delta = gpu.scratch("attention delta", rows * heads * 4);
    let block = [if geometry.bf16 { 256 } else { 128 }, 1];
    let blocks = (rows * heads * geometry.delta_lanes()).div_ceil(block[0] as usize) as u32;
    let mut args = vec![delta.into()];
    args.extend(pointers(&[dout, out]));
    args.extend([dout.cols(), out.cols(), rows, heads].map(Arg::from));
    gpu.launch(geometry.kernel("attention_delta", "attention_delta"), [blocks, 1, 1], block, 0, &args);

    let lists: [Arg; 2] = [delta.into(), by_key.into()];
    let mut args = pointers(&[dk, dv, dout, q, k, v, log_sum_exp]);
    args.extend(lists);
    args.extend([dk.cols(), dv.cols(), dout.cols(), q.cols(), k.cols(), v.cols(), group].map(Arg::from));
    args.push(layout.scale.into());
    let (kernel, block, shared, share) = geometry.keys();
    gpu.launch(kernel, [share * layout.kv_heads as u32, count as u32, 1], block, shared, &args);

    let lists: [Arg; 2] = [delta.into(), by_query.into()];
    let mut args = pointers(&[dq, dout, q, k, v, log_sum_exp]);
    args.extend(lists);
    args.extend([dq.cols(), dout.cols(), q.cols(), k.cols(), v.cols(), group].map(Arg::from));
    args.push(layout.scale.into());
    let (kernel, block, shared) = geometry.queries();
    gpu.launch(kernel, [heads as u32, count as u32, 1], block, shared, &args);
}

/// Keys and values of a cache on a GPU: `[slots, kv_heads, capacity, head_dim]`.
pub(super) struct Cached<'a> {
    pub(super) keys: &'a Tensor,
    pub(super) values: &'a Tensor,
    pub(super) capacity: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// What a decoding step makes its keys and values from.
pub(super) struct Fresh<'a> {
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) norm: &'a HeadNorm<'a>,
}

impl Cached<'_> {
    fn kernel(&self, function: &'static str) -> Kernel {
        let bf16 = self.keys.dtype() == Dtype::Bf16;
        let variant = Variant { bf16, head_dim: self.head_dim as u16, causal: true, ..Variant::default() };
        Kernel { operation: "attention_decode", function, variant }
    }

    /// A position at or past the capacity is stored nowhere.
    pub(super) fn store(&self, gpu: &'static Cuda, k: &Tensor, v: &Tensor, slots: &[u32], positions: &[u32]) {
        let mut args = pointers(&[self.keys, self.values, k, v]);
        args.extend([gpu.list(slots), gpu.list(positions)].map(Arg::from));
        args.extend([k.cols(), v.cols(), self.capacity, self.kv_heads].map(Arg::from));
        gpu.launch(self.kernel("attention_store"), [k.rows() as u32, 1, 1], [128, 1], 0, &args);
    }

    /// A length of 0 gives zeros. With `fresh` keys and values `q` is a projection too, and a length beyond the capacity stores
    /// nothing.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn decode(
        &self,
        gpu: &'static Cuda,
        out: &mut Tensor,
        q: &Tensor,
        fresh: Option<Fresh>,
        slots: &[u32],
        lengths: &[u32],
        heads: usize,
        scale: f32,
    ) {
        let (rows, group) = (q.rows(), heads / self.kv_heads);
        assert!(group <= 16, "attention on a GPU: {group} query heads a key-value head; at most 16 are expected");
        let pairs = (rows * self.kv_heads).max(1);
        let splits = (2 * gpu.multiprocessors() as usize / pairs).clamp(1, self.capacity.div_ceil(64).max(1));
        let partial = gpu.scratch("attention partial", rows * heads * splits * (self.head_dim + 2) * 4);
        let arrived = gpu.scratch("attention arrived", pairs * 4);
        let mut args = vec![out.pointer().into(), partial.into(), arrived.into()];
        args.extend(pointers(&[q, self.keys, self.values]));
        args.extend([gpu.list(slots), gpu.list(lengths)].map(Arg::from));
        args.extend([out.cols(), q.cols(), self.capacity, group].map(Arg::from));
        args.push(scale.into());
        let function = match fresh {
            None => "attention_decode",
            Some(Fresh { k, v, norm }) => {
                args.extend(pointers(&[k, v]));
                args.extend(norm.pointers());
                args.extend([k.cols(), v.cols()].map(Arg::from));
                args.push(norm.eps.into());
                "attention_decode_fresh"
            }
        };
        let row = self.head_dim.next_multiple_of(16) as u32 + 8;
        let shared = if self.keys.dtype() == Dtype::Bf16 { 544 * row } else { 256 * self.head_dim as u32 };
        let grid = [splits as u32, self.kv_heads as u32, rows as u32];
        let kernel = self.kernel(function);
        if gpu.is_hopper() {
            gpu.launch_early(kernel, grid, [128, 1], shared, 1, &[], &args);
        } else {
            gpu.launch(kernel, grid, [128, 1], shared, &args);
        }
    }
}

fn pointers(tensors: &[&Tensor]) -> Vec<Arg> {
    tensors.iter().map(|tensor| tensor.pointer().into()).collect()
}
