//! All layers of a decoding step in one kernel: one new token a sequence, so that time goes into reading weights, keys and
//! values, which are known before the step begins.
//!
//! On a GPU of compute capability 9.0, in `Bf16`, up to 32 rows, heads of 128 numbers, where all shapes allow it; elsewhere
//! [`run`] does nothing and says so, and the same comes out of the operations that it stands for: [`few`](super::linear::few),
//! [`attention::decode_step`](super::attention::decode_step).

use super::attention::KvCache;
use super::linear::few;
use crate::cuda::{Arg, Buffer, Cuda, Kernel, Tiles, Variant, sizes as macros};
use crate::{Dtype, Tensor, check};

mod plan;

use plan::{COUNTERS, HEAD, Plan, Sizes};

/// One layer: `mid = x + o(attention(q, k, v of norm(x)))`, `out = mid + down(silu(gate) * up of norm(mid))`.
pub struct Layer<'a> {
    /// RMSNorm in front of attention and in front of the feed-forward, `[1, hidden]`.
    pub norms: [&'a Tensor; 2],
    /// RMSNorm of each head of queries and of keys, `[1, head_dim]`.
    pub head_norms: [&'a Tensor; 2],
    /// q, k, v, o, gate, up, down.
    pub linears: [few::Layer<'a>; 7],
}

/// The rows of a step.
pub struct Rows<'a> {
    /// The sequence of each row.
    pub slots: &'a [u32],
    /// How many positions a row sees, its own, which is new, among them; 0: it is padding.
    pub lengths: &'a [u32],
    /// `[rows, head_dim / 2]`
    pub cos: &'a Tensor,
    /// `[rows, head_dim / 2]`
    pub sin: &'a Tensor,
}

/// Numbers that all layers share.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Added to every mean square.
    pub eps: f32,
    /// Of attention's scores.
    pub scale: f32,
}

/// What lies between input and output, and what the kernel knows of layers it has seen.
#[derive(Default)]
pub struct Scratch {
    scaled: Tensor,
    qkv: Tensor,
    attended: Tensor,
    gated: Tensor,
    tables: Vec<Table>,
}

/// Layers as the kernel reads about them, and where that lies on the GPU. A recorded step goes on reading there.
struct Table {
    words: Vec<u64>,
    buffer: Buffer,
}

/// Tables kept; more are there only when a model's weights have moved.
const TABLES: usize = 32;

/// `out` = the layers one after another on `x: [rows, hidden]`, with the new keys and values stored in `caches`, one a layer.
/// `false`: this is not a case for the kernel, and nothing was done.
pub fn run(
    out: &mut Tensor,
    x: &Tensor,
    layers: &[Layer],
    caches: &mut [KvCache],
    rows: &Rows,
    settings: Settings,
    scratch: &mut Scratch,
) -> bool {
    let op = "decode_layers::run";
    let Some((gpu, sizes)) = sizes_of(x, layers, caches) else { return false };
    let Some(plan) = Plan::of(&sizes, gpu.multiprocessors() as usize) else { return false };
    check::length(op, "slots", rows.slots.len(), x.rows());
    check::length(op, "lengths", rows.lengths.len(), x.rows());
    check::shape(op, "cos", rows.cos, x.rows(), HEAD / 2);
    check::shape(op, "sin", rows.sin, x.rows(), HEAD / 2);
    caches.iter_mut().for_each(|cache| cache.settle(x));

    let count = x.rows();
    let Scratch { scaled, qkv, attended, gated, tables } = scratch;
    out.place(x, count, sizes.hidden);
    scaled.place(x, count, sizes.hidden);
    qkv.place(x, count, sizes.q_out + 2 * sizes.kv_out);
    attended.place(x, count, sizes.q_out);
    gated.place(x, count, sizes.inter);
    let words = table_of(layers, caches, &plan, sizes.rank);
    let table = match tables.iter().position(|table| table.words == words) {
        Some(at) => &tables[at],
        None => {
            if tables.len() == TABLES {
                tables.remove(0);
            }
            let mut buffer = Buffer::empty(gpu);
            buffer.reserve(words.len() * 8);
            buffer.write(0, bytemuck::cast_slice(&words));
            tables.push(Table { words, buffer });
            &tables[tables.len() - 1]
        }
    };

    let low_scale = layers[0].linears.iter().find_map(|linear| linear.adapter).map_or(0.0, |adapter| adapter.scale);
    let mut args: Vec<Arg> = vec![table.buffer.pointer().into()];
    args.extend([layers.len(), count, caches[0].capacity()].map(Arg::from));
    args.extend([x, out, scaled, qkv, attended, gated].map(|tensor| Arg::from(tensor.pointer())));
    let scratch = [
        ("decode layers: sums", plan.sums()),
        ("decode layers: squares", plan.squares()),
        ("decode layers: joined", plan.joined()),
        ("decode layers: counters", COUNTERS),
    ];
    args.extend(scratch.map(|(what, numbers)| Arg::from(gpu.scratch(what, numbers * 4))));
    args.extend([gpu.list(rows.slots), gpu.list(rows.lengths)].map(Arg::from));
    args.extend([rows.cos, rows.sin].map(|tensor| Arg::from(tensor.pointer_f32())));
    args.extend([settings.eps, settings.scale, low_scale].map(Arg::from));
    let variant = Variant { bf16: true, sizes: macros(plan.macros()), ..Variant::default() };
    let kernel = Kernel { operation: "decode_layers", function: "decode_layers", variant };
    gpu.launch_whole(kernel, plan.blocks as u32, plan::THREADS as u32, plan.shared() as u32, &args);
    true
}

/// The GPU and the sizes of layers that are alike, as far as the kernel asks.
fn sizes_of(x: &Tensor, layers: &[Layer], caches: &[KvCache]) -> Option<(&'static Cuda, Sizes)> {
    let gpu = x.gpu().filter(|gpu| gpu.is_hopper())?;
    let first = layers.first()?;
    let [q, k, _, _, gate, ..] = first.linears;
    let adapters = || layers.iter().flat_map(|layer| layer.linears).filter_map(|linear| linear.adapter);
    let (rank, scale) = adapters().next().map_or((0, 0.0), |adapter| (adapter.a.rows(), adapter.scale));
    let sizes = Sizes {
        rows: x.rows(),
        hidden: x.cols(),
        q_out: q.weight.rows(),
        kv_out: k.weight.rows(),
        inter: gate.weight.rows(),
        rank,
    };
    let bf16 = |tensor: &Tensor| tensor.dtype() == Dtype::Bf16;
    let Sizes { hidden, q_out, kv_out, inter, .. } = sizes;
    let shapes = [
        (q_out, hidden),
        (kv_out, hidden),
        (kv_out, hidden),
        (hidden, q_out),
        (inter, hidden),
        (inter, hidden),
        (hidden, inter),
    ];
    let served = |layer: &Layer| {
        layer.linears.iter().zip(shapes).all(|(linear, shape)| {
            linear.weight.shape() == [shape.0, shape.1] && bf16(linear.weight) && linear.bias.is_none()
        }) && layer.head_norms.iter().all(|norm| norm.cols() == HEAD)
    };
    let adapted = adapters().all(|a| (a.a.rows(), a.scale) == (rank, scale) && bf16(a.a) && bf16(a.b));
    let same = |cache: &KvCache| cache.capacity() == caches[0].capacity();
    let fits = bf16(x) && adapted && layers.len() == caches.len() && caches.iter().all(same) && layers.iter().all(served);
    fits.then_some((gpu, sizes))
}

/// Words of a layer in the table: 16 descriptions of matrices, 13 pointers, and room to whole descriptions.
const LAYER: usize = 17 * 16;

/// As `Layer` in the kernel's source.
fn table_of(layers: &[Layer], caches: &[KvCache], plan: &Plan, rank: usize) -> Vec<u64> {
    let mut words = Vec::with_capacity(layers.len() * LAYER);
    for (layer, cache) in layers.iter().zip(caches) {
        let begin = words.len();
        let map = |tensor: &Tensor, height: usize| {
            Tiles::new(tensor.pointer(), tensor.rows(), tensor.cols(), height).words()
        };
        let linears = || layer.linears.iter().enumerate();
        words.extend(linears().flat_map(|(index, linear)| map(linear.weight, plan.height(index))));
        // Where there is no adapter something has to be copied all the same; it is not used.
        words.extend(linears().flat_map(|(_, l)| map(l.adapter.map_or(l.weight, |a| a.a), rank.max(8))));
        let kept = cache.tensors();
        words.extend(kept.iter().flat_map(|tensor| {
            Tiles::new(tensor.pointer(), tensor.len() / HEAD, HEAD, plan::KEYS).words()
        }));
        words.extend(layer.norms.iter().chain(&layer.head_norms).map(|norm| norm.pointer_f32()));
        words.extend(layer.linears.iter().map(|l| l.adapter.map_or(0, |adapter| adapter.b.pointer())));
        words.extend(kept.iter().map(|tensor| tensor.pointer()));
        words.resize(begin + LAYER, 0);
    }
    words
}
