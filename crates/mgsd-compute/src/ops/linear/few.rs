//! Linear layers of a decoding step: few rows, so that time goes into reading weights. What shares an input runs in one
//! kernel, with the RMSNorm in front of it and the low-rank adapters beside it.
//!
//! On a GPU of compute capability 9.0, in `Bf16`, up to 32 rows, where all shapes allow it, these are kernels of their
//! own; otherwise, and on the CPU, they are the operations that the formulas name, one after another.

use super::LowRank;
use crate::cuda::{Arg, Cuda, Kernel, Tiles, Variant, sizes};
use crate::ops::{rms_norm, swiglu};
use crate::{Dtype, Tensor, Write, check};

mod plan;

use plan::{Plan, Problem};

/// `y = x wᵀ (+ bias) (+ scale * (x aᵀ) bᵀ)`
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `[outputs, inputs]`
    pub weight: &'a Tensor,
    /// `[1, outputs]`
    pub bias: Option<&'a Tensor>,
    /// What is added beside the weight.
    pub adapter: Option<LowRank<'a>>,
}

/// RMSNorm of the input: its scale `[1, inputs]` and its epsilon.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// `[1, inputs]`
    pub weight: &'a Tensor,
    /// Keeps the root away from zero.
    pub eps: f32,
}

/// Memory for what lies between input and output; its contents mean nothing to the caller.
pub struct Scratch {
    normed: Tensor,
    low: [Tensor; 3],
    gate: Tensor,
    up: Tensor,
}

impl Scratch {
    /// Without memory yet.
    pub fn new() -> Self {
        let empty = Tensor::empty;
        Self { normed: empty(), low: [empty(), empty(), empty()], gate: empty(), up: empty() }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// `outs[i] = layers[i](norm(x))`, one to three layers that share an input.
pub fn project(outs: &mut [&mut Tensor], x: &Tensor, norm: Option<Norm>, layers: &[Layer], scratch: &mut Scratch) {
    let op = "few::project";
    assert!(
        (1..=3).contains(&layers.len()) && outs.len() == layers.len(),
        "{op}: {} outputs of {} layers; as many of one as of the other, one to three, are expected",
        outs.len(),
        layers.len()
    );
    check_layers(op, x, norm, layers);
    if let Some(kernels) = Kernels::of(x, norm, layers, false) {
        outs.iter_mut().zip(layers).for_each(|(out, layer)| out.place(x, x.rows(), layer.weight.rows()));
        let places: Vec<u64> = outs.iter().map(|out| out.pointer()).collect();
        return kernels.run(&places, None);
    }
    let Scratch { normed, low, .. } = scratch;
    let x = through(normed, x, norm);
    let mut pieces: Vec<_> =
        outs.iter_mut().zip(low).zip(layers).map(|((out, low), layer)| move || layer.forward(out, low, x)).collect();
    let mut pieces: Vec<&mut dyn FnMut()> = pieces.iter_mut().map(|piece| piece as &mut dyn FnMut()).collect();
    x.device().together(&mut pieces);
}

/// `out = base + layer(x)`; `base` and `out` have one shape.
pub fn project_add(out: &mut Tensor, base: &Tensor, x: &Tensor, layer: Layer, scratch: &mut Scratch) {
    let op = "few::project_add";
    check::shape(op, "base", base, x.rows(), layer.weight.rows());
    check_layers(op, x, None, &[layer]);
    if let Some(kernels) = Kernels::of(x, None, &[layer], false)
        && base.dtype() == Dtype::Bf16
    {
        out.place(x, x.rows(), layer.weight.rows());
        return kernels.run(&[out.pointer()], Some(base.pointer()));
    }
    super::forward_onto(out, base, x, layer.weight, layer.bias);
    layer.adapt(out, &mut scratch.low[0], x);
}

/// `out = silu(gate(norm(x))) * up(norm(x))` with `silu(x) = x / (1 + e^-x)`; gate and up have one shape.
pub fn gate_up(out: &mut Tensor, x: &Tensor, norm: Option<Norm>, gate: Layer, up: Layer, scratch: &mut Scratch) {
    let op = "few::gate_up";
    check::same(op, "weight of up", up.weight, "weight of gate", gate.weight);
    check_layers(op, x, norm, &[gate, up]);
    if let Some(kernels) = Kernels::of(x, norm, &[gate, up], true) {
        out.place(x, x.rows(), gate.weight.rows());
        return kernels.run(&[out.pointer()], None);
    }
    let Scratch { normed, low: [low_gate, low_up, _], gate: gates, up: ups } = scratch;
    let x = through(normed, x, norm);
    x.device().together(&mut [&mut || gate.forward(gates, low_gate, x), &mut || up.forward(ups, low_up, x)]);
    swiglu::forward(out, gates, ups);
}

pub(super) fn check_layers(op: &str, x: &Tensor, norm: Option<Norm>, layers: &[Layer]) {
    for layer in layers {
        check::shape(op, "weight", layer.weight, layer.weight.rows(), x.cols());
        if let Some(LowRank { a, b, .. }) = layer.adapter {
            check::shape(op, "a", a, a.rows(), x.cols());
            check::shape(op, "b", b, layer.weight.rows(), a.rows());
        }
    }
    if let Some(norm) = norm {
        check::shape(op, "norm", norm.weight, 1, x.cols());
    }
}

/// `x`, or its norm in `normed`.
fn through<'a>(normed: &'a mut Tensor, x: &'a Tensor, norm: Option<Norm>) -> &'a Tensor {
    let Some(norm) = norm else { return x };
    rms_norm::forward(normed, x, norm.weight, norm.eps);
    normed
}

impl Layer<'_> {
    fn forward(&self, out: &mut Tensor, low: &mut Tensor, x: &Tensor) {
        super::forward(out, x, self.weight, self.bias, 1.0, Write::Set);
        self.adapt(out, low, x);
    }

    fn adapt(&self, out: &mut Tensor, low: &mut Tensor, x: &Tensor) {
        if let Some(LowRank { a, b, scale }) = self.adapter {
            super::forward(low, x, a, None, 1.0, Write::Set);
            super::forward(out, low, b, None, scale, Write::Add);
        }
    }
}

/// The kernel of a call that can use it.
struct Kernels<'a> {
    gpu: &'static Cuda,
    x: &'a Tensor,
    norm: Option<Norm<'a>>,
    layers: &'a [Layer<'a>],
    plan: Plan,
    /// What the adapters share: rank and scale.
    low: (usize, f32),
}

impl<'a> Kernels<'a> {
    fn of(x: &'a Tensor, norm: Option<Norm<'a>>, layers: &'a [Layer<'a>], gated: bool) -> Option<Self> {
        let gpu = x.gpu().filter(|gpu| gpu.capability() == (9, 0))?;
        let bf16 = |tensor: &Tensor| tensor.dtype() == Dtype::Bf16;
        let plain = |layer: &Layer| bf16(layer.weight) && layer.bias.is_none();
        if !bf16(x) || !layers.iter().all(plain) {
            return None;
        }
        let mut adapters = layers.iter().filter_map(|layer| layer.adapter);
        let low = adapters.next().map_or((0, 0.0), |first| (first.a.rows(), first.scale));
        let alike = |l: &LowRank| (l.a.rows(), l.scale) == low && bf16(l.a) && bf16(l.b);
        // The rows of all must be whole groups of eight: of each, then.
        if !layers.iter().filter_map(|layer| layer.adapter).all(|l| alike(&l)) || !low.0.is_multiple_of(8) {
            return None;
        }
        let outputs: Vec<usize> = layers.iter().map(|layer| layer.weight.rows()).collect();
        let (rows, width, low_rows) = (x.rows(), x.cols(), low.0 * layers.len());
        let problem = Problem { rows, width, outputs: &outputs, gated, norm: norm.is_some(), low: low_rows };
        Some(Self { gpu, x, norm, layers, plan: problem.plan(&gpu.clusters())?, low })
    }

    fn run(&self, outs: &[u64], base: Option<u64>) {
        let Self { gpu, x, norm, layers, plan, low: (rank, scale) } = *self;
        let map = |tensor: &Tensor, height| Tiles::new(tensor.pointer(), tensor.rows(), tensor.cols(), height);
        let adapters = [0, 1, 2].map(|index| layers.get(index).and_then(|layer| layer.adapter));
        // Weights that are not there are never asked for; an adapter that is not there is made of another's first half and
        // never used.
        let weight = |index: usize| map(layers.get(index).unwrap_or(&layers[0]).weight, plan.height);
        let a = |index: usize| adapters[index].or(adapters.iter().flatten().next().copied());
        let a = |index: usize| a(index).map_or_else(|| map(x, plan.rows), |adapter| map(adapter.a, rank));
        let maps = [map(x, plan.rows), weight(0), weight(1), weight(2), a(0), a(1), a(2)];
        let (scales, eps) = norm.map_or((0, 0.0), |norm| (norm.weight.pointer_f32(), norm.eps));
        let mut args: Vec<Arg> = vec![scales.into(), base.unwrap_or(0).into()];
        args.extend([0, 1, 2].map(|index| Arg::from(outs.get(index).copied().unwrap_or(0))));
        args.extend([0, 1, 2].map(|index| Arg::from(layers.get(index).map_or(0, |layer| layer.weight.rows()))));
        args.extend(adapters.map(|adapter| Arg::from(adapter.map_or(0, |adapter| adapter.b.pointer()))));
        args.extend([rank, x.rows(), x.cols(), plan.fixed].map(Arg::from));
        args.extend([scale, eps].map(Arg::from));
        let variant = Variant { bf16: true, sizes: sizes(plan.macros()), ..Variant::default() };
        let kernel = Kernel { operation: "few", function: "few", variant };
        let (grid, block) = ([plan.blocks as u32, 1, 1], [plan.threads() as u32, 1]);
        gpu.launch_early(kernel, grid, block, plan.shared as u32, plan.split as u32, &maps, &args);
    }
}
