//! Linear layers of a decoding step: few rows, so that time goes into reading weights. What shares an input runs in one
//! kernel, with the RMSNorm in front of it and the low-rank adapters beside it.
//!
//! On a GPU of compute capability 9.0, in `Bf16`, up to 32 rows, where all shapes allow it, these are kernels of their
//! own; otherwise, and on the CPU, they are the operations that the formulas name, one after another.

use super::LowRank;
use crate::cuda::{Arg, Cuda, Kernel, Tiles, Variant};
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
        return kernels.run(&places, None, &mut scratch.low);
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
        return kernels.run(&[out.pointer()], Some(base.pointer()), &mut scratch.low);
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
        return kernels.run(&[out.pointer()], None, &mut scratch.low);
    }
    let Scratch { normed, low: [low_gate, low_up, _], gate: gates, up: ups } = scratch;
    let x = through(normed, x, norm);
    x.device().together(&mut [&mut || gate.forward(gates, low_gate, x), &mut || up.forward(ups, low_up, x)]);
    swiglu::forward(out, gates, ups);
}

fn check_layers(op: &str, x: &Tensor, norm: Option<Norm>, layers: &[Layer]) {
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

/// The kernels of a call that can use them.
struct Kernels<'a> {
    gpu: &'static Cuda,
    x: &'a Tensor,
    norm: Option<Norm<'a>>,
    layers: &'a [Layer<'a>],
    plan: Plan,
    /// For the first halves of the adapters, what they share, and their rank and scale.
    low: Option<(Plan, usize, f32)>,
}

impl<'a> Kernels<'a> {
    fn of(x: &'a Tensor, norm: Option<Norm<'a>>, layers: &'a [Layer<'a>], gated: bool) -> Option<Self> {
        let gpu = x.gpu().filter(|gpu| gpu.capability() == (9, 0))?;
        let bf16 = |tensor: &Tensor| tensor.dtype() == Dtype::Bf16;
        let plain = |layer: &Layer| bf16(layer.weight) && layer.bias.is_none();
        if !bf16(x) || !layers.iter().all(plain) {
            return None;
        }
        let planned = |outputs: &[usize], gated: bool| {
            let problem = Problem { rows: x.rows(), width: x.cols(), outputs, gated, norm: norm.is_some() };
            problem.plan(&gpu.clusters())
        };
        let outputs: Vec<usize> = layers.iter().map(|layer| layer.weight.rows()).collect();
        let plan = planned(&outputs, gated)?;
        let adapters: Vec<LowRank> = layers.iter().filter_map(|layer| layer.adapter).collect();
        let low = match adapters.first() {
            None => None,
            Some(first) => {
                let (rank, scale) = (first.a.rows(), first.scale);
                let alike = |l: &LowRank| l.a.rows() == rank && l.scale == scale && bf16(l.a) && bf16(l.b);
                if !adapters.iter().all(alike) {
                    return None;
                }
                Some((planned(&vec![rank; adapters.len()], false)?, rank, scale))
            }
        };
        Some(Self { gpu, x, norm, layers, plan, low })
    }

    /// `lows` receives `scale * norm(x) aᵀ` of each layer with an adapter.
    fn run(&self, outs: &[u64], base: Option<u64>, lows: &mut [Tensor; 3]) {
        let mut beside = [(0, 0); 3];
        let mut rank = 0;
        if let Some((plan, shared, scale)) = self.low {
            rank = shared;
            let (mut weights, mut places) = (Vec::new(), Vec::new());
            for (index, layer) in self.layers.iter().enumerate() {
                let Some(LowRank { a, b, .. }) = layer.adapter else { continue };
                let low = &mut lows[index];
                low.place(self.x, self.x.rows(), rank);
                weights.push(a);
                places.push(low.pointer());
                beside[index] = (low.pointer(), b.pointer());
            }
            self.launch(plan, &weights, &places, None, [(0, 0); 3], 0, scale);
        }
        let weights: Vec<&Tensor> = self.layers.iter().map(|layer| layer.weight).collect();
        self.launch(self.plan, &weights, outs, base, beside, rank, 1.0);
    }

    #[allow(clippy::too_many_arguments)]
    fn launch(
        &self,
        plan: Plan,
        weights: &[&Tensor],
        outs: &[u64],
        base: Option<u64>,
        beside: [(u64, u64); 3],
        rank: usize,
        alpha: f32,
    ) {
        let three = |values: &[u64]| [0, 1, 2].map(|index| Arg::from(values.get(index).copied().unwrap_or(0)));
        let map = |tensor: &Tensor, height| Tiles::new(tensor.pointer(), tensor.rows(), tensor.cols(), height);
        // Sets of weights that are not there are never asked for.
        let maps = [None, Some(0), Some(1), Some(2)].map(|index| match index {
            None => map(self.x, plan.rows),
            Some(index) => map(weights.get(index).unwrap_or(&weights[0]), plan.height),
        });
        let outputs = [0, 1, 2].map(|index| Arg::from(weights.get(index).map_or(0, |weight| weight.rows())));
        let (norm, eps) = self.norm.map_or((0, 0.0), |norm| (norm.weight.pointer_f32(), norm.eps));
        let mut args: Vec<Arg> = vec![norm.into(), base.unwrap_or(0).into()];
        args.extend(three(outs));
        args.extend(outputs);
        args.extend(beside.map(|(low, _)| Arg::from(low)));
        args.extend(beside.map(|(_, b)| Arg::from(b)));
        args.extend([rank, self.x.rows(), self.x.cols(), plan.fixed].map(Arg::from));
        args.extend([alpha, eps].map(Arg::from));
        let variant = Variant { bf16: true, few: plan.macros(), ..Variant::default() };
        let kernel = Kernel { operation: "few", function: "few", variant };
        let (grid, block) = ([plan.blocks as u32, 1, 1], [plan.threads() as u32, 1]);
        self.gpu.launch_early(kernel, grid, block, plan.shared as u32, plan.split as u32, &maps, &args);
    }
}
