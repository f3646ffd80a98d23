//! A linear layer, with or without bias, with or without a low-rank adapter beside it.

use mgsd_compute::ops::linear::layer::{self, Above, GatedBack, Onto};
use mgsd_compute::ops::linear::{self, Layer, LowRank};
use mgsd_compute::{Tensor, Write};

use crate::lora::Lora;
use crate::param::Parameter;

/// Whether a pass goes through the adapters. `Off` is the base model: so a frozen teacher and its student share one
/// set of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// Base weights plus adapters.
    On,
    /// Base weights alone.
    Off,
}

/// `y = x Wᵀ + b + scale * (x Aᵀ) Bᵀ`
pub struct Linear {
    /// `[out, in]`
    pub weight: Parameter,
    /// `[1, out]`
    pub bias: Option<Parameter>,
    /// The adapter, if one was added.
    pub lora: Option<Lora>,
}

impl Linear {
    /// A frozen layer without adapter.
    pub fn new(weight: Parameter, bias: Option<Parameter>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// Its name in checkpoints, without the trailing `.weight`.
    pub fn name(&self) -> &str {
        let name = &self.weight.name;
        name.strip_suffix(".weight").unwrap_or(name)
    }

    /// `x: [tokens, in]`, `out: [tokens, out]`. `low` receives `scale * x Aᵀ`, which [`backward`](Self::backward) wants
    /// back.
    pub fn forward(&self, out: &mut Tensor, x: &Tensor, low: &mut Tensor, write: Write, adapter: Adapter) {
        layer::forward(out, write.into(), x, self.layer(adapter), low);
    }

    /// `out = base + y`: for layers whose result is added to the stream.
    pub fn forward_onto(&self, out: &mut Tensor, base: &Tensor, x: &Tensor, low: &mut Tensor, adapter: Adapter) {
        layer::forward(out, Onto::Other(base), x, self.layer(adapter), low);
    }

    /// As the operations want it.
    pub fn layer(&self, adapter: Adapter) -> Layer<'_> {
        let lora = self.lora.as_ref().filter(|_| adapter == Adapter::On);
        Layer {
            weight: &self.weight.value,
            bias: self.bias.as_ref().map(|b| &b.value),
            adapter: lora.map(|lora| LowRank { a: &lora.a.value, b: &lora.b.value, scale: lora.scale }),
        }
    }

    /// Adds to the gradients of what is trained here; `dx: None` when nothing below wants a gradient. `low` is what
    /// [`forward`](Self::forward) left, `dlow` is scratch.
    pub fn backward(
        &mut self,
        dx: Option<(&mut Tensor, Write)>,
        dy: &Tensor,
        x: &Tensor,
        low: &Tensor,
        dlow: &mut Tensor,
        adapter: Adapter,
    ) {
        self.backward_input(dx, dy, dlow, adapter);
        self.backward_weights(dy, x, low, dlow, adapter);
    }

    /// The first half of [`backward`](Self::backward), which does not need `x`: the gradient of the input. `dlow` is for the
    /// second half.
    pub fn backward_input(&self, dx: Option<(&mut Tensor, Write)>, dy: &Tensor, dlow: &mut Tensor, adapter: Adapter) {
        Self::backward_inputs([(self, dy, dlow)], dx, adapter);
    }

    /// The same of layers that share their input: `dx` receives the sum. Each has a `dlow` of its own.
    pub fn backward_inputs<const N: usize>(
        layers: [(&Self, &Tensor, &mut Tensor); N],
        dx: Option<(&mut Tensor, Write)>,
        adapter: Adapter,
    ) {
        let layers = layers.map(|(layer, dy, dlow)| layer.above(dy, dlow, dx.is_some(), adapter));
        if let Some((dx, write)) = dx {
            layer::backward_input(dx, &layers, write);
        }
    }

    /// The same of a layer above a gated product, which goes on to the gradients of gate and up.
    pub fn backward_gated(&self, back: GatedBack, dy: &Tensor, dlow: &mut Tensor, adapter: Adapter) {
        layer::backward_gated(back, self.above(dy, dlow, true, adapter));
    }

    /// Makes `dlow` if it is wanted: `through`, for what lies below, or for the adapter itself.
    fn above<'a>(&'a self, dy: &'a Tensor, dlow: &'a mut Tensor, through: bool, adapter: Adapter) -> Above<'a> {
        let lora = self.lora.as_ref().filter(|_| adapter == Adapter::On);
        if let Some(lora) = lora.filter(|lora| through || lora.a.is_trainable()) {
            linear::backward_input(dlow, dy, &lora.b.value, lora.scale, Write::Set);
        }
        Above { layer: self.layer(adapter), dy, dlow }
    }

    /// The second half: gradients of what is trained here.
    pub fn backward_weights(&mut self, dy: &Tensor, x: &Tensor, low: &Tensor, dlow: &Tensor, adapter: Adapter) {
        if let Some(grad) = &mut self.weight.grad {
            linear::backward_weight(grad, dy, x, 1.0);
        }
        if let Some(grad) = self.bias.as_mut().and_then(|b| b.grad.as_mut()) {
            linear::backward_bias(grad, dy);
        }
        if let Some(lora) = self.lora.as_mut().filter(|_| adapter == Adapter::On) {
            if let Some(grad) = &mut lora.b.grad {
                linear::backward_weight(grad, dy, low, 1.0);
            }
            if let Some(grad) = &mut lora.a.grad {
                linear::backward_weight(grad, dlow, x, 1.0);
            }
        }
    }

    /// Whether any weight of this layer is trained.
    pub fn is_trainable(&self) -> bool {
        let mut any = false;
        self.visit(&mut |p| any |= p.is_trainable());
        any
    }

    /// Calls `f` with weight, bias, A and B.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.weight);
        self.bias.iter().for_each(&mut *f);
        if let Some(lora) = &self.lora {
            f(&lora.a);
            f(&lora.b);
        }
    }

    /// The same, mutable.
    pub fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.weight);
        self.bias.iter_mut().for_each(&mut *f);
        if let Some(lora) = &mut self.lora {
            f(&mut lora.a);
            f(&mut lora.b);
        }
    }
}
