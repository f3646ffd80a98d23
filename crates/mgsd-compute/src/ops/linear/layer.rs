//! Linear layers with their low-rank adapters, for many rows: forward, and the gradient of an input that layers share.
//!
//! On a GPU of compute capability 9.0, in `Bf16`, where shapes allow it, an adapter's second half, what the result is
//! added to, the product of gate and up and the sum over layers are part of one kernel; otherwise, and on the CPU, they
//! are the operations that the formulas name, one after another.

use super::few::{Layer, check_layers};
use super::{LowRank, backward_input as unproject, forward as project, forward_onto};
use crate::cuda::own::{Form, Own, Places, Term, Weights};
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

/// Whether gate and up are wanted for a pass back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halves {
    /// Both are there afterwards.
    Kept,
    /// They may be left undefined.
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
    let op = "layer::forward";
    check_layers(op, x, None, &[layer]);
    let (tokens, outputs) = (x.rows(), layer.weight.rows());
    if let Onto::Other(base) = onto {
        check::shape(op, "base", base, tokens, outputs);
    }
    let adapter = begin(low, x, layer.adapter);
    let terms = [Term { x, weight: layer.weight, low: adapter }];
    let form = if matches!(onto, Onto::Nothing) { Form::Sum } else { Form::SumOnto };
    let alike = |tensor: &Tensor| tensor.dtype() == Dtype::Bf16;
    let mixed = match onto {
        Onto::Nothing => false,
        Onto::Itself => !alike(out),
        Onto::Other(base) => !alike(base),
    };
    if layer.bias.is_none()
        && !mixed
        && let Some(own) = Own::of(&terms, Weights::ByOutputs, form)
        && (adapter.is_some() || own.is_ahead())
    {
        match onto {
            Onto::Itself => check::shape(op, "out", out, tokens, outputs),
            _ => out.place(x, tokens, outputs),
        }
        return own.run(match onto {
            Onto::Nothing => Places::One(out.pointer()),
            Onto::Itself => Places::Onto(out.pointer(), out.pointer()),
            Onto::Other(base) => Places::Onto(out.pointer(), base.pointer()),
        });
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
    wanted: Halves,
    x: &Tensor,
    [gate, up]: [Layer; 2],
    lows: [&mut Tensor; 2],
) {
    let op = "layer::gate_up";
    check::same(op, "weight of up", up.weight, "weight of gate", gate.weight);
    check_layers(op, x, None, &[gate, up]);
    let ([low_gate, low_up], [g, u]) = (lows, halves);
    let ends = [begin(low_gate, x, gate.adapter), begin(low_up, x, up.adapter)];
    let terms = [Term { x, weight: gate.weight, low: ends[0] }, Term { x, weight: up.weight, low: ends[1] }];
    let form = if wanted == Halves::Kept { Form::GatedAndHalves } else { Form::Gated };
    if gate.bias.is_none()
        && up.bias.is_none()
        && let Some(own) = Own::of(&terms, Weights::ByOutputs, form)
    {
        let (tokens, outputs) = (x.rows(), gate.weight.rows());
        out.place(x, tokens, outputs);
        if wanted == Halves::Dropped {
            return own.run(Places::One(out.pointer()));
        }
        g.place(x, tokens, outputs);
        u.place(x, tokens, outputs);
        return own.run(Places::Three([out.pointer(), g.pointer(), u.pointer()]));
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
    layers.iter().for_each(|above| check_above(op, above, tokens, inputs));
    if write == Write::Add {
        check::shape(op, "dx", dx, tokens, inputs);
    }
    let terms: Vec<Term> = layers.iter().map(Above::term).collect();
    let form = if write == Write::Add { Form::SumOnto } else { Form::Sum };
    // Alone, a product is the library's work.
    if (terms.len() > 1 || terms[0].low.is_some())
        && (write == Write::Set || dx.dtype() == Dtype::Bf16)
        && let Some(own) = Own::of(&terms, Weights::ByInputs, form)
    {
        if write == Write::Add {
            return own.run(Places::Onto(dx.pointer(), dx.pointer()));
        }
        dx.place(first.dy, tokens, inputs);
        return own.run(Places::One(dx.pointer()));
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

/// A gated product as its pass back sees it.
pub struct GatedBack<'a> {
    /// What went in.
    pub gate: &'a Tensor,
    /// What went in.
    pub up: &'a Tensor,
    /// Receives the gradient of `gate`.
    pub dgate: &'a mut Tensor,
    /// Receives the gradient of `up`.
    pub dup: &'a mut Tensor,
    /// Receives the product again, where it is wanted.
    pub again: Option<&'a mut Tensor>,
    /// For the gradient of the product, which nobody else wants.
    pub scratch: &'a mut Tensor,
}

/// [`backward_input`] of the layer above a gated product, and the pass back of that.
pub fn backward_gated(back: GatedBack, above: Above) {
    let op = "layer::backward_gated";
    let GatedBack { gate, up, dgate, dup, again, scratch } = back;
    check::shape(op, "gate", gate, above.dy.rows(), above.layer.weight.cols());
    check::same(op, "up", up, "gate", gate);
    if gate.dtype() == Dtype::Bf16
        && up.dtype() == Dtype::Bf16
        && let Some(own) = Own::of(&[above.term()], Weights::ByInputs, Form::Back)
    {
        check_above(op, &above, gate.rows(), gate.cols());
        let mut place = |tensor: &mut Tensor| {
            tensor.place(gate, gate.rows(), gate.cols());
            tensor.pointer()
        };
        let again = again.map_or(0, &mut place);
        return own.run(Places::Back([gate.pointer(), up.pointer(), place(dgate), place(dup), again]));
    }
    backward_input(scratch, &[above], Write::Set);
    swiglu::backward(dgate, dup, again, scratch, gate, up);
}

impl<'a> Above<'a> {
    fn term(&self) -> Term<'a> {
        let &Self { layer, dy, dlow } = self;
        Term { x: dy, weight: layer.weight, low: layer.adapter.map(|adapter| (dlow, adapter.a)) }
    }
}

#[track_caller]
fn check_above(op: &str, above: &Above, tokens: usize, inputs: usize) {
    let Above { layer, dy, dlow } = above;
    check::shape(op, "weight", layer.weight, dy.cols(), inputs);
    check::shape(op, "dy", dy, tokens, dy.cols());
    if let Some(LowRank { a, .. }) = layer.adapter {
        check::shape(op, "a", a, a.rows(), inputs);
        check::shape(op, "dlow", dlow, tokens, a.rows());
    }
}

/// Multiplies the first half of an adapter, scaled; gives what is left of it.
fn begin<'a>(low: &'a mut Tensor, x: &Tensor, adapter: Option<LowRank<'a>>) -> Option<(&'a Tensor, &'a Tensor)> {
    let LowRank { a, b, scale } = adapter?;
    project(low, x, a, None, scale, Write::Set);
    Some((low, b))
}
