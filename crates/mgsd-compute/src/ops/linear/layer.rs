//! Linear layers with their low-rank adapters, for many rows: forward, and the gradient of an input that layers share.
//!
//! On a GPU of compute capability 9.0, in `Bf16`, where shapes allow it, an adapter's second half, what the result is
//! added to, the product of gate and up, norm and rotation of heads and the sum over layers are part of one kernel;
//! otherwise, and on the CPU, they are the operations that the formulas name, one after another.

use super::few::check_layers;
use super::{Layer, LowRank, backward_input as unproject, forward as project, forward_onto, thin};
use crate::cuda::own::{Form, HEAD_DIM, Own, Term, Weights};
use crate::ops::head_norm::{self, HeadNorm};
use crate::ops::swiglu;
use crate::{Dtype, Tensor, Write, check};

/// What a layer's result is added to.
#[derive(Clone, Copy)]
pub enum Onto<'a> {
    /// Nothing: it is overwritten.
    Nothing,
    /// What is there.
    Itself,
    /// Another matrix of the result's shape.
    Other(&'a Tensor),
}

/// Whether what lies between an operation's steps is wanted for a pass back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// It is there afterwards.
    Kept,
    /// It may be left undefined.
    Dropped,
}

impl From<Write> for Onto<'_> {
    fn from(write: Write) -> Self {
        match write {
            Write::Set => Onto::Nothing,
            Write::Add => Onto::Itself,
        }
    }
}

/// `out = onto + layer(x)`. `low` receives the adapter's `scale * x aᵀ`, `[tokens, rank]`, which its pass back wants.
pub fn forward(out: &mut Tensor, onto: Onto, x: &Tensor, layer: Layer, low: &mut Tensor) {
    check_layers("layer::forward", x, None, &[layer]);
    let [end] = begin([low], x, &[layer]);
    finish(out, onto, x, layer, end);
}

/// Queries, keys and values, layers of one input, then [norm and rotation](head_norm::forward) of the first two, which before
/// are in `raw`. `lows` as in [`forward`].
pub fn heads(
    [q, k, v]: [&mut Tensor; 3],
    raw: [&mut Tensor; 2],
    wanted: Between,
    x: &Tensor,
    layers: [Layer; 3],
    lows: [&mut Tensor; 3],
    norm: &HeadNorm,
) {
    let op = "layer::heads";
    check_layers(op, x, None, &layers);
    let columns = layers.map(|layer| layer.weight.rows());
    let of_heads = [columns[0], columns[1]];
    norm.check_for(op, x.rows(), of_heads);
    let ends = begin(lows, x, &layers);
    let terms: [Term; 3] = std::array::from_fn(|i| Term { x, weight: layers[i].weight, low: ends[i] });
    let bare = layers.iter().all(|layer| layer.bias.is_none());
    let own = |form| Own::of(&terms, Weights::ByOutputs, form).filter(|_| bare);
    let form = if wanted == Between::Kept { Form::HeadsAndRaw } else { Form::Heads };
    if norm.q_weight.cols() == HEAD_DIM
        && let Some(own) = own(form)
    {
        let mut to = places([q, k, v], x, columns);
        if wanted == Between::Kept {
            to.extend(places(raw, x, of_heads));
        }
        return own.run(&to, None, Some(norm));
    }
    let [q_raw, k_raw] = raw;
    let outs = [&mut *q_raw, &mut *k_raw, v];
    match own(Form::Each) {
        Some(own) => own.run(&places(outs, x, columns), None, None),
        None => {
            for ((out, layer), end) in outs.into_iter().zip(layers).zip(ends) {
                finish(out, Onto::Nothing, x, layer, end);
            }
        }
    }
    head_norm::forward(q, k, q_raw, k_raw, norm);
}

/// What is left of [`forward`] when the adapter's first half is there.
fn finish(out: &mut Tensor, onto: Onto, x: &Tensor, layer: Layer, adapter: Option<(&Tensor, &Tensor)>) {
    let op = "layer::forward";
    let (tokens, outputs) = (x.rows(), layer.weight.rows());
    if let Onto::Other(base) = onto {
        check::shape(op, "base", base, tokens, outputs);
    }
    let terms = [Term { x, weight: layer.weight, low: adapter }];
    let form = if matches!(onto, Onto::Nothing) { Form::Sum } else { Form::SumOnto };
    let alike = |tensor: &Tensor| tensor.dtype() == Dtype::Bf16;
    let mixed = match onto {
        Onto::Nothing => false,
        Onto::Itself => !alike(out),
        Onto::Other(base) => !alike(base),
    };
    // Alone, the product is the library's work.
    if adapter.is_some()
        && layer.bias.is_none()
        && !mixed
        && let Some(own) = Own::of(&terms, Weights::ByOutputs, form)
    {
        match onto {
            Onto::Itself => check::shape(op, "out", out, tokens, outputs),
            _ => out.place(x, tokens, outputs),
        }
        let base = match onto {
            Onto::Nothing => None,
            Onto::Itself => Some(out.pointer()),
            Onto::Other(base) => Some(base.pointer()),
        };
        return own.run(&[out.pointer()], base, None);
    }
    match onto {
        Onto::Nothing => project(out, x, layer.weight, layer.bias, 1.0, Write::Set),
        Onto::Itself => project(out, x, layer.weight, layer.bias, 1.0, Write::Add),
        Onto::Other(base) => forward_onto(out, base, x, layer.weight, layer.bias),
    }
    if let Some((low, b)) = adapter {
        project(out, low, b, None, 1.0, Write::Add);
    }
}

/// `out = silu(g) * u` with `g = gate(x)` and `u = up(x)`, which go to `halves`; `lows` as in [`forward`].
pub fn gate_up(
    out: &mut Tensor,
    halves: [&mut Tensor; 2],
    wanted: Between,
    x: &Tensor,
    [gate, up]: [Layer; 2],
    lows: [&mut Tensor; 2],
) {
    let op = "layer::gate_up";
    check::same(op, "weight of up", up.weight, "weight of gate", gate.weight);
    check_layers(op, x, None, &[gate, up]);
    let [g, u] = halves;
    let ends = begin(lows, x, &[gate, up]);
    let terms = [Term { x, weight: gate.weight, low: ends[0] }, Term { x, weight: up.weight, low: ends[1] }];
    let form = if wanted == Between::Kept { Form::GatedAndHalves } else { Form::Gated };
    // Where halves are kept and there are no adapters, too little is saved to be seen in a training step.
    if (ends[0].is_some() || wanted == Between::Dropped)
        && gate.bias.is_none()
        && up.bias.is_none()
        && let Some(own) = Own::of(&terms, Weights::ByOutputs, form)
    {
        let outputs = gate.weight.rows();
        let mut to = places([out], x, [outputs]);
        if wanted == Between::Kept {
            to.extend(places([g, u], x, [outputs; 2]));
        }
        return own.run(&to, None, None);
    }
    for (half, layer, end) in [(&mut *g, gate, ends[0]), (&mut *u, up, ends[1])] {
        project(half, x, layer.weight, layer.bias, 1.0, Write::Set);
        if let Some((low, b)) = end {
            project(half, low, b, None, 1.0, Write::Add);
        }
    }
    swiglu::forward(out, g, u);
}

/// One of the layers that share an input.
#[derive(Clone, Copy)]
pub struct Above<'a> {
    /// The layer.
    pub layer: Layer<'a>,
    /// Gradient of its result, `[tokens, outputs]`.
    pub dy: &'a Tensor,
    /// `scale * dy b` of its adapter, `[tokens, rank]`; not looked at without one.
    pub dlow: &'a Tensor,
}

/// `dx (=|+=) Σ dy w + dlow a` over one to three layers.
pub fn backward_input(dx: &mut Tensor, layers: &[Above], write: Write) {
    let op = "layer::backward_input";
    let Some(first) = layers.first() else { panic!("{op}: no layers") };
    let (tokens, inputs) = (first.dy.rows(), first.layer.weight.cols());
    for Above { layer, dy, dlow } in layers {
        check::shape(op, "weight", layer.weight, dy.cols(), inputs);
        check::shape(op, "dy", dy, tokens, dy.cols());
        if let Some(LowRank { a, .. }) = layer.adapter {
            check::shape(op, "a", a, a.rows(), inputs);
            check::shape(op, "dlow", dlow, tokens, a.rows());
        }
    }
    if write == Write::Add {
        check::shape(op, "dx", dx, tokens, inputs);
    }
    let end = |above: &Above<'_>| above.layer.adapter.is_some();
    let terms: Vec<Term> = layers
        .iter()
        .map(|&Above { layer, dy, dlow }| Term {
            x: dy,
            weight: layer.weight,
            low: layer.adapter.map(|adapter| (dlow, adapter.a)),
        })
        .collect();
    let form = if write == Write::Add { Form::SumOnto } else { Form::Sum };
    // Without adapters too little is saved to be seen in a training step.
    if layers.iter().any(end)
        && (write == Write::Set || dx.dtype() == Dtype::Bf16)
        && let Some(own) = Own::of(&terms, Weights::ByInputs, form)
    {
        if write == Write::Set {
            dx.place(first.dy, tokens, inputs);
        }
        let base = (write == Write::Add).then(|| dx.pointer());
        return own.run(&[dx.pointer()], base, None);
    }
    let mut write = write;
    for Above { layer, dy, dlow } in layers {
        unproject(dx, dy, layer.weight, 1.0, write);
        write = Write::Add;
        if let Some(LowRank { a, .. }) = layer.adapter {
            unproject(dx, dlow, a, 1.0, Write::Add);
        }
    }
}

/// Multiplies the first halves of adapters, scaled; gives what is left of them.
fn begin<'a, const N: usize>(
    mut lows: [&'a mut Tensor; N],
    x: &Tensor,
    layers: &[Layer<'a>; N],
) -> [Option<(&'a Tensor, &'a Tensor)>; N] {
    let parts = lows.iter_mut().zip(layers);
    let mut parts: Vec<_> = parts.filter_map(|(low, layer)| Some((&mut **low, layer.adapter?))).collect();
    if !parts.is_empty() {
        thin::begin(&mut parts, x);
    }
    let mut ends = lows.into_iter().zip(layers).map(|(low, layer)| Some((&*low, layer.adapter?.b)));
    std::array::from_fn(|_| ends.next().flatten())
}

/// Makes results of as many rows as `x` has, and says where.
fn places<const N: usize>(outs: [&mut Tensor; N], x: &Tensor, columns: [usize; N]) -> Vec<u64> {
    let placed = outs.into_iter().zip(columns).map(|(out, columns)| {
        out.place(x, x.rows(), columns);
        out.pointer()
    });
    placed.collect()
}
