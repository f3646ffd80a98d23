//! A block of the vision tower.

use mgsd_compute::ops::attention::{self, Layout};
use mgsd_compute::ops::gelu::{self, Gelu};
use mgsd_compute::ops::{layer_norm, rope, rows};
use mgsd_compute::{Tensor, Write};

use super::Descent;
use crate::linear::{Adapter, Linear};
use crate::param::Parameter;

/// Every LayerNorm of the tower has this.
const EPS: f32 = 1e-6;

/// LayerNorm with bias.
pub struct Norm {
    /// `[1, width]`
    pub weight: Parameter,
    /// `[1, width]`
    pub bias: Parameter,
}

/// One block: full attention within a frame, then a two-layer feed-forward.
pub struct VisionBlock {
    /// Before attention.
    pub norm1: Norm,
    /// `[3 * hidden, hidden]`: queries, keys, values.
    pub qkv: Linear,
    /// `[hidden, hidden]`
    pub proj: Linear,
    /// Before the feed-forward.
    pub norm2: Norm,
    /// `[intermediate, hidden]`
    pub fc1: Linear,
    /// `[hidden, intermediate]`
    pub fc2: Linear,
}

/// What a block leaves for its pass back.
#[derive(Default)]
pub(super) struct BlockActivations {
    pub(super) attn_in: Tensor,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) attended: Tensor,
    pub(super) log_sum_exp: Tensor,
    pub(super) mid: Tensor,
    pub(super) mlp_in: Tensor,
    pub(super) wide: Tensor,
    pub(super) bent: Tensor,
    /// `x Aᵀ` of qkv, proj, fc1, fc2.
    pub(super) low: [Tensor; 4],
}

/// What all blocks of a pass have in common.
pub(super) struct Common<'a> {
    pub(super) cos: &'a Tensor,
    pub(super) sin: &'a Tensor,
    pub(super) layout: Layout<'a>,
    pub(super) adapter: Adapter,
}

impl Norm {
    pub(super) fn forward(&self, out: &mut Tensor, x: &Tensor) {
        layer_norm::forward(out, x, &self.weight.value, &self.bias.value, EPS);
    }

    pub(super) fn backward(&mut self, dx: &mut Tensor, dout: &Tensor, x: &Tensor, write: Write) {
        let grads = self.weight.grad.as_mut().zip(self.bias.grad.as_mut());
        layer_norm::backward(dx, grads, dout, x, &self.weight.value, EPS, write);
    }

    pub(super) fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.weight);
        f(&self.bias);
    }

    pub(super) fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.weight);
        f(&mut self.bias);
    }

    pub(super) fn is_trainable(&self) -> bool {
        self.weight.is_trainable()
    }
}

impl VisionBlock {
    pub(super) fn forward(
        &self,
        a: &mut BlockActivations,
        qkv: &mut Tensor,
        x: &Tensor,
        out: &mut Tensor,
        common: &Common,
    ) {
        let &Common { cos, sin, ref layout, adapter } = common;
        self.norm1.forward(&mut a.attn_in, x);
        self.qkv.forward(qkv, &a.attn_in, &mut a.low[0], Write::Set, adapter);
        rows::split_columns([&mut a.q, &mut a.k, &mut a.v], qkv);
        rope::forward(&mut a.q, cos, sin);
        rope::forward(&mut a.k, cos, sin);
        attention::forward(&mut a.attended, &mut a.log_sum_exp, &a.q, &a.k, &a.v, layout);
        self.proj.forward_onto(&mut a.mid, x, &a.attended, &mut a.low[1], adapter);
        self.norm2.forward(&mut a.mlp_in, &a.mid);
        self.fc1.forward(&mut a.wide, &a.mlp_in, &mut a.low[2], Write::Set, adapter);
        gelu::forward(&mut a.bent, &a.wide, Gelu::Tanh);
        self.fc2.forward_onto(out, &a.mid, &a.bent, &mut a.low[3], adapter);
    }

    /// `d.stream` holds the gradient of the output and receives that of the input.
    pub(super) fn backward(
        &mut self,
        a: &BlockActivations,
        d: &mut Descent,
        qkv: &mut Tensor,
        x: &Tensor,
        common: &Common,
        through: bool,
    ) {
        let &Common { cos, sin, ref layout, adapter } = common;
        self.fc2.backward(Some((&mut d.bent, Write::Set)), &d.stream, &a.bent, &a.low[3], &mut d.low, adapter);
        gelu::backward(&mut d.wide, &d.bent, &a.wide, Gelu::Tanh);
        self.fc1.backward(Some((&mut d.norm, Write::Set)), &d.wide, &a.mlp_in, &a.low[2], &mut d.low, adapter);
        self.norm2.backward(&mut d.stream, &d.norm, &a.mid, Write::Add);
        self.proj.backward(Some((&mut d.attended, Write::Set)), &d.stream, &a.attended, &a.low[1], &mut d.low, adapter);
        attention::backward(
            &mut d.q,
            &mut d.k,
            &mut d.v,
            &d.attended,
            &a.attended,
            &a.log_sum_exp,
            &a.q,
            &a.k,
            &a.v,
            layout,
        );
        rope::backward(&mut d.q, cos, sin);
        rope::backward(&mut d.k, cos, sin);
        rows::join_columns(qkv, [&d.q, &d.k, &d.v]);
        let into = through || self.norm1.is_trainable();
        self.qkv.backward(into.then_some((&mut d.norm, Write::Set)), qkv, &a.attn_in, &a.low[0], &mut d.low, adapter);
        if into {
            self.norm1.backward(&mut d.stream, &d.norm, x, Write::Add);
        }
    }

    pub(super) fn is_trainable(&self) -> bool {
        let mut any = false;
        self.visit(&mut |p| any |= p.is_trainable());
        any
    }

    /// The linear layers.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.proj, &self.fc1, &self.fc2]
    }

    /// The same, mutable.
    pub fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.qkv, &mut self.proj, &mut self.fc1, &mut self.fc2]
    }

    pub(super) fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm1.visit(f);
        self.norm2.visit(f);
        self.linears().into_iter().for_each(|l| l.visit(f));
    }

    pub(super) fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm1.visit_mut(f);
        self.norm2.visit_mut(f);
        [&mut self.qkv, &mut self.proj, &mut self.fc1, &mut self.fc2].into_iter().for_each(|l| l.visit_mut(f));
    }
}
