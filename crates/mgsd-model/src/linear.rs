//! A linear layer, with or without bias, with or without a low-rank adapter beside it.

use mgsd_compute::ops::linear::layer::{self, Above, Onto};
use mgsd_compute::ops::linear::{self, Layer, LowRank, thin};
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
    pub fn new(weight: Parameter, mut bias: Option<Parameter>) -> Self {
        if let Some(bias) = &mut bias {
            bias.follow(&weight);
        }
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
        Self::backward_inputs([(self, dy, low, dlow)], dx, adapter);
        Self::backward_weights([(self, dy, dlow)], x, adapter);
    }

    /// The first half of [`backward`](Self::backward), which does not need `x`, of layers that share it: `dx` receives the
    /// sum. For each layer its `dy`, its `low` and a `dlow` of its own, which the second half wants.
    pub fn backward_inputs<const N: usize>(
        layers: [(&mut Self, &Tensor, &Tensor, &mut Tensor); N],
        dx: Option<(&mut Tensor, Write)>,
        adapter: Adapter,
    ) {
        let layers = layers.map(|(layer, dy, low, dlow)| {
            if let Some(lora) = layer.lora.as_mut().filter(|_| adapter == Adapter::On) {
                let of = LowRank { a: &lora.a.value, b: &lora.b.value, scale: lora.scale };
                match &mut lora.b.grad {
                    db if dx.is_some() || lora.a.grad.is_some() => thin::back(dlow, db.as_mut(), dy, low, of),
                    Some(db) => linear::backward_weight(db, dy, low, 1.0),
                    None => {}
                }
            }
            Above { layer: layer.layer(adapter), dy, dlow }
        });
        if let Some((dx, write)) = dx {
            layer::backward_input(dx, &layers, write);
        }
    }

    /// The second half: for each of the layers that share `x` its `dy` and `dlow`.
    pub fn backward_weights<const N: usize>(layers: [(&mut Self, &Tensor, &Tensor); N], x: &Tensor, adapter: Adapter) {
        let mut halves = Vec::new();
        for (layer, dy, dlow) in layers {
            if let Some(grad) = &mut layer.weight.grad {
                linear::backward_weight(grad, dy, x, 1.0);
            }
            if let Some(grad) = layer.bias.as_mut().and_then(|b| b.grad.as_mut()) {
                linear::backward_bias(grad, dy);
            }
            let lora = layer.lora.as_mut().filter(|_| adapter == Adapter::On);
            halves.extend(lora.and_then(|lora| lora.a.grad.as_mut()).map(|da| (da, dlow)));
        }
        if !halves.is_empty() {
            thin::gradients(&mut halves, x);
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
